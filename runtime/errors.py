"""The errors of the workspace: one base, derived from ValueError because Olive fails a run only on those."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class OlivalError(ValueError):
    """Something the person at the keyboard can put right; the message says what is wrong and what would be right."""


class DataError(OlivalError):
    """A data file, column, label or row is missing or unusable."""


class PackageError(OlivalError):
    """A package folder or an adapter file is incomplete, altered, or does not fit."""


class ProviderError(PackageError):
    """This machine cannot run on the execution provider that is asked for: no such wheel, driver or device."""


class ConfigError(OlivalError):
    """A workflow is wrong. Carries every problem found, so that one run shows them all.

    >>> str(ConfigError(["passes.spam.rnk: unknown option"]))
    'passes.spam.rnk: unknown option'
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        text = (
            problems[0]
            if len(problems) == 1
            else "\n".join([f"{len(problems)} problems:", *(f"  - {p}" for p in problems)])
        )
        super().__init__(text)


def nearest(name: object, choices: Iterable[str]) -> str:
    """Says which choices there are, the nearest to `name` first: ``did you mean 'rank'? Valid: alpha, rank``."""
    choices = sorted(choices)
    if not choices:
        return "There is nothing to choose from."
    match = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    start = f"did you mean '{match[0]}'? " if match else ""
    return f"{start}Valid: {', '.join(choices)}"
