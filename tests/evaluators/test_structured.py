from __future__ import annotations

import json
import math
from typing import Any

import pytest
from jsonschema import validators

from data.json_schema import parse_json
from evaluators.intervals import mean_interval
from evaluators.structured import LISTED_PROBLEMS, leaves, structured_row_scores, structured_scores
from runtime.errors import DataError

SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["title", "sentences"],
    "properties": {
        "title": {"type": "string"},
        "sentences": {"type": "array", "items": {"$ref": "#/$defs/sentence"}},
    },
    "$defs": {"sentence": {"type": "object", "properties": {"polarity": {"enum": ["good", "bad"]}}}},
}
EXPECTED = [
    {"title": "Praça", "sentences": [{"polarity": "good"}, {"polarity": "bad"}]},
    '{"title": "Rua", "sentences": [{"polarity": "good"}]}',
    {"title": "Avenida", "sentences": []},
    {"title": "Largo", "sentences": [{"polarity": "bad"}]},
]


def test_scores_made_by_hand() -> None:
    """Row 0: right, keys in another order. Row 1: polarity off the schema. Row 2: an item too many. Row 3: no JSON."""
    answers = [
        '{"sentences": [{"polarity": "good"}, {"polarity": "bad"}], "title": "Pra\\u00e7a"}',
        '{"title": "Rua", "sentences": [{"polarity": "mixed"}]}',
        '{"title": "Avenida", "sentences": [{"polarity": "bad"}]}',
        '```json\n{"title": "Largo", "sentences": [{"polarity": "bad"}]}\n```',
    ]
    scores = structured_scores(EXPECTED, answers, SCHEMA)
    assert scores["problems"] == [
        {"row": 1, "problem": "$.sentences[0].polarity: 'mixed' is not one of ['good', 'bad']"},
        {"row": 3, "problem": 'no JSON: line 1 column 1: Expecting value, found \'```json\\n{"title": "L\''},
    ]
    del scores["problems"]
    assert scores == {
        "json_valid": 3 / 4,
        "schema_valid": 2 / 4,
        "exact": 1 / 4,
        "fields": {
            "title": 3 / 4,
            "sentences[0].polarity": 1 / 3,
            "sentences[1].polarity": 1.0,
            "sentences": 0.0,
        },
        "field_patterns": {"title": 3 / 4, "sentences[].polarity": 2 / 4, "sentences": 0.0},
        "fields_mean": pytest.approx((3 / 4 + 2 / 4 + 0) / 3),
    }
    rows = structured_row_scores(EXPECTED, answers, SCHEMA)
    assert rows == {
        "json_valid": [1, 1, 1, 0],
        "schema_valid": [1, 0, 1, 0],
        "exact": [1, 0, 0, 0],
        "right_leaves": [3, 1, 1, 0],
        "leaves": [3, 2, 2, 2],
    }
    low, high = mean_interval(rows["right_leaves"], rows["leaves"])
    assert 0 <= low < 5 / 9 < high <= 1
    without = structured_scores(EXPECTED, answers)
    assert without["schema_valid"] is None and len(without["problems"]) == 1
    assert "schema_valid" not in structured_row_scores(EXPECTED, answers)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (' \n{"a": [1, -2.5e3, null, true, "é"]}\t', {"a": [1, -2500.0, None, True, "é"]}),
        ('"só texto"', "só texto"),
        ('{"": {"a.b": 1}}', {"": {"a.b": 1}}),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_json_is_read(text: str, value: Any) -> None:
    assert parse_json(text) == value


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "line 1 column 1: Expecting value, the text ends"),
        ('{"a": 1', "line 1 column 8: Expecting ',' delimiter, the text ends"),
        ('{"a": 1}\nDone.', "line 2 column 1: Extra data, found 'Done.'"),
        ('Answer: {"a": 1}', "line 1 column 1: Expecting value, found 'Answer: "),
        ("{'a': 1}", "line 1 column 2: Expecting property name enclosed in double quotes"),
        ('{"a": 1,}', "line 1 column "),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "the key 'c' is given twice in an object"),
        ("[NaN]", "NaN is no JSON number"),
        ("-Infinity", "-Infinity is no JSON number"),
        ("1e999", "the number 1e999 is beyond float64"),
        ("9" * 5000, "the number 9999"),
        ("[" * 100_000, "lists or objects are nested too deeply"),
        ('\ufeff{"a": 1}', "Unexpected UTF-8 BOM"),
        ('"a\nb"', "line 1 column 3: Invalid control character"),
        ("True", "line 1 column 1: Expecting value, found 'True'"),
    ],
)
def test_what_is_no_json_is_named_and_wrong_in_every_field(text: str, problem: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_json(text)
    assert problem in str(raised.value) and len(str(raised.value)) < 300
    scores = structured_scores([{"a": 1, "b": []}], [text], {"type": "object"})
    assert scores["problems"] == [{"row": 0, "problem": f"no JSON: {raised.value}"}]
    assert scores["fields"] == {"a": 0, "b": 0}
    assert [scores[name] for name in ("json_valid", "schema_valid", "exact", "fields_mean")] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("expected", "answer", "exact", "fields_mean"),
    [
        ({"a": 1}, '{"a": 1.0}', 1, 1),
        ({"a": 1}, '{"a": true}', 0, 0),
        ({"a": False}, '{"a": 0}', 0, 0),
        ({"a": None}, "{}", 0, 0),
        ({"a": None}, '{"a": null}', 1, 1),
        ({"a": "1"}, '{"a": 1}', 0, 0),
        ({"a": 1}, '{"a": 1, "b": 2}', 0, 1),
        ({"a": []}, '{"a": {}}', 0, 0),
        ({"a": {}}, '{"a": {}}', 1, 1),
        ({"a": [1, 2]}, '{"a": [2, 1]}', 0, 0),
        ({"a": [1, 2]}, '{"a": [1]}', 0, 0.5),
        ({"a": {"b": 1}}, '{"a.b": 1}', 0, 0),
        ({"a": [1]}, '{"a": {"0": 1}}', 0, 0),
        ({"a": "é"}, '{"a": "e\u0301"}', 0, 0),
        ([], "[]", 1, 1),
        (5, "5", 1, 1),
        (5, '{"$": 5}', 0, 0),
        ({}, "[]", 0, 0),
    ],
)
def test_equality_of_values(expected: Any, answer: str, exact: float, fields_mean: float) -> None:
    """Lists as a whole have the pattern a[]: its accuracy is the share of expected items that are in their place."""
    scores = structured_scores([expected], [answer])
    assert (scores["exact"], scores["fields_mean"]) == (exact, fields_mean)
    assert structured_scores([json.dumps(expected)], [answer]) == scores


