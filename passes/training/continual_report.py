"""What an adapter that goes on from another one has lost or won on the earlier tasks, beside it in continual.json."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.examples import ClassificationData, GenerationData, MultiLabelData
from data.tokenizing import aggregate_windows, encode_generation, encode_windows
from evaluators.continual import REPORT, backward_transfer, report_lines
from evaluators.multilabel_quality import chosen_labels
from evaluators.perplexity import perplexity
from runtime.adapter_source import WEIGHTS
from runtime.atomic_file import write_text
from runtime.manifest import file_entry

if TYPE_CHECKING:
    from evaluators.torch_model import TorchModel

Data = ClassificationData | GenerationData


def add_report(
    folder: Path,
    base: Path,
    adapters: Mapping[str, Path],
    held_out: Mapping[str, Data | None],
    replay: Mapping[str, Any] | None,
) -> None:
    """Writes continual.json to `folder`, unless it is there as it would be, and prints a line for each earlier task.

    Each adapter is scored, in PyTorch and on the base in float32 (see `TorchModel`), on the tasks up to its own: the
    accuracy of classification (micro F1 where a text has several labels), the perplexity of generation.

    Args:
        folder: of the trained adapter.
        adapters: {name: folder} of all stages, the first to the last, which is the adapter itself.
        held_out: {name: validation data} of them; a task without any is not measured.
        replay: the option, for the record.
    """
    measured = {name: data for name, data in held_out.items() if data is not None}
    of = {
        "adapters": {name: file_entry(path / WEIGHTS)["sha256"] for name, path in adapters.items()},
        "data": {name: data.fingerprint for name, data in measured.items()},
    }
    file = folder / REPORT
    report = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    names = list(adapters)
    if not set(measured) & set(names[:-1]):
        print(
            f"continual {names[-1]}: no earlier adapter has a validation_data_config, so what is lost is not measured",
            file=sys.stderr,
        )
        return
    if report.get("of") != of:
        from evaluators.torch_model import TorchModel

        print(f"continual {names[-1]}: scoring it and the earlier adapters on the earlier tasks", file=sys.stderr)
        model = TorchModel(base, dict(adapters))
        tasks = [name for name in names if name in measured]
        matrix = [
            [score(model, stage, measured[task]) if names.index(task) <= place else None for task in tasks]
            for place, stage in enumerate(names)
        ]
        name, higher = score_name(measured[tasks[0]])
        report = {
            "adapter": names[-1],
            "stages": names,
            "tasks": tasks,
            "score": name,
            "higher_is_better": higher,
            "matrix": matrix,
            **backward_transfer(names, tasks, matrix, higher),
            "replay": {key: value for key, value in replay.items() if key != "data_configs"} if replay else None,
            "of": of,
        }
        write_text(file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    for line in report_lines(report):
        print(line, file=sys.stderr)


def score_name(data: Data) -> tuple[str, bool]:
    """(the score that tells what is kept of a task, whether higher is better)."""
    if isinstance(data, GenerationData):
        return "perplexity", False
    return ("f1_micro" if isinstance(data, MultiLabelData) else "accuracy"), True


def score(model: TorchModel, adapter: str, data: Data) -> float | None:
    """`score_name` of an adapter on held-out rows: a share in 0..1, or a perplexity per token; None beyond a float."""
    if isinstance(data, GenerationData):
        value = perplexity(model, encode_generation(model.tokenizer, data), adapter)
        return value if math.isfinite(value) else None
    logits = document_logits(model, adapter, data)
    names = model.labels(adapter)
    if isinstance(data, MultiLabelData):
        truth, guess = data.label_matrix(names), chosen_labels(model, adapter, logits)
        found = int((truth & guess).sum())
        return 2 * found / max(1, int(truth.sum() + guess.sum()))
    return float((logits.argmax(axis=-1) == np.asarray(data.label_ids(names))).mean())


def document_logits(model: TorchModel, adapter: str, data: ClassificationData) -> np.ndarray:
    """float32 (rows, labels); the mean over a text's windows where it has several."""
    windows: list[Sequence[list[int]]] = [
        encode_windows(model.tokenizer, text, data.max_length, data.window_stride) for text in data.texts
    ]
    logits = model.class_logits([ids for row in windows for ids in row], adapter)
    return aggregate_windows(logits, [len(row) for row in windows])
