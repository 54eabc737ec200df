"""Options of generation: what they are, what they may be, and what is wrong with those that were given."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from runtime.errors import PackageError, nearest
from runtime.json_answers import guided

_GUIDES = {"json_schema": "json_schema", "regex": "regex", "grammar": "lark_grammar"}  # ours: onnxruntime-genai's


@dataclass(frozen=True)
class GenerationOptions:
    """How tokens are chosen and where a text ends; built by `read_options`, which checks the values.

    max_new_tokens: at most this many, and at most what the model's context has left.
    min_new_tokens: the end of the sequence is not chosen before.
    temperature: 0 takes the likeliest token; the other sampling options then have no effect.
    top_k: sample from the likeliest k; 0 from all.
    top_p: sample from the likeliest tokens that together have this probability.
    repetition_penalty: above 1 makes tokens that prompt or text already has less likely (Keskar et al. 2019).
    seed: makes sampling repeatable.
    stop: a text, or several; the answer ends before the first that it reaches.
    stop_at_eos: False goes on to max_new_tokens, or to the end of the context.
    json_schema: a JSON schema, as a dict or text, that the answer keeps to; at most one of these three.
    regex: a regular expression (Rust's syntax) that the whole answer matches.
    grammar: a Lark grammar in the dialect of llguidance.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_at_eos: bool = True
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None

    @property
    def guide(self) -> tuple[str, str, str] | None:
        """(our name, onnxruntime-genai's name, text) of the constraint, if there is one."""
        return next(((ours, name, text) for ours, name in _GUIDES.items() if (text := getattr(self, ours))), None)


def read_options(given: Mapping[str, Any]) -> GenerationOptions:
    """Options from keyword arguments.

    Raises:
        PackageError: everything that is unknown, of the wrong type or out of range, with name and value.
    """
    names = [field.name for field in fields(GenerationOptions)]
    problems = [f"there is no option '{key}'; {nearest(key, names)}" for key in given if key not in names]
    values = {key: value for key, value in given.items() if key in names}
    for key, low, high, what in (
        ("max_new_tokens", 1, math.inf, "a whole number, at least 1"),
        ("min_new_tokens", 0, math.inf, "a whole number, at least 0"),
        ("top_k", 0, math.inf, "a whole number, at least 0 (0 does not limit)"),
        ("seed", 0, 2**31 - 1, "a whole number from 0 to 2147483647, or None"),
    ):
        value = values.get(key)
        unset = key not in values or (key == "seed" and value is None)
        if not unset and (not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high):
            problems.append(f"{key} is {value!r}, but must be {what}")
    for key, fits, what in (
        ("temperature", lambda x: 0 <= x < math.inf, "at least 0 (0 takes the likeliest token)"),
        ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("repetition_penalty", lambda x: 0 < x < math.inf, "above 0 (1 has no effect)"),
    ):
        value = values.get(key, 1)
        if not isinstance(value, int | float) or isinstance(value, bool) or not fits(value):
            problems.append(f"{key} is {value!r}, but must be {what}")
    stop = values.get("stop", ())
    values["stop"] = (stop,) if isinstance(stop, str) else stop
    if not isinstance(values["stop"], list | tuple) or not all(isinstance(s, str) and s for s in values["stop"]):
        problems.append(f"stop is {stop!r}, but must be a text that is not empty, or a list of such")
    if not isinstance(values.get("stop_at_eos", True), bool):
        problems.append(f"stop_at_eos is {values['stop_at_eos']!r}, but must be True or False")
    problems += _guide_problems(values)
    if problems:
        raise PackageError("; ".join(problems))
    return GenerationOptions(**{**values, "stop": tuple(values["stop"])})


def _guide_problems(values: dict[str, Any]) -> list[str]:
    """Checks the constraint, and turns a JSON schema into text."""
    found = [key for key in _GUIDES if values.get(key) is not None]
    problems = [f"{' and '.join(found)} are both given; take one"] if len(found) > 1 else []
    if found and values.get("stop_at_eos") is False:
        problems.append(f"stop_at_eos is False, but {found[0]} says where the text ends; leave one out")
    problems += [
        f"{key} is {values[key]!r}, but must be text that is not empty"
        for key in found
        if key != "json_schema" and not (isinstance(values[key], str) and values[key])
    ]
    if "json_schema" in found:
        schema = values["json_schema"]
        try:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            if not isinstance(schema, dict | bool):
                problems.append(f"json_schema is {str(schema)[:60]!r}, but must be an object, or its JSON text")
            values["json_schema"] = json.dumps(guided(schema))
        except (TypeError, ValueError) as error:
            problems.append(f"json_schema is no JSON: {error}")
    return problems
