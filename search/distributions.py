"""A parameter's values as Optuna holds them, and back: a categorical may be any JSON value.

Optuna stores None, bool, int, float and str, and finds a choice with `==`, to which 1, 1.0 and True are one value. So a
parameter whose choices are all of these kinds and all different keeps them as they are, which reads well in dashboards;
the choices of any other parameter are held as their JSON text, where 1, 1.0, true and "1" are four texts.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from runtime.errors import DataError
from search.space import Parameter

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def distribution(parameter: Parameter) -> BaseDistribution:
    """What Optuna is told of a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "categorical":
        return CategoricalDistribution(_held(parameter))
    assert parameter.low is not None and parameter.high is not None  # read_space has seen to it
    if parameter.kind == "int":
        step = 1 if parameter.step is None else int(parameter.step)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log, step=parameter.step)


def encode(parameter: Parameter, value: Any) -> bool | int | float | str | None:
    """A parameter's JSON value as Optuna holds it.

    Raises:
        DataError: no choice of the parameter, or not within its bounds (the space file was changed since, say).

    >>> encode(Parameter("pad", ("a",), "categorical", choices=([1, 2], None)), [1, 2])
    '[1, 2]'
    """
    if parameter.kind == "categorical":
        texts = [json_text(choice) for choice in parameter.choices]
        if (text := json_text(value)) not in texts:
            raise DataError(f"{parameter.name}: {text} is none of the choices {', '.join(texts)}")
        held: bool | int | float | str | None = _held(parameter)[texts.index(text)]
        return held
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and float(value).is_integer()
    if not number or not (whole or parameter.kind == "float") or not parameter.low <= value <= parameter.high:
        kind = "whole number" if parameter.kind == "int" else "number"
        raise DataError(f"{parameter.name}: {json_text(value)} is no {kind} from {parameter.low} to {parameter.high}")
    return int(value) if parameter.kind == "int" else float(value)


def decode(parameter: Parameter, held: Any) -> Any:
    """The JSON value of what Optuna holds; a new object each time.

    Raises:
        DataError: Optuna holds what is no choice of the parameter.

    >>> decode(Parameter("pad", ("a",), "categorical", choices=([1, 2], None)), '[1, 2]')
    [1, 2]
    """
    if parameter.kind == "categorical":
        choices = _held(parameter)
        if held not in choices:
            raise DataError(f"{parameter.name}: {held!r} is none of the choices {choices} that the study was made with")
        return json.loads(json_text(parameter.choices[choices.index(held)]))
    return int(held) if parameter.kind == "int" else float(held)


def json_text(value: Any) -> str:
    """A JSON value as text: equal values, and only these, have equal texts (objects: whatever their keys' order)."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _held(parameter: Parameter) -> list[Any]:
    """The choices as Optuna holds them, in the parameter's order."""
    choices = list(parameter.choices)
    simple = all(choice is None or isinstance(choice, bool | int | float | str) for choice in choices)
    if simple and all(one != other for i, one in enumerate(choices) for other in choices[:i]):
        return choices
    return [json_text(choice) for choice in choices]
