"""How a model is asked: with the adapter's template, and so that one text that it refuses spoils no other's answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evaluators.torch_model import TorchModel
from runtime.errors import OlivalError, PackageError, ProviderError, nearest
from runtime.prompts import fill

Answer = Callable[[list[str]], list[str]]
Classify = Callable[[list[str]], list[tuple[str, float]]]
Result = TypeVar("Result")
CHUNK = 64  # texts between two steps of the progress bar; models make batches of their own size from them


@dataclass(frozen=True)
class Refused:
    """In the place of an answer: the model raised an error of the workspace for this text."""

    reason: str


def ask(function: Callable[[list[str]], list[Result]], texts: Sequence[str], title: str) -> dict[str, Result | Refused]:
    """What `function` gives for each text, asked once for equal ones and in the order of their length.

    Where it raises an OlivalError the texts are halved until the ones that it refuses are found.

    Raises:
        ProviderError: the machine cannot run the model, whatever the text.
        ValueError: the function gives more or fewer results than it was given texts.
    """
    from tqdm import tqdm

    ordered = sorted(set(texts), key=lambda text: (len(text), text))
    found: dict[str, Result | Refused] = {}
    with tqdm(total=len(ordered), desc=title, unit="text", leave=False, disable=None) as bar:
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            results = _ask(function, chunk)
            found.update(zip(chunk, results, strict=True))
            bar.update(len(chunk))
    return found


def package_answer(model: Any, adapter: str | None = None, max_new_tokens: int = 64) -> Answer:
    """Greedy answers of a package, for `evaluators.cases.run_cases`.

    Args:
        model: an evaluators.package_model.PackageModel or a runtime.model.MultiAdapterModel.
        adapter: one that generates; None is the base without template.
        max_new_tokens: most tokens of an answer.

    Raises:
        PackageError: there is no such adapter, it does not generate, or the base is an encoder.
    """
    runtime = getattr(model, "runtime", model)
    if not runtime.manifest["base"].get("generates", True):
        raise PackageError(f"the base {runtime.manifest['base']['name']} is an encoder: it writes no answers")
    if adapter is not None:
        _check_adapter(runtime.adapters, adapter, "generation")
    return lambda prompts: runtime.generate_batch([(prompt, adapter) for prompt in prompts], max_new_tokens)


def package_classify(model: Any, adapter: str) -> Classify:
    """Labels of a package, each with its probability, for `evaluators.cases.run_classifier_cases`.

    Raises:
        PackageError: there is no such adapter, or it does not classify.
    """
    runtime = getattr(model, "runtime", model)
    _check_adapter(runtime.adapters, adapter, "classification")
    return lambda texts: [(found.label, found.probability) for found in runtime.classify(texts, adapter)]


def torch_answer(model: TorchModel, adapter: str | None = None, max_new_tokens: int = 64) -> Answer:
    """The same of the PyTorch model, whose adapter has the same template.

    Raises:
        PackageError: there is no such adapter, or it does not generate.
    """
    from data.tokenizing import encode_prompt

    if adapter is not None:
        _check_adapter(model.info, adapter, "generation")
    template = model.info[adapter]["template"] if adapter is not None else "{text}"

    def answer(prompts: list[str]) -> list[str]:
        filled = prompts if template == "chat" else [fill(template, prompt) for prompt in prompts]
        ids = [encode_prompt(model.tokenizer, prompt, template) for prompt in filled]
        return model.generate(ids, adapter, max_new_tokens)

    return answer


def torch_classify(model: TorchModel, adapter: str) -> Classify:
    """The same of the PyTorch model, whose adapter has the same template, length and windows.

    Raises:
        PackageError: there is no such adapter, or it does not classify.
    """
    from data.tokenizing import aggregate_windows, encode_windows
    from runtime.classification import classification

    _check_adapter(model.info, adapter, "classification")
    entry = model.info[adapter]
    length = entry["max_length"] or model.text_length(adapter) or model.model.config.max_position_embeddings

    def classify(texts: list[str]) -> list[tuple[str, float]]:
        filled = [fill(entry["template"], text) for text in texts]
        documents = [encode_windows(model.tokenizer, text, length, entry["window_stride"]) for text in filled]
        logits = model.class_logits([ids for windows in documents for ids in windows], adapter)
        rows = aggregate_windows(logits, [len(windows) for windows in documents])
        found = [classification(row, entry) for row in rows]
        return [(each.label, each.probability) for each in found]

    return classify


def _check_adapter(adapters: dict[str, Any], adapter: str, task: str) -> None:
    fitting = [name for name, entry in adapters.items() if entry["task"] == task]
    if adapter not in adapters:
        raise PackageError(f"there is no adapter '{adapter}' for {task}; {nearest(adapter, fitting)}")
    if adapter not in fitting:
        found = adapters[adapter]["task"]
        raise PackageError(f"adapter '{adapter}' is for {found}, not for {task}; {nearest(adapter, fitting)}")


def _ask(function: Callable[[list[str]], list[Result]], texts: list[str]) -> list[Result | Refused]:
    try:
        results = function(texts)
    except ProviderError:
        raise
    except OlivalError as error:
        if len(texts) == 1:
            return [Refused(str(error))]
        half = len(texts) // 2
        parts = texts[:half], texts[half:]
        return [each for part in parts for each in _ask(function, part)]
    if len(results) != len(texts):
        raise ValueError(f"the model gave {len(results)} answers to {len(texts)} texts")
    return [*results]
