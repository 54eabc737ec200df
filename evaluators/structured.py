"""Scores of answers that are to be JSON: is it JSON, does it fit the schema, which fields are right."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from data.json_schema import parse_json, schema_problem, schema_validator
from runtime.errors import DataError

ROW_SCORES = ("json_valid", "schema_valid", "exact", "right_leaves", "leaves")
LISTED_PROBLEMS = 20  # answers with a problem that the result and errors list; the scores count all of them
PROGRESS_AFTER_SECONDS = 3
PLAIN_KEY = re.compile(r"[^\W\d][\w-]*")  # a key that a path shows without quotes


def structured_scores(expected: Sequence[Any], answers: Sequence[str], schema: Any = None) -> dict[str, Any]:
    """Scores answers (texts) against expected values: JSON texts, or what they mean (dicts, lists, numbers ...).

    Returns, all in 0..1: {"json_valid", "schema_valid" (None without a schema), "exact" (the same value), "fields":
    {path: accuracy}, "field_patterns": {pattern: accuracy}, "fields_mean", "problems": the first answers that are no
    JSON or do not fit the schema, as {"row", "problem"}}.

    A field is a leaf of an expected value: a string, number, boolean, null, empty list or empty object. Its accuracy is
    the share of rows expecting that path whose answer has the same leaf there; `sentences[0].polarity` is a path,
    `sentences[].polarity` is the pattern that all items share, and fields_mean is the mean over patterns: each counts
    the same, however many items there are. What an answer has beyond the expected leaves only makes it not exact.

    JSON is meant strictly (RFC 8259): code fences, text around it, NaN, Infinity, numbers beyond float64 and keys given
    twice make an answer invalid, and so wrong in every field; white space around it does not. 1 equals 1.0, true does
    not equal 1, texts are compared code point by code point. Schemas are JSON Schema draft 2020-12 (by jsonschema);
    "format" asserts nothing, as that draft says, and no "$ref" is fetched from a network.
    Raises DataError for empty or unequal lists, a schema that is wrong, and expected values that are no JSON or do not
    fit the schema: a test set that contradicts itself.
    """
    values, table, problems = _evaluate(expected, answers, schema)
    paths: dict[str, list[bool]] = {}
    patterns: dict[str, list[bool]] = {}
    for value, row in zip(values, table, strict=True):
        for (path, pattern), right in zip(leaves(value), row["right"], strict=True):
            paths.setdefault(path, []).append(right)
            patterns.setdefault(pattern, []).append(right)
    by_pattern = {pattern: _mean(rights) for pattern, rights in patterns.items()}
    return {
        "json_valid": _mean([row["json_valid"] for row in table]),
        "schema_valid": None if schema is None else _mean([row["schema_valid"] for row in table]),
        "exact": _mean([row["exact"] for row in table]),
        "fields": {path: _mean(rights) for path, rights in paths.items()},
        "field_patterns": by_pattern,
        "fields_mean": sum(by_pattern.values()) / len(by_pattern),
        "problems": problems[:LISTED_PROBLEMS],
    }


def structured_row_scores(
    expected: Sequence[Any], answers: Sequence[str], schema: Any = None
) -> dict[str, list[float]]:
    """{"json_valid", "schema_valid", "exact", "right_leaves", "leaves"}: a number for each row, for intervals.

    The first three are 0 or 1. The share of all leaves that are right is the ratio of the sums of the last two, as
    `evaluators.intervals.mean_interval(right_leaves, leaves)` takes it. Raises DataError as `structured_scores` does.
    """
    _, table, _ = _evaluate(expected, answers, schema)
    for row in table:
        row |= {"right_leaves": sum(row["right"]), "leaves": len(row["right"])}
    names = [name for name in ROW_SCORES if schema is not None or name != "schema_valid"]
    return {name: [float(row[name]) for row in table] for name in names}


def leaves(value: Any) -> dict[tuple[str, str], Any]:
    """{(path, pattern): leaf} of a JSON value, in its order. The value itself is `$` when it is a leaf.

    >>> list(leaves({"title": "a", "items": [{"n": 1}, {"n": 2}]}))
    [('title', 'title'), ('items[0].n', 'items[].n'), ('items[1].n', 'items[].n')]
    """
    found, waiting = {}, [("", "", value)]
    while waiting:  # not recursive: an answer may be nested as deeply as the parser permits
        path, pattern, node = waiting.pop()
        if isinstance(node, dict) and node:
            steps = [(_step(path, key), _step(pattern, key), child) for key, child in node.items()]
        elif isinstance(node, list) and node:
            steps = [(f"{path}[{index}]", f"{pattern}[]", child) for index, child in enumerate(node)]
        else:
            found[path or "$", pattern or "$"] = node
            continue
        waiting += reversed(steps)
    return found


def _evaluate(expected: Sequence[Any], answers: Sequence[str], schema: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The expected values, a row of scores for each answer, and the problems of answers."""
    from tqdm import tqdm

    if isinstance(expected, str) or isinstance(answers, str):
        raise DataError("expected and answers must be lists, not one text")
    if not len(expected) or len(expected) != len(answers):
        lengths = f"{len(expected)}, {len(answers)}"
        raise DataError(f"expected and answers must be equally long and not empty: {lengths}")
    for row, answer in enumerate(answers):
        if not isinstance(answer, str):
            raise DataError(f"answers[{row}] must be a text, but got {answer!r}")
    validator = None if schema is None else schema_validator(schema)
    values = _expected_values(expected, validator)
    table, problems = [], []
    rows = list(zip(values, answers, strict=True))
    shown = tqdm(rows, desc="JSON answers", unit="row", delay=PROGRESS_AFTER_SECONDS, leave=False)
    for row, (value, answer) in enumerate(shown):
        wanted = leaves(value)
        scores: dict[str, Any] = {
            "json_valid": False,
            "schema_valid": False,
            "exact": False,
            "right": [False] * len(wanted),
        }
        try:
            given = parse_json(answer)
        except ValueError as error:
            problems.append({"row": row, "problem": f"no JSON: {error}"})
        else:
            problem = None if validator is None else schema_problem(validator, given)
            if problem is not None:
                problems.append({"row": row, "problem": problem})
            answered = leaves(given)
            right = [key in answered and _same(leaf, answered[key]) for key, leaf in wanted.items()]
            exact = all(right) and len(wanted) == len(answered)
            scores = {"json_valid": True, "schema_valid": problem is None, "exact": exact, "right": right}
        table.append(scores)
    return values, table, problems