def test_no_two_places_have_the_same_path() -> None:
    value = {"a": {"b": 1, "c-d": 2, "é": 3}, "a.b": 4, "x y": [5, [6]], "": 7, "0": 8, '"': 9, "l": [{}], "$": None}
    assert [path for path, _ in leaves(value)] == [
        "a.b", "a.c-d", "a.é", '["a.b"]', '["x y"][0]', '["x y"][1][0]', '[""]', '["0"]', '["\\""]', "l[0]", '["$"]',
    ]  # fmt: skip
    assert list(leaves("leaf")) == [("$", "$")]
    assert list(leaves([[1]])) == [("[0][0]", "[][]")]


def test_deep_answers_are_compared() -> None:
    text = "[" * 400 + "1" + "]" * 400
    assert structured_scores([text], [text], {"$ref": "#/$defs/x", "$defs": {"x": True}})["exact"] == 1


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "schema at $.type: 'objekt' is not one of ['array'"),
        ({"properties": {"a": {"minimum": "1"}}}, "schema at $.properties.a.minimum: '1' is not of type 'number'"),
        ({"properties": {"a": {"pattern": "("}}}, "schema at $.properties.a.pattern: '(' is not a 'regex'"),
        ({"required": "a", "minLength": -1}, "schema at $.minLength: -1 is less than the minimum of 0"),
        (["a"], "schema at $: ['a'] is not of type 'object', 'boolean'"),
        ({"items": {"$ref": "#/$defs/nope"}}, "schema: $ref '#/$defs/nope' leads nowhere"),
        ({"$ref": "https://example.invalid/s.json"}, "nothing is fetched from a network"),
        ({"$ref": "#"}, "a $ref of the schema leads to itself"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "schema at $.$schema: only draft 2020-12 is read"),
    ],
)
def test_a_wrong_schema_is_named_with_its_place(schema: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        structured_scores([{"a": 1}], ['{"a": 1}'], schema)
    assert message in str(raised.value)


def test_all_problems_of_a_schema_come_at_once() -> None:
    with pytest.raises(DataError) as raised:
        structured_scores([1], ["1"], {"required": "a", "minLength": -1})
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("schema", [True, {}, {"$ref": "https://json-schema.org/draft/2020-12/schema"}, SCHEMA])
def test_what_fits_a_schema_agrees_with_jsonschema(schema: Any) -> None:
    values = [{"title": "a", "sentences": []}, {"title": 1, "sentences": []}, {"type": 3}, [], None, {"title": "a"}]
    validator = validators.validator_for(schema, default=validators.Draft202012Validator)(schema)
    expected = {"title": "a", "sentences": []}
    rows = structured_row_scores([expected] * len(values), [json.dumps(value) for value in values], schema)
    assert rows["schema_valid"] == [float(validator.is_valid(value)) for value in values]


@pytest.mark.parametrize(
    ("expected", "answers", "schema", "message"),
    [
        ([], [], None, "equally long and not empty: 0, 0"),
        ("1", "1", None, "must be lists, not one text"),
        ([1], ["1", "2"], None, "equally long and not empty: 1, 2"),
        ([1], [{"a": 1}], None, "answers[0] must be a text, but got {'a': 1}"),
        (['{"a"'], ["1"], None, "expected[0]: no JSON: line 1 column 5"),
        ([1, math.nan], ["1", "1"], None, "expected[1]: no JSON: NaN is no JSON number"),
        ([{1, 2}], ["1"], None, "expected[0]: no JSON: Object of type set"),
        ([3, "4"], ["1", "1"], {"type": "string"}, "expected[1]: $: 4 is not of type 'string'"),
        ([1] * 30, ["1"] * 30, False, "and 10 more"),
    ],
)
def test_unusable_input_is_named(expected: Any, answers: Any, schema: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        structured_scores(expected, answers, schema)
    assert message in str(raised.value)


def test_only_the_first_problems_are_listed_but_all_count() -> None:
    scores = structured_scores(list(range(50)), ["?"] * 50)
    assert scores["json_valid"] == 0 and len(scores["problems"]) == LISTED_PROBLEMS
