"""Data flows one way: no package imports what lies further along, at its top or in a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
# package -> what none of its files imports
FORBIDDEN = {
    "runtime": {"olive", "torch", "transformers", "peft", "data", "passes", "evaluators", "benchmark", "search"},
    "data": {"passes", "evaluators", "benchmark", "search"},
    "passes": {"benchmark", "search"},
    "evaluators": {"benchmark", "search"},
    "search": {"passes"},
    "benchmark": {"passes"},
}
# (file, package) -> why it may; one that no longer holds must go
ALLOWED = {
    ("runtime/adapters.py", "passes"): "`merge` builds a package; without the workspace it says so",
    ("benchmark/speed_graphs.py", "passes"): "times the graphs before they are a package",
    ("benchmark/evaluation_speed.py", "passes"): "writes the package of a random base that it times",
    ("benchmark/training_speed.py", "passes"): "asks for the batch size and rank that our trainings have by themselves",
    ("benchmark/deployed_training.py", "passes"): "measures the base that a training holds",
    ("benchmark/training_memory.py", "passes"): "measures a training alone, without Olive around it",
    ("benchmark/estimate_accuracy.py", "passes"): "measures a training alone, and asks for its estimate",
    ("benchmark/methods.py", "passes"): "asks what decides a loss, to know when a result is of other files",
    ("benchmark/memory.py", "passes"): "prints the estimate that trainings begin with",
    ("benchmark/method_workflows.py", "passes"): "asks which options belong to a method",
}


def imported(source: str) -> set[str]:
    """The first part of every module that is imported, by a statement or by `import_module` with a name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {str(a.value).split(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b, c", {"a", "c"}),
        ("from a.b import c", {"a"}),
        ("def f():\n    from a import b", {"a"}),
        ("importlib.import_module('a.b')", {"a"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a", {"a", "typing"}),
        ("'import a'", set()),
    ],
)
def test_what_counts_as_an_import(source: str, found: set[str]) -> None:
    assert imported(source) == found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_data_flows_one_way(package: str) -> None:
    files = sorted((REPOSITORY / package).rglob("*.py"))
    assert files
    against = {
        (file.relative_to(REPOSITORY).as_posix(), name)
        for file in files
        for name in imported(file.read_text(encoding="utf-8")) & FORBIDDEN[package]
    }
    assert against == {place for place in ALLOWED if place[0].startswith(f"{package}/")}
