"""Class logits of token rows, each row with its own adapter and head, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.session import GraphSession, pad_right
from runtime.stacking import AdapterFile


@dataclass(frozen=True)
class Classification:
    """The likeliest label of a text, its probability, the probability of every label, and the labels that it has.

    `labels` is the likeliest one alone; of an adapter that gives a text several labels, those whose probabilities reach
    their thresholds, the likeliest first: there may be none, and the probabilities do not sum up to 1.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A text's windows of token ids, and the adapter and labels that it is classified with."""

    windows: Sequence[Sequence[int]]
    file: AdapterFile
    labels: Sequence[str]


def class_logits(session: GraphSession, documents: Sequence[Document], batch_size: int) -> list[np.ndarray]:
    """Class logits, float32 (labels of the document's adapter,), for each document: the mean over its windows.

    Args:
        session: the package's graph.
        documents: in any mixture of adapters, ranks and numbers of labels.
        batch_size: windows that are run together; windows of like length go together, padded on the right.
    """
    windows = [(ids, number) for number, document in enumerate(documents) for ids in document.windows]
    order = sorted(range(len(windows)), key=lambda i: len(windows[i][0]))
    found: list[list[np.ndarray]] = [[] for _ in documents]
    for start in range(0, len(order), batch_size):
        # by adapter within a run: equal mixtures then share one stack
        run = sorted((windows[i] for i in order[start : start + batch_size]), key=lambda w: documents[w[1]].file.sha256)
        tensors = session.adapters([documents[number].file for _, number in run])
        logits = session.class_logits(*pad_right([ids for ids, _ in run]), tensors)
        for row, (_, number) in zip(logits, run, strict=True):
            found[number].append(row[: len(documents[number].labels)])
    return [np.mean(rows, axis=0) for rows in found]


def classification(logits: np.ndarray, entry: Mapping[str, Any]) -> Classification:
    """Softmax over logits (labels,), or sigmoid where an adapter's entry has thresholds, in float64, by label."""
    thresholds = entry.get("thresholds")
    if thresholds is not None:
        row, on = sigmoid(logits), reached(logits, thresholds)
        names = [entry["labels"][i] for i in np.argsort(-row, kind="stable") if on[i]]
        best = int(row.argmax())
        by_label = {label: float(p) for label, p in zip(entry["labels"], row, strict=True)}
        return Classification(entry["labels"][best], float(row[best]), by_label, tuple(names))
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    row = shifted / shifted.sum()
    best = int(row.argmax())
    by_label = {label: float(p) for label, p in zip(entry["labels"], row, strict=True)}
    return Classification(entry["labels"][best], float(row[best]), by_label, (entry["labels"][best],))


def reached(logits: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """bool, the shape of logits (..., labels): which labels a text has, whose probabilities reach their thresholds."""
    on: np.ndarray = sigmoid(logits) >= np.asarray(thresholds, dtype=np.float64)
    return on


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) in float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64)))
