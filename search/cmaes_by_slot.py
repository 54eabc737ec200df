"""Optuna's CMA-ES for studies whose trials may be attempted again."""

from __future__ import annotations

import copy
from typing import Any

from optuna.samplers import CmaEsSampler


class CmaEsBySlot(CmaEsSampler):
    """Draws what Optuna's sampler draws for a trial whose number is its slot.

    Optuna adds the trial's number to the seed, and the number depends on how many attempts were lost before.
    """

    slot = 0

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        numbered = copy.copy(trial)
        numbered.number = self.slot
        return super().sample_relative(study, numbered, search_space)
