"""Scores of one adapter or package, a column for each model: base, PyTorch with the adapter, package."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from data.examples import ClassificationData, GenerationData
from data.tokenizing import aggregate_windows, encode_generation, encode_text, encode_windows
from evaluators.classification import classification_scores
from evaluators.latency import PROMPT_TEXT, WarmUp, measure_calls, measure_generation, table_values
from evaluators.perplexity import perplexity
from evaluators.size import folder_bytes
from evaluators.subjects import Subjects
from runtime.errors import DataError


def quality_columns(
    subjects: Subjects, adapter: str, data: ClassificationData | GenerationData
) -> dict[str, dict[str, float | None]]:
    """{score name: {"base", "pytorch", "package", "tfidf"}} of an adapter on held-out rows; None is not measured.

    For classification "base" is a head on the frozen base (measured when the adapter was trained, on its own validation
    rows); for generation it is the base without the adapter.
    """
    if isinstance(data, ClassificationData) != (subjects.tasks[adapter] == "classification"):
        raise DataError(f"{data.source}: adapter '{adapter}' is for {subjects.tasks[adapter]}, its data are not")
    columns: dict[str, dict[str, float | None]] = {}
    if isinstance(data, ClassificationData):
        measured = {name: classify_scores(model, subjects, adapter, data) for name, model in subjects.models().items()}
        file = subjects.folders[adapter] / "baselines.json"
        baselines = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if baselines.get("validation_data") != data.fingerprint:  # measured on other rows than these
            baselines = {}
        measured |= {"base": baselines.get("frozen_head", {}), "tfidf": baselines.get("tfidf", {})}
    else:
        examples = encode_generation(subjects.torch.tokenizer, data)
        measured = {
            name: {"perplexity": perplexity(partial(model.logits, adapter=adapter), examples)}
            for name, model in subjects.models().items()
        }
        base = perplexity(partial(subjects.torch.logits, adapter=None), examples)
        measured["base"] = {"perplexity": base}
    for score in measured["pytorch"]:
        columns[score] = {c: measured.get(c, {}).get(score) for c in ("base", "pytorch", "package", "tfidf")}
    return columns


def classify_scores(model: Any, subjects: Subjects, adapter: str, data: ClassificationData) -> dict[str, float]:
    """Scores of a model's most probable labels; windows of a long document are averaged."""
    tokenizer = subjects.torch.tokenizer
    if data.window_stride is None:
        documents = [[encode_text(tokenizer, text, data.max_length)] for text in data.texts]
    else:
        documents = [encode_windows(tokenizer, text, data.max_length, data.window_stride) for text in data.texts]
    logits = model.class_logits([ids for windows in documents for ids in windows], adapter)
    chosen = aggregate_windows(logits, [len(windows) for windows in documents]).argmax(axis=-1)
    labels = model.labels(adapter)
    data.label_ids(labels)  # a label that the adapter was not trained on is an error that names it
    return classification_scores(data.labels, [labels[i] for i in chosen], labels)


def latency_rows(
    subjects: Subjects, prompt_tokens: int, new_tokens: int, repeats: int, warmup: int
) -> list[dict[str, Any]]:
    """Rows {"adapter" (None is the base), "metric", "pytorch", "package"}; the two models are timed in turn.

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
        for metric in timings["pytorch"]:
            column = {name: timings[name][metric] if name in timings else None for name in ("pytorch", "package")}
            rows.append({"adapter": adapter, "metric": metric, **column})
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
