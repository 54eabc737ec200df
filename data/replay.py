"""Earlier data mixed into new training data, so that a model that learns on forgets less.

Experience replay: Rolnick et al. 2019, *Experience Replay for Continual Learning* (arXiv:1811.11682); Scialom et al.
2022, *Fine-tuned Language Models are Continual Learners* (arXiv:2205.12393), for instructions, with a share of each
earlier task's rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random
from string import Formatter
from typing import TypeVar

from data.examples import ClassificationData, GenerationData, MultiLabelData, row_number

Data = TypeVar("Data", ClassificationData, GenerationData)


def united_labels(earlier: Sequence[str], names: Sequence[str]) -> list[str]:
    """The earlier labels in their order, so that rows of a head keep their places, then those that are new.

    >>> united_labels(["spam", "ham"], ["ham", "news"])
    ['spam', 'ham', 'news']
    """
    return list(dict.fromkeys([*earlier, *names]))


def with_earlier_labels(data: Data, earlier: Sequence[str]) -> Data:
    """Data of classification that knows the earlier labels too; other data as they are."""
    if not isinstance(data, ClassificationData):
        return data
    return dataclasses.replace(data, label_names=united_labels(earlier, data.label_names))


def replay_rows(data: ClassificationData | GenerationData, fraction: float, seed: int) -> list[int]:
    """Places, ascending, of the rows that are seen again: `fraction` of them, rounded, one at least.

    Of classification with one label a row the same share of each class, one row of each at least.
    """
    random, groups = Random(seed), {"": list(range(len(data)))}
    if isinstance(data, ClassificationData) and not isinstance(data, MultiLabelData):
        groups = {label: [i for i, own in enumerate(data.labels) if own == label] for label in sorted(set(data.labels))}
    chosen = [random.sample(rows, max(1, round(fraction * len(rows)))) for rows in groups.values() if rows]
    return sorted(place for rows in chosen for place in rows)


def with_replay(data: Data, earlier: Sequence[Data], fraction: float, seed: int) -> Data:
    """The rows of `data`, then replayed rows of each of the earlier data; the settings are those of `data`."""
    for other in earlier:
        data = _joined(data, other.take(replay_rows(other, fraction, seed)))
    return data


def mixing_problems(
    data: ClassificationData | GenerationData, earlier: ClassificationData | GenerationData
) -> list[str]:
    """What keeps one adapter from learning both kinds of rows."""
    problems = []
    if isinstance(data, ClassificationData) != isinstance(earlier, ClassificationData):
        return ["one is for classification, the other for generation"]
    if isinstance(data, MultiLabelData) != isinstance(earlier, MultiLabelData):
        problems.append("multi_label differs")
    if _form(data.template) != _form(earlier.template):
        problems.append(
            f"an adapter has one template, but there are {earlier.template!r} (earlier) and {data.template!r}"
        )
    return problems


def _joined(first: Data, second: Data) -> Data:
    fields = ("prompts", "responses") if isinstance(first, GenerationData) else ("texts", "labels")
    if isinstance(first, MultiLabelData):
        fields = (*fields, "label_sets")
    columns = {name: [*getattr(first, name), *getattr(second, name)] for name in fields}
    numbers = [row_number(data, place) for data in (first, second) for place in range(len(data))]
    return dataclasses.replace(first, **columns, row_numbers=numbers)


def _form(template: str) -> list[str]:
    """What of a template is not a column's name: data sets name their columns as they like."""
    if template == "chat":
        return ["chat"]
    return [part for literal, column, _, _ in Formatter().parse(template) for part in (literal, "{}" if column else "")]
