"""Trains one named adapter on a base with transformers' Trainer and writes it as a PEFT folder."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tensorboardX import SummaryWriter
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, set_seed
from transformers.integrations import TensorBoardCallback

from data.examples import ClassificationData, GenerationData, MultiLabelData
from data.tokenizing import encode_generation, encode_text, encode_windows, pad_batch, pad_id
from passes.base_model import load_tokenizer, pooling_of
from passes.training.classifier import PooledClassifier
from passes.training.continual import copy_head, kept_thresholds, start_from
from passes.training.early_stopping import EarlyStopping
from passes.training.head_settings import HeadSettings
from passes.training.loading import load_for_training
from passes.training.loss_choice import make_loss, teacher_of
from passes.training.memory import free_bytes
from passes.training.methods import adapt
from passes.training.monitoring import Throughput, overfitting, plot_curves
from passes.training.out_of_memory import explained
from passes.training.planned import situation
from passes.training.progress import ProgressBar
from passes.training.response_logits import keep_response_logits
from passes.training.settings import CHECKPOINTING, AdapterSettings, cyclical_schedule, training_arguments
from passes.training.sharded import whole
from passes.training.shared_batches import own_share
from passes.training.teacher import teacher_logits
from passes.training.thresholds import USUAL, MultiLabelScores, best_thresholds, documents_of
from passes.training.trainer import AdapterTrainer, StopsWhereItWouldHave
from passes.training.validation import DocumentScores, ReportValidation
from runtime.adapter_source import HEAD_KEY
from runtime.classification import sigmoid
from runtime.errors import OlivalError
from runtime.peak_memory import resident_bytes

# Held-out rows on which an export is compared with PyTorch. A classifier gives a few numbers a row, and only many rows
# show whether labels flip; a row of generated text is compared in the whole vocabulary at each of its tokens.
PARITY_SAMPLES = {"classification": 256, "generation": 16}


class Rows(Dataset[dict[str, Any]]):
    """Tokenized rows for the Trainer: {"input_ids": list, "labels": list or int}."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


