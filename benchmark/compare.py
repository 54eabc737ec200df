"""`python -m benchmark compare A.json B.json`: what got better or worse beyond noise, for people and for CI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmark.report_figures import BASE, lower_is_better

# Load time and peak memory are one number of one process each, without an interval. Loading takes as long as the disk
# and its cache want; peak memory repeats within a few per cent, as threads allocate in another order.
NOISE = {"load_seconds": 0.25, "peak_rss_bytes": 0.03}
_PHASES = ("ttft_ms", "tpot_ms", "end_to_end_ms", "latency_ms")
_RATES = ("tokens_per_second", "rows_per_second")


class Value(NamedTuple):
    """A measured number; `low` and `high` are its interval, None where its noise is not known."""

    value: float
    low: float | None
    high: float | None
    lower_is_better: bool


class Change(NamedTuple):
    """One value on both sides. `relative` is after / before - 1, None where before is 0.

    `verdict` is "better" or "worse" where the intervals do not overlap, else "same"; "unknown" without intervals.
    """

    where: tuple[str, ...]  # package, provider, adapter, batch and lengths
    what: str
    before: float
    after: float
    relative: float | None
    verdict: str

    def beyond(self, threshold: float) -> bool:
        """Whether the relative change is larger than a threshold, whichever way."""
        return self.relative is None or abs(self.relative) > threshold


class Comparison(NamedTuple):
    """All values that both files have, and in words what only one has or what else differs between them."""

    changes: list[Change]
    missing: list[str]
    broken: list[str]  # measured before, failed now
    warnings: list[str]

    def regressions(self, threshold: float) -> list[Change]:
        """What is worse beyond noise and by more than the threshold."""
        return [change for change in self.changes if change.verdict == "worse" and change.beyond(threshold)]


Key = tuple[tuple[str, ...], str]


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Compares the contents of two results files.

    Latencies by their medians, with the 95 % bootstrap intervals of both; a change counts as beyond noise when the
    intervals do not overlap, which is stricter than a test at 5 % (Schenker and Gentleman, "On judging the
    significance of differences by examining the overlap between confidence intervals", 2001). Sizes and quality repeat
    exactly, so that any difference of them is beyond noise; for load time and peak memory see NOISE.
    """
    old, new = values(before), values(after)
    changes = [_change(key, old[key], new[key]) for key in old if key in new]
    failed = {(f["package"], f["execution_provider"]): f["reason"] for f in after["failures"]}
    measured = {m: None for m in map(_pair, after["measurements"])}
    broken = [
        f"{package} on {provider} failed: {failed[package, provider]}"
        for package, provider in map(_pair, before["measurements"])
        if (package, provider) in failed and (package, provider) not in measured
    ]
    missing = [*_missing(old, new, "only before"), *_missing(new, old, "only after")]
    return Comparison(changes, missing, broken, _warnings(before, after))


def values(results: Mapping[str, Any]) -> dict[Key, Value]:
    """Every number of a results file that can be compared, by where it was measured and what it is."""
    found: dict[Key, Value] = {}
    for m in results["measurements"]:
        for where, what, value in _of_measurement(m):
            found[(*_pair(m), *where), what] = value
    return found


def _of_measurement(m: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, Value]]:
    for key, noise in NOISE.items():
        yield (), key, Value(m[key], m[key] * (1 - noise / 2), m[key] * (1 + noise / 2), True)
    yield (), "total bytes on disk", _exact(m["size_bytes"]["total"], True)
    yield (), "base bytes on disk", _exact(m["size_bytes"]["base"], True)
    for name, size in m["size_bytes"]["adapters"].items():
        yield (name,), "bytes on disk", _exact(size, True)
    for run in [*(m.get("generation") or []), *(m.get("classification") or [])]:
        lengths = f"{run['prompt_tokens']}+{run['new_tokens']}" if "new_tokens" in run else str(run["prompt_tokens"])
        where = (run["adapter"] or BASE, f"batch {run['batch_size']}", f"{lengths} tokens")
        for phase in _PHASES:
            if phase in run and run[phase]["p50"] is not None:
                d = run[phase]
                yield where, f"{phase} p50", Value(d["p50"], d["p50_low"], d["p50_high"], True)
        for rate in _RATES:
            if rate in run:
                yield where, rate, Value(run[rate]["median"], run[rate]["low"], run[rate]["high"], False)
    for name, metrics in m["quality"].items():
        for metric, value in metrics.items():
            if value is not None:
                yield (name,), metric, _exact(value, lower_is_better(metric))


def _exact(value: float, lower: bool) -> Value:
    return Value(value, value, value, lower)


def _change(key: Key, before: Value, after: Value) -> Change:
    relative = after.value / before.value - 1 if before.value else (0.0 if after.value == 0 else None)
    if None in (before.low, before.high, after.low, after.high):
        verdict = "unknown"
    elif after.low > before.high or after.high < before.low:  # type: ignore[operator]
        verdict = "better" if (after.value < before.value) == before.lower_is_better else "worse"
    else:
        verdict = "same"
    return Change(*key, before.value, after.value, relative, verdict)


def _pair(m: Mapping[str, Any]) -> tuple[str, str]:
    return m["package"], m["execution_provider"]


def _missing(one: Mapping[Key, Value], other: Mapping[Key, Value], side: str) -> list[str]:
    """What the other side lacks; a package or an adapter that it lacks wholly is named once."""
    there = {where[:length] for where, _ in other for length in range(len(where) + 1)}
    lines: dict[str, None] = {}
    for where, what in one:
        if (where, what) in other:
            continue
        known = next((n for n in range(len(where) + 1) if where[:n] not in there and n >= min(2, len(where))), None)
        name = " ".join(where if known is None else where[:known])
        lines[f"{side}: {name}" + (f" {what}" if known is None else "")] = None
    return list(lines)


def _warnings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    lines = []
    for part in ("machine", "versions", "options"):
        for key in dict.fromkeys([*before[part], *after[part]]):
            one, other = before[part].get(key), after[part].get(key)
            if one != other:
                lines.append(f"{part} differ: {key} is {_said(one)} before, {_said(other)} after")
    old = {_pair(m): m for m in before["measurements"]}
    for m in after["measurements"]:
        if _pair(m) not in old:
            continue
        for key in ("threads", "precision", "fingerprint"):
            one, other = old[_pair(m)][key], m[key]
            if one != other:
                lines.append(f"{' on '.join(_pair(m))}: {key} is {_said(one)} before, {_said(other)} after")
    for side, results in (("before", before), ("after", after)):
        if results["dirty"]:
            lines.append(f"{side}: measured with changes that are not committed")
    return lines


def _said(value: Any) -> str:
    return "not there" if value is None else str(value)[:60]
