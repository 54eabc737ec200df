"""Decides whether a trial that is still running may stop: Optuna's pruners, asked about curves.

Optuna's `trial.should_prune` wants a study of one objective, and a study over workflows has several. So the curves of
one metric are laid into a study in memory that has this metric as its objective, and the real pruner is asked there.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import ConfigError, nearest
from search.space import DIRECTIONS

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

TYPES = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "patient": "PatientPruner",
    "threshold": "ThresholdPruner",
    "wilcoxon": "WilcoxonPruner",
    "none": "NopPruner",
}
STATES = ("complete", "pruned", "running", "failed")
# Hyperband chooses a trial's bracket by the study's name and the trial's number: a fixed name keeps it the same on
# every machine and at every step
STUDY_NAME = "olival"
# What an option's value is tried with, so that the error is about this option and no other
_COMPANY: dict[str, dict[str, Any]] = {
    "percentile": {"percentile": 50.0},
    "patient": {"patience": 1},
    "threshold": {"upper": math.inf},
    "successive_halving": {"min_resource": 1},
    "hyperband": {"max_resource": 81},
}
_OF_A_BRACKET = ("min_resource", "reduction_factor", "bootstrap_count")  # Hyperband checks them when it prunes
_KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "None": type(None), "BasePruner": dict}


class Curve(NamedTuple):
    """What is known of another trial.

    Attributes:
        number: of the trial in its study, from 0.
        state: one of STATES.
        values: step -> intermediate value; None is a value that is no number.
        value: final value of a complete trial; None where it is not known, then it is no trial's best.
        memory: what `judge` left in `state` when it was asked about that trial.
    """

    number: int
    state: str
    values: Mapping[int, float | None]
    value: float | None = None
    memory: Mapping[str, Any] = {}


def make_pruner(options: Mapping[str, Any]) -> BasePruner:
    """Optuna's pruner of {"type": one of TYPES, ...Optuna's own options by their names}.

    The `wrapped_pruner` of "patient" is written the same way, or null.

    Raises:
        ConfigError: with everything that `pruner_problems` finds.
    """
    if problems := pruner_problems(options, "pruner"):
        raise ConfigError(problems)
    return _build(options)


def pruner_problems(options: Any, where: str) -> list[str]:
    """Everything wrong with a pruner's options, each line starting with `where` and the option's name."""
    if not isinstance(options, Mapping):
        return [f'{where}: must be an object such as {{"type": "median"}}, but got {options!r}']
    kind = options.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        return [f"{where}.type: {kind!r} is unknown; {nearest(kind, TYPES)}"]
    parameters = _parameters(kind)
    problems = []
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in options and name != "wrapped_pruner":
            problems.append(f"{where}.{name}: is needed by '{kind}'")
    for name, value in options.items():
        if name == "type":
            continue
        if name not in parameters:
            problems.append(f"{where}.{name}: unknown option of '{kind}'; {nearest(name, parameters)}")
        elif problem := _value_problem(kind, name, value, parameters[name].annotation):
            problems.append(f"{where}.{name}: {problem}")
        elif isinstance(value, Mapping):
            problems += pruner_problems(value, f"{where}.{name}")
    if not problems and (problem := _raised(options)):
        problems.append(f"{where}: {problem}")
    if not problems and kind == "hyperband":
        least, most = options.get("min_resource", 1), options.get("max_resource", "auto")
        if most != "auto" and least > most:
            problems.append(f"{where}: min_resource <= max_resource must hold, but got ({least}, {most})")
    return problems


def judge(
    pruner_options: Mapping[str, Any],
    direction: str,
    number: int,
    past: Sequence[Curve],
    curve: Mapping[int, float | None],
    state: dict[str, Any],
) -> bool:
    """Whether the pruner stops a trial, given its curve up to now and those of the other trials.

    It is to be asked once for each new step, in order: a pruner decides about the last step of the curve. The Wilcoxon
    pruner takes rows as steps, of which many may be new, and compares with the complete trial of the best value. What
    Optuna estimates of complete trials ("auto") it estimates here each time, of all that there are.

    Args:
        pruner_options: see `make_pruner`; taken as checked.
        direction: "minimize" or "maximize".
        number: the trial's real number: Hyperband's bracket comes from it.
        past: the other trials, in any order; one of this number is left out.
        curve: step -> value; None is a value that is no number.
        state: {} for a new trial. Successive halving and Hyperband note in it which rungs the trial has reached, as
            JSON can hold it; it is to be kept with the trial, handed back at the next step, and given as `memory` of
            the trial's Curve to the judgements of others.

    Raises:
        ValueError: a direction or a state that there is not.
    """
    import optuna

    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, but is {direction!r}")
    trials = {other.number: _trial(other, direction) for other in past}
    trials[number] = _trial(Curve(number, "running", curve, None, state), direction)
    with _quiet():
        study = optuna.create_study(
            direction=optuna.study.StudyDirection[direction.upper()],
            study_name=STUDY_NAME,
            storage=optuna.storages.InMemoryStorage(),
            sampler=optuna.samplers.RandomSampler(),  # nothing is sampled; of all samplers it is made fastest
            pruner=_build(pruner_options),
        )
        for place in range(max(trials) + 1):  # a number without a curve still has its place
            study.add_trial(trials.get(place) or _trial(Curve(place, "failed", {}), direction))
        stops = study.pruner.prune(study, study.get_trials(deepcopy=False)[number])
    state.update(study.get_trials(deepcopy=False)[number].system_attrs)
    return bool(stops)


def _trial(curve: Curve, direction: str) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    if curve.state not in STATES:
        raise ValueError(f"trial {curve.number}: state must be one of {', '.join(STATES)}, but is {curve.state!r}")
    state = {"failed": TrialState.FAIL}.get(curve.state) or TrialState[curve.state.upper()]
    value = None
    if state == TrialState.COMPLETE:
        known = curve.value is not None and not math.isnan(curve.value)
        value = curve.value if known else (-math.inf if direction == "maximize" else math.inf)
    return create_trial(
        state=state,
        value=value,
        intermediate_values={int(step): math.nan if v is None else float(v) for step, v in curve.values.items()},
        system_attrs=dict(curve.memory),
    )


def _build(options: Mapping[str, Any]) -> Any:
    import optuna

    values = {name: value for name, value in options.items() if name != "type"}
    if options["type"] == "patient":
        wrapped = values.get("wrapped_pruner")
        values["wrapped_pruner"] = _build(wrapped) if isinstance(wrapped, Mapping) else None
    with _quiet():
        return getattr(optuna.pruners, TYPES[options["type"]])(**values)


def _parameters(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a type, as Optuna's signature has them."""
    import optuna

    found = dict(inspect.signature(getattr(optuna.pruners, TYPES[kind])).parameters)
    return {name: p for name, p in found.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _value_problem(kind: str, name: str, value: Any, annotation: Any) -> str | None:
    """What is wrong with one option's value: its type, or what Optuna raises for it."""
    names = str(getattr(annotation, "__name__", annotation)).split(" | ")
    if isinstance(value, bool) or not isinstance(value, tuple(_KINDS[part] for part in names)):
        words = " or ".join({"BasePruner": "a pruner's options", "None": "null"}.get(part, part) for part in names)
        return f"must be {words}, but got {value!r}"
    if isinstance(value, float) and math.isnan(value):
        return "must be a number, but got NaN"
    if isinstance(value, Mapping):
        return None
    if kind == "hyperband" and name in _OF_A_BRACKET:
        kind = "successive_halving"
    return _raised({"type": kind, **_COMPANY.get(kind, {}), name: value})


def _raised(options: Mapping[str, Any]) -> str | None:
    """What Optuna says against options; None where it takes them."""
    try:
        _build(options)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's lines about each new study and about its newer pruners."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(level, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
