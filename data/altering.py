"""Training rows that are not those of the file one by one: augmented, balanced, or both, in this order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from data.augmentation import Augmentation, augmentation_problems, copies
from data.balancing import balance_problems, balanced_rows
from data.examples import ClassificationData, GenerationData, MultiLabelData
from data.loading import ROW_NUMBER, check_values
from data.templates import fill, placeholders
from runtime.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

Data = TypeVar("Data", bound=ClassificationData | GenerationData)


def altered(
    data: Data, dataset: Dataset, column: str, template: str | None, augmentation: Any, balance: Any = None
) -> Data:
    """The data with copies of rows behind them, then with the rows that `balance` chooses; `row_numbers` says which.

    Args:
        data: made of all rows of `dataset`.
        column: of the texts, or of the prompts; `template` is a format string over columns in its place, or None.
        augmentation: None, or see `data.augmentation.Augmentation`.
        balance: None, or see `data.balancing`; for classification.

    Raises:
        DataError: everything that is wrong with the two options, at once; a value that a template needs is missing.
    """
    if augmentation is None and balance is None:
        return data
    columns = [name for name in dataset.column_names if name != ROW_NUMBER]
    problems = augmentation_problems(augmentation, columns) if augmentation is not None else []
    if balance is not None and isinstance(data, MultiLabelData):
        problems.append("balance: is for one label a row, but these rows have any number (multi_label)")
    elif balance is not None and isinstance(data, ClassificationData):
        problems += balance_problems(balance, data.labels)
    if problems:
        raise DataError(f"{data.source}: {'; '.join(problems)}")
    numbers = dataset[ROW_NUMBER] if ROW_NUMBER in dataset.column_names else range(1, len(dataset) + 1)
    changed: Any = dataclasses.replace(data, row_numbers=list(numbers))
    if augmentation is not None:
        changed = _with_copies(changed, dataset, column, template, Augmentation(**augmentation))
    if balance is not None:
        changed = changed.take(balanced_rows(changed.labels, balance))
    result: Data = changed
    return result


def _with_copies(
    data: ClassificationData | GenerationData,
    dataset: Dataset,
    column: str,
    template: str | None,
    wanted: Augmentation,
) -> ClassificationData | GenerationData:
    def own(row: Mapping[str, str]) -> str:
        return row[column] if template is None else fill(template, row)

    used = [column] if template is None else placeholders(template)
    used = list(dict.fromkeys([*used, *(name for variant in wanted.templates for name in placeholders(variant))]))
    values = [[str(v) for v in check_values(dataset, name, data.source, allow_blank=True)] for name in used]
    rows = [dict(zip(used, row, strict=True)) for row in zip(*values, strict=True)]
    texts = data.texts if isinstance(data, ClassificationData) else data.prompts
    made = list(copies(rows, texts, own, wanted))
    taken = data.take([*range(len(data)), *(place for place, _ in made)])
    texts = [*texts, *(text for _, text in made)]
    if isinstance(taken, ClassificationData):
        return dataclasses.replace(taken, texts=texts)
    return dataclasses.replace(taken, prompts=texts)
