"""Scores of answers that are to be JSON: is it JSON, does it fit the schema, which fields are right."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import DataError

ROW_SCORES = ("json_valid", "schema_valid", "exact", "right_leaves", "leaves")
DIALECT = "https://json-schema.org/draft/2020-12/schema"
LISTED_PROBLEMS = 20  # answers with a problem that the result and errors list; the scores count all of them
PROGRESS_AFTER_SECONDS = 3
TEXT_LENGTH = 200  # characters of a problem: validators quote the whole value
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


def read_schema(file: Path) -> Any:
    """A JSON Schema from a file, checked. Raises DataError: no such file, no JSON, or where the schema is wrong."""
    try:
        schema = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: no JSON: {error}") from error
    try:
        _validator(schema)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return schema


def parse_json(text: str) -> Any:
    """The value of a JSON text, strictly as in `structured_scores`. Raises ValueError: what is wrong, and where."""
    try:
        return json.loads(
            text, object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        start = text[error.pos : error.pos + 20]
        found = f"found {start!r}" if start else "the text ends"
        raise ValueError(f"line {error.lineno} column {error.colno}: {error.msg}, {found}") from None
    except RecursionError:
        raise ValueError("lists or objects are nested too deeply") from None


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
    validator = None if schema is None else _validator(schema)
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
            problem = None if validator is None else _schema_problem(validator, given)
            if problem is not None:
                problems.append({"row": row, "problem": problem})
            answered = leaves(given)
            right = [key in answered and _same(leaf, answered[key]) for key, leaf in wanted.items()]
            exact = all(right) and len(wanted) == len(answered)
            scores = {"json_valid": True, "schema_valid": problem is None, "exact": exact, "right": right}
        table.append(scores)
    return values, table, problems


def _expected_values(expected: Sequence[Any], validator: Any) -> list[Any]:
    values, problems = [], []
    for row, given in enumerate(expected):
        try:
            value = parse_json(given if isinstance(given, str) else json.dumps(given))
            if validator is not None and (problem := _schema_problem(validator, value)) is not None:
                problems.append(f"expected[{row}]: {problem}")
        except (ValueError, TypeError, RecursionError) as error:
            problems.append(f"expected[{row}]: no JSON: {error}")
        else:
            values.append(value)
    if problems:
        more = [f"and {len(problems) - LISTED_PROBLEMS} more"] if len(problems) > LISTED_PROBLEMS else []
        raise DataError("\n".join([*problems[:LISTED_PROBLEMS], *more]))
    return values


def _validator(schema: Any) -> Any:
    """A validator of the schema, which is checked first: every keyword, and that every reference leads somewhere."""
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    dialect = schema.get("$schema", DIALECT) if isinstance(schema, dict) else DIALECT
    if str(dialect).rstrip("#") != DIALECT:
        raise DataError(f"schema at $.$schema: only draft 2020-12 is read ({DIALECT}), but got {dialect!r}")
    meta = Draft202012Validator(Draft202012Validator.META_SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
    problems = [
        f"schema at {error.json_path}: {'; '.join(cause.message for cause in error.context) or error.message}"
        for error in meta.iter_errors(schema)
    ]
    # a registry that knows the draft itself and, unlike the default one, fetches nothing
    registry: Registry[Any] = Registry().with_resource(DIALECT, DRAFT202012.create_resource(meta.META_SCHEMA))
    if not problems:
        resource = DRAFT202012.create_resource(schema)
        waiting = [(resource, registry.resolver_with_root(resource))]
        while waiting:
            part, resolver = waiting.pop()
            if isinstance(part.contents, dict) and (reference := part.contents.get("$ref")) is not None:
                try:
                    resolver.lookup(reference)
                except Unresolvable:
                    problems.append(f"schema: $ref {reference!r} leads nowhere; nothing is fetched from a network")
            waiting += [(child, resolver.in_subresource(child)) for child in part.subresources()]
    if problems:
        raise DataError("\n".join(dict.fromkeys(problems)))
    return Draft202012Validator(schema, registry=registry)


def _schema_problem(validator: Any, value: Any) -> str | None:
    """The error that says most about why a value does not fit, with its place; None when it fits."""
    from jsonschema.exceptions import best_match

    try:
        error = best_match(validator.iter_errors(value))
    except RecursionError:
        return "nested too deeply for the schema, or a $ref of the schema leads to itself"
    return None if error is None else f"{error.json_path}: {_short(error.message)}"


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


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


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice[0]!r} is given twice in an object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {_short(text)} is beyond float64")
    return value


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
