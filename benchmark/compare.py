"""Two results of the benchmark side by side: what got better or worse beyond noise, and what is a regression."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.comparison_table import REGRESSION, TITLES, print_comparison, setting, title
from benchmark.report_figures import BASE, LOWER_IS_BETTER
from benchmark.results import read_results
from runtime.errors import ConfigError, DataError, OlivalError

_RATES = ("tokens_per_second", "rows_per_second")
_SAME_ON_BOTH = ("precision", "threads", "fingerprint")  # of two measurements, or their comparison says little
_ROUNDING = 1e-9  # 1.05 / 1.00 is not above 5 %, whatever the last binary digit says


class Key(NamedTuple):
    """Which figure of a measurement: those of a run have a batch size, those of the package have no adapter."""

    adapter: str | None
    batch_size: int | None
    prompt_tokens: int | None
    new_tokens: int | None
    figure: str


LOAD_NOISE = 1.2  # times the time to load, which is measured once, may be off by chance either way


class Value(NamedTuple):
    """A figure and the interval of its noise; None where one measurement says nothing about noise."""

    middle: float
    low: float | None = None
    high: float | None = None


def compare(before: Mapping[str, Any], after: Mapping[str, Any], threshold: float) -> dict[str, list[Any]]:
    """Compares what two results (benchmark.results.read_results) have in common.

    A difference is beyond noise where the 95 % intervals do not overlap: those of the medians for times, those of
    the rates for throughput. Quality and size on disk come out the same every time, so that every difference of them
    counts. Load time and peak memory are single numbers, whose noise is not known: for them, and where an interval is
    missing, only a difference above the threshold counts. A package's total size is the sum of what is compared: its
    base and each adapter.

    Args:
        before, after: measurements are joined by package and execution provider, their runs by adapter, batch size and
            tokens.
        threshold: a share, 0.05 for 5 %: what is worse beyond noise by more than it is a regression.

    Returns:
        "changes": one for each figure: {"package", "execution_provider", "adapter", "batch_size", "prompt_tokens",
        "new_tokens", "figure", "before", "after", "change" (a share of before; None where before is 0), "verdict":
        "REGRESSION" | "worse" | "better" | "unchanged"}; "missing": what only one of them has, "warnings": what makes
        them hard to compare, a line each.

    Raises:
        DataError: no package was measured on the same execution provider in both.
    """
    sides = [{(m["package"], m["execution_provider"]): m for m in each["measurements"]} for each in (before, after)]
    pairs = {name: (sides[0][name], sides[1][name]) for name in sides[0] if name in sides[1]}
    if not pairs:
        have = [", ".join(map(_where, side)) or "nothing" for side in sides]
        raise DataError(f"nothing can be compared: before has {have[0]}, after has {have[1]}")
    changes, missing = [], []
    for number, (word, other) in enumerate((("before", after), ("after", before))):
        for name in sides[number]:
            if name not in pairs:
                missing.append(f"{_where(name)}: only {word}{_why_not(other, name)}")
    for name, pair in pairs.items():
        old, new = (dict(_figures(m)) for m in pair)
        missing += [f"{_where(name)}, {line}" for line in _only_on_one_side(old, new)]
        for key in old:
            if key in new:
                entry = {"package": name[0], "execution_provider": name[1], **key._asdict()}
                changes.append({**entry, **_change(key, old[key], new[key], threshold)})
    warnings = [*_warnings(before, after), *(f"{_where(name)}, {w}" for name in pairs for w in _pair(*pairs[name]))]
    return {"changes": changes, "missing": missing, "warnings": warnings}


def verdict(before: Value, after: Value, higher_is_better: bool, threshold: float) -> str:
    """One of comparison_table.VERDICTS; see `compare`."""
    far = abs(after.middle - before.middle) > (threshold + _ROUNDING) * abs(before.middle)
    if before.low is None or before.high is None or after.low is None or after.high is None:
        beyond_noise = far
    else:
        beyond_noise = before.high < after.low or after.high < before.low
    if not beyond_noise or after.middle == before.middle:
        return "unchanged"
    if (after.middle > before.middle) == higher_is_better:
        return "better"
    return REGRESSION if far else "worse"


def read_threshold(text: str) -> float:
    """0.05 of "5%" and of "0.05".

    Raises:
        ConfigError: it is neither a percentage from 0 nor a share from 0 to below 1.
    """
    percent = text.strip().endswith("%")
    try:
        value = float(text.strip().removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not (0 <= value < (math.inf if percent else 1)):
        raise ConfigError([f"--threshold: must be a percentage such as 5%, or a share such as 0.05, but got '{text}'"])
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the comparison. Returns 0; 1 with a regression; 2 where a file or the threshold cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark compare",
        description="Says what got better or worse beyond noise. Exit code 1: something is worse beyond noise and by "
        "more than the threshold.",
    )
    parser.add_argument("before", type=Path, help="results.json of a benchmark")
    parser.add_argument("after", type=Path, help="the one to compare with it")
    parser.add_argument("--threshold", default="5%", help="such as 5%% or 0.05 (default: 5%%)")
    options = parser.parse_args(arguments)
    problems: list[str] = []
    contents, threshold = [], 0.0
    for path in (options.before, options.after):
        try:
            contents.append(read_results(path))
        except OlivalError as error:
            problems.append(str(error))
    try:
        threshold = read_threshold(options.threshold)
        found = compare(contents[0], contents[1], threshold) if not problems else {}
    except OlivalError as error:
        problems.append(str(error))
    if problems:
        for problem in dict.fromkeys(problems):
            print(f"error: {problem}", file=sys.stderr)
        return 2
    print_comparison(found, threshold)
    return int(any(change["verdict"] == REGRESSION for change in found["changes"]))


def _figures(measurement: Mapping[str, Any]) -> Iterator[tuple[Key, Value]]:
    """Every figure that has a value."""
    load = measurement["load_seconds"]
    yield Key(None, None, None, None, "load_seconds"), Value(load, load / LOAD_NOISE, load * LOAD_NOISE)
    yield Key(None, None, None, None, "peak_rss_bytes"), Value(measurement["peak_rss_bytes"])
    sizes = measurement["size_bytes"]
    for adapter, size in [(None, sizes["base"]), *sizes["adapters"].items()]:
        yield Key(adapter, None, None, None, "size_bytes"), Value(size, size, size)
    for adapter, metrics in measurement["quality"].items():
        for metric, value in metrics.items():
            if value is not None:
                yield Key(adapter, None, None, None, metric), Value(value, value, value)
    for run in (*(measurement.get("generation") or ()), *(measurement.get("classification") or ())):
        for figure in (figure for figure in TITLES if figure in run):
            low, middle, high = ("low", "median", "high") if figure in _RATES else ("p50_low", "p50", "p50_high")
            if (value := run[figure][middle]) is not None:
                key = Key(run["adapter"], run["batch_size"], run["prompt_tokens"], run.get("new_tokens"), figure)
                yield key, Value(value, run[figure][low], run[figure][high])


def _change(key: Key, before: Value, after: Value, threshold: float) -> dict[str, Any]:
    higher_is_better = key.figure in _RATES if key.figure in TITLES else key.figure not in LOWER_IS_BETTER
    return {
        "before": before.middle,
        "after": after.middle,
        "change": (after.middle - before.middle) / abs(before.middle) if before.middle else None,
        "verdict": verdict(before, after, higher_is_better, threshold),
    }


def _only_on_one_side(before: Mapping[Key, Value], after: Mapping[Key, Value]) -> Iterator[str]:
    """A line for each adapter with something that the other side lacks."""
    for word, here, there in (("before", before, after), ("after", after, before)):
        adapters, settings = {key.adapter for key in there}, {key[:4] for key in there}
        lacking: dict[str | None, list[str]] = {}
        for key in (key for key in here if key not in there):
            run = setting(key._asdict())
            whole_run = run and key[:4] not in settings
            lacking.setdefault(key.adapter, []).append(run if whole_run else f"{title(key.figure)} {run}".strip())
        for adapter, names in lacking.items():
            what = "" if adapter not in adapters else f": {'; '.join(dict.fromkeys(names))}"
            yield f"{adapter or BASE}: only {word}{what}"


def _why_not(results: Mapping[str, Any], name: tuple[str, str]) -> str:
    """Why results lack a measurement, as far as they say so."""
    failures = {(f["package"], f["execution_provider"]): f["reason"] for f in results["failures"]}
    absent = {t["execution_provider"]: t["reason"] for t in results["targets"] if not t["available"]}
    reason = failures.get(name) or absent.get(name[1])
    return f"; the other has no measurement: {reason}" if reason else ""


def _warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What differs around the measurements."""
    old, new = ({**each["machine"], "memory_bytes": None} for each in (before, after))  # varies between starts
    yield from _differences("machine ", old, new)
    yield from _differences("version of ", before["versions"], after["versions"])
    yield from _differences("option ", before["options"], after["options"])
    for word, each in (("before", before), ("after", after)):
        if each["dirty"] is not False:
            state = "with changes that are not committed" if each["dirty"] else "outside a git repository"
            yield f"{word} was measured {state}"


def _pair(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What differs around two measurements of a package."""
    yield from _differences("", *({name: m[name] for name in _SAME_ON_BOTH} for m in (before, after)))
    for word, m in (("before", before), ("after", after)):
        runs = [*(m.get("generation") or ()), *(m.get("classification") or ())]
        if names := dict.fromkeys(run["adapter"] or BASE for run in runs if not run["stable"]):
            yield f"{word}: not stable after the warm-up: {', '.join(names)}"


def _differences(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*before, *after)):
        old, new = (side.get(name) for side in (before, after))
        if old != new:
            yield f"{what}{name} differs: {_plain(old)} before, {_plain(new)} after"


def _plain(value: Any) -> str:
    if value is None or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _where(name: tuple[str, str]) -> str:
    return f"{name[0]} on {name[1]}"
