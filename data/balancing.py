"""Training rows by class: the rare classes' rows more than once, or fewer rows of the frequent ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from runtime.errors import nearest

METHODS = ("oversample", "undersample")
_KEYS = ("method", "shares", "seed")


def balance_problems(option: Any, labels: Sequence[str]) -> list[str]:
    """What is wrong with the option `balance` of rows with these labels; each line starts with its name.

    Right are "oversample", "undersample", or an object {"method", "shares": {label: share}, "seed"}.
    """
    if isinstance(option, str):
        return [] if option in METHODS else [f"balance: {option!r} is unknown; {nearest(option, METHODS)}"]
    if not isinstance(option, Mapping):
        return [
            f"balance: must be one of {', '.join(METHODS)}, or an object with {', '.join(_KEYS)}, but is {option!r}"
        ]
    problems = [f"balance.{key}: unknown; {nearest(key, _KEYS)}" for key in option if key not in _KEYS]
    if option.get("method") not in METHODS:
        problems.append(
            f"balance.method: {option.get('method')!r} is unknown; {nearest(option.get('method'), METHODS)}"
        )
    seed = option.get("seed", 0)
    if type(seed) is not int or seed < 0:
        problems.append(f"balance.seed: must be a whole number of at least 0, but is {seed!r}")
    return problems + _share_problems(option.get("shares"), sorted(set(labels)))


def balanced_rows(labels: Sequence[str], option: str | Mapping[str, Any]) -> list[int]:
    """Places of the rows to take, some more than once or not at all.

    "oversample" keeps every row and adds repetitions, evenly over a class's rows, until the classes have the shares;
    they come last. "undersample" leaves rows out at random; the others stay in order. Counts are rounded to whole rows.

    Args:
        labels: of each row.
        option: without problems. Without `shares` all classes that have rows get the same.

    >>> balanced_rows(["ham", "spam", "ham"], "oversample")
    [0, 1, 2, 1]
    """
    values: Mapping[str, Any] = {"method": option} if isinstance(option, str) else option
    random = Random(values.get("seed", 0))
    places: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for place, label in enumerate(labels):
        places[label].append(place)
    wanted = wanted_counts(Counter(labels), values["method"], values.get("shares"))
    if values["method"] == "undersample":
        return sorted(place for label, rows in places.items() for place in random.sample(rows, wanted[label]))
    added = []
    for label, rows in places.items():
        whole, rest = divmod(wanted[label] - len(rows), len(rows))
        added += [*rows * whole, *random.sample(rows, rest)]
    return [*range(len(labels)), *sorted(added)]


def wanted_counts(counts: Mapping[str, int], method: str, shares: Mapping[str, float] | None = None) -> dict[str, int]:
    """How many rows of each class there are to be: the fewest that keep every row, or the most that repeat none.

    >>> wanted_counts({"ham": 30, "spam": 10}, "oversample", {"ham": 0.6, "spam": 0.4})
    {'ham': 30, 'spam': 20}
    """
    parts = {label: shares[label] if shares else 1 / len(counts) for label in counts}
    totals = [count / parts[label] for label, count in counts.items()]
    if method == "oversample":
        return {label: max(count, round(max(totals) * parts[label])) for label, count in counts.items()}
    return {label: min(count, max(1, round(min(totals) * parts[label]))) for label, count in counts.items()}


def _share_problems(shares: Any, labels: Sequence[str]) -> list[str]:
    if shares is None:
        return []
    if not isinstance(shares, Mapping):
        return [f"balance.shares: must be an object {{label: share}}, but is {shares!r}"]
    problems = [
        f"balance.shares.{key}: no row has this label; {nearest(key, labels)}" for key in shares if key not in labels
    ]
    problems += [f"balance.shares: the class {label!r} is missing" for label in labels if label not in shares]
    wrong = {k: v for k, v in shares.items() if isinstance(v, bool) or not isinstance(v, int | float) or not 0 < v < 1}
    problems += [f"balance.shares.{key}: 0 < share < 1 must hold, but it is {value!r}" for key, value in wrong.items()]
    if not problems and not math.isclose(total := sum(shares.values()), 1, abs_tol=1e-6):
        problems.append(f"balance.shares: must sum up to 1, but sum up to {total:g}")
    return problems
