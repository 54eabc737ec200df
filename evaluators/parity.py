"""How far two models' logits are apart: the parity certificate of an exported adapter, and the bounds that it keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from evaluators.perplexity import log_softmax
from runtime.classification import reached, sigmoid
from runtime.errors import nearest

SCORES = ("max_abs_difference", "mean_abs_difference", "kl_divergence", "top1_agreement", "label_flips")
# What a workflow may say under "parity". The bounds hold at the package's precision, null sets none; that of the
# float32 graph is always there, for it proves that the graph computes the model: rounding stays well below it.
OPTIONS: dict[str, Any] = {"fp32_max_abs_difference": 1e-3, **dict.fromkeys(SCORES), "samples": None}
LISTED_FLIPS = 20  # rows with another label that a manifest lists; the count has no limit
TEXT_LENGTH = 200  # characters of a listed row


def check_options(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with a workflow's "parity", a line each."""
    problems = [f"parity.{key}: unknown key; {nearest(key, OPTIONS)}" for key in sorted(set(given) - set(OPTIONS))]
    for key in [key for key in OPTIONS if key in given]:
        value = given[key]
        if value is None and key != "fp32_max_abs_difference":
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in ("samples", "label_flips"):
            least = 1 if key == "samples" else 0
            valid, wanted = number and isinstance(value, int) and value >= least, f"a whole number from {least}"
        elif key == "top1_agreement":
            valid, wanted = number and 0 <= value <= 1, "a number from 0 to 1"
        else:
            valid, wanted = number and value > 0, "a number above 0"
        if not valid:
            problems.append(f"parity.{key}: must be {wanted}, but got {value!r}")
    return problems


def violations(precision: str, scores: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """Which bounds the scores of one adapter break: metric, value and bound of each.

    Logits that are no numbers break them in any case. A score that an adapter does not have (label flips of one that
    generates) breaks none.
    """
    if not math.isfinite(scores["max_abs_difference"]):
        return [f"{precision} logits are not finite"]
    broken = []
    for key in SCORES:
        bound, value = options[key], scores.get(key)
        if bound is None or value is None:
            continue
        at_least = key == "top1_agreement"
        if not (value >= bound if at_least else value <= bound):
            most = "least" if at_least else "most"
            broken.append(f"{precision} {key} is {value:.4g}, but must be at {most} {bound:g}")
    return broken


def adapter_parity(reference: Any, measured: Any, adapter: str, rows: Sequence[list[int]], task: str) -> dict[str, Any]:
    """Scores of one adapter on rows of token ids: `parity_scores`, how many rows, and for classification label flips.

    `reference` is an evaluators.torch_model.TorchModel, `measured` a PackageModel.
    """
    if task != "classification":
        models = (generation_logits(model, rows, adapter) for model in (reference, measured))
        return {**parity_scores(*models), "samples": len(rows)}
    expected, actual = (model.class_logits(list(rows), adapter) for model in (reference, measured))
    flips = label_flips(expected, actual, reference.labels(adapter), reference.thresholds(adapter))
    for flip in flips[:LISTED_FLIPS]:
        text = reference.tokenizer.decode(rows[flip["row"]], skip_special_tokens=True)
        flip["text"] = text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
    scores = parity_scores(expected[:, None], actual[:, None])
    return {**scores, "label_flips": len(flips), "flipped_rows": flips[:LISTED_FLIPS], "samples": len(rows)}


def parity_scores(reference: Iterable[np.ndarray], measured: Iterable[np.ndarray]) -> dict[str, float]:
    """Compares logits row by row; each array is (positions, classes or vocabulary), positions may differ by row.

    Returns max_abs_difference and mean_abs_difference of logits, kl_divergence (mean over positions of
    KL(reference || measured), nats) and top1_agreement (share of positions with the same most probable class).
    Rows are taken one by one: the logits of a large vocabulary need not all be in memory.
    """
    most, total, count, divergence, agreements, positions = 0.0, 0.0, 0, 0.0, 0, 0
    for expected, actual in zip(reference, measured, strict=True):
        difference = np.abs(expected.astype(np.float64) - actual)
        most = float(np.maximum(most, difference.max()))  # unlike max, it keeps a NaN
        total, count = total + float(difference.sum()), count + difference.size
        p, q = log_softmax(expected), log_softmax(actual)
        divergence += float((np.exp(p) * (p - q)).sum())
        agreements += int((expected.argmax(axis=-1) == actual.argmax(axis=-1)).sum())
        positions += len(expected)
    return {
        "max_abs_difference": most,
        "mean_abs_difference": total / count,
        "kl_divergence": divergence / positions,
        "top1_agreement": agreements / positions,
    }


def label_flips(
    expected: np.ndarray, actual: np.ndarray, labels: Sequence[str], thresholds: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Rows whose label differs between two class logits (rows, classes): {"row", "pytorch", "package"}.

    The last two are {"label", "probability"}: each model's likeliest label and what it gives it. With `thresholds` a
    row's label are all that reach theirs, "a, b", and the probability is the likeliest one's.
    """
    answers = []
    for logits in (expected, actual):
        if thresholds is not None:
            rows = reached(logits, thresholds)
            chosen = [", ".join(name for name, on in zip(labels, row, strict=True) if on) for row in rows]
            most = sigmoid(logits).max(axis=1).tolist()
            answers.append([{"label": n, "probability": p} for n, p in zip(chosen, most, strict=True)])
            continue
        probabilities, best = np.exp(log_softmax(logits)), logits.argmax(axis=1)
        answers.append(
            [{"label": labels[i], "probability": float(p[i])} for i, p in zip(best, probabilities, strict=True)]
        )
    pairs = enumerate(zip(*answers, strict=True))
    return [{"row": row, "pytorch": a, "package": b} for row, (a, b) in pairs if a["label"] != b["label"]]


def generation_logits(model: Any, rows: Sequence[list[int]], adapter: str) -> Iterator[np.ndarray]:
    """Next-token logits (seq, vocab) of each row of token ids, one row at a time."""
    for row in rows:
        ids = np.array([row], dtype=np.int64)
        yield model.logits(ids, np.ones_like(ids), adapter)[0]
