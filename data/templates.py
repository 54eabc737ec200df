"""Text templates: a format string whose placeholders are the columns of a row."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from runtime.errors import DataError, nearest


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Cuts a template into (literal text, column or None); only plain ``{column}``, ``{{`` and ``}}`` are allowed."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise DataError(
            f"template {template!r}: {error}; write {{{{ and }}}} for braces that are no placeholder"
        ) from None
    parts: list[tuple[str, str | None]] = []
    for literal, column, spec, conversion in parsed:
        if column is not None and (column == "" or column.isdigit() or spec or conversion):
            raise DataError(
                f"template {template!r}: a placeholder is a column name in braces, such as {{text}}, "
                "without format or conversion; write {{ and }} for braces that are no placeholder"
            )
        parts.append((literal, column))
    return parts


def placeholders(template: str) -> list[str]:
    """The columns that a template names, in order, each once.

    Raises:
        DataError: lone braces, ``{}``, ``{0}``, or a placeholder with a format or conversion.

    >>> placeholders("Q: {question}\\nA: {answer} ({question})")
    ['question', 'answer']
    """
    return list(dict.fromkeys(column for _, column in _parts(template) if column is not None))


def fill(template: str, row: Mapping[str, Any]) -> str:
    """Puts the row's values in the place of the placeholders. Braces inside the values are left as they are.

    Raises:
        DataError: a placeholder that is no column of the row (the nearest is named), or a malformed template.

    >>> fill("{{{name}}} is {age}", {"name": "Ana", "age": 3})
    '{Ana} is 3'
    """
    pieces: list[str] = []
    for literal, column in _parts(template):
        pieces.append(literal)
        if column is not None:
            if column not in row:
                raise DataError(f"template {template!r}: there is no column {column!r}; {nearest(column, row)}")
            pieces.append(str(row[column]))
    return "".join(pieces)


def unfill(template: str, text: str) -> str | None:
    """The value that a filled template holds; None where it has not exactly one placeholder, once.

    >>> unfill("{text}\\nTopic:", "Where is my parcel?\\nTopic:")
    'Where is my parcel?'
    """
    parts = _parts(template)
    places = [number for number, (_, column) in enumerate(parts) if column is not None]
    if len(places) != 1:
        return None
    before = parts[places[0]][0]
    after = "".join(literal for literal, _ in parts[places[0] + 1 :])
    if len(text) < len(before) + len(after) or not (text.startswith(before) and text.endswith(after)):
        return None
    return text[len(before) : len(text) - len(after)]
