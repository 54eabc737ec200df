"""How much each parameter matters for each objective: fANOVA over the trials that were measured, with Optuna's code.

Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter Importance" (ICML 2014): a random
forest is fitted to the values, and the variance of its predictions is divided among the parameters. Optuna's default,
PED-ANOVA, asks instead what the best tenth of the trials have in common, which is too few of a study of 30.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.errors import DataError
from search.distributions import distribution, encode
from search.labels import objective_label
from search.records import StudyRecord, TrialRecord
from search.space import Objective
from search.standing import value_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# With 8 to 12 trials of a function of 5 parameters the order of the shares is that of chance; from 20 on the parameter
# that decides comes first in five of six studies.
FEWEST_TRIALS = 20


def importances(study: StudyRecord, seed: int = 0) -> dict[str, dict[str, float]]:
    """Each objective's parameters with their shares, the largest first.

    Args:
        study: its complete trials count, whether they keep the constraints or not.
        seed: of the random forest.

    Returns:
        objective label -> parameter -> share. The shares of an objective are of the spread that single parameters
        explain, and sum to 1. Objectives for which `not_assessed` gives a reason are absent; so are parameters that
        some of the trials do not have (`conditional_parameters`).
    """
    found = {}
    for objective in study.space.objectives:
        if not_assessed(study, objective) is None:
            found[objective_label(study.space, objective)] = _shares(study, objective, seed)
    return found


def not_assessed(study: StudyRecord, objective: Objective) -> str | None:
    """Why importance says nothing of an objective; None where it does."""
    trials = _usable(study, objective)
    if len(trials) < FEWEST_TRIALS:
        return f"needs {FEWEST_TRIALS} complete trials, has {len(trials)}"
    if len({trial.value(objective) for trial in trials}) == 1:
        return "every trial has the same value"
    if not _shared_parameters(study, trials):
        return "no parameter that every trial has was varied"
    return None


def conditional_parameters(study: StudyRecord, objective: Objective) -> list[str]:
    """Parameters that some of the measured trials do not have; fANOVA cannot weigh them against the others."""
    trials = _usable(study, objective)
    names = [p.name for p in study.space.parameters]
    return [name for name in names if 0 < sum(name in t.parameters for t in trials) < len(trials)]


def _shares(study: StudyRecord, objective: Objective, seed: int) -> dict[str, float]:
    import optuna
    from optuna.study import StudyDirection

    former = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a study in memory is nobody's business
    try:
        frozen = optuna.create_study(direction=StudyDirection[objective.direction.upper()])
        trials = _usable(study, objective)
        names = _shared_parameters(study, trials)
        frozen.add_trials([_frozen(study, objective, trial, names) for trial in trials])
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
        shares = optuna.importance.get_param_importances(frozen, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(former)
    order = sorted(shares, key=lambda name: (-shares[name], names.index(name)))
    return {name: float(shares[name]) for name in order}


def _frozen(study: StudyRecord, objective: Objective, trial: TrialRecord, names: list[str]) -> FrozenTrial:
    import optuna

    parameters = [study.space.parameter(name) for name in names]
    return optuna.trial.create_trial(
        params={p.name: encode(p, trial.parameters[p.name]) for p in parameters},
        distributions={p.name: distribution(p) for p in parameters},
        value=trial.value(objective),
    )


def _usable(study: StudyRecord, objective: Objective) -> list[TrialRecord]:
    """Complete trials with the objective's value, whose parameters are in the space as it is now."""
    trials = study.complete(objective.target, feasible=False)
    return [t for t in trials if value_of(t, objective) is not None and _in_space(study, t)]


def _in_space(study: StudyRecord, trial: TrialRecord) -> bool:
    known = {p.name: p for p in study.space.parameters}
    try:
        for name, value in trial.parameters.items():
            encode(known[name], value)
    except (KeyError, DataError):
        return False
    return True


def _shared_parameters(study: StudyRecord, trials: list[TrialRecord]) -> list[str]:
    """Parameters that every trial has and that differ between them, in the space's order."""
    names = [p.name for p in study.space.parameters if all(p.name in t.parameters for t in trials)]
    return [n for n in names if len({encode(study.space.parameter(n), t.parameters[n]) for t in trials}) > 1]
