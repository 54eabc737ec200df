"""The one package that a study recommends for a target, by a rule that is stated in words with its numbers.

1. Only complete trials that keep the target's constraints count.
2. Quality first: each trial gets its mean share of the best over the quality objectives (criteria.shares_of_best), and
   those within `quality_tolerance` of the best mean are equals. Without a quality objective all are.
3. Where size is an objective and speed is none, the smallest of the equals go on.
4. Among equals the fastest wins (criteria.speed_metric). Those within the noise of the fastest were measured again,
   interleaved (search/remeasure.py), and lose only if the 95 % interval of the paired ratio says that they are slower.
5. What is still tied: the smaller package (sizes within 1 % are the same), the better quality, the lower slot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.criteria import SIZE_TOLERANCE, least_equal, mean_quality, speed_metric, time_of, value_text
from search.infeasible import why_none
from search.metric_names import SIZE, kind
from search.pareto import comparable
from search.records import StudyRecord, TrialRecord

MOST_MEASURED_AGAIN = 4  # packages are loaded side by side


@dataclass(frozen=True)
class Candidate:
    """A feasible trial: its mean share of the best quality, and why it is not the recommended one (None: it is)."""

    trial: TrialRecord
    quality: float | None
    lost: str | None


@dataclass(frozen=True)
class Recommendation:
    """What the rule came to. `trial` is None where no trial is feasible; `rule` says why, or how it was decided.

    metric: the speed metric that decides, None where none was measured. tied: slots, the fastest first, that must be
    measured again before one wins; empty where one is alone within its noise. remeasured: what was measured again and
    went into the decision.
    """

    target: str
    trial: TrialRecord | None
    rule: tuple[str, ...]
    candidates: tuple[Candidate, ...] = ()
    metric: str | None = None
    tied: tuple[int, ...] = ()
    remeasured: Mapping[str, Any] | None = None


class _Contest:
    """Who is left, why the others lost, and the rule's words so far."""

    def __init__(self, trials: Sequence[TrialRecord], target: str, shares: list[float] | None) -> None:
        self.trials, self.left = trials, list(trials)
        self.target = target
        self.quality = dict(zip((t.slot for t in trials), shares, strict=True)) if shares else {}
        self.lost: dict[int, str] = {}
        self.words: list[str] = []

    def keep(self, slots: Sequence[int], reasons: Mapping[int, str]) -> None:
        self.lost |= {t.slot: reasons[t.slot] for t in self.left if t.slot not in slots}
        self.left = [t for t in self.left if t.slot in slots]

    def size(self, trial: TrialRecord) -> float:
        return trial.metrics[self.target].get(SIZE, math.inf)


def recommend(study: StudyRecord, target: str, remeasured: Mapping[str, Any] | None = None) -> Recommendation:
    """Applies the rule; looks at nothing but its arguments.

    Args:
        study: as it stands.
        target: one of the study's.
        remeasured: what search.remeasure.remeasure measured before; is left aside where it compares other trials.
    """
    trials = comparable(study, target)
    if not trials:
        return Recommendation(target, None, tuple(why_none(study, target)))
    shares = mean_quality(study, target, trials)
    contest = _Contest(trials, target, shares)
    _by_quality(contest, study)
    asked = {kind(o.metric) for o in study.space.objectives_of(target)}
    if "size" in asked and not asked & {"latency", "throughput"}:
        _by_size(contest, "Size")
    metric, tied, used = _by_speed(contest, study, remeasured)
    if len(contest.left) > 1:
        _by_size(contest, "Tied")
        _by_the_rest(contest)
    winner = contest.left[0]
    _tell_the_price(contest, winner, metric)
    candidates = tuple(Candidate(t, contest.quality.get(t.slot), contest.lost.get(t.slot)) for t in trials)
    return Recommendation(target, winner, tuple(contest.words), candidates, metric, tied, used)


