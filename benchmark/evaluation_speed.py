"""How fast a package is evaluated, against PyTorch: `python -m benchmark.evaluation_speed`.

Both sides are what an evaluation calls, evaluators.package_model and evaluators.torch_model, with the same rows, batch
size and threads: rows sorted by length, class logits of the pooled position alone, logits of the scored positions
alone. "PyTorch, unsorted" classifies batches in the order of the rows, which is what a plain loop over a data loader
does; "package, one batch after the other" is the package without batches side by side. Everything runs in one process
and in turn, so that a ratio compares neighbours in time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.interleaved import Ratio, interleave, paired_ratio
from runtime.atomic_file import write_text
from runtime.errors import DataError, OlivalError

BASE = Path("models/tiny")
SAMPLES = Path("data/samples")
RANK = 16
LABELS = ["ham", "spam"]
TARGET = 2.0  # times as many samples per second as PyTorch


def main() -> None:
    """Measures and prints a line for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--package", type=Path, help="measure this one, not a new one with random adapters")
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=FOLDER", help="PEFT folder of the package's adapter"
    )
    parser.add_argument("--base", type=Path, default=BASE, help="model folder that the package was made from")
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="folder of the texts")
    parser.add_argument("--precision", default="int4", help="of a new package")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=2000, help="texts to classify")
    parser.add_argument("--text-bytes", type=int, default=200_000, help="text whose perplexity is measured")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="also write the results here, as JSON")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="evaluation-speed-") as work:
            package, adapters = _given(args.package, args.adapter) or build(Path(work), args.base, args.precision)
            results = measure(
                package,
                args.base,
                adapters,
                texts(args.samples, args.rows),
                text(args.samples, args.text_bytes),
                args.rounds,
                args.batch_size,
            )
    except OlivalError as error:
        sys.exit(f"error: {error}")
    for row in results["rows"]:
        print(as_line(row))
    if args.out:
        write_text(args.out, json.dumps(results, indent=2) + "\n")


