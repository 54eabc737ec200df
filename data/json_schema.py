"""JSON texts, and the JSON Schemas that they keep: read strictly, with the place of what is wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from runtime.errors import DataError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TEXT_LENGTH = 200  # characters of a problem: validators quote the whole value


def read_schema(file: Path) -> Any:
    """A JSON Schema from a file, checked. Raises DataError: no such file, no JSON, or where the schema is wrong."""
    try:
        schema = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file}: no JSON: {error}") from error
    try:
        schema_validator(schema)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    return schema


def parse_json(text: str) -> Any:
    """The value of a JSON text, strictly (RFC 8259): no NaN or Infinity, no number beyond float64, no key twice.

    Raises ValueError: what is wrong, and where.
    """
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


def schema_validator(schema: Any) -> Any:
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


def schema_problem(validator: Any, value: Any) -> str | None:
    """The error that says most about why a value does not fit, with its place; None when it fits."""
    from jsonschema.exceptions import best_match

    try:
        error = best_match(validator.iter_errors(value))
    except RecursionError:
        return "nested too deeply for the schema, or a $ref of the schema leads to itself"
    return None if error is None else f"{error.json_path}: {_short(error.message)}"


def _short(text: str) -> str:
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


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