def train_adapter(
    folder: Path,
    base: Path,
    settings: AdapterSettings,
    train_data: ClassificationData | GenerationData,
    validation_data: ClassificationData | GenerationData | None,
    head: HeadSettings | None = None,
    checkpoints: Path | None = None,
    start: Path | None = None,
) -> None:
    """Writes adapter_config.json, adapter_model.safetensors, adapter.json, training.json and samples.json.

    curves.png and the folder tensorboard show how the training went. A classification adapter has a head `score.weight`
    (classes, hidden) in the same safetensors file. `checkpoints` is the folder of the training's checkpoints; it goes
    on from the newest one. Without such a folder they are removed in the end. `start` is the folder of an adapter from
    which this one goes on; its labels come first in those of the data. Where several processes train together, all call
    this alike, and one of each machine writes.

    Raises OutOfMemory when memory runs out, and OlivalError when loss or weights are no longer numbers.
    """
    head = head or HeadSettings()
    set_seed(settings.seed)
    tokenizer = load_tokenizer(base)
    started, memory, responses = time.perf_counter(), free_bytes(), False
    before = resident_bytes()
    kept = checkpoints or folder / "checkpoints"
    base_model = load_for_training(base, settings, memory, kept)
    if any(settings.training_args.get(name) for name in CHECKPOINTING):
        base_model.gradient_checkpointing_enable({"use_reentrant": False})
        base_model.enable_input_require_grads()
    adapted = adapt(base_model, settings, base, isinstance(train_data, ClassificationData))
    if start is not None:
        start_from(adapted, start)
    model: Any = adapted.model
    label_names = train_data.label_names if isinstance(train_data, ClassificationData) else None
    rows = tokenized_rows(tokenizer, train_data, label_names)
    if label_names is not None:
        several = isinstance(train_data, MultiLabelData)
        loss = make_loss(head.loss, [row["labels"] for row in rows], label_names, several)
        model = PooledClassifier(
            adapted.model, base_model.config.hidden_size, len(label_names), loss, head.pooling, head.head_dropout
        )
        if start is not None:
            copy_head(model.score.weight, label_names, start)
        for part in (model.score, model.loss):
            part.to(base_model.device)
        if len(set((placed := getattr(base_model, "hf_device_map", {})).values())) > 1:
            model.hf_device_map = placed  # tells the Trainer that the base stays where it is
    else:
        responses = keep_response_logits(model) is not None

    held_out = tokenized_rows(tokenizer, validation_data, label_names) if validation_data is not None else None
    if label_names is not None and (teacher := teacher_of(head.loss)) is not None:
        print(f"train {settings.adapter_name}: asking the teacher {teacher}", file=sys.stderr)
        for data, some in ((train_data, rows), (validation_data, held_out)):
            if isinstance(data, ClassificationData) and some is not None:
                said = teacher_logits(teacher, data.texts, label_names).tolist()
                some[:] = [{**row, "teacher": said[row["document"]]} for row in some]
    throughput = Throughput()
    arguments = training_arguments(settings, kept, held_out is not None)
    trainer = AdapterTrainer(
        model=model,
        args=arguments,
        cycles=cyclical_schedule(settings),
        train_dataset=Rows(rows),
        eval_dataset=Rows([{**row, "index": i} for i, row in enumerate(held_out)]) if held_out is not None else None,
        data_collator=lambda batch: _collate(
            batch, pad_id(tokenizer), len(label_names or []), arguments.process_index, arguments.world_size
        ),
        # without scores the Trainer keeps the loss alone: logits of generated text are as wide as the vocabulary
        compute_metrics=_scores(held_out, validation_data, label_names),
        callbacks=[
            ReportValidation(settings.adapter_name, label_names is None),
            ProgressBar(settings.adapter_name),
            *([TensorBoardCallback(SummaryWriter(str(kept / "tensorboard")))] if arguments.should_save else []),
            throughput,
            *_early_stopping(settings),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    optimizer = str(settings.training_args.get("optim", ""))
    if optimizer.startswith("paged") and not torch.cuda.is_available():
        print(
            f"train {settings.adapter_name}: '{optimizer}' pages between GPU and main memory; without a GPU it "
            "computes the same and pages nothing",
            file=sys.stderr,
        )
    processes = arguments.world_size
    about = situation(base, settings, model, rows, memory, responses, processes)
    with explained(about, kept):
        result = trainer.train_on(kept)
    weights = adapted.weights()
    if label_names is not None:
        weights[HEAD_KEY] = whole(model.score.weight.detach()).float().contiguous().cpu()
    if not all(torch.isfinite(value).all() for value in [torch.tensor(result.training_loss), *weights.values()]):
        raise OlivalError(
            f"adapter '{settings.adapter_name}': the training diverged, its loss is {result.training_loss:g}; a lower "
            f"training_args.learning_rate than {trainer.args.learning_rate:g} may help"
        )

    thresholds = None
    if isinstance(train_data, MultiLabelData):
        thresholds = _thresholds(trainer, held_out, validation_data, train_data.label_names)
        if start is not None:
            seen = {name for row in getattr(validation_data, "label_sets", []) for name in row}
            thresholds = kept_thresholds(thresholds, train_data.label_names, seen, start)
    if not arguments.should_save:  # another process of this machine writes the adapter
        return
    adapted.save_config(folder, base)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    description: dict[str, Any] = {
        "name": settings.adapter_name,
        "task": "generation" if label_names is None else "classification",
        "labels": label_names,
        "template": train_data.template,
        "max_length": train_data.max_length,
        "pooling": head.pooling or pooling_of(base_model.config.model_type),
        "window_stride": train_data.window_stride if isinstance(train_data, ClassificationData) else None,
        "metrics": {},
        **({"deployed": settings.deployed} if settings.deployed else {}),
    }
    if thresholds is not None:
        description["thresholds"] = thresholds
    _write_json(folder / "adapter.json", description)
    samples = parity_samples(held_out or rows, PARITY_SAMPLES[description["task"]])
    (folder / "samples.json").write_text(json.dumps(samples), encoding="utf-8")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    history = trainer.state.log_history
    evidence = None if trainer.args.load_best_model_at_end else overfitting(history)
    if evidence:
        print(
            f"warning: adapter '{settings.adapter_name}' overfits: {evidence}; early_stopping or fewer epochs may help",
            file=sys.stderr,
        )
    record = {
        "seconds": round(time.perf_counter() - started, 1),
        "rows": len(train_data.texts if isinstance(train_data, ClassificationData) else train_data.responses),
        "tokens_per_epoch": sum(len(r["input_ids"]) for r in rows),
        "trainable_parameters": trainable,
        "training_loss": result.training_loss,
        "steps": trainer.state.global_step,
        "resumed_from_step": trainer.resumed_from_step,
        **({"processes": processes} if processes > 1 else {}),
        "base_parameters": about.shape.linear + about.shape.other,
        **throughput.record(),
        "rss_before_bytes": before,
        "best": _best(trainer),
        "overfitting": evidence,
        **({"head": key} if (key := head.key()) else {}),
        "history": history,
    }
    _write_json(folder / "training.json", record)
    plot_curves(history, settings.adapter_name, folder / "curves.png")
    shutil.move(kept / "tensorboard", folder / "tensorboard")
    if checkpoints is None:
        shutil.rmtree(kept)


def tokenized_rows(
    tokenizer: Any, data: ClassificationData | GenerationData, label_names: list[str] | None
) -> list[dict[str, Any]]:
    """One dict a row (or a window of a long document, or a packed block) with input_ids and labels.

    Those of classification have their document's place in the data beside them; where a text has several labels,
    "labels" are their places in the label names.
    """
    if isinstance(data, ClassificationData):
        rows = []
        names = label_names or data.label_names
        labels: list[Any] = (
            [np.flatnonzero(row).tolist() for row in data.label_matrix(names)]
            if isinstance(data, MultiLabelData)
            else data.label_ids(names)
        )
        for document, (text, label) in enumerate(zip(data.texts, labels, strict=True)):
            if data.window_stride is None:
                pieces = [encode_text(tokenizer, text, data.max_length)]
            else:
                pieces = encode_windows(tokenizer, text, data.max_length, data.window_stride)
            rows += [{"input_ids": ids, "labels": label, "document": document} for ids in pieces]
        return rows
    examples = encode_generation(tokenizer, data)
    return [{"input_ids": ids, "labels": labels} for ids, labels in examples]


def parity_samples(rows: list[dict[str, Any]], most: int) -> list[list[int]]:
    """Token ids of at most so many rows, evenly spread: files are often sorted by label."""
    count = min(most, len(rows))
    return [rows[i * len(rows) // count]["input_ids"] for i in range(count)]


def _scores(
    held_out: list[dict[str, Any]] | None,
    data: ClassificationData | GenerationData | None,
    label_names: list[str] | None,
) -> DocumentScores | MultiLabelScores | None:
    if held_out is None or label_names is None or not isinstance(data, ClassificationData):
        return None
    counts = _windows(held_out, data)
    if isinstance(data, MultiLabelData):
        return MultiLabelScores(data, label_names, counts)
    return DocumentScores(data.labels, label_names, counts)


def _windows(held_out: list[dict[str, Any]], data: ClassificationData) -> list[int]:
    """Windows of each document."""
    windows = Counter(row["document"] for row in held_out)
    return [windows[document] for document in range(len(data))]


def _early_stopping(settings: AdapterSettings) -> list[StopsWhereItWouldHave]:
    if settings.early_stopping is None:
        return []
    option = EarlyStopping(**settings.early_stopping)
    return [StopsWhereItWouldHave(option.patience, option.min_delta)]


def _best(trainer: Trainer) -> dict[str, Any] | None:
    """Which weights were taken, where not the last ones were."""
    if not trainer.args.load_best_model_at_end:
        return None
    state = trainer.state
    return {"metric": trainer.args.metric_for_best_model, "value": state.best_metric, "step": state.best_global_step}


def _thresholds(
    trainer: Trainer,
    held_out: list[dict[str, Any]] | None,
    data: ClassificationData | GenerationData | None,
    label_names: list[str],
) -> list[float]:
    """Of each label, chosen on the held-out rows; 0.5 without any."""
    if held_out is None or not isinstance(data, MultiLabelData):
        return [USUAL] * len(label_names)
    said: Any = trainer.predict(Rows([{**row, "index": i} for i, row in enumerate(held_out)])).predictions
    logits = documents_of(said, _windows(held_out, data))
    return best_thresholds(sigmoid(logits), data.label_matrix(label_names))


def _collate(
    batch: list[dict[str, Any]], padding: int, classes: int, rank: int = 0, processes: int = 1
) -> dict[str, torch.Tensor]:
    """`classes` is 0 where text is generated. Of several processes, each gets its share."""
    rows = len(batch)
    if processes > 1:
        batch = own_share(batch, rank, processes)
    if classes:
        arrays = pad_batch([row["input_ids"] for row in batch], padding)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if isinstance(batch[0]["labels"], int):
            tensors["labels"] = torch.tensor([row["labels"] for row in batch])
        else:
            tensors["labels"] = torch.zeros(len(batch), classes)
            for place, row in enumerate(batch):
                tensors["labels"][place, row["labels"]] = 1
        if "index" in batch[0]:
            tensors["index"] = torch.tensor([row["index"] for row in batch])
        if "teacher" in batch[0]:
            tensors["teacher"] = torch.tensor([row["teacher"] for row in batch])
        if processes > 1:
            tensors["batch_rows"] = torch.tensor(rows)
        return tensors
    arrays = pad_batch([(row["input_ids"], row["labels"]) for row in batch], padding)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