def measure(
    package: Path,
    base: Path,
    adapters: dict[str, Path],
    rows: list[str],
    whole: str,
    rounds: int,
    batch_size: int,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Samples per second of the package and of PyTorch, and their ratio.

    Args:
        package: folder of the package; its target's threads are what PyTorch gets too.
        base: the model folder that it was made from.
        adapters: its adapters by name, as PEFT folders with adapter.json; one classifies, one generates.
        rows: texts to classify.
        whole: text whose perplexity is measured, in windows of the model's context.
        rounds: of both tasks; see `benchmark.interleaved.interleave`.
        batch_size: of both sides.
        tell: called with a line about the progress.

    Raises:
        OlivalError: no adapter for one of the tasks, or package or adapters cannot be loaded.
    """
    import torch

    from evaluators.package_model import PackageModel
    from evaluators.perplexity import text_perplexity
    from evaluators.torch_model import TorchModel

    ours, theirs = PackageModel(package), TorchModel(base, adapters)
    plain = PackageModel(package, side_by_side=False)
    manifest = ours.runtime.manifest
    threads = manifest["target"]["threads"]
    if threads:
        torch.set_num_threads(threads)
    classifier, writer = (_adapter(manifest, adapters, task) for task in ("classification", "generation"))
    limit = theirs.context_length or 512
    ids = [theirs.encode(row)[:limit] for row in rows]
    encoded = theirs.encode(whole, special=False)
    prefix = (theirs.special_token("bos") or theirs.special_token("eos") or ("", 0))[1]

    def unsorted() -> None:
        for start in range(0, len(ids), batch_size):
            theirs.class_logits(ids[start : start + batch_size], classifier, batch_size)

    def perplexity(model: Any) -> dict[str, float | None]:
        return text_perplexity(model, [whole], [encoded], writer, limit, prefix=prefix, batch_size=batch_size)

    tasks: dict[str, tuple[int, str, dict[str, Callable[[], object]]]] = {
        "classification": (
            len(ids),
            "rows",
            {
                "package": partial(ours.class_logits, ids, classifier, batch_size),
                "PyTorch": partial(theirs.class_logits, ids, classifier, batch_size),
                "PyTorch, unsorted": unsorted,
                "package, one batch after the other": partial(plain.class_logits, ids, classifier, batch_size),
            },
        ),
        "perplexity": (
            len(encoded),
            "tokens",
            {
                "package": partial(perplexity, ours),
                "PyTorch": partial(perplexity, theirs),
                "package, one batch after the other": partial(perplexity, plain),
            },
        ),
    }
    results: dict[str, Any] = {
        "package": manifest["name"],
        "precision": manifest["precision"],
        "threads": threads,
        "batch_size": batch_size,
        "rounds": rounds,
        "perplexity": {"package": perplexity(ours)["perplexity"], "PyTorch": perplexity(theirs)["perplexity"]},
        "rows": [],
    }
    for task, (count, unit, loads) in tasks.items():
        seconds = interleave(loads, rounds, tell=lambda line, task=task: tell(f"{task}: {line}"))  # type: ignore[misc]
        for name in [name for name in loads if name != "package"]:
            ratio = paired_ratio(seconds[name], seconds["package"])
            results["rows"].append(describe(task, count, unit, name, seconds["package"], seconds[name], ratio))
    return results


def describe(
    task: str, count: int, unit: str, other: str, package: list[float], seconds: list[float], ratio: Ratio
) -> dict[str, Any]:
    """One comparison: medians of samples per second, and how often the package does what PyTorch does once."""
    from statistics import median

    return {
        "task": task,
        "samples": count,
        "unit": unit,
        "against": other,
        "package_per_second": count / median(package),
        "other_per_second": count / median(seconds),
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
        "target": TARGET if other == "PyTorch" else None,
        "seconds": {"package": package, other: seconds},
    }


def as_line(row: dict[str, Any]) -> str:
    """A comparison for the terminal."""
    verdict = ""
    if row["target"] is not None:
        verdict = f", target >= {row['target']:g} {'met' if row['ratio'] >= row['target'] else 'MISSED'}"
    return (
        f"{row['task']}: package {row['package_per_second']:,.0f} {row['unit']}/s, "
        f"{row['against']} {row['other_per_second']:,.0f} {row['unit']}/s, "
        f"ratio {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}){verdict}"
    )


def texts(samples: Path, count: int) -> list[str]:
    """The labelled messages of `data/samples`, English and Portuguese, over and over until there are `count`."""
    return list(itertools.islice(itertools.cycle(_sample_texts(samples)), count))


def text(samples: Path, size: int) -> str:
    """The same messages as one text of about `size` bytes, a line each."""
    lines: list[str] = []
    for line in itertools.cycle(_sample_texts(samples)):
        if size <= 0:
            return "\n".join(lines)
        lines.append(line)
        size -= len(line.encode("utf-8")) + 1
    raise DataError(f"{samples}: there are no texts")


def _sample_texts(samples: Path) -> list[str]:
    import csv

    def read() -> Iterator[str]:
        for path in sorted(samples.glob("*.csv")):
            with path.open(encoding="utf-8", newline="") as file:
                yield from (row["text"] for row in csv.DictReader(file) if row.get("text"))
        for path in sorted(samples.glob("*.jsonl")):
            rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            yield from (row["text"] for row in rows if row.get("text"))

    found = list(read())
    if not found:
        raise DataError(f"{samples}: has no .csv or .jsonl file with a column 'text'")
    return found


def build(work: Path, base: Path, precision: str) -> tuple[Path, dict[str, Path]]:
    """A package of `base` with two random adapters of rank 16, and their PEFT folders."""
    from benchmark.random_adapter import save_random_adapter
    from passes.package import write_package

    adapters = {name: work / name for name in ("labels", "words")}
    for seed, folder in enumerate(adapters.values()):
        save_random_adapter(folder, base, RANK, seed)
    _make_classifier(adapters["labels"], base)
    _write_settings(adapters["words"], "generation", None)
    package = work / "package"
    write_package(
        package,
        base_path=base,
        adapter_folders=adapters,
        precision=precision,
        execution_provider="cpu",
        name="evaluation-speed",
    )
    return package, adapters


def _make_classifier(folder: Path, base: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    hidden = json.loads((base / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    path = folder / "adapter_model.safetensors"
    head = np.random.default_rng(0).normal(0, 0.1, (len(LABELS), hidden)).astype(np.float32)
    save_file({**load_file(path), "base_model.model.score.weight": head}, path, metadata={"format": "pt"})
    _write_settings(folder, "classification", LABELS)


def _write_settings(folder: Path, task: str, labels: list[str] | None) -> None:
    template = "{text}" if labels else "{prompt}"
    settings: dict[str, Any] = {"name": folder.name, "task": task, "labels": labels, "template": template}
    settings |= {"max_length": None, "pooling": "last", "window_stride": None, "metrics": {}}
    (folder / "adapter.json").write_text(json.dumps(settings), encoding="utf-8")


def _given(package: Path | None, adapters: list[str]) -> tuple[Path, dict[str, Path]] | None:
    if package is None:
        return None
    pairs = [given.partition("=") for given in adapters]
    if not pairs or any(not folder for _, _, folder in pairs):
        raise OlivalError("--package needs its adapters as PyTorch has them: --adapter NAME=FOLDER, for both tasks")
    return package, {name: Path(folder) for name, _, folder in pairs}


def _adapter(manifest: Mapping[str, Any], adapters: dict[str, Path], task: str) -> str:
    for name in adapters:
        if manifest["adapters"].get(name, {}).get("task") == task:
            return name
    raise OlivalError(f"none of {', '.join(adapters)} is an adapter for {task} of package {manifest['name']}")


if __name__ == "__main__":
    main()
