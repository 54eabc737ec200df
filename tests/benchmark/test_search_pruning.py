"""What the comparison of a pruned with a random search says of given trials."""

from __future__ import annotations

from pathlib import Path

from benchmark.search_pruning import compared, history, make_space, markdown


def trial(seconds: float, accuracy: float | None) -> dict[str, object]:
    return {"state": "pruned" if accuracy is None else "complete", "seconds": seconds, "accuracy": accuracy}


def test_the_share_of_time_until_the_best() -> None:
    random = [trial(10, 0.8), trial(10, 0.9), trial(20, 0.7)]
    found = compared({"random": random, "pruned": [trial(10, 0.85), trial(1, None), trial(5, 0.9), trial(9, 0.95)]})
    assert found["reached"] == {"trials": 3, "seconds": 16} and found["ratio"] == 16 / 40
    assert found["random_reached"] == {"trials": 2, "seconds": 20} and found["pruned_stopped"] == 1
    never = compared({"random": random, "pruned": [trial(10, 0.85)]})
    assert never["reached"] is None and never["ratio"] is None
    text = markdown([{"seed": 0, **found}, {"seed": 1, **never}, {"seed": 2, **found}])
    assert "| 0 | 0.9000 | 3, 40 s | 2, 20 s | 3 trials, 16 s | 1 | 0.400 |" in text
    assert "| not in that time |" in text and "Median of the ratios 0.400, worst inf (target: at most 0.33)." in text


def test_its_spaces_are_right(tmp_path: Path) -> None:
    for side in ("random", "pruned"):
        space = make_space(tmp_path / side, side, 0, 30)
        assert (
            space.trials == 30 and history(space) == [] and list(space.workflow("cpu")["passes"]) == ["spam", "export"]
        )
