"""Which trials of a study no other trial beats in every objective of a target."""

from __future__ import annotations

import math

import numpy as np

from search.records import StudyRecord, TrialRecord


def comparable(study: StudyRecord, target: str) -> list[TrialRecord]:
    """Complete, feasible trials of a target, by slot; a trial with an objective that is no number is left out."""
    objectives = study.space.objectives_of(target)
    trials = study.complete(target)
    return [t for t in trials if not any(math.isnan(t.metrics[target][o.metric]) for o in objectives)]


def pareto_front(study: StudyRecord, target: str) -> list[TrialRecord]:
    """The comparable trials that no other dominates, by slot; of trials with the same values all are kept.

    One trial dominates another if it is nowhere worse in the target's objectives and better in one (Deb,
    Multi-Objective Optimization using Evolutionary Algorithms, 2001, section 2.4.2).
    """
    trials = comparable(study, target)
    objectives = study.space.objectives_of(target)
    signs = np.array([-1.0 if o.direction == "maximize" else 1.0 for o in objectives])
    values = np.array([[t.metrics[target][o.metric] for o in objectives] for t in trials], float)
    losses = signs * values.reshape(len(trials), len(objectives))
    return [
        trial
        for trial, loss in zip(trials, losses, strict=True)
        if not ((losses <= loss).all(axis=1) & (losses < loss).any(axis=1)).any()
    ]
