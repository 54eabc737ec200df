"""JSON as constrained decoding writes it, and the most that a schema lets it write."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from runtime.errors import DataError
from runtime.json_answers import json_text, longest_json, target
from runtime.model import MultiAdapterModel

MOODS = ["bad", "ótimo"]
SENTENCE = {
    "type": "object",
    "properties": {"mood": {"enum": MOODS}, "sure": {"type": "boolean"}, "stars": {"$ref": "#/$defs/stars"}},
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"s": {"type": "array", "items": SENTENCE, "maxItems": 2}, "note": {"type": ["null", "boolean"]}},
    "additionalProperties": False,
    "$defs": {"stars": {"type": "integer", "minimum": -5, "maximum": 10}},
}


def permitted() -> list[Any]:
    """Every value of SCHEMA that has all keys."""
    rows = [dict(zip(("mood", "sure", "stars"), v, strict=True))
            for v in itertools.product(MOODS, (True, False), range(-5, 11))]  # fmt: skip
    lists = [[], *([row] for row in rows), *(list(pair) for pair in itertools.product(rows, rows))]
    return [{"s": each, "note": note} for each in lists for note in (None, True, False)]


def test_the_bound_is_the_longest_text_of_all_values() -> None:
    """Against the standard library's own writing of every one of them."""
    texts = [json.dumps(value, ensure_ascii=False).encode() for value in permitted()]
    assert longest_json(SCHEMA) == max(map(len, texts))


@pytest.mark.parametrize(
    ("schema", "longest"),
    [
        ({"const": {"a": [1, None]}}, len('{"a": [1, null]}')),
        ({"type": "string", "maxLength": 2}, len(r'"\u001f\u001f"')),
        ({"anyOf": [{"const": 1}, {"const": "long"}]}, len('"long"')),
        ({"allOf": [{"type": "string"}, {"enum": ["ab", "c"]}]}, len('"ab"')),
        ({"type": "array", "prefixItems": [{"const": 1}, {"const": 22}], "items": False}, len("[1, 22]")),
        ({"type": "array", "prefixItems": [{"const": 1}], "items": {"type": "null"}, "maxItems": 2}, len("[1, null]")),
        ({"type": "object", "additionalProperties": False}, len("{}")),
        ({"enum": [[1, 2]], "x-guidance": {"whitespace_flexible": False, "item_separator": ","}}, len("[1,2]")),
    ],
)
def test_bounds(schema: Any, longest: int) -> None:
    assert longest_json(schema) == longest


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        (True, r"schema at \$: permits every value"),
        ({}, r"schema at \$: permits every value; give type, enum or const"),
        ({"type": "string"}, r"a string of any length; give maxLength, enum or const"),
        ({"type": "number", "minimum": 0, "maximum": 1}, "a number of any length; give enum, or take an integer"),
        ({"type": "integer", "minimum": 0}, "an integer of any length; give minimum and maximum"),
        ({"type": "array", "items": {"const": 1}}, "an array of any length; give maxItems"),
        ({"type": "object", "properties": {}}, "an object with any keys; give additionalProperties false"),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False},
            r"schema at \$\.properties\.a: a string",
        ),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/a"}}}},
            "'#/\\$defs/a' leads to itself",
        ),
        ({"const": 1, "x-guidance": {"whitespace_flexible": True}}, "whitespace_flexible must be false"),
        ({"$ref": "other.json"}, "'other.json' is not the place of a part of this schema"),
    ],
)
def test_schemas_without_a_bound_say_where(schema: Any, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        longest_json(schema)


def test_pointers_are_unescaped() -> None:
    root = {"$defs": {"a/b": [{"c~d e": 7}]}}
    assert target(root, "#/$defs/a~1b/0/c~0d%20e") == 7 and target(root, "#") is root


@pytest.mark.parametrize("value", [{"b": [1, {"é": None}], "a": 'x\n\t"\\/ é'}, [], {}, "", -1, [[1.5, True]]])
def test_the_constraint_writes_the_same_text(mixed_model: MultiAdapterModel, value: Any) -> None:
    """What an adapter learns is what it may write: llguidance's text of a constant is ours, to the byte."""
    schema = {"const": value}
    assert mixed_model.generate("Tea:", None, longest_json(schema) + 1, json_schema=schema) == json_text(value)


def test_no_answer_is_longer_and_none_is_cut(mixed_model: MultiAdapterModel) -> None:
    """Of a random model that samples, whose tokens are mostly single bytes."""
    longest = longest_json(SCHEMA)
    for seed in range(3):
        text = mixed_model.generate("Tea:", "story", 90, json_schema=SCHEMA, temperature=2.0, top_k=0, seed=seed)
        assert len(text.encode()) <= longest and isinstance(json.loads(text), dict)
