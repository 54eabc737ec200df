from __future__ import annotations

import pytest

from data.templates import fill, placeholders
from runtime.errors import DataError

ROW = {"question": "Why?", "my column": "x", "a.b": "dotted", "code": "{question}", "n": 3}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{question}", "Why?"),
        ("Q: {question}\nA: ", "Q: Why?\nA: "),
        ("{{{question}}}", "{Why?}"),
        ('{{"a": {n}}}', '{"a": 3}'),
        ("{my column}/{a.b}", "x/dotted"),
        ("{code}", "{question}"),
        ("no placeholder", "no placeholder"),
    ],
)
def test_fill(template: str, expected: str) -> None:
    assert fill(template, ROW) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{questoin}", "did you mean 'question'"),
        ("{question.__class__}", r"no column 'question\.__class__'"),
        ("{question[0]}", "no column"),
        ("{}", "column name in braces"),
        ("{0}", "column name in braces"),
        ("{n:>10}", "without format"),
        ("{n!r}", "without format"),
        ("{question", "braces"),
        ("a } b", "braces"),
    ],
)
def test_fill_refuses(template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fill(template, ROW)


def test_placeholders_are_unique_and_ordered() -> None:
    assert placeholders("{b} {a} {{c}} {b}") == ["b", "a"]
    assert placeholders("plain") == []
