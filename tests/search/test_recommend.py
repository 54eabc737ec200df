from __future__ import annotations

import json
import random
from typing import Any

import pytest

from search.criteria import shares_of_best, speed_metric, value_text
from search.recommend import recommend, usable
from search.records import StudyRecord
from search.remeasure import compared
from tests.search.studies import make_space, make_study, make_trial

QUALITY, SPEED, SIZE = "spam-accuracy", "tpot_p50_ms", "size_on_disk"


@pytest.mark.parametrize(
    ("direction", "values", "shares"),
    [
        ("maximize", [0.5, 1.0, 0.25], [0.5, 1.0, 0.25]),
        ("minimize", [2.0, 4.0, 8.0], [1.0, 0.5, 0.25]),
        ("maximize", [0.0, 0.0], [1.0, 1.0]),
        ("minimize", [0.0, 0.1], [1.0, 0.0]),  # no flips at all: nothing is within a percent of that
        ("maximize", [0.0, 0.5], [0.0, 1.0]),
        ("maximize", [-0.5, 1.0], [-0.5, 1.0]),  # such as a correlation
        ("maximize", [-1.0, -4.0], [1.0, 0.25]),  # such as a log-likelihood
        ("minimize", [-4.0, -1.0], [1.0, 0.25]),
        ("minimize", [-2.0, 1.0], [1.0, -0.5]),
        ("minimize", [float("inf"), 3.0], [0.0, 1.0]),  # perplexity of a broken model
        ("minimize", [float("inf"), float("inf")], [1.0, 1.0]),
        ("maximize", [], []),
    ],
)
def test_shares_of_the_best(direction: str, values: list[float], shares: list[float]) -> None:
    assert shares_of_best(values, direction) == pytest.approx(shares)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_worse_value_never_has_a_larger_share(direction: str) -> None:
    rng = random.Random(0)
    for _ in range(200):
        values = [round(rng.uniform(-1, 1) + rng.choice([-1, 0, 1]), 1) for _ in range(5)]
        shares = shares_of_best(values, direction)
        best_first = sorted(zip(values, shares, strict=True), reverse=direction == "maximize")
        ordered = [share for _, share in best_first]
        assert ordered[0] == 1 and ordered == sorted(ordered, reverse=True)
        scaled = shares_of_best([1000 * value for value in values], direction)
        assert scaled == pytest.approx(shares)


def row(quality: float, speed: float, size: float = 3e6) -> dict[str, float]:
    return {QUALITY: quality, SPEED: speed, SIZE: size}


