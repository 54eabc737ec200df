"""Labels of rows that carry any number of them: a list in each row, or text with separators."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from data.loading import check_columns, describe_rows
from runtime.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


logger = logging.getLogger(__name__)

_SEPARATORS = (",", ";", "|")  # that people put between labels


def label_sets(dataset: Dataset, column: str, separator: str, source: str) -> list[list[str]]:
    """The labels of each row, sorted and each once; a row may have none.

    A list's items are text or whole numbers, or of a ClassLabel; text is cut at `separator`; blanks are dropped.

    Warns where the separator seems to be another one.

    Raises:
        DataError: no such column, a value or an item of another kind, or not a label in any row.
    """
    from datasets import ClassLabel

    check_columns(dataset, [column], source)
    inner = getattr(dataset.features[column], "feature", None)
    result = []
    for row, value in enumerate(dataset[column]):
        items: list[Any] = value.split(separator) if isinstance(value, str) else _as_list(value)
        wrong = next((item for item in items if isinstance(item, bool) or not isinstance(item, str | int)), None)
        if wrong is not None:
            raise DataError(
                f"{source}: column {column!r}: labels must be a list of texts or whole numbers, or text with "
                f"{separator!r} between them, but one is {wrong!r} ({describe_rows(dataset, [row])})"
            )
        names = [inner.int2str(item) if isinstance(inner, ClassLabel) else str(item).strip() for item in items]
        result.append(sorted({name for name in names if name}))
    odd = sorted({name for names in result for name in names if any(mark in name for mark in _SEPARATORS)})
    if odd and max(map(len, result)) == 1:
        logger.warning(
            "%s: column %r: no row has two labels, and one of them is %r; is separator %r the right one?",
            source,
            column,
            odd[0],
            separator,
        )
    if not any(result):
        raise DataError(f"{source}: column {column!r} has not a label in any of {len(result)} rows")
    return result


def _as_list(value: Any) -> list[Any]:
    """No labels for None and NaN, one for a number."""
    if isinstance(value, list):
        return value
    if isinstance(value, float):
        return [] if value != value else [int(value) if value.is_integer() else value]
    return [] if value is None else [value]
