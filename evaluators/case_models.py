"""What asks a model the cases: functions from texts to answers, and from texts to labels, with the adapter's template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evaluators.torch_model import TorchModel
from runtime.errors import PackageError, nearest
from runtime.prompts import fill

Answer = Callable[[list[str]], list[str]]
Classify = Callable[[list[str]], list[tuple[str, float]]]


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


def torch_classify(model: TorchModel, adapter: str) -> Classify:
    """The same of the PyTorch model, whose adapter has the same template, length and windows.

    Raises:
        PackageError: there is no such adapter, or it does not classify.
    """
    from data.tokenizing import aggregate_windows, encode_windows
    from runtime.classification import classification

    _check_adapter(model.info, adapter, "classification")
    entry = model.info[adapter]

    def classify(texts: list[str]) -> list[tuple[str, float]]:
        filled = [fill(entry["template"], text) for text in texts]
        length, stride = entry["max_length"], entry["window_stride"]
        documents = [encode_windows(model.tokenizer, text, length, stride) for text in filled]
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
