"""Tasks of lm-evaluation-harness on a package, or on the PyTorch model beside it, with one adapter chosen.

Texts become ids as in the harness's own HFLM, so that the same task gives the same numbers on the model before and on
the package after: context and continuation are encoded together and split, a context's trailing white space belongs to
the continuation, long ones lose their beginning, rolling windows do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.perplexity import windows
from runtime.errors import ConfigError, OlivalError, nearest

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

BOOTSTRAPS = 100  # resamples of scores that are no means, for their standard error; the harness's most for BLEU
MAX_NEW_TOKENS = 256  # of a task that does not say; HFLM's number


def run_tasks(
    model: Any,
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    adapter: str | None = None,
    limit: int | float | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Scores of tasks: {task: {"metric,filter": value}}, by the harness's own names, such as "acc,none".

    Where the harness has a standard error of a score it stands beside it, as "acc_stderr,none".

    Args:
        model: evaluators.package_model.PackageModel or evaluators.torch_model.TorchModel.
        tasks: names of tasks, groups or tags. Those of the harness load their data from the Hugging Face hub.
        include_path: a folder with task files (YAML) of one's own.
        adapter: name of a generation adapter, None for the base.
        limit: first rows of each task to take, or below 1 their share; None takes all.
        num_fewshot: examples before each question, in the place of the task's own number.
        batch_size: rows of like length that are run together.

    Raises:
        ConfigError: an unknown task, with the nearest; every one in one error.
        OlivalError: lm-eval is not installed, `include_path` is no folder, a task's data cannot be had, a task samples
            instead of taking the likeliest token, or logits are not finite.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise OlivalError(
            f"tasks of lm-evaluation-harness need lm-eval: pip install -c constraints.txt -e '.[harness]' ({error})"
        ) from error
    if include_path is not None and not Path(include_path).is_dir():
        raise OlivalError(f"{include_path}: there is no such folder of task files")
    if not tasks:
        raise OlivalError("no task is named")
    own = TaskManager(include_path=str(include_path), include_defaults=False) if include_path is not None else None
    known = set(own.all_tasks) if own is not None else set()
    # reading the harness's own thousands of task files takes seconds, so it waits until one of them is asked for
    manager = own if own is not None and known.issuperset(tasks) else TaskManager(include_path=_text(include_path))
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise ConfigError([f"there is no task '{name}'; {_nearest_task(name, known, manager)}" for name in unknown])
    try:
        results = simple_evaluate(
            model=harness_model(model, adapter, batch_size),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            num_fewshot=num_fewshot,
            log_samples=False,
            bootstrap_iters=BOOTSTRAPS,
        )
    except OlivalError:
        raise
    except (OSError, ValueError) as error:  # of datasets and the hub's client: no file, no network
        raise OlivalError(f"{', '.join(tasks)}: cannot be run: {type(error).__name__}: {error}") from error
    return {
        name: {key: value for key, value in scores.items() if "," in key and isinstance(value, int | float)}
        for name, scores in results["results"].items()
    }


def harness_model(model: Any, adapter: str | None = None, batch_size: int = 16) -> Any:
    """A model with one adapter as lm-evaluation-harness takes it: an `lm_eval.api.model.LM`.

    Raises:
        OlivalError: the tokenizer has neither BOS nor EOS, or the base states no context length.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
    from tqdm import tqdm

    begin, end = model.special_token("bos"), model.special_token("eos")
    prefix = begin or end
    if prefix is None or end is None:
        raise OlivalError("the tokenizer has no end-of-text token, which tasks of lm-evaluation-harness need")
    longest = model.text_length(adapter)
    if not longest:
        raise OlivalError("the base states no context length, which tasks of lm-evaluation-harness need")

    class AdapterLM(TemplateLM):
        """Encodes, scores and writes through `token_scores` and `generate`."""

        @property
        def eot_token_id(self) -> int:
            return int(end[1])

        @property
        def prefix_token_id(self) -> int:
            return int(prefix[1])

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            if add_special_tokens is None and has_bos_prefix(string, prefix[0]):
                add_special_tokens = False
            return list(model.encode(string, add_special_tokens))

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **_: Any) -> list[Any]:
            # one more than the context: the last token is predicted, not read
            rows = [(context + continuation)[-(longest + 1) :] for _, context, continuation in requests]
            long = [i for i, (_, _, continuation) in enumerate(requests) if len(continuation) > longest]
            if long:
                raise OlivalError(f"request {long[0]}: the continuation is longer than the context of {longest} tokens")
            starts = [len(row) - len(request[2]) for row, request in zip(rows, requests, strict=True)]
            found: list[tuple[float, bool]] = []
            with tqdm(total=len(rows), desc="Scoring", disable=disable_tqdm) as bar:
                for part in _parts(len(rows)):
                    for values, top in model.token_scores(rows[part], adapter, starts[part], batch_size):
                        found.append((float(values.sum()), bool(top.all())))
                        bar.update()
            for (texts, _, _), answer in zip(requests, found, strict=True):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
            return found

        def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
            rows: list[Sequence[int]] = []
            starts: list[int] = []
            owners: list[int] = []
            for number, request in enumerate(requests):
                for row, start in windows([prefix[1], *self.tok_encode(request.args[0])], longest, longest):
                    rows.append(row)
                    starts.append(start)
                    owners.append(number)
            sums = [0.0] * len(requests)
            with tqdm(total=len(rows), desc="Scoring windows", disable=disable_tqdm) as bar:
                for part in _parts(len(rows)):
                    scores = model.token_scores(rows[part], adapter, starts[part], batch_size)
                    for owner, (values, _) in zip(owners[part], scores, strict=True):
                        sums[owner] += float(values.sum())
                        bar.update()
            for request, total in zip(requests, sums, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return sums

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
            for number, request in enumerate(requests):
                settings = dict(normalize_gen_kwargs(request.args[1], MAX_NEW_TOKENS))
                if settings["do_sample"]:
                    raise OlivalError(
                        f"{request.task_name}: its generation_kwargs sample; only greedy answers are made"
                    )
                stop = handle_stop_sequences(list(settings["until"]), eos=end[0])
                if settings["max_gen_toks"] >= longest:
                    raise OlivalError(
                        f"{request.task_name}: max_gen_toks must be below the context of {longest} tokens, but is "
                        f"{settings['max_gen_toks']}"
                    )
                groups.setdefault((settings["max_gen_toks"], tuple(s for s in stop if s)), []).append(number)
            answers = [""] * len(requests)
            with tqdm(total=len(requests), desc="Writing", disable=disable_tqdm) as bar:
                for (new_tokens, stop), numbers in groups.items():
                    for part in _parts(len(numbers)):
                        chosen = numbers[part]
                        prompts = [self.tok_encode(requests[i].args[0])[-(longest - new_tokens) :] for i in chosen]
                        texts = model.generate(prompts, adapter, new_tokens, stop, batch_size)
                        for i, answer in zip(chosen, texts, strict=True):
                            answers[i] = answer
                            self.cache_hook.add_partial("generate_until", requests[i].args, answer)
                            bar.update()
            return answers

    def _parts(count: int) -> list[slice]:
        """Some batches at a time: rows of like length still meet, and the progress is seen."""
        size = 32 * batch_size
        return [slice(start, start + size) for start in range(0, count, size)]

    return AdapterLM()


def _nearest_task(name: str, own: set[str], manager: Any) -> str:
    """The nearest names; the harness has thousands, so what is listed in full are one's own tasks."""
    import difflib

    if own:
        return nearest(name, own)
    match = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, match))}?" if match else "`lm-eval ls tasks` lists them"


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