def usable(remeasured: Mapping[str, Any] | None, metric: str | None, tied: Sequence[int]) -> bool:
    """Whether a stored result compares these trials; slots are texts in it, as JSON's keys are."""
    if remeasured is None or remeasured["metric"] != metric:
        return False
    measured, missing = remeasured["seconds_median"], remeasured["missing"]
    among = [str(slot) for slot in tied if str(slot) in measured]
    known = all(str(slot) in measured or str(slot) in missing for slot in tied)
    return known and len(among) > 1 and str(remeasured["reference"]) in among


def _by_quality(contest: _Contest, study: StudyRecord) -> None:
    trials, quality, tolerance = contest.left, contest.quality, study.space.quality_tolerance
    if not quality:
        contest.words.append(f"Quality: no objective asks for it; {_count(trials, 'feasible trial')}, all equals.")
        return
    names = [o.metric for o in study.space.objectives_of(contest.target) if kind(o.metric) == "quality"]
    best = max(trials, key=lambda t: (quality[t.slot], -t.slot))
    least = least_equal(quality[best.slot], tolerance)
    equals = [t.slot for t in trials if quality[t.slot] >= least]
    contest.keep(equals, {t.slot: f"quality {_behind(quality[t.slot], quality[best.slot])} lower" for t in trials})
    within = f"within {100 * tolerance:g} % of the best"
    if len(names) == 1:
        value = value_text(names[0], best.metrics[contest.target][names[0]])
        what = f"{within} {names[0]} ({value}, trial {best.slot})"
    else:
        mean = f"mean of {_listed(names)}, each as a share of the best"
        what = f"{within} {mean} ({100 * quality[best.slot]:.1f} %, trial {best.slot})"
    verb = "is" if len(equals) == 1 else "are"
    contest.words.append(f"Quality: {len(equals)} of {_count(trials, 'feasible trial')} {verb} {what}.")


def _by_size(contest: _Contest, title: str) -> None:
    """Keeps the smallest and what is within 1 % of it; where no size was measured, all."""
    smallest = min(contest.left, key=lambda t: (contest.size(t), t.slot))
    size = contest.size(smallest)
    kept = [t.slot for t in contest.left if contest.size(t) <= size * (1 + SIZE_TOLERANCE)]
    if len(kept) == len(contest.left):
        return
    text = value_text(SIZE, size)
    contest.keep(kept, {t.slot: f"larger: {value_text(SIZE, contest.size(t))}" for t in contest.left})
    who = f"trial {kept[0]} has" if len(kept) == 1 else f"{_trials(kept)} have"
    contest.words.append(f"{title}: {who} the smallest package, {text}.")


def _by_speed(
    contest: _Contest, study: StudyRecord, remeasured: Mapping[str, Any] | None
) -> tuple[str | None, tuple[int, ...], Mapping[str, Any] | None]:
    """The metric that decides, the slots that its noise ties, and what was used of `remeasured`."""
    target, several = contest.target, len(contest.left) > 1
    speed = speed_metric(study, target, contest.left)
    if speed is None:
        if several:
            contest.words.append("Speed: nothing was measured.")
        return None, (), None
    metric = speed.metric
    times = {t.slot: time_of(t, target, metric) for t in contest.left}
    texts = {t.slot: value_text(metric, t.metrics[target][metric]) for t in contest.left}
    order = sorted(times, key=lambda slot: (times[slot].value, slot))
    fastest = order[0]
    if not several:
        contest.words.append(f"Speed: it stands alone, its {metric} is {texts[fastest]}.")
        return metric, (), None
    why = "" if speed.asked else " (no objective asks for speed)"
    near = [slot for slot in order if times[slot].within_noise_of(times[fastest])]
    tied = near[:MOST_MEASURED_AGAIN] if len(near) > 1 else []
    contest.words.append(f"Speed{why}: trial {fastest} has the best {metric} of them, {texts[fastest]}.")
    slower = {slot: f"slower: {texts[slot]}" for slot in order}
    if not tied:
        contest.keep([fastest], slower)
        return metric, (), None
    for slot in near[MOST_MEASURED_AGAIN:]:
        slower[slot] += f" (within the noise, but {MOST_MEASURED_AGAIN} are faster)"
    if remeasured is None or not usable(remeasured, metric, tied):
        first = [slot for slot in tied if times[slot].value == times[fastest].value]
        unsure = {slot: f"{slower[slot]} (within the noise)" for slot in tied}
        contest.keep(first, {**slower, **unsure})
        others = [slot for slot in near if slot != fastest]
        contest.words.append(f"Noise: {_trials(others)} may be as fast, and {_is_not(others)} measured again.")
        return metric, tuple(tied), None
    _by_ratio(contest, remeasured, tied, slower)
    return metric, tuple(tied), remeasured


