"""Optuna's samplers by name, and the values of a trial.

Each of a study's trials has a sampler of its own, seeded by the study's seed and the trial's slot: what a trial gets
depends on the trials before it and on nothing else, so a study that was killed goes on as if it had not been.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.errors import nearest
from search.distributions import decode, distribution, encode
from search.space import Parameter, Space

if TYPE_CHECKING:
    import optuna

SAMPLERS = {
    "random": "RandomSampler",
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "nsga2": "NSGAIISampler",
    "cmaes": "CmaEsSampler",
}
GRID = "grid"  # every combination once, in an order drawn by the seed
_OURS = ("self", "seed", "constraints_func", "search_space", "independent_sampler")
_MOST_GRID = 100_000


def sampler_problems(options: Any, parameters: Sequence[Parameter], objectives: int) -> list[str]:
    """What is wrong with a space's sampler, a line each."""
    if not isinstance(options, dict) or not isinstance(options.get("type"), str):
        return [f'sampler: must be an object such as {{"type": "tpe"}}, but got {options!r}']
    kind = options["type"]
    if kind not in (*SAMPLERS, GRID):
        return [f"sampler.type: '{kind}' is unknown; {nearest(kind, [*SAMPLERS, GRID])}"]
    known = _options(kind)
    problems = [
        f"sampler.{key}: unknown option of {kind}; {nearest(key, known)}"
        if known
        else f"sampler.{key}: {kind} has no options"
        for key in options
        if key not in known and key != "type"
    ]
    if kind == "cmaes":
        if objectives > 1:
            problems.append(
                f"sampler.type: cmaes takes one objective, but there are {objectives}; take tpe, gp or nsga2"
            )
        named = [p.name for p in parameters if p.kind == "categorical"]
        if named:
            problems.append(
                f"sampler.type: cmaes takes numbers only, but {', '.join(named)} are categorical; take tpe or gp"
            )
    if kind == GRID:
        problems += [
            f"parameters.{p.name}: a grid needs choices or a step for every parameter, but this one is continuous"
            for p in parameters
            if p.kind == "float" and p.step is None and p.low != p.high
        ]
        if not problems and parameters and len(grid(parameters, _MOST_GRID + 1)) > _MOST_GRID:
            problems.append(f"sampler.type: the grid has more than {_MOST_GRID} combinations; take tpe or random")
    elif not problems:
        try:
            _make(options, seed=0)
        except (TypeError, ValueError, ImportError) as error:
            problems.append(f"sampler: {error}")
    return problems


def make_sampler(space: Space, slot: int) -> optuna.samplers.BaseSampler:
    """The sampler of one of a study's trials."""
    import numpy as np

    seed = int(np.random.SeedSequence([space.seed, slot]).generate_state(1)[0])
    sampler = _make({"type": "random"} if space.sampler["type"] == GRID else space.sampler, seed)
    if space.sampler["type"] == "cmaes":
        sampler.slot = slot  # type: ignore[attr-defined]
    return sampler


def draw(trial: optuna.trial.BaseTrial, parameters: Sequence[Parameter]) -> dict[str, Any]:
    """The JSON value of every active parameter."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.is_active(values):
            dist: Any = distribution(parameter)
            if parameter.kind == "categorical":
                drawn = trial.suggest_categorical(parameter.name, dist.choices)
            elif parameter.kind == "int":
                drawn = trial.suggest_int(parameter.name, dist.low, dist.high, step=dist.step, log=dist.log)
            else:
                drawn = trial.suggest_float(parameter.name, dist.low, dist.high, step=dist.step, log=dist.log)
            values[parameter.name] = decode(parameter, drawn)
    return values


def grid(parameters: Sequence[Parameter], most: int | None = None) -> list[dict[str, Any]]:
    """Every combination of active parameters, at most so many, as {name: JSON value}."""

    def combine(chosen: dict[str, Any], rest: Sequence[Parameter]) -> Any:
        if not rest:
            yield chosen
            return
        first, *others = rest
        if not first.is_active(chosen):
            yield from combine(chosen, others)
            return
        for value in _steps(first):
            yield from combine({**chosen, first.name: value}, others)

    return list(itertools.islice(combine({}, parameters), most))


def slots_of(space: Space) -> int:
    """How many trials the study has: a grid ends when it has no further combination."""
    return len(grid(space.parameters, space.trials)) if space.sampler["type"] == GRID else space.trials


def grid_trials(space: Space) -> list[dict[str, Any]]:
    """Optuna's values of the grid's combinations, shuffled by the space's seed."""
    import numpy as np

    combinations = grid(space.parameters)
    order = np.random.default_rng(space.seed).permutation(len(combinations))
    return [{n: encode(space.parameter(n), v) for n, v in combinations[i].items()} for i in order]


def ends(parameter: Parameter) -> list[Any]:
    """The choices of a categorical parameter; the lowest and the highest value of a number, which may be one."""
    if parameter.kind == "float" and parameter.step is None:
        return list(dict.fromkeys([parameter.low, parameter.high]))
    values = _steps(parameter)
    return values if parameter.kind == "categorical" else list(dict.fromkeys([values[0], values[-1]]))


def _steps(parameter: Parameter) -> list[Any]:
    if parameter.kind == "categorical":
        return list(parameter.choices)
    low, high = parameter.low, parameter.high
    assert low is not None and high is not None  # read_parameters has seen to it
    step = parameter.step or 1
    values = [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]
    return [round(value, 12) for value in values] if parameter.kind == "float" else values


def _options(kind: str) -> list[str]:
    if kind == GRID:
        return []
    import optuna

    signature = inspect.signature(getattr(optuna.samplers, SAMPLERS[kind]).__init__)
    return [name for name, p in signature.parameters.items() if name not in _OURS and p.kind != p.VAR_KEYWORD]


def _make(options: Mapping[str, Any], seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    defaults = {"constant_liar": True} if options["type"] == "tpe" else {}  # workers keep out of each other's way
    given = {key: value for key, value in options.items() if key != "type"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        kind: Any = getattr(optuna.samplers, SAMPLERS[options["type"]])
        if options["type"] == "cmaes":
            from search.cmaes_by_slot import CmaEsBySlot as kind
        sampler: optuna.samplers.BaseSampler = kind(seed=seed, **{**defaults, **given})
    return sampler
