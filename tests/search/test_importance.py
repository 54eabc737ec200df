"""Importance: the parameter that decides comes first; what cannot be said is not said."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from search.distributions import distribution, encode
from search.importance import FEWEST_TRIALS, conditional_parameters, importances, not_assessed
from search.records import StudyRecord
from search.space import Parameter
from tests.search.example_study import RATE, example_space, example_study, example_trial

PARAMETERS = (
    Parameter("strong", ("a",), "float", 1e-4, 1e-2, log=True),
    Parameter("weak", ("b",), "categorical", choices=([1, 2], {"a": True}, 1, True, "1")),
    Parameter("dead", ("c",), "int", 0, 100, step=5),
    Parameter("fixed", ("d",), "categorical", choices=("only",)),
    Parameter("sometimes", ("e",), "float", 0.0, 1.0, when={"weak": (1,)}),
)


def known_study(number: int = 60, several: bool = False) -> StudyRecord:
    """The value is strong * 1000 and a little of weak's place among its choices."""
    targets = ("cpu", "cuda") if several else ("cpu",)
    space = example_space(("spam-accuracy",), targets, trials=number, bound=None, parameters=PARAMETERS)
    trials = []
    for slot in range(number):
        trial = example_trial(space, slot)
        value = 1000 * trial.parameters["strong"] + 0.3 * PARAMETERS[1].choices.index(trial.parameters["weak"])
        metrics = {t: {"spam-accuracy": value if t == "cpu" else -value} for t in targets}
        trials.append(replace(trial, metrics=metrics))
    return StudyRecord(space, tuple(trials), targets, {})


def test_shares() -> None:
    study = known_study()
    shares = importances(study)["spam-accuracy"]
    assert list(shares) == ["strong", "weak", "dead"] or list(shares) == ["strong", "dead", "weak"]
    assert shares["strong"] > 0.7 and sum(shares.values()) == pytest.approx(1)
    assert importances(study) == {"spam-accuracy": shares}
    assert conditional_parameters(study, study.space.objectives[0]) == ["sometimes"]


def test_they_are_optunas() -> None:
    """The same shares as from a study that Optuna itself has made of the same trials."""
    import optuna

    study = known_study(30)
    names = ("strong", "weak", "dead")
    native = optuna.create_study(direction="maximize")
    for trial in study.trials:
        chosen = {p.name: p for p in PARAMETERS if p.name in names}
        native.enqueue_trial({name: encode(p, trial.parameters[name]) for name, p in chosen.items()})
        asked = native.ask({name: distribution(p) for name, p in chosen.items()})
        value = trial.value(study.space.objectives[0])
        assert value is not None
        native.tell(asked, value)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    expected = optuna.importance.get_param_importances(native, evaluator=evaluator)
    assert importances(study)["spam-accuracy"] == pytest.approx(expected)


def test_each_target_has_its_own() -> None:
    found = importances(known_study(30, several=True))
    assert list(found) == ["spam-accuracy, cpu", "spam-accuracy, cuda"]
    assert next(iter(found["spam-accuracy, cuda"])) == "strong"


def test_too_few_trials() -> None:
    study = known_study(FEWEST_TRIALS - 1)
    assert importances(study) == {}
    assert not_assessed(study, study.space.objectives[0]) == "needs 20 complete trials, has 19"


def test_nothing_varies() -> None:
    study = known_study(FEWEST_TRIALS)
    same = tuple(replace(t, metrics={"cpu": {"spam-accuracy": 0.5}}) for t in study.trials)
    objective = study.space.objectives[0]
    assert not_assessed(replace(study, trials=same), objective) == "every trial has the same value"
    fixed = tuple(replace(t, parameters={"fixed": "only"}) for t in study.trials)
    assert not_assessed(replace(study, trials=fixed), objective) == "no parameter that every trial has was varied"
    assert importances(replace(study, trials=same)) == importances(replace(study, trials=fixed)) == {}


def test_trials_of_another_space_do_not_count() -> None:
    """A bound was narrowed, a parameter left out: older trials are no longer among the space's."""
    study = known_study(FEWEST_TRIALS)
    odd = replace(study.trials[0], parameters=dict(study.trials[0].parameters) | {"dead": 7000})
    other = replace(study.trials[1], parameters={"gone": 1})
    study = replace(study, trials=(odd, other, *study.trials[2:]))
    assert not_assessed(study, study.space.objectives[0]) == "needs 20 complete trials, has 18"


def test_pruned_and_infeasible_trials() -> None:
    """Infeasible trials were measured, so they count; pruned and failed ones were not."""
    study = example_study(example_space(trials=40))
    complete = [t for t in study.trials if t.state == "complete"]
    assert any(t.violated for t in complete) and len(complete) < len(study.trials)
    shares = importances(study)
    assert next(iter(shares["spam-accuracy"])) == RATE
    assert next(iter(shares["tpot_p50_ms"])) == "precision"
    shuffled = list(study.trials)
    random.Random(0).shuffle(shuffled)
    assert importances(replace(study, trials=tuple(shuffled))).keys() == shares.keys()