def _by_ratio(contest: _Contest, remeasured: Mapping[str, Any], tied: Sequence[int], slower: Mapping[int, str]) -> None:
    """Keeps what was as fast as the reference when both were measured in turn."""
    reference, reasons, kept, words = int(remeasured["reference"]), dict(slower), [], []
    again = [slot for slot in tied if str(slot) in remeasured["ratios"]]
    for slot in again:
        middle, low, high = remeasured["ratios"][str(slot)]
        if slot == reference or high >= 1:
            kept.append(slot)
        reasons[slot] = f"{100 * (1 / middle - 1):.1f} % slower when measured again"
        if slot != reference:
            verdict = "slower" if high < 1 else "not told apart"
            words.append(f"{middle:.3f} ({low:.3f} to {high:.3f}) of trial {slot}'s time: {verdict}")
    missing = {slot: remeasured["missing"][str(slot)] for slot in tied if slot not in again}
    reasons |= {slot: f"not measured again: {reason}" for slot, reason in missing.items()}
    contest.keep(kept, reasons)
    text = (
        f"Noise: {_trials(again)} are within it and were measured again in turn, {remeasured['rounds']} rounds: "
        f"trial {reference} takes {'; '.join(words)}."
    )
    contest.words.append(text + "".join(f" Trial {slot} was not: {reason}." for slot, reason in missing.items()))


def _by_the_rest(contest: _Contest) -> None:
    """Quality without a tolerance, then the lower slot."""
    quality, left = contest.quality, contest.left
    if len(left) == 1:
        return
    best = max((quality[t.slot] for t in left), default=0.0) if quality else 0.0
    kept = [t.slot for t in left if not quality or quality[t.slot] == best]
    if len(kept) < len(left):
        contest.words.append(f"Tied: {_trials([t.slot for t in left])} have {_same(contest)}; the best quality wins.")
    contest.keep(kept, {t.slot: f"tied, quality {_behind(quality.get(t.slot, 0.0), best)} lower" for t in left})
    if len(contest.left) > 1:
        first = min(kept)
        contest.words.append(f"Tied: {_trials(kept)} cannot be told apart; the lower number wins.")
        contest.keep([first], {slot: f"tied, trial {first} came first" for slot in kept})


def _tell_the_price(contest: _Contest, winner: TrialRecord, metric: str | None) -> None:
    """What the winner gives up in quality, and what for."""
    if not contest.quality or metric is None:
        return
    best = max(contest.trials, key=lambda t: (contest.quality[t.slot], -t.slot))
    if contest.quality[winner.slot] == contest.quality[best.slot] or metric not in best.metrics[contest.target]:
        return
    fast, slow = (value_text(metric, t.metrics[contest.target][metric]) for t in (winner, best))
    price = _behind(contest.quality[winner.slot], contest.quality[best.slot])
    who = f"against trial {best.slot}, the best in quality"
    contest.words.append(f"Price: {who}, {price} less of it; {metric} {fast}, not {slow}.")


def _same(contest: _Contest) -> str:
    return "the same size" if all(math.isfinite(contest.size(t)) for t in contest.left) else "no size"


def _behind(value: float, best: float) -> str:
    share = (best - value) / abs(best) if best else best - value
    return f"{100 * share:.2g} %"


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _trials(slots: Sequence[int]) -> str:
    return f"trial{'' if len(slots) == 1 else 's'} {_listed([str(slot) for slot in slots])}"


def _is_not(slots: Sequence[int]) -> str:
    return "was not" if len(slots) == 1 else "were not"
