"""Our questions about curves get the answers of a plain Optuna study that reports and asks, step by step."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import optuna
import pytest

from runtime.errors import ConfigError
from search import pruning
from search.pruning import STUDY_NAME, TYPES, Curve, judge, make_pruner, pruner_problems

STEPS = 9
PORTION = 16  # rows that the Wilcoxon pruner gets at once
PRUNERS: dict[str, dict[str, Any]] = {
    "median": {"type": "median", "n_startup_trials": 2},
    "median-late": {"type": "median", "n_startup_trials": 1, "n_warmup_steps": 3, "interval_steps": 2},
    "percentile": {"type": "percentile", "percentile": 25.0, "n_startup_trials": 3, "n_min_trials": 2},
    "halving": {"type": "successive_halving", "min_resource": 1, "reduction_factor": 2},
    "halving-auto": {"type": "successive_halving", "reduction_factor": 3},
    "halving-late": {
        "type": "successive_halving",
        "min_resource": 1,
        "reduction_factor": 2,
        "min_early_stopping_rate": 1,
        "bootstrap_count": 2,
    },
    "hyperband": {"type": "hyperband", "max_resource": STEPS, "reduction_factor": 2},
    "hyperband-auto": {"type": "hyperband", "reduction_factor": 3},
    "patient": {"type": "patient", "patience": 1, "wrapped_pruner": {"type": "median", "n_startup_trials": 2}},
    "patient-alone": {"type": "patient", "patience": 2, "min_delta": 0.05, "wrapped_pruner": None},
    "threshold": {"type": "threshold", "lower": 0.15, "upper": 0.9, "n_warmup_steps": 2},
    "wilcoxon": {"type": "wilcoxon", "p_threshold": 0.2},
    "none": {"type": "none"},
}


def plain_pruner(name: str) -> Any:
    """The same pruner, made without our code."""
    options = {key: value for key, value in PRUNERS[name].items() if key not in ("type", "wrapped_pruner")}
    if name.startswith("patient"):
        wrapped = optuna.pruners.MedianPruner(n_startup_trials=2) if name == "patient" else None
        return optuna.pruners.PatientPruner(wrapped, **options)
    return getattr(optuna.pruners, TYPES[PRUNERS[name]["type"]])(**options)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("name", PRUNERS)
def test_decisions_are_those_of_a_plain_study(name: str, direction: str) -> None:
    """20 trials of random curves, one to three at a time, some of them failing: each step's decision is the same."""
    decisions = []
    for seed in range(2):
        chance = random.Random(f"{name} {direction} {seed}")
        sampler = optuna.samplers.RandomSampler(seed=0)
        options: dict[str, Any] = {"direction": direction, "study_name": STUDY_NAME, "sampler": sampler}
        study = optuna.create_study(pruner=plain_pruner(name), **options)
        curves: dict[int, Curve] = {}
        running: dict[int, Any] = {}
        while len(curves) < 20 or running:
            # the first trial runs to its end alone: "auto" is what the first complete trial says
            room = 1 if not any(curve.state == "complete" for curve in curves.values()) else 3
            if len(running) < room and len(curves) < 20:
                trial = study.ask()
                running[trial.number] = (trial, chance.random())
                curves[trial.number] = Curve(trial.number, "running", {}, None, {})
                continue
            number = chance.choice(list(running))
            trial, level = running[number]
            curve = curves[number]
            for _ in range(PORTION if name == "wilcoxon" else 1):
                step = len(curve.values) + 1
                if name == "wilcoxon":
                    value = float(chance.random() < (level if direction == "maximize" else 1 - level))
                else:
                    value = min(max(level + chance.gauss(0, 0.2), 0.0), 1.0)
                if name in ("median", "halving", "threshold") and step > 1 and chance.random() < 0.03:
                    value = math.nan
                trial.report(value, step)
                curve = curve._replace(values={**curve.values, step: None if math.isnan(value) else value})
            memory = json.loads(json.dumps(curve.memory))  # kept as JSON between the steps
            others = [other for other in curves.values() if other.number != number or chance.random() < 0.5]
            chance.shuffle(others)
            stops = judge(PRUNERS[name], direction, number, others, curve.values, memory)
            assert stops == trial.should_prune()
            decisions.append(stops)
            curve = curve._replace(memory=memory)
            if stops:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                curve = curve._replace(state="pruned")
            elif chance.random() < 0.01:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                curve = curve._replace(state="failed")
            elif step == (STEPS * PORTION if name == "wilcoxon" else STEPS):
                known = [v for v in curve.values.values() if v is not None]
                value = sum(known) / len(known)
                study.tell(trial, value)
                curve = curve._replace(state="complete", value=value)
            curves[number] = curve
            if curve.state != "running":
                del running[number]
    assert True not in decisions if name == "none" else {True, False} == set(decisions)


