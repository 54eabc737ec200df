from __future__ import annotations

import random

import pytest

from search.pareto import pareto_front
from tests.search.studies import make_space, make_study, make_trial

SPACES = {
    "one": (["spam-accuracy"], []),
    "two": (["spam-accuracy", "tpot_p50_ms"], []),
    "three with constraints": (
        ["spam-accuracy", "tpot_p50_ms", "size_on_disk"],
        [("size_on_disk", "<=", 6.0), ("spam-accuracy", ">=", 3.0)],
    ),
    "none feasible": (["spam-accuracy", "tpot_p50_ms"], [("size_on_disk", "<=", -1.0)]),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", SPACES)
def test_the_front_is_optunas_and_that_of_a_plain_loop(name: str, seed: int) -> None:
    """Values are small whole numbers, so that ties in some or all objectives are frequent."""
    import optuna

    metrics, constraints = SPACES[name]
    space = make_space(metrics, constraints)
    rng = random.Random(seed)
    every = [*metrics, "size_on_disk"]
    rows = [{metric: float(rng.randrange(9)) for metric in every} for _ in range(60)]
    states = [rng.choice(["complete", "complete", "complete", "pruned", "failed"]) for _ in rows]
    study = make_study(space, [make_trial(space, i, row, state=states[i]) for i, row in enumerate(rows)])
    front = [trial.slot for trial in pareto_front(study, "target")]

    objectives = space.objectives
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    reference = optuna.create_study(directions=[optuna.study.StudyDirection[o.direction.upper()] for o in objectives])
    for row, state in zip(rows, states, strict=True):
        asked = reference.ask()
        for constraint in space.constraints:
            asked.set_constraint(str(constraint), constraint.excess(row[constraint.metric]))
        values = [row[o.metric] for o in objectives]
        if state == "complete":
            reference.tell(asked, values)
        else:
            failed = optuna.trial.TrialState.FAIL if state == "failed" else optuna.trial.TrialState.PRUNED
            reference.tell(asked, state=failed)
    assert front == sorted(trial.number for trial in reference.best_trials)

    def dominates(one: dict[str, float], other: dict[str, float]) -> bool:
        better = [o.better(one[o.metric], other[o.metric]) for o in objectives]
        worse = [o.better(other[o.metric], one[o.metric]) for o in objectives]
        return any(better) and not any(worse)

    feasible = [
        i
        for i, row in enumerate(rows)
        if states[i] == "complete" and all(c.excess(row[c.metric]) <= 0 for c in space.constraints)
    ]
    assert front == [i for i in feasible if not any(dominates(rows[j], rows[i]) for j in feasible)]
    assert bool(front) == (name != "none feasible")


def test_each_target_has_its_own_front_and_what_is_no_number_is_on_none() -> None:
    space = make_space(["spam-accuracy", "tpot_p50_ms"], targets=["cpu", "cuda"])
    fast, good = {"spam-accuracy": 0.8, "tpot_p50_ms": 1.0}, {"spam-accuracy": 0.9, "tpot_p50_ms": 2.0}
    slow = {**fast, "tpot_p50_ms": 3.0}
    trials = [
        make_trial(space, 0, None, metrics={"cpu": fast, "cuda": slow}),
        make_trial(space, 1, None, metrics={"cpu": good, "cuda": good}),
        make_trial(space, 2, None, metrics={"cpu": {**good, "tpot_p50_ms": float("nan")}, "cuda": good}),
        make_trial(space, 3, None, metrics={"cpu": good, "cuda": {"tpot_p50_ms": 0.1}}),
    ]
    study = make_study(space, trials)
    assert [t.slot for t in pareto_front(study, "cpu")] == [0, 1, 3]
    assert [t.slot for t in pareto_front(study, "cuda")] == [1, 2]
    assert pareto_front(make_study(space, []), "cpu") == []
