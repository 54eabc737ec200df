"""What tasks lost or won while adapters went on from one to the next: numbers, and the table that a run ends with.

The matrix R of Lopez-Paz and Ranzato 2017, *Gradient Episodic Memory for Continual Learning* (arXiv:1706.08840):
R[i][j] is the score on task j's held-out rows after stage i. Backward transfer is the mean of R[last][j] - R[j][j] over
the tasks before the last. Here it is turned where a lower score is the better one: below 0 is forgetting.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

REPORT = "continual.json"  # beside a trained adapter


def backward_transfer(
    stages: Sequence[str], tasks: Sequence[str], matrix: Sequence[Sequence[float | None]], higher_is_better: bool
) -> dict[str, Any]:
    """{"won": {task: after the last stage against after its own}, "backward_transfer": their mean}, below 0 is lost.

    Args:
        stages: names of the adapters, in the order of their training.
        tasks: names of those whose task was measured, in the same order.
        matrix: score of each stage (row) on each task (column); None is not measured.

    >>> backward_transfer(["a", "b"], ["a", "b"], [[0.9, None], [0.6, 0.8]], True)["won"]
    {'a': -0.30000000000000004}
    """
    won = {}
    for column, task in enumerate(tasks):
        own, last = matrix[stages.index(task)][column], matrix[-1][column]
        if task != stages[-1] and own is not None and last is not None:
            won[task] = last - own if higher_is_better else own - last
    return {"won": won, "backward_transfer": math.fsum(won.values()) / len(won) if won else None}


def read_reports(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """{adapter: report} of the trained adapters that went on from another one and were scored on its task."""
    files = {name: folder / REPORT for name, folder in folders.items()}
    return {n: json.loads(file.read_text(encoding="utf-8")) for n, file in files.items() if file.is_file()}


def transfers(report: Mapping[str, Any]) -> list[tuple[str, float, float, float]]:
    """(earlier task, score after its own stage, after the last, won), in the order of the stages."""
    found = []
    for task, won in report["won"].items():
        column = report["tasks"].index(task)
        own = report["matrix"][report["stages"].index(task)][column]
        found.append((task, own, report["matrix"][-1][column], won))
    return found


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """A line for each earlier task, for the end of a training."""
    return [
        f"continual {report['adapter']}: {report['score']} on the task of {task} {own:.3f} -> {last:.3f} "
        f"({'won' if won >= 0 else 'lost'} {abs(won):.3f})"
        for task, own, last, won in transfers(report)
    ]


def transfer_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each earlier task lost or won, a line for each adapter and earlier task; PyTorch's scores."""
    from evaluators.report import number_text, plain_table

    titles = ["before", "after", "won", "replayed"]
    table = plain_table(["adapter", "went on from", "task of", "score"], titles, [])
    for adapter, report in reports.items():
        replay = report["replay"]
        for number, (task, own, last, won) in enumerate(transfers(report)):
            score = report["score"]
            values = [
                number_text(score, own),
                number_text(score, last),
                f"{won:+.{2 if score == 'perplexity' else 3}f}",
            ]
            share = f"{replay.get('fraction', 0.2):.0%}" if replay else "-"
            names = [adapter, report["stages"][-2]] if not number else ["", ""]
            table.add_row(*names, task, score, *values, share)
    return table