def test_rungs_are_remembered() -> None:
    """Without the rungs of the others every trial is the best of its rung; with them the worse one stops."""
    options, memory = PRUNERS["halving"], dict[str, Any]()
    assert not judge(options, "maximize", 0, [], {1: 0.9}, memory)
    assert memory == {"completed_rung_0": 0.9}
    assert not judge(options, "maximize", 0, [], {1: 0.9, 2: 0.95}, memory)
    assert memory == {"completed_rung_0": 0.9, "completed_rung_1": 0.95}
    first = Curve(0, "running", {1: 0.9, 2: 0.95}, None, memory)
    assert judge(options, "maximize", 1, [first], {1: 0.5}, {})
    assert not judge(options, "maximize", 1, [first._replace(memory={})], {1: 0.5}, {})


def test_a_bracket_comes_from_the_real_number() -> None:
    """Trials 1 to 40 as the only ones with a curve: their rungs are those of the brackets of these numbers."""
    options = PRUNERS["hyperband"]
    found = []
    for number in range(1, 41):
        memory: dict[str, Any] = {}
        judge(options, "minimize", number, [], {1: 0.5, 2: 0.5}, memory)
        pruner: Any = make_pruner(options)
        study = optuna.create_study(study_name=STUDY_NAME, pruner=pruner)
        pruner._try_initialization(study)
        trial = optuna.trial.create_trial(value=0.0)
        trial.number = number
        bracket = pruner._get_bracket_id(study, trial)
        assert len(memory) == max(0, 2 - bracket)  # bracket b has its first rung at step 2 ** b
        found.append(bracket)
    assert len(set(found)) == 4


def test_a_best_trial_without_a_known_value_is_no_best() -> None:
    rows = {row: 1.0 for row in range(40)}
    worse, unknown = Curve(0, "complete", rows, 0.5), Curve(1, "complete", dict.fromkeys(rows, 0.0), None)
    assert judge(PRUNERS["wilcoxon"], "maximize", 2, [worse, unknown], dict.fromkeys(range(20), 0.0), {}) is True
    worse = worse._replace(values=dict.fromkeys(rows, 0.0), value=0.0)
    unknown = unknown._replace(values=rows)
    assert judge(PRUNERS["wilcoxon"], "maximize", 2, [worse, unknown], dict.fromkeys(range(20), 0.0), {}) is False


def test_an_unknown_state_or_direction_is_refused() -> None:
    with pytest.raises(ValueError, match="direction must be one of minimize, maximize, but is 'up'"):
        judge({"type": "median"}, "up", 0, [], {1: 0.5}, {})
    with pytest.raises(ValueError, match=r"trial 3: state must be one of complete, .*, but is 'done'"):
        judge({"type": "median"}, "minimize", 0, [Curve(3, "done", {})], {1: 0.5}, {})