def check_expected(expected: Sequence[Any], schema: Any = None) -> None:
    """Raises DataError as `structured_scores` does where expected values are no JSON or do not fit the schema."""
    _expected_values(expected, None if schema is None else schema_validator(schema))


def _expected_values(expected: Sequence[Any], validator: Any) -> list[Any]:
    values, problems = [], []
    for row, given in enumerate(expected):
        try:
            value = parse_json(given if isinstance(given, str) else json.dumps(given))
            if validator is not None and (problem := schema_problem(validator, value)) is not None:
                problems.append(f"expected[{row}]: {problem}")
        except (ValueError, TypeError, RecursionError) as error:
            problems.append(f"expected[{row}]: no JSON: {error}")
        else:
            values.append(value)
    if problems:
        more = [f"and {len(problems) - LISTED_PROBLEMS} more"] if len(problems) > LISTED_PROBLEMS else []
        raise DataError("\n".join([*problems[:LISTED_PROBLEMS], *more]))
    return values


def _same(wanted: Any, given: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given  # Python's True equals 1, JSON's true does not
    numbers = isinstance(wanted, int | float) and isinstance(given, int | float)
    return (numbers or type(wanted) is type(given)) and wanted == given


def _step(path: str, key: str) -> str:
    """The path one key deeper; keys that could be read as something else are quoted, so that no two paths are equal."""
    if not PLAIN_KEY.fullmatch(key):
        return f"{path}[{json.dumps(key, ensure_ascii=False)}]"
    return f"{path}.{key}" if path else key


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
