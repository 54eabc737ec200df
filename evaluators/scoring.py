"""Scores of one adapter or package, a column for each model: base, PyTorch with the adapter, package."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data.examples import ClassificationData, GenerationData
from evaluators.case_quality import case_quality
from evaluators.finished_parts import FinishedParts
from evaluators.latency import (
    PROMPT_TEXT,
    WarmUp,
    measure_calls,
    measure_generation,
    table_intervals,
    table_values,
)
from evaluators.measuring import Measuring
from evaluators.quality import AnswerOptions, Quality, classification_quality, generation_quality
from evaluators.size import folder_bytes
from evaluators.subjects import Subjects
from runtime.errors import DataError


def adapter_quality(
    subjects: Subjects,
    adapter: str,
    data: ClassificationData | GenerationData | None,
    wanted: Sequence[str],
    options: AnswerOptions,
    parts: FinishedParts,
) -> Quality:
    """Scores of an adapter on held-out rows, in the columns base, pytorch, package and tfidf, as far as they are there.

    For classification "base" is a head on the frozen base (measured when the adapter was trained, on its own validation
    rows); for generation it is the base without the adapter.

    Raises:
        DataError: the data are for another task, or hold a label that the adapter does not know.
        OlivalError: logits that are no numbers; names adapter and row.
    """
    if data is None or isinstance(data, ClassificationData) != (subjects.tasks[adapter] == "classification"):
        source = data.source if data is not None else "no data"
        raise DataError(f"{source}: adapter '{adapter}' is for {subjects.tasks[adapter]}, its data are not")
    measuring = Measuring(subjects.models(), subjects.identities(), subjects.torch.tokenizer, parts)
    if isinstance(data, GenerationData):
        return generation_quality(measuring, adapter, data, wanted, options, base="pytorch")
    quality = classification_quality(measuring, adapter, data, wanted)
    file = subjects.folders[adapter] / "baselines.json"
    baselines = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if baselines.get("validation_data") == data.fingerprint:  # else measured on other rows than these
        for column, name in (("base", "frozen_head"), ("tfidf", "tfidf")):
            quality.add(column, {s: v for s, v in baselines.get(name, {}).items() if s in wanted}, {})
    return quality


def adapter_cases(
    subjects: Subjects,
    adapter: str,
    file: Path,
    data: ClassificationData | GenerationData | None,
    max_new_tokens: int,
    parts: FinishedParts,
) -> Quality:
    """Bias and robustness cases of an adapter, in the columns pytorch and package; see `case_quality`."""
    measuring = Measuring(subjects.models(), subjects.identities(), subjects.torch.tokenizer, parts)
    return case_quality(measuring, adapter, subjects.tasks[adapter], file, data, max_new_tokens)


def quality_rows(adapter: str, quality: Quality) -> list[dict[str, Any]]:
    """Rows {"adapter", "metric", "base", "pytorch", "package", "tfidf", "low", "high"}; None is not measured.

    low and high are the 95 % interval of the package's score, before the export of PyTorch's.
    """
    rows = []
    for score, values in quality.scores.items():
        pairs = quality.intervals.get(score, {})
        low, high = pairs.get("package" if "package" in values else "pytorch", (None, None))
        columns = {column: values.get(column) for column in ("base", "pytorch", "package", "tfidf")}
        rows.append({"adapter": adapter, "metric": score, **columns, "low": low, "high": high})
    return rows


def latency_rows(
    subjects: Subjects, prompt_tokens: int, new_tokens: int, repeats: int, warmup: int
) -> list[dict[str, Any]]:
    """Rows {"adapter" (None is the base), "metric", "pytorch", "package", "interval"}; the models are timed in turn.

    The interval [low, high] is the bootstrap's of 95 % for the package's value, before the export for PyTorch's; None
    where the value is no median or has too few runs.

    The base and generation adapters generate `new_tokens` after a prompt of `prompt_tokens`; classification adapters
    classify one text of `prompt_tokens`. A base that is an encoder does nothing by itself and has no row.
    """
    tokenizer = subjects.torch.tokenizer
    ids = tokenizer(PROMPT_TEXT * prompt_tokens, truncation=True, max_length=prompt_tokens)["input_ids"]
    rows: list[dict[str, Any]] = []
    for adapter in [*([None] if subjects.torch.writes else []), *subjects.tasks]:
        models = subjects.models().items()
        if adapter is not None and subjects.tasks[adapter] == "classification":
            calls = {name: partial(model.class_logits, [ids], adapter) for name, model in models}
            measured = measure_calls(calls, repeats, WarmUp(warmup, warmup))
        else:
            streams = {name: partial(model.stream, ids, adapter, new_tokens) for name, model in models}
            measured = measure_generation(streams, repeats, WarmUp(warmup, warmup))
        timings = {name: table_values(values) for name, values in measured.items()}
        intervals = table_intervals(measured["package" if "package" in measured else "pytorch"])
        for metric in timings["pytorch"]:
            column = {name: timings[name][metric] if name in timings else None for name in ("pytorch", "package")}
            rows.append({"adapter": adapter, "metric": metric, **column, "interval": intervals[metric]})
    return rows


def size_columns(subjects: Subjects) -> list[dict[str, Any]]:
    """Rows {"part", "pytorch", "package"} in bytes: the base, each adapter, and the total."""
    torch_sizes = {"base": folder_bytes(subjects.base), **{n: folder_bytes(f) for n, f in subjects.folders.items()}}
    package_sizes: dict[str, int] = {}
    if manifest := subjects.manifest:
        package_sizes = {name: entry["bytes"] for name, entry in manifest["adapters"].items()}
        package_sizes["base"] = sum(entry["bytes"] for entry in manifest["files"].values())
    rows = [{"part": p, "pytorch": torch_sizes[p], "package": package_sizes.get(p)} for p in torch_sizes]
    total = sum(package_sizes.values()) if package_sizes else None
    return [*rows, {"part": "total", "pytorch": sum(torch_sizes.values()), "package": total}]
