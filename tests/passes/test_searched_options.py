"""Workflows for Olive's own search: what the check takes and refuses, and one real search."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from passes.searched_options import BETTER, candidates, choices_of
from passes.workflow_check import check_workflow

Workflow = dict[str, Any]
STRATEGY = {"execution_order": "joint", "sampler": "sequential"}


def several(*values: Any) -> dict[str, Any]:
    return {"olive_parameter_type": "SearchParameter", "type": "Categorical", "support": list(values)}


def problems(workflow: Workflow) -> list[str]:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register

    register()
    return check_workflow(RunConfig.parse_file_or_obj(copy.deepcopy(workflow)))


def test_candidates_are_every_combination() -> None:
    assert choices_of("int4") is None and choices_of({"block_size": 32}) is None and choices_of(["int4"]) is None
    assert choices_of(several(1, None)) == [1, None]
    assert choices_of({**several(1), "type": "Conditional"}) == []
    options = {"name": "x", "precision": several("int4", "fp32"), "quantization": several(None, {"block_size": 16})}
    assert [(c["precision"], c["quantization"]) for c in candidates(options)] == [
        ("int4", None),
        ("int4", {"block_size": 16}),
        ("fp32", None),
        ("fp32", {"block_size": 16}),
    ]
    assert all(c["name"] == "x" for c in candidates(options))
    assert list(candidates({"name": "x"})) == [{"name": "x"}]


# passes.export, whether the workflow has a search_strategy, the lines that the check must give
CASES: dict[str, tuple[Any, bool, list[str]]] = {
    "choices": ({"precision": several("int4", "int8")}, True, []),
    "choices of which one can be exported": (
        {"precision": several("int9", "fp32"), "quantization": several(None, {"block_size": 16})},
        True,
        [],
    ),
    "alternatives": ([{"precision": "int8"}, {"precision": several("fp32", "int4")}], True, []),
    "no choice can be exported": (
        {"precision": several("int9", "int7")},
        True,
        ["passes.export.precision is 'int9', which cpu cannot run; did you mean 'int8'? Valid: fp32, int4, int8"],
    ),
    "a plain list": (
        {"precision": ["int4", "int8"]},
        True,
        [f"passes.export.precision: Input should be a valid string, but got ['int4', 'int8']; {BETTER}"],
    ),
    "without a strategy": (
        {"precision": several("int4", "int8")},
        False,
        [f"passes.export.precision: has several values, but the workflow has no search_strategy; {BETTER}"],
    ),
    "alternatives without a strategy": (
        [{"precision": "int8"}, {"precision": "fp32"}],
        False,
        ["passes.export: is a list, of which Olive runs the first without a search_strategy"],
    ),
    "what Olive cannot read": (
        {"precision": {**several("int4"), "type": "Conditional"}, "name": several()},
        True,
        [
            f"passes.export.{option}: must be of type Categorical with a support of one value or more; {BETTER}"
            for option in ("precision", "name")
        ],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_check_names_what_is_wrong(name: str, tiny_workflow: Workflow) -> None:
    options, searching, expected = CASES[name]
    kind = {"type": "MultiAdapterExport"}
    steps = [{**kind, **o} for o in options] if isinstance(options, list) else {**kind, **options}
    tiny_workflow["passes"]["export"] = steps
    if searching:
        tiny_workflow["search_strategy"] = STRATEGY
    assert problems(tiny_workflow) == expected


def test_other_passes_are_for_our_search(tiny_workflow: Workflow) -> None:
    tiny_workflow["search_strategy"] = STRATEGY
    tiny_workflow["passes"]["mood"]["rank"] = several(2, 4)
    assert problems(tiny_workflow) == [
        f"passes.mood.rank: Olive's search is over options of MultiAdapterExport alone; {BETTER}"
    ]
    del tiny_workflow["passes"]["mood"]["rank"], tiny_workflow["passes"]["export"]
    assert problems(tiny_workflow) == [
        f"search_strategy: needs the pass MultiAdapterExport, whose options it searches; {BETTER}"
    ]


@pytest.mark.slow
def test_a_search_ends_with_its_best_package_and_that_ones_evaluation(tiny_workflow: Workflow) -> None:
    """The smallest of three comes second; a fourth candidate has no meaning and is left out."""
    from olive.workflows import run

    from passes.registration import register

    register()
    passes, (evaluator,) = tiny_workflow["passes"], tiny_workflow["evaluators"].values()
    tiny_workflow["passes"] = {"mood": passes["mood"], "export": passes["export"]}
    passes["export"] |= {
        "precision": several("int8", "int4", "fp32"),
        "quantization": several({"block_size": 32}, None),
    }
    evaluator["metrics"] = [m for m in evaluator["metrics"] if m["name"] == "size_on_disk"]
    evaluator["metrics"][0]["sub_types"][0]["priority"] = 1
    evaluator.pop("metric_options")
    tiny_workflow["search_strategy"] = STRATEGY
    output = Path(tiny_workflow["output_dir"])
    run(tiny_workflow)
    evaluation = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    footprint = json.loads((output / "footprint.json").read_text(encoding="utf-8"))
    sizes = {
        (node["pass_run_config"]["precision"], bool(node["pass_run_config"]["quantization"])): next(
            iter(node["metrics"]["value"].values())
        )["value"]
        for node in footprint.values()
        if node["metrics"]
    }
    assert len(sizes) == 5 and ("fp32", True) not in sizes
    assert min(sizes, key=lambda key: sizes[key])[0] == "int4"
    assert evaluation["precision"] == json.loads((output / "package.json").read_text("utf-8"))["precision"] == "int4"
    total = next(row for row in evaluation["sizes"] if row["part"] == "total")
    assert total["package"] == min(sizes.values())
