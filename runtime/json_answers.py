"""JSON as constrained decoding writes it: the text of a value, and how long the texts of a JSON Schema may become.

The constraint permits no free white space: between two tokens of JSON stand fixed separators, so that an answer cannot
go on with blanks for ever, and what an adapter learned to write is what the constraint lets it write. It asks for one
more thing: the keys of an object come in the order of the schema's `properties`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import unquote

from runtime.errors import DataError

# llguidance's options of a schema, under its key "x-guidance"
WHITESPACE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
CHARACTER_BYTES = 6  # most that one character of a JSON string takes: \u001f


def guided(schema: Any) -> Any:
    """The schema as the constraint takes it: with fixed separators, unless it has an "x-guidance" of its own."""
    return {"x-guidance": WHITESPACE, **schema} if isinstance(schema, dict) else schema


def json_text(value: Any, schema: Any = True) -> str:
    """A value as the constraint would write it: on one line, not escaped beyond need, with the schema's separators.

    Raises ValueError for NaN and infinity, TypeError for what JSON has no form for.

    >>> json_text({"emotion": "Nojo", "places": ["São Luís", 2]})
    '{"emotion": "Nojo", "places": ["São Luís", 2]}'
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=_separators(schema))


def target(root: Any, reference: str) -> Any:
    """What a "$ref" within the schema `root` leads to, such as "#/$defs/sentence" (RFC 6901, JSON pointers).

    Raises:
        DataError: it leads out of the schema, or nowhere.
    """
    node = root
    start, *steps = reference.split("/")
    try:
        if start != "#":
            raise KeyError(start)
        for step in steps:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            node = node[int(name)] if isinstance(node, list) else node[name]
    except (KeyError, IndexError, TypeError, ValueError):
        raise DataError(f"schema: $ref {reference!r} is not the place of a part of this schema") from None
    return node


def longest_json(schema: Any) -> int:
    """Most bytes (UTF-8) of a text that the constraint permits; so many tokens hold it, however it is cut into them.

    An upper bound: of several conditions on a value, one that has a bound is enough.

    Raises:
        DataError: the schema sets no bound; names the place and what would set it.

    >>> longest_json({"enum": ["Positivo", "Neutro"]})
    10
    """
    options = guided(schema)["x-guidance"] if isinstance(schema, dict) else WHITESPACE
    if options.get("whitespace_flexible", True):
        raise DataError("schema at $.x-guidance: whitespace_flexible must be false, for white space has no bound")
    return _Longest(schema).of(schema, "$", frozenset())


def _separators(schema: Any) -> tuple[str, str]:
    options = schema.get("x-guidance", {}) if isinstance(schema, dict) else {}
    item, key = (str(options.get(name, WHITESPACE[name])) for name in ("item_separator", "key_separator"))
    return item, key


class _Longest:
    """Walks through one schema. Each method returns bytes, or raises DataError where there is no bound."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.item, self.key = (len(separator.encode()) for separator in _separators(root))

    def of(self, node: Any, place: str, followed: frozenset[str]) -> int:
        """`followed` are the references that lead to `node`."""
        if node is False:
            return 0
        if not isinstance(node, Mapping):
            raise DataError(f"schema at {place}: permits every value")
        conditions: list[Callable[[], int]] = []
        if "enum" in node or "const" in node:
            values = node.get("enum", [node.get("const")])
            conditions.append(lambda: max((len(json_text(v, self.root).encode()) for v in values), default=0))
        if "$ref" in node:
            conditions.append(lambda: self._reference(node["$ref"], place, followed))
        for key in ("anyOf", "oneOf"):
            parts = node.get(key, [])
            if parts:
                conditions.append(partial(self._widest, parts, f"{place}.{key}", followed))
        for number, part in enumerate(node.get("allOf", [])):
            conditions.append(partial(self.of, part, f"{place}.allOf[{number}]", followed))
        if "type" in node:
            kinds = [node["type"]] if isinstance(node["type"], str) else node["type"]
            conditions.append(lambda: max(self._of_type(kind, node, place, followed) for kind in kinds))
        found, problems = [], [f"schema at {place}: permits every value; give type, enum or const"]
        for condition in conditions:
            try:
                found.append(condition())
            except DataError as error:
                problems.append(str(error))
        if not found:
            raise DataError(problems[-1])
        return min(found)

    def _widest(self, parts: Sequence[Any], place: str, followed: frozenset[str]) -> int:
        return max(self.of(part, f"{place}[{number}]", followed) for number, part in enumerate(parts))

    def _reference(self, reference: str, place: str, followed: frozenset[str]) -> int:
        if reference in followed:
            raise DataError(f"schema at {place}: $ref {reference!r} leads to itself, so values nest without end")
        return self.of(target(self.root, reference), reference, followed | {reference})

    def _of_type(self, kind: str, node: Mapping[str, Any], place: str, followed: frozenset[str]) -> int:
        if kind == "object":
            return self._object(node, place, followed)
        if kind == "array":
            return self._array(node, place, followed)
        if kind == "string" and "maxLength" in node:
            return 2 + CHARACTER_BYTES * int(node["maxLength"])
        if kind == "integer" and {"minimum", "maximum"} <= node.keys():
            return max(len(str(int(node[limit]))) for limit in ("minimum", "maximum"))
        if kind in ("null", "boolean"):
            return len("null" if kind == "null" else "false")
        bounds = {
            "string": "a string of any length; give maxLength, enum or const",
            "integer": "an integer of any length; give minimum and maximum",
            "number": "a number of any length; give enum, or take an integer",
        }
        raise DataError(f"schema at {place}: {bounds[kind]}")

    def _object(self, node: Mapping[str, Any], place: str, followed: frozenset[str]) -> int:
        if node.get("additionalProperties") is not False or "patternProperties" in node:
            raise DataError(f"schema at {place}: an object with any keys; give additionalProperties false")
        fields = [
            len(json_text(name).encode()) + self.key + self.of(field, f"{place}.properties.{name}", followed)
            for name, field in node.get("properties", {}).items()
        ]
        return 2 + sum(fields) + self.item * max(len(fields) - 1, 0)

    def _array(self, node: Mapping[str, Any], place: str, followed: frozenset[str]) -> int:
        first, rest = node.get("prefixItems", []), node.get("items", True)
        most = len(first) if rest is False else node.get("maxItems")
        if most is None:
            raise DataError(f"schema at {place}: an array of any length; give maxItems")
        most = int(most)
        sizes = [self.of(part, f"{place}.prefixItems[{i}]", followed) for i, part in enumerate(first[:most])]
        if most > len(sizes):
            sizes += [self.of(rest, f"{place}.items", followed)] * (most - len(sizes))
        return 2 + sum(sizes) + self.item * max(len(sizes) - 1, 0)
