"""How far two models' logits are apart: the parity certificate of an exported adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluators.perplexity import log_softmax


def parity_scores(reference: Sequence[np.ndarray], measured: Sequence[np.ndarray]) -> dict[str, float]:
    """Compares logits row by row; each array is (positions, classes or vocabulary), positions may differ by row.

    Returns max_abs_difference and mean_abs_difference of logits, kl_divergence (mean over positions of
    KL(reference || measured), nats) and top1_agreement (share of positions with the same most probable class).
    """
    differences, divergences, agreements = [], [], []
    for expected, actual in zip(reference, measured, strict=True):
        differences.append(np.abs(expected.astype(np.float64) - actual).ravel())
        p, q = log_softmax(expected), log_softmax(actual)
        divergences.append((np.exp(p) * (p - q)).sum(axis=-1))
        agreements.append(expected.argmax(axis=-1) == actual.argmax(axis=-1))
    difference = np.concatenate(differences)
    return {
        "max_abs_difference": float(difference.max()),
        "mean_abs_difference": float(difference.mean()),
        "kl_divergence": float(np.concatenate(divergences).mean()),
        "top1_agreement": float(np.concatenate(agreements).mean()),
    }


def adapter_logits(model: Any, rows: Sequence[list[int]], adapter: str, task: str) -> list[np.ndarray]:
    """What parity compares for one adapter, an array per row of token ids.

    Generation: next-token logits (seq, vocab). Classification: class logits (1, classes).
    """
    if task == "classification":
        return [logits[None] for logits in model.class_logits(list(rows), adapter)]
    results = []
    for row in rows:
        ids = np.array([row], dtype=np.int64)
        results.append(model.logits(ids, np.ones_like(ids), adapter)[0])
    return results
