"""Teacher and students on the same held-out rows with true labels: what a distillation is to be judged by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data.teaching import Unanswered
from evaluators.intervals import mcnemar, proportion_interval
from evaluators.report import plain_table

if TYPE_CHECKING:
    from rich.console import Console


def add_student(
    comparisons: list[dict[str, Any]],
    rows: Unanswered,
    adapter: str,
    rights: Mapping[str, Sequence[bool]],
    ask: Callable[[], Sequence[bool]],
) -> None:
    """Puts an adapter into the comparison of its held-out rows, which its teacher begins.

    Args:
        comparisons: of the evaluation so far, each {"key", "data", "rows", "models": [...]}; the first model is the
            teacher. A model is {"name", "role": "teacher" | "student", "measured": "teacher" | "package" | "pytorch",
            "accuracy", "low", "high" (Wilson's interval of 95 %), "against_teacher" (McNemar's test, see
            `intervals.mcnemar`; None for the teacher itself), "right": [0 or 1 for each row]}.
        rows: the held-out rows with their true labels.
        adapter: the student's name.
        rights: {"package" or "pytorch": whether the label of each row is right}.
        ask: has the teacher label these rows; the same. Called once for a teacher and its rows.
    """
    measured = next((model for model in ("package", "pytorch") if model in rights), None)
    if measured is None:
        return
    text = json.dumps([rows.questions, rows.true_labels, rows.teacher.identity()], sort_keys=True)
    key = hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
    found = next((comparison for comparison in comparisons if comparison["key"] == key), None)
    if found is None:
        found = {"key": key, "data": rows.source, "rows": len(rows.questions)}
        found["models"] = [_model(rows.teacher.name, "teacher", "teacher", ask(), None)]
        comparisons.append(found)
    of_teacher = found["models"][0]["right"]
    found["models"].append(_model(adapter, "student", measured, rights[measured], of_teacher))


def teacher_rights(rows: Unanswered, subjects: Any) -> list[bool]:
    """Whether the teacher's label of each held-out row is the true one; a row that it could not label is wrong.

    `subjects` has the workflow's base and adapters, of which one may be the teacher.
    """
    from passes.teaching.asking import lessons

    found = lessons(rows, subjects.base, subjects.folders)
    return [
        lesson is not None and lesson.answer == label for lesson, label in zip(found, rows.true_labels, strict=True)
    ]


def print_distillation(console: Console, comparisons: Sequence[Mapping[str, Any]]) -> None:
    """One table for each teacher and its held-out rows."""
    for comparison in comparisons:
        console.print(f"[bold]distillation[/bold]: {comparison['rows']} rows of {comparison['data']} with true labels")
        numbers = ["accuracy", "95 %", "only it right", "only teacher right", "p"]
        table = plain_table(["model", "measured"], numbers, [])
        for model in comparison["models"]:
            test = model["against_teacher"]
            against = ["-"] * 3
            if test is not None:
                against = [str(test["only_second"]), str(test["only_first"]), f"{test['p_value']:.2g}"]
            interval = f"{model['low']:.3f}-{model['high']:.3f}"
            name = model["name"] if model["role"] == "student" else f"{model['name']} (teacher)"
            where = {"pytorch": "PyTorch", "teacher": "its answers"}.get(model["measured"], model["measured"])
            table.add_row(name, where, f"{model['accuracy']:.3f}", interval, *against)
        console.print(table)


def _model(
    name: str, role: str, measured: str, rights: Sequence[bool], of_teacher: Sequence[int] | None
) -> dict[str, Any]:
    low, high = proportion_interval(sum(rights), len(rights))
    test = None if of_teacher is None else mcnemar([1] * len(rights), of_teacher, [int(right) for right in rights])
    return {
        "name": name,
        "role": role,
        "measured": measured,
        "accuracy": sum(rights) / len(rights),
        "low": low,
        "high": high,
        "against_teacher": test,
        "right": [int(right) for right in rights],
    }
