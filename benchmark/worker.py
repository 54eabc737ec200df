"""Measures one package on one execution provider, in this fresh process: `python -m benchmark.worker PACKAGE ...`.

A process of its own, because peak memory is that of a whole process and an execution provider is never unloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.fresh_process import write_result
from evaluators.latency import LEAST_SAMPLES, PROMPT_TEXT, measure_calls, measure_generation
from runtime.errors import ConfigError, OlivalError, nearest
from runtime.manifest import read_manifest
from runtime.model import MultiAdapterModel
from runtime.peak_memory import peak_rss_bytes
from runtime.session import PROVIDERS
from runtime.virtual_tokens import count

BASE = "base"  # how --adapters names the base alone
_SIZES = {"batch_sizes": 1, "prompt_tokens": 1, "new_tokens": 2, "runs": LEAST_SAMPLES[50], "threads": 1}  # at least
_WHY = {"new_tokens": ": one token has no time per token", "runs": ": fewer have no median"}


@dataclass(frozen=True)
class Job:
    """What to measure, checked. `adapters` holds None for the base; `tasks` says what each adapter of them does."""

    folder: Path
    manifest: Mapping[str, Any]
    execution_provider: str
    adapters: Sequence[str | None]
    batch_sizes: Sequence[int]
    prompt_tokens: Sequence[int]
    new_tokens: int
    runs: int
    threads: int | None

    def named(self, task: str) -> list[str]:
        """The adapters for a task."""
        return [name for name in self.adapters if name and self.manifest["adapters"][name]["task"] == task]


def measure(job: Job, tell: Callable[[str], object]) -> dict[str, Any]:
    """The measurement of one package on one execution provider.

    "load_seconds" is from the call that loads until the first token of the base was generated, of a prompt of one
    token (where only classification is measured: until the first text of one token was classified). The files were
    read once before, to compare them with the manifest, so that the system has them in memory; that comparison is not
    in the time, nor is the import of the runtime. "peak_rss_bytes" is of the whole process at its end, Python and its
    libraries included, the memory of a GPU not. In a batch all rows have the same prompt. "quality" is what the
    package's manifest says.

    Raises:
        ProviderError: this machine does not have the execution provider.
        PackageError: the package is damaged, or does not run.
    """
    manifest = job.manifest
    with contextlib.suppress(ImportError):  # the model says what is missing
        import onnxruntime_genai  # noqa: F401
    tell("comparing the files with the manifest")
    read_manifest(job.folder)
    tell("loading")
    start = time.perf_counter()
    model = MultiAdapterModel.load(
        job.folder, verify=False, execution_provider=job.execution_provider, threads=job.threads
    )
    if None in job.adapters or job.named("generation"):
        list(model.tokens([0], None, 1, stop_at_eos=False))
    elif job.named("classification"):
        model.class_logits([[0]], job.named("classification")[0])
    load_seconds = time.perf_counter() - start
    generation, classification = list(_generation(job, model, tell)), list(_classification(job, model, tell))
    entries = manifest["adapters"]
    sizes = {name: entry["bytes"] for name, entry in entries.items()}
    base = sum(entry["bytes"] for entry in manifest["files"].values())
    return {
        "package": manifest.get("name") or job.folder.name,
        "folder": str(job.folder),
        "fingerprint": manifest["base"]["fingerprint"],
        "precision": manifest["precision"],
        "execution_provider": job.execution_provider,
        "threads": model.threads,
        "load_seconds": load_seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "size_bytes": {"base": base, "adapters": sizes, "total": base + sum(sizes.values())},
        "generation": generation,
        "classification": classification,
        "quality": {
            name: {metric: columns["package"] for metric, columns in (entry.get("metrics") or {}).items()}
            for name, entry in entries.items()
        },
    }


def _generation(job: Job, model: MultiAdapterModel, tell: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    """The base and the generation adapters in turn, for each length of the prompt and size of the batch."""
    adapters = [*([None] if None in job.adapters else []), *job.named("generation")]
    for length, size in ((p, b) for p in job.prompt_tokens for b in job.batch_sizes if adapters):
        ids = _prompt(model, length)
        streams = {
            name or BASE: partial(
                model.tokens_batch, [(ids, name)] * size, max_new_tokens=job.new_tokens, stop_at_eos=False
            )
            for name in adapters
        }
        what = f"{', '.join(streams)}: {size} x {length} tokens, {job.new_tokens} new"
        measured = measure_generation(streams, job.runs, batch_size=size, tell=_said(what, tell))
        for name in adapters:
            yield {
                "adapter": name,
                "prompt_tokens": length,
                "new_tokens": job.new_tokens,
                **measured[name or BASE],
            }


def _classification(job: Job, model: MultiAdapterModel, tell: Callable[[str], object]) -> Iterator[dict[str, Any]]:
    """The classification adapters in turn, for each length of the text and size of the batch."""
    adapters = job.named("classification")
    for length, size in ((p, b) for p in job.prompt_tokens for b in job.batch_sizes if adapters):
        rows = [_prompt(model, length)] * size
        calls = {name: partial(model.class_logits, rows, name, size) for name in adapters}
        what = f"{', '.join(calls)}: {size} x {length} tokens"
        measured = measure_calls(calls, job.runs, batch_size=size, tell=_said(what, tell))
        for name in adapters:
            yield {"adapter": name, "prompt_tokens": length, **measured[name]}


def _prompt(model: MultiAdapterModel, length: int) -> list[int]:
    return list(model.tokenizer.encode(PROMPT_TEXT * length).ids[:length])


def _said(what: str, tell: Callable[[str], object]) -> Callable[[str], object]:
    """Says what is measured at once, and how far it is whenever two seconds are over."""
    tell(what)
    said = time.monotonic()

    def say(line: str) -> None:
        nonlocal said
        if time.monotonic() - said >= 2:
            said = time.monotonic()
            tell(f"{what}: {line}")

    return say


def read_job(options: argparse.Namespace) -> Job:
    """A job from the command line's texts.

    Raises:
        ConfigError: everything that is wrong with them.
        PackageError: there is no package to compare them with.
    """
    numbers, problems = read_numbers(options)
    if options.execution_provider not in PROVIDERS:
        known = nearest(options.execution_provider, PROVIDERS)
        problems.append(f"--execution-provider: there is no '{options.execution_provider}'; {known}")
    if not options.output.absolute().parent.is_dir():
        problems.append(f"--output {options.output}: there is no folder {options.output.absolute().parent}")
    try:
        manifest = read_manifest(options.package, verify=False)
    except OlivalError as error:
        raise ConfigError([*problems, str(error)]) from error
    entries, generates = manifest["adapters"], manifest["base"].get("generates", True)
    names = [BASE, *entries] if generates else list(entries)
    wanted = [name for text in options.adapters or [] for name in text.split(",")] or names
    problems += [f"--adapters: there is no '{name}'; {nearest(name, names)}" for name in wanted if name not in names]
    writes = any(name == BASE or entries.get(name, {}).get("task") == "generation" for name in wanted)
    # virtual tokens stand before the prompts of some adapters
    context = int(manifest["base"]["context_length"]) - max((count(entries.get(name)) for name in wanted), default=0)
    longest = max(numbers["prompt_tokens"], default=0) + (max(numbers["new_tokens"], default=0) if writes else 0)
    if longest > context:
        kinds = "--prompt-tokens and --new-tokens" if writes else "--prompt-tokens"
        problems.append(f"{kinds}: the longest makes {longest} tokens, but the base's context is {context}")
    if problems:
        raise ConfigError(problems)
    return Job(
        options.package,
        manifest,
        options.execution_provider,
        [None if name == BASE else name for name in dict.fromkeys(wanted)],
        numbers["batch_sizes"],
        numbers["prompt_tokens"],
        numbers["new_tokens"][0],
        numbers["runs"][0],
        numbers["threads"][0] if numbers["threads"] else None,
    )


def read_numbers(options: argparse.Namespace) -> tuple[dict[str, list[int]], list[str]]:
    """The command line's texts such as "1,4" as numbers by option, and what is wrong with them."""
    problems: list[str] = []
    numbers = {name: _numbers(name, getattr(options, name), problems) for name in _SIZES}
    for name in ("new_tokens", "runs", "threads"):
        if len(numbers[name]) > 1:
            problems.append(f"--{name.replace('_', '-')}: takes one number, but got {getattr(options, name)!r}")
    return numbers, problems


