"""Reads the parameters of a space file: distributions, conditions, and the paths that a value goes to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from runtime.errors import nearest
from search.space import Parameter

KEYS = {
    "float": ("low", "high", "step", "log"),
    "int": ("low", "high", "step", "log"),
    "categorical": ("choices",),
}
COMMON = ("type", "path", "paths", "when", "inactive")
INACTIVE = ("keep", "remove")


def read_parameters(given: Any, problems: list[str]) -> tuple[Parameter, ...]:
    """Parameters in an order in which each comes after those that it depends on; adds what is wrong to `problems`."""
    if given is None:
        return ()
    if not isinstance(given, dict) or not given:
        problems.append('parameters: must be an object such as {"passes.spam.rank": {"type": "int", ...}}')
        return ()
    found = {}
    for name, entry in given.items():
        where = f"parameters.{name}"
        if not isinstance(entry, dict):
            problems.append(f'{where}: must be an object such as {{"type": "int", "low": 4, "high": 32}}')
            continue
        kind = entry.get("type")
        if kind not in KEYS:
            problems.append(f"{where}.type: {kind!r} is unknown; {nearest(kind, KEYS)}")
            continue
        keys = (*COMMON, *KEYS[kind])
        problems += [
            f"{where}.{key}: unknown key of type {kind}; {nearest(key, keys)}" for key in entry if key not in keys
        ]
        before = len(problems)
        values = _choices(entry, where, problems) if kind == "categorical" else _range(entry, kind, where, problems)
        paths = _paths(name, entry, where, problems)
        inactive = entry.get("inactive", "keep")
        if inactive not in INACTIVE:
            problems.append(f"{where}.inactive: {inactive!r} is unknown; {nearest(inactive, INACTIVE)}")
        when = entry.get("when", {})
        if not isinstance(when, dict):
            problems.append(f'{where}.when: must be an object such as {{"precision": ["int4"]}}')
            when = {}
        conditions = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
        if len(problems) == before:
            found[name] = Parameter(name, paths, kind, **values, when=conditions, inactive=inactive)
    _check_paths(found, problems)
    return _ordered(found, set(given), problems)


def _range(entry: Mapping[str, Any], kind: str, where: str, problems: list[str]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for key in ("low", "high", "step"):
        value = entry.get(key)
        if value is None:
            if key != "step":
                problems.append(f"{where}.{key}: is required")
        elif not _is_number(value) or (kind == "int" and value != int(value)):
            problems.append(f"{where}.{key}: must be a {'whole ' if kind == 'int' else ''}number, but got {value!r}")
        else:
            numbers[key] = int(value) if kind == "int" else float(value)
    log = entry.get("log", False)
    if not isinstance(log, bool):
        problems.append(f"{where}.log: must be true or false, but got {log!r}")
    low, high, step = (numbers.get(key) for key in ("low", "high", "step"))
    if low is not None and high is not None and low > high:
        problems.append(f"{where}: low must not be above high, but {low} > {high}")
    if step is not None and step <= 0:
        problems.append(f"{where}.step: must be above 0, but got {step}")
    if log is True and low is not None and low <= 0:
        problems.append(f"{where}.low: must be above 0 where log is true, but got {low}")
    if log is True and step is not None and step != 1:
        problems.append(f"{where}.step: cannot stand beside log")
    return {**numbers, "log": log is True}


def _choices(entry: Mapping[str, Any], where: str, problems: list[str]) -> dict[str, Any]:
    choices = entry.get("choices")
    if not isinstance(choices, list) or not choices:
        problems.append(f"{where}.choices: must be a list with at least one value")
        return {}
    texts = [json.dumps(choice, sort_keys=True) for choice in choices]
    problems += [
        f"{where}.choices: {text} stands there twice" for text in sorted({t for t in texts if texts.count(t) > 1})
    ]
    return {"choices": tuple(choices)}


def _paths(name: str, entry: Mapping[str, Any], where: str, problems: list[str]) -> tuple[str, ...]:
    if "path" in entry and "paths" in entry:
        problems.append(f"{where}: has both path and paths; paths alone names several places")
    paths = entry.get("paths", [entry.get("path", name)])
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) and path for path in paths):
        problems.append(f"{where}: path must be a text, paths a list of texts, but got {paths!r}")
        return ()
    return tuple(paths)


def _check_paths(found: Mapping[str, Parameter], problems: list[str]) -> None:
    """Two parameters may set one path only where they are never active together; that is not looked into further than
    that both have conditions."""
    taken: dict[str, Parameter] = {}
    for parameter in found.values():
        for path in parameter.paths:
            other = taken.setdefault(path, parameter)
            if other is not parameter and not _exclude(other, parameter):
                problems.append(
                    f"parameters.{parameter.name}: sets {path}, and so does parameters.{other.name}; give them "
                    f"conditions (when) of which only one holds"
                )


def _exclude(one: Parameter, other: Parameter) -> bool:
    shared = set(one.when) & set(other.when)
    return any(not any(value in other.when[name] for value in one.when[name]) for name in shared)


def _ordered(found: dict[str, Parameter], given: set[str], problems: list[str]) -> tuple[Parameter, ...]:
    for parameter in found.values():
        for name, allowed in parameter.when.items():
            where = f"parameters.{parameter.name}.when.{name}"
            if name not in given or name == parameter.name:
                problems.append(
                    f"{where}: there is no other parameter '{name}'; {nearest(name, given - {parameter.name})}"
                )
            elif name in found:
                wrong = [value for value in allowed if not _possible(found[name], value)]
                problems += [f"{where}: {name} never is {value!r}" for value in wrong]
    ordered: dict[str, Parameter] = {}
    while len(ordered) < len(found):
        ready = [
            p for n, p in found.items() if n not in ordered and all(w in ordered or w not in found for w in p.when)
        ]
        if not ready:
            circle = ", ".join(name for name in found if name not in ordered)
            problems.append(f"parameters: the conditions of {circle} go round in a circle")
            break
        ordered |= {p.name: p for p in ready}
    return tuple(ordered.values())


def _possible(parameter: Parameter, value: Any) -> bool:
    if parameter.kind == "categorical":
        return any(value == choice and type(value) is type(choice) for choice in parameter.choices)
    low, high = parameter.low, parameter.high
    return _is_number(value) and low is not None and high is not None and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