@pytest.mark.parametrize("options", PRUNERS.values(), ids=list(PRUNERS))
def test_valid_options(options: dict[str, Any]) -> None:
    assert pruner_problems(options, "pruner") == []
    assert type(make_pruner(options)).__name__ == TYPES[options["type"]]


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ("median", ['p: must be an object such as {"type": "median"}, but got \'median\'']),
        ({}, ["p.type: None is unknown; "]),
        ({"type": "medain"}, ["p.type: 'medain' is unknown; did you mean 'median'?"]),
        ({"type": ["median"]}, ["p.type: ['median'] is unknown"]),
        (
            {"type": "median", "n_startup_trails": 5, "n_warmup_steps": -1, "interval_steps": 0},
            [
                "p.n_startup_trails: unknown option of 'median'; did you mean 'n_startup_trials'?",
                "p.n_warmup_steps: Number of warmup steps cannot be negative, but got n_warmup_steps=-1.",
                "p.interval_steps: Pruning interval steps must be at least 1",
            ],
        ),
        ({"type": "median", "n_startup_trials": 2.5}, ["p.n_startup_trials: must be int, but got 2.5"]),
        ({"type": "median", "n_startup_trials": True}, ["p.n_startup_trials: must be int, but got True"]),
        ({"type": "percentile"}, ["p.percentile: is needed by 'percentile'"]),
        (
            {"type": "percentile", "percentile": 101, "n_min_trials": 0},
            ["p.percentile: Percentile must be between 0 and 100", "p.n_min_trials: Number of trials for pruning"],
        ),
        ({"type": "threshold"}, ["p: Either lower or upper must be specified."]),
        ({"type": "threshold", "lower": 2.0, "upper": 1.0}, ["p: lower should be smaller than upper."]),
        ({"type": "threshold", "lower": math.nan}, ["p.lower: must be a number, but got NaN"]),
        (
            {"type": "successive_halving", "min_resource": "all", "reduction_factor": 1},
            [
                "p.min_resource: The value of `min_resource` is all",
                "p.reduction_factor: The value of `reduction_factor` is 1",
            ],
        ),
        (
            {"type": "successive_halving", "bootstrap_count": 2},
            ["p: bootstrap_count > 0 and min_resource == 'auto' are mutually incompatible"],
        ),
        (
            {"type": "hyperband", "min_resource": 0, "reduction_factor": 1, "max_resource": "most"},
            [
                "p.min_resource: The value of `min_resource` is 0",
                "p.reduction_factor: The value of `reduction_factor` is 1",
                "p.max_resource: The 'max_resource' should be integer or 'auto'.",
            ],
        ),
        (
            {"type": "hyperband", "min_resource": 9, "max_resource": 3},
            ["p: min_resource <= max_resource must hold, but got (9, 3)"],
        ),
        ({"type": "patient"}, ["p.patience: is needed by 'patient'"]),
        (
            {"type": "patient", "patience": -1, "wrapped_pruner": {"type": "median", "n_warmup": 3}},
            ["p.patience: patience cannot be negative", "p.wrapped_pruner.n_warmup: unknown option of 'median'"],
        ),
        (
            {"type": "patient", "patience": 1, "wrapped_pruner": "median"},
            ["p.wrapped_pruner: must be a pruner's options or null, but got 'median'"],
        ),
        ({"type": "wilcoxon", "p_threshold": 1.5}, ["p.p_threshold: p_threshold must be between 0 and 1"]),
        ({"type": "none", "n_startup_trials": 1}, ["p.n_startup_trials: unknown option of 'none'; There is nothing"]),
    ],
)
def test_problems(options: Any, problems: list[str]) -> None:
    found = pruner_problems(options, "p")
    assert len(found) == len(problems), found
    for line, start in zip(found, problems, strict=True):
        assert line.startswith(start)
    with pytest.raises(ConfigError) as error:
        make_pruner(options)
    assert len(error.value.problems) == len(problems)


def test_optuna_stays_quiet(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    """A judgement is made hundreds of times: no line about each study, and the level of before afterwards."""
    optuna.logging.enable_propagation()
    level = optuna.logging.get_verbosity()
    try:
        judge(PRUNERS["patient"], "minimize", 0, [], {1: 0.5}, {})
        assert not caplog.records and not recwarn.list and optuna.logging.get_verbosity() == level
        assert pruning.STUDY_NAME == "olival"  # another name would move trials of a running study to other brackets
    finally:
        optuna.logging.disable_propagation()
