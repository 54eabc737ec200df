"""How many of a kind, with an interval: pass rates of cases and flip rates of a classifier's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluators.case_models import Refused

LISTED_FLIPS = 20  # texts that a report lists for a perturbation; the count has no limit
TEXT_LENGTH = 300  # characters of a text in a report
Label = tuple[str, float]  # and its probability


def rate(count: int, total: int) -> tuple[float | None, float | None, float | None]:
    """count / total with its 95 % interval (Wilson 1927, by scipy): it stays within 0..1, also for none or all of few.

    None of nothing: (None, None, None).

    >>> [round(x, 3) for x in rate(9, 10)]
    [0.9, 0.596, 0.982]
    """
    from scipy.stats import binomtest

    if not total:
        return None, None, None
    interval = binomtest(count, total).proportion_ci(confidence_level=0.95, method="wilson")
    return count / total, float(interval.low), float(interval.high)


class Tally:
    """Counts what passed, by group and name."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}

    def add(self, group: str, name: str, passed: bool, refused: int) -> None:
        """One more of a name's total; `refused` texts of it had no answer."""
        counts = self._counts.setdefault((group, name), [0, 0, 0])
        counts[0] += passed
        counts[1] += 1
        counts[2] += refused

    def rates(self, group: str) -> dict[str, dict[str, Any]]:
        """{name: {"passed", "total", "refused", "pass_rate", "low", "high"}} in the order of their first appearance."""
        return {
            name: pass_rate(passed, total, refused)
            for (each, name), (passed, total, refused) in self._counts.items()
            if each == group
        }


def pass_rate(passed: int, total: int, refused: int) -> dict[str, Any]:
    """How many passed, as a report says it."""
    value, low, high = rate(passed, total)
    return {"passed": passed, "total": total, "refused": refused, "pass_rate": value, "low": low, "high": high}


def flip_rate(rows: Sequence[tuple[str, str]], found: Mapping[str, Label | Refused]) -> dict[str, Any]:
    """How often two texts that should have one label have two, and how far its probability moves where it stays."""
    refused = unchanged = flipped = 0
    moved = []
    for a, b in rows:
        first, second = found[a], found[b]
        if isinstance(first, Refused) or isinstance(second, Refused):
            refused += 1
        elif a == b:
            unchanged += 1
        elif first[0] != second[0]:
            flipped += 1
        else:
            moved.append(abs(first[1] - second[1]))
    total = flipped + len(moved)
    value, low, high = rate(flipped, total)
    missing = None
    if not total:
        missing = f"nothing to compare: {refused} refused and {unchanged} unchanged of {len(rows)}"
    elif not moved:
        missing = "no label stayed, so there is no change of its probability"
    return {
        "flipped": flipped,
        "total": total,
        "flip_rate": value,
        "low": low,
        "high": high,
        "refused": refused,
        "unchanged": unchanged,
        "mean_abs_probability_change": sum(moved) / len(moved) if moved else None,
        "missing": missing,
    }


def listed_flips(
    perturbation: str, rows: Sequence[tuple[str, str]], found: Mapping[str, Label | Refused]
) -> list[dict[str, Any]]:
    """The first texts of which a perturbation changed the label: {"perturbation", "text", "perturbed", "labels"}."""
    listed = []
    for a, b in rows:
        first, second = found[a], found[b]
        if isinstance(first, Refused) or isinstance(second, Refused) or first[0] == second[0]:
            continue
        labels = [first[0], second[0]]
        listed.append({"perturbation": perturbation, "text": shorten(a), "perturbed": shorten(b), "labels": labels})
        if len(listed) == LISTED_FLIPS:
            break
    return listed


def shorten(text: str, most: int = TEXT_LENGTH) -> str:
    """The start of a text, with the number of characters that it had."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"