CASES: dict[str, tuple[list[str], list[dict[str, float]], int, dict[int, str]]] = {
    # objectives, trials, the winner, a part of why others lost
    "speed beats quality within 1 %": (
        [QUALITY, SPEED],
        [row(1.0, 3.0), row(0.991, 1.0), row(0.98, 0.5)],
        1,
        {0: "slower: 3 ms", 2: "quality 2 % lower"},
    ),
    "the edge of the tolerance counts": ([QUALITY, SPEED], [row(1.0, 3.0), row(0.99, 1.0)], 1, {0: "slower"}),
    "size where speed is the same": (
        [QUALITY, SIZE, SPEED],
        [row(1.0, 1.0, 4e6), row(0.995, 1.0, 3e6)],
        1,
        {0: "larger: 4.00 MB"},
    ),
    "a few bytes are no reason, quality is": (
        [QUALITY, SIZE, SPEED],
        [row(0.995, 1.0, 3e6), row(1.0, 1.0, 3e6 + 10)],
        1,
        {0: "tied, quality 0.5 % lower"},
    ),
    "the lower slot in the end": ([QUALITY, SPEED], [row(1.0, 1.0), row(1.0, 1.0)], 0, {1: "trial 0 came first"}),
    "no quality objective: speed alone": ([SPEED], [row(1.0, 3.0), row(0.5, 1.0)], 1, {0: "slower"}),
    "size is the only objective": ([SIZE], [row(1.0, 1.0, 4e6), row(0.5, 3.0, 3e6)], 1, {0: "larger"}),
    "size is asked for and speed is not": (
        [QUALITY, SIZE],
        [row(1.0, 1.0, 4e6), row(1.0, 3.0, 3e6), row(0.9, 1.0, 2e6)],
        1,
        {0: "larger", 2: "quality 10 % lower"},
    ),
    "speed though nobody asks": ([QUALITY], [row(1.0, 3.0), row(0.995, 1.0)], 1, {0: "slower"}),
    "throughput": (
        [QUALITY, "tokens_per_second"],
        [{QUALITY: 1.0, "tokens_per_second": 100.0}, {QUALITY: 1.0, "tokens_per_second": 200.0}],
        1,
        {0: "slower: 100.0 tokens/s"},
    ),
    "nothing but quality was measured": ([QUALITY], [{QUALITY: 0.995}, {QUALITY: 1.0}], 1, {0: "tied, quality"}),
    "nothing but size beside it": (
        [QUALITY],
        [{QUALITY: 1.0, SIZE: 4e6}, {QUALITY: 0.995, SIZE: 3e6}],
        1,
        {0: "larger"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_rule(name: str) -> None:
    objectives, rows, winner, reasons = CASES[name]
    found = recommend(make_study(make_space(objectives), rows), "target")
    assert found.trial is not None and found.trial.slot == winner
    lost = {candidate.trial.slot: candidate.lost for candidate in found.candidates}
    assert set(lost) == set(range(len(rows))) and [slot for slot, why in lost.items() if why is None] == [winner]
    for slot, part in reasons.items():
        assert part in str(lost[slot])


def test_the_mean_of_several_qualities_decides_and_the_words_have_the_numbers() -> None:
    space = make_space([QUALITY, "blurbs-perplexity", SPEED], quality_tolerance=0.05)
    rows = [
        {QUALITY: 1.0, "blurbs-perplexity": 20.0, SPEED: 1.0},  # mean (1 + 0.5) / 2
        {QUALITY: 0.9, "blurbs-perplexity": 10.0, SPEED: 9.0},  # mean 0.95, the best
        {QUALITY: 0.88, "blurbs-perplexity": 10.2, SPEED: 2.0},  # mean 0.930
    ]
    found = recommend(make_study(space, rows), "target")
    assert found.trial is not None and found.trial.slot == 2
    assert [candidate.quality for candidate in found.candidates] == pytest.approx([0.75, 0.95, 0.930196], abs=1e-6)
    assert found.rule == (
        "Quality: 2 of 3 feasible trials are within 5 % of the best mean of spam-accuracy and blurbs-perplexity, each "
        "as a share of the best (95.0 %, trial 1).",
        "Speed: trial 2 has the best tpot_p50_ms of them, 2 ms.",
        "Price: against trial 1, the best in quality, 2.1 % less of it; tpot_p50_ms 2 ms, not 9 ms.",
    )


def test_infeasible_pruned_and_failed_trials_do_not_count() -> None:
    space = make_space([QUALITY, SPEED], [(SIZE, "<=", 3.5e6)])
    trials = [
        make_trial(space, 0, row(0.9, 2.0)),
        make_trial(space, 1, row(0.99, 1.0, 4e6)),
        make_trial(space, 2, row(0.99, 1.0), state="pruned"),
        make_trial(space, 3, row(0.99, 1.0), state="lost"),
        make_trial(space, 3, None, state="failed", attempt=1),
    ]
    found = recommend(make_study(space, trials), "target")
    assert found.trial is trials[0] and len(found.candidates) == 1 and found.tied == ()
    assert found.rule[1] == "Speed: it stands alone, its tpot_p50_ms is 2 ms."


def test_without_a_feasible_trial_it_says_what_is_broken_by_how_little() -> None:
    space = make_space([QUALITY, SPEED], [(SIZE, "<=", 3e6), (QUALITY, ">=", 0.93)])
    found = recommend(make_study(space, [row(0.929, 1.0, 3.1e6), row(0.5, 1.0, 2e6), row(0.928, 1.0, 4e6)]), "target")
    assert found.trial is None
    assert found.rule == (
        "None of 3 complete trials keeps every constraint.",
        "Nearest is trial 0: size_on_disk is 3.1 MB, 0.1 MB above 3 MB; spam-accuracy is 0.929, 0.001 below 0.93.",
        "size_on_disk <= 3 MB: kept by 1 of 3.",
        "spam-accuracy >= 0.93: kept by 0 of 3; nearest is trial 0 with 0.929.",
    )
    waiting = [make_trial(space, 0, None, state="running"), make_trial(space, 1, None, state="failed")]
    assert recommend(make_study(space, waiting), "target").rule == ("No trial is complete yet (1 running, 1 failed).",)
    unmeasured = recommend(make_study(space, [{SIZE: 1.0}]), "target")
    assert unmeasured.rule == ("No complete trial has a number for every objective: spam-accuracy, tpot_p50_ms.",)


NOISE: dict[str, tuple[list[float], dict[int, tuple[float, float]], tuple[int, ...]]] = {
    # times of trials, intervals of some, which are tied
    "no intervals, within 25 %": ([1.0, 1.25, 1.26], {}, (0, 1)),
    "alone": ([1.0, 1.3], {}, ()),
    "overlap after 10 % of drift": ([1.0, 1.15, 1.3], {0: (0.9, 1.05), 1: (1.12, 1.2), 2: (1.16, 1.4)}, (0, 1)),
    "one interval is not enough": ([1.0, 1.2], {0: (0.99, 1.01)}, (0, 1)),
    "at most four, the fastest": ([1.05, 1.04, 1.03, 1.02, 1.01, 1.0], {}, (5, 4, 3, 2)),
}


@pytest.mark.parametrize("name", NOISE)
def test_who_is_within_the_noise(name: str) -> None:
    times, intervals, tied = NOISE[name]
    rows = [row(1.0, time) for time in times]
    measured = {slot: {SPEED: interval} for slot, interval in intervals.items()}
    found = recommend(make_study(make_space([QUALITY, SPEED]), rows, measured), "target")
    assert found.tied == tied
    assert found.trial is not None and found.trial.slot == times.index(min(times))
    assert any("measured again" in sentence for sentence in found.rule) == bool(tied)


def test_the_noise_of_a_throughput_is_that_of_its_inverse() -> None:
    space = make_space([QUALITY, "tokens_per_second"])
    rows = [{QUALITY: 1.0, "tokens_per_second": speed} for speed in (100.0, 81.0, 79.0)]
    assert recommend(make_study(space, rows), "target").tied == (0, 1)
    intervals = {
        slot: {"tokens_per_second": pair} for slot, pair in enumerate([(95.0, 105.0), (80.0, 84.0), (80.0, 89.0)])
    }
    assert recommend(make_study(space, rows, intervals), "target").tied == (0, 2)


def tied_study(
    sizes: tuple[float, ...] = (3e6, 3e6, 3e6), qualities: tuple[float, ...] = (1.0, 1.0, 1.0)
) -> StudyRecord:
    rows = [row(q, time, size) for q, time, size in zip(qualities, (1.0, 1.1, 1.2), sizes, strict=True)]
    return make_study(make_space([QUALITY, SPEED]), rows)


def again(seconds: dict[int, float], noise: float, missing: dict[str, str] | None = None) -> dict[str, Any]:
    """What measuring again would find for these true times, as it comes back from JSON."""
    rng = random.Random(0)
    rounds = {
        str(slot): [time * rng.uniform(1 - noise, 1 + noise) for _ in range(40)] for slot, time in seconds.items()
    }
    result = {"metric": SPEED, **compared(rounds), "missing": missing or {}}
    return dict(json.loads(json.dumps(result)))


def test_what_was_measured_again_decides_against_the_first_measurement() -> None:
    remeasured = again({0: 1.2, 1: 1.0, 2: 1.1}, noise=0.01)
    found = recommend(tied_study(), "target", remeasured)
    assert found.trial is not None and found.trial.slot == 1 and found.remeasured == remeasured
    lost = {candidate.trial.slot: str(candidate.lost) for candidate in found.candidates}
    assert "slower when measured again" in lost[0] and "slower when measured again" in lost[2]
    assert "trials 0, 1 and 2 are within it and were measured again in turn, 40 rounds" in found.rule[2]


def test_still_tied_the_smaller_then_the_better_then_the_first_wins() -> None:
    remeasured = again({0: 1.0, 1: 1.0, 2: 1.0}, noise=0.2)
    assert all(high >= 1 for _, _, high in remeasured["ratios"].values())
    for study, winner, words in [
        (tied_study(sizes=(3e6, 2e6, 2.5e6)), 1, "Tied: trial 1 has the smallest package, 2.00 MB."),
        (tied_study(qualities=(0.995, 0.995, 1.0)), 2, "have the same size; the best quality wins."),
        (tied_study(), 0, "Tied: trials 0, 1 and 2 cannot be told apart; the lower number wins."),
    ]:
        found = recommend(study, "target", remeasured)
        assert found.trial is not None and found.trial.slot == winner
        assert words in " ".join(found.rule)


def test_a_slower_but_smaller_package_does_not_win() -> None:
    found = recommend(tied_study(sizes=(3e6, 2e6, 1e6)), "target", again({0: 1.0, 1: 1.0, 2: 1.5}, noise=0.05))
    assert found.trial is not None and found.trial.slot == 1


def test_a_missing_package_loses_by_name_and_other_trials_make_a_result_useless() -> None:
    missing = {"1": "output/study/trials/0001/package is not here (removed, or on another machine)"}
    remeasured = again({0: 1.2, 2: 1.0}, noise=0.01, missing=missing)
    found = recommend(tied_study(), "target", remeasured)
    assert found.trial is not None and found.trial.slot == 2
    assert [c.lost for c in found.candidates][1] == f"not measured again: {missing['1']}"
    assert f"Trial 1 was not: {missing['1']}." in found.rule[2]
    for useless in (
        again({0: 1.2, 1: 1.0}, noise=0.01),  # trial 2 has come since
        again({0: 1.0, 1: 1.2, 2: 1.2, 7: 0.5}, noise=0.01),  # compares with trial 7, which is no equal any more
        {**remeasured, "metric": "ttft_p50_ms"},
        None,
    ):
        assert not usable(useless, SPEED, (0, 1, 2))
        found = recommend(tied_study(), "target", useless)
        assert found.remeasured is None and found.trial is not None and found.trial.slot == 0


@pytest.mark.parametrize(
    ("objectives", "measured", "metric", "asked"),
    [
        ([QUALITY, "ttft_p50_ms", SPEED], [SPEED, "ttft_p50_ms"], "ttft_p50_ms", True),
        ([QUALITY, "tokens_per_second", "ttft_p90_ms"], [], "ttft_p90_ms", True),
        ([QUALITY, "tokens_per_second"], [SPEED], "tokens_per_second", True),
        ([QUALITY], [SPEED, "spam-classify_p50_ms", "a-classify_p50_ms"], "spam-classify_p50_ms", False),
        ([QUALITY], [SPEED, "ttft_p50_ms", "a-classify_p50_ms"], SPEED, False),
        ([QUALITY], ["b-ttft_p50_ms", "b-tpot_p50_ms", "a-ttft_p50_ms"], "b-tpot_p50_ms", False),
        ([QUALITY], ["tpot_p90_ms"], None, False),
    ],
)
def test_which_speed_decides(objectives: list[str], measured: list[str], metric: str | None, asked: bool) -> None:
    study = make_study(make_space(objectives), [dict.fromkeys([*objectives, *measured], 1.0)] * 2)
    found = speed_metric(study, "target", study.trials)
    assert (found.metric, found.asked) == (metric, asked) if found is not None else metric is None


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("spam-accuracy", 0.975, "0.975"),
        ("blurbs-perplexity", 12.345, "12.35"),
        ("spam-classify_p50_ms", 1.2345, "1.23 ms"),
        ("size_on_disk", 2_940_000, "2.94 MB"),
        ("tokens_per_second", 2534.27, "2,534 tokens/s"),
        ("story-tokens_per_second", 31.26, "31.3 tokens/s"),
        ("spam-accuracy", None, "-"),
    ],
)
def test_values_as_people_read_them(metric: str, value: float | None, text: str) -> None:
    assert value_text(metric, value) == text
