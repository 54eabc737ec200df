"""What the comparison with Olive's search counts: spaces, orders, the best within the bound. No search runs here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmark.olive_search import PERPLEXITY, SIZE, Attempt, Space, alternatives, combinations, flat, read_attempts
from benchmark.search_against_olive import SPACE, compare, markdown, quickstart, space_file
from benchmark.search_replay import evaluations_to, olive_orders, our_orders, random_orders
from passes.workflow_check import check_workflow
from runtime.errors import OlivalError
from search.samplers import grid
from search.space_file import read_space

SMALL = Space(("default", "rtn_last"), (16, 32), ("int8",))


def measured(perplexity: float, size: float) -> dict[str, float]:
    return {PERPLEXITY: perplexity, SIZE: size}


def test_both_sides_have_the_same_combinations(tmp_path: Path) -> None:
    file = tmp_path / "grid.json"
    space = space_file(tmp_path, "grid", {"type": "grid"}, 0, 5_000_000)
    Path(space["workflow"]).write_text(json.dumps(quickstart(tmp_path, "grid")), encoding="utf-8")
    file.write_text(json.dumps(space), encoding="utf-8")
    read = read_space(file)
    ours = [(v["precision"], v.get("algorithm"), v.get("block_size")) for v in grid(read.parameters)]
    assert sorted(ours, key=str) == sorted(combinations(SPACE), key=str)
    assert read.trials == len(ours) == 18
    assert sorted(map(str, our_orders(file, {}, [3])[0])) == sorted(map(str, ours))


@pytest.mark.parametrize("says", [alternatives, flat])
def test_olives_workflow_is_right(says: Any, tmp_path: Path) -> None:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register

    register()
    content = quickstart(tmp_path, "sequential")
    content["passes"]["export"] = says(content["passes"]["export"], SPACE)
    content["search_strategy"] = {"execution_order": "joint", "sampler": "sequential"}
    assert check_workflow(RunConfig.parse_file_or_obj(content)) == []


def test_olives_samplers_try_every_candidate_of_the_flat_space_once() -> None:
    table = {options: measured(1.0, 1.0) for options in combinations(SMALL)}
    for sampler in ("random", "tpe"):
        first, second = olive_orders(sampler, SMALL, table, [1, 2])
        assert len(first) == len(set(first)) == 10 and set(first) == set(second) >= set(combinations(SMALL))
        assert first != second
    assert [sorted(map(str, o)) for o in random_orders(SMALL, [1])] == [sorted(map(str, combinations(SMALL)))]


A, B, C = combinations(SMALL)[:3]


@pytest.mark.parametrize(
    ("order", "expected"),
    [([B], 1), ([A, A, B], 2), ([C, A, B], 2), ([A, C], None), ([], None), ([B, B], 1)],
)
def test_evaluations_to_the_best(order: list[Any], expected: int | None) -> None:
    """C cannot be exported; repeated candidates are measured once."""
    assert evaluations_to(B, order, {A: measured(2, 1), B: measured(1, 1)}) == expected


def test_the_best_keeps_the_bound() -> None:
    too_large = Attempt(("int8", None, None), measured(1.0, 900))
    first, second = Attempt(A, measured(3.0, 100)), Attempt(B, measured(2.0, 200))
    sides = {
        "one": {"attempts": [too_large, first, second], "tried": 4, "delivered": too_large.metrics, "seconds": 1.0},
        "two": {"attempts": [first, Attempt(C, None)], "tried": 2, "delivered": first.metrics, "seconds": 2.0},
        "three": {"attempts": [], "tried": 1, "delivered": None, "seconds": 2.0},
    }
    results = compare(sides, most_bytes=500)
    assert results["best"] == {"options": B, **measured(2.0, 200)}
    rows = [(r["same_best"], r["to_best"], r["measured"], r["delivered_within"]) for r in results["rows"]]
    assert rows == [(True, 3, 3, False), (False, None, 1, True), (False, None, 0, False)]
    text = markdown(results)
    assert "| one | yes | 3 | 3 | 4 | 1.000, 0.00 MB, over the bound | 1 |" in text
    assert "| two | no | - | 1 | 2 | 3.000, 0.00 MB | 2 |" in text and "| three | no | - | 0 | 1 | none | 2 |" in text
    with pytest.raises(OlivalError, match="no candidate has 50 bytes or less; the smallest is 100"):
        compare(sides, most_bytes=50)


def test_olives_footprint_and_log_are_read(tmp_path: Path) -> None:
    values = {PERPLEXITY: {"value": 46.5}, f"{SIZE}-bytes": {"value": 4e6}}
    config = {"precision": "int4", "quantization": {"algorithm": "rtn_last", "block_size": 16}}
    nodes = {
        "a": {"from_pass": None, "metrics": None},
        "b": {"from_pass": "adapterfinetune", "metrics": None, "pass_run_config": {}},
        "c": {"from_pass": "multiadapterexport", "metrics": {"value": values}, "pass_run_config": config},
        "d": {"from_pass": "multiadapterexport", "metrics": None, "pass_run_config": {"precision": "int8"}},
    }
    (tmp_path / "footprint.json").write_text(json.dumps(nodes), encoding="utf-8")
    log = "Step 1 with search point X ...\nrest\nStep 2 with search point Y ...\nStep 2 search point Y ... FAILED.\n"
    attempts, tried = read_attempts(tmp_path, log)
    assert attempts == [Attempt(("int4", "rtn_last", 16), measured(46.5, 4e6))] and tried == 2
