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
from typing import Any, TypeVar

from data.examples import ClassificationData, GenerationData, MultiLabelData, row_number

Data = TypeVar("Data", bound=ClassificationData | GenerationData)


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
    result: Any = dataclasses.replace(data, label_names=united_labels(earlier, data.label_names))
    known: Data = result
    return known


def replay_rows(data: ClassificationData | GenerationData, fraction: float, seed: int) -> list[int]:
    """Places, ascending, of the rows that are seen again: `fraction` of them, rounded, one at least.

    Of classification with one label a row the same share of each class, one row of each at least.
    """
    random, groups = Random(seed), {"": list(range(len(data)))}
    if isinstance(data, ClassificationData) and not isinstance(data, MultiLabelData):
        groups = {label: [i for i, own in enumerate(data.labels) if own == label] for label in sorted(set(data.labels))}
    chosen = [random.sample(rows, max(1, round(fraction * len(rows)))) for rows in groups.values() if rows]
    return sorted(place for rows in chosen for place in rows)


def with_replay(data: Data, earlier: Sequence[ClassificationData | GenerationData], fraction: float, seed: int) -> Data:
    """The rows of `data`, then replayed rows of each of the earlier data; the settings are those of `data`."""
    mixed: Any = _numbered(data)
    for other in earlier:
        mixed = _joined(mixed, _numbered(other).take(replay_rows(other, fraction, seed)))
    result: Data = mixed
    return result


def mixing_problems(
    data: ClassificationData | GenerationData, earlier: ClassificationData | GenerationData
) -> list[str]:
    """What keeps one adapter from learning both kinds of rows, of one task."""
    problems = []
    if isinstance(data, MultiLabelData) != isinstance(earlier, MultiLabelData):
        problems.append("multi_label differs")
    if _form(data.template) != _form(earlier.template):
        problems.append(
            f"an adapter has one template, but there are {earlier.template!r} (earlier) and {data.template!r}"
        )
    return problems


def _joined(first: Any, second: Any) -> Any:
    """The rows of two data of one kind, with the settings of the first."""
    fields = ["prompts", "responses"] if isinstance(first, GenerationData) else ["texts", "labels"]
    fields += ["label_sets", "row_numbers"] if isinstance(first, MultiLabelData) else ["row_numbers"]
    return dataclasses.replace(first, **{name: [*getattr(first, name), *getattr(second, name)] for name in fields})


def _numbered(data: Any) -> Any:
    return dataclasses.replace(data, row_numbers=[row_number(data, place) for place in range(len(data))])


def _form(template: str) -> list[str]:
    """What of a template is not a column's name: data sets name their columns as they like."""
    if template == "chat":
        return ["chat"]
    return [part for literal, column, _, _ in Formatter().parse(template) for part in (literal, "{}" if column else "")]
