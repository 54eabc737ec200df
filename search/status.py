"""Placeholder until the status is merged."""

from __future__ import annotations

from search.records import StudyRecord


def print_status(study: StudyRecord) -> None:
    for trial in study.trials:
        print(trial)
