"""Keeps a study from trying the same values twice, where there is a limited number of them.

Optuna's samplers draw each trial without asking whether its values have been tried, and learn nothing from trials that
failed: over a few choices TPE comes back to the best one it knows, or to one that always fails, again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search.distributions import encode, json_text
from search.samplers import GRID, draw, grid, make_sampler
from search.space import Space

if TYPE_CHECKING:
    import optuna

DRAWS = 32  # of the sampler, before one of the combinations that are left is taken
MOST_LEFT = 100_000  # combinations that are listed for that


def new_values(study: optuna.Study, space: Space, slot: int) -> dict[str, Any] | None:
    """Values for a slot, as Optuna holds them, that no trial of the study has.

    The slot's own sampler draws them, on a copy of the study in memory, until they are new; after 32 draws one of the
    combinations left is taken by the seed. None leaves the trial to the sampler: a parameter is continuous, the grid
    sets the values, or every combination has been tried.
    """
    import numpy as np
    import optuna
    from optuna.trial import TrialState

    continuous = any(p.kind == "float" and p.step is None and p.low != p.high for p in space.parameters)
    if continuous or space.sampler["type"] == GRID:
        return None
    trials = [t for t in study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]
    tried = {json_text(t.user_attrs["parameters"]) for t in trials if "parameters" in t.user_attrs}
    copy = optuna.create_study(directions=study.directions, sampler=make_sampler(space, slot))
    copy.add_trials([t for t in trials if t.state != TrialState.RUNNING or "parameters" in t.user_attrs])
    values: dict[str, Any] | None = None
    for _ in range(DRAWS):
        trial = copy.ask()
        values = draw(trial, space.parameters)
        if json_text(values) not in tried:
            break
        copy.tell(trial, state=TrialState.FAIL)
    else:
        left = [v for v in grid(space.parameters, MOST_LEFT) if json_text(v) not in tried]
        values = left[int(np.random.default_rng([space.seed, slot]).integers(len(left)))] if left else None
    return {n: encode(space.parameter(n), v) for n, v in values.items()} if values is not None else None