def _numbers(name: str, text: str | None, problems: list[str]) -> list[int]:
    """Whole numbers from "1,4"; None gives none. What is wrong goes into `problems`."""
    try:
        numbers = [int(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        numbers = [0]
    if any(number < _SIZES[name] for number in numbers):
        what = f"must be {_SIZES[name]} or more{_WHY.get(name, '')}"
        problems.append(f"--{name.replace('_', '-')}: {what}, but got {text!r}")
    return list(dict.fromkeys(numbers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmark.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("package", type=Path, help="folder of a finished package")
    parser.add_argument("--execution-provider", default="cpu", help=f"{', '.join(PROVIDERS)} (default: cpu)")
    parser.add_argument("--output", type=Path, required=True, help="JSON file that is written")
    parser.add_argument(
        "--adapters", nargs="+", help=f"names, '{BASE}' for the base without one (default: all of the package)"
    )
    parser.add_argument("--batch-sizes", default="1", help="rows that are computed together, such as 1,4 (default: 1)")
    parser.add_argument("--prompt-tokens", default="32", help="such as 32,256 (default: 32)")
    parser.add_argument("--new-tokens", default="64", help="generated by each row of each run (default: 64)")
    parser.add_argument("--runs", default="20", help="of each measurement, after its warm-up (default: 20)")
    parser.add_argument("--threads", help="compute threads (default: those of the package's target)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 1 after printing an error; then nothing is written."""
    options = _parser().parse_args(arguments)

    def tell(line: str) -> None:
        print(f"{datetime.now():%H:%M:%S} {line}", file=sys.stderr, flush=True)

    return write_result(options.output, lambda: measure(read_job(options), tell))


if __name__ == "__main__":
    raise SystemExit(main())
