"""A finished classifier of transformers, whose answers another one learns: the teacher of a distillation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizing import length_sorted_batches, pad_batch, pad_id
from runtime.errors import OlivalError


def teacher_labels(folder: Path) -> list[str]:
    """The teacher's labels in the order of its logits, read from config.json alone.

    Raises OlivalError when the folder holds no classifier with one label a text.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or ["no architecture"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise OlivalError(f"{folder}: is a {architecture}, but a teacher is an ...ForSequenceClassification")
    if config.get("problem_type") not in (None, "single_label_classification"):
        raise OlivalError(
            f"{folder}: its problem_type is {config['problem_type']}, but a teacher gives one label a text"
        )
    by_number = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
    return [by_number[number] for number in sorted(by_number)]


def teacher_logits(folder: Path, texts: Sequence[str], label_names: Sequence[str], batch_size: int = 16) -> np.ndarray:
    """What the teacher says of each text, float32 (texts, labels) in the order of `label_names`.

    The teacher has its own tokenizer; a text beyond its context loses its end. Computed once, before the training.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from passes.base_model import context_length

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    if model.config.pad_token_id is None:  # decoders find the last token by it
        model.config.pad_token_id = pad_id(tokenizer)
    rows = [tokenizer(t, truncation=True, max_length=context_length(folder) or 512)["input_ids"] for t in texts]
    columns = [teacher_labels(folder).index(name) for name in label_names]
    result = np.empty((len(rows), len(columns)), np.float32)
    with torch.inference_mode():
        for indices in length_sorted_batches([len(row) for row in rows], batch_size):
            batch = pad_batch([rows[i] for i in indices], pad_id(tokenizer))
            inputs = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
            result[indices] = model(**inputs).logits.float().cpu().numpy()[:, columns]
    return result
