"""What a training says of its held-out rows, and that saying it changes nothing of what is trained."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction

from data.examples import ClassificationData
from evaluators.intermediate_values import VARIABLE, read_from
from passes.training import validation
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from passes.training.trainer import AdapterTrainer
from passes.training.validation import DocumentScores, perplexity
from tests.passes.conftest import BAD, GOOD, data_config, mood_data, story_data, write_mood_csv

TRAINING = {
    "max_steps": 6,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 4,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "logging_strategy": "steps",
    "logging_steps": 1,
}
# long texts in windows, beside short ones of one window; of unequal classes
LONG = ClassificationData(
    [GOOD[0], " ".join(GOOD * 3), BAD[2], " ".join(BAD * 2), BAD[0]],
    ["good", "good", "bad", "bad", "bad"],
    ["bad", "good"],
    max_length=24,
    window_stride=12,
)


def train(folder: Path, base: Path, data: Any, held_out: Any, **training: Any) -> list[dict[str, Any]]:
    """Trains with dropout, so that a random number more or less would show; returns the history's validations."""
    settings = AdapterSettings("test", rank=4, dropout=0.2, training_args={**TRAINING, **training})
    folder.mkdir()
    train_adapter(folder, base, settings, data, held_out)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return [entry for entry in record["history"] if "eval_loss" in entry]


@pytest.mark.parametrize("held_out", [mood_data(1), LONG], ids=["texts", "windows"])
def test_a_classifier_reports_what_the_evaluation_finds(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: ClassificationData
) -> None:
    """The last validation is of the final weights, which evaluators.measuring scores by itself."""
    from evaluators.finished_parts import FinishedParts
    from evaluators.measuring import Measuring
    from evaluators.torch_model import TorchModel

    monkeypatch.setattr(validation, "PROGRESS_SECONDS", 0)
    file = tmp_path / "values.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    history = train(tmp_path / "adapter", tiny_llama_path, mood_data(), held_out)
    lines, _ = read_from(file, 0)
    assert {(line["stage"], line["adapter"]) for line in lines} == {("training", "test")}
    assert [line["progress"] for line in lines if "progress" in line] == [[step, 6] for step in range(1, 7)]
    validations = [line for line in lines if "values" in line]
    assert [line["step"] for line in validations] == [1, 2, 3]
    for line, entry in zip(validations, history, strict=True):
        assert line["values"] == {name: entry[f"eval_{name}"] for name in ("loss", "accuracy", "f1_macro")}

    model = TorchModel(tiny_llama_path, {"test": tmp_path / "adapter"})
    measuring = Measuring({"pytorch": model}, {"pytorch": lambda _: 1}, model.tokenizer, FinishedParts(None))
    chosen = [["bad", "good"][i] for i in measuring.class_logits("pytorch", "test", held_out).argmax(axis=1)]
    last = validations[-1]["values"]
    assert last["accuracy"] == accuracy_score(held_out.labels, chosen)
    assert last["f1_macro"] == pytest.approx(f1_score(held_out.labels, chosen, average="macro"))


def test_a_generation_adapter_reports_its_perplexity(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No logits are kept for it: they are as wide as the vocabulary."""
    seen = []

    class Watched(AdapterTrainer):
        def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: Any, ignore_keys: Any = None) -> Any:
            seen.append(prediction_loss_only)
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)

    monkeypatch.setattr("passes.training.train.AdapterTrainer", Watched)
    file = tmp_path / "values.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    # the best by the perplexity: what the callback adds is what the Trainer compares
    best = {"load_best_model_at_end": True, "save_strategy": "steps", "save_steps": 2}
    best |= {"metric_for_best_model": "perplexity", "greater_is_better": False}
    history = train(tmp_path / "adapter", tiny_llama_path, story_data(), story_data(), **best)
    lines = [line["values"] for line in read_from(file, 0)[0] if "values" in line]
    assert lines == [{"loss": entry["eval_loss"], "perplexity": entry["eval_perplexity"]} for entry in history]
    assert [entry["eval_perplexity"] for entry in history] == [math.exp(entry["eval_loss"]) for entry in history]
    assert seen and all(seen)
    shown = f"validation loss {history[-1]['eval_loss']:.3f}, perplexity {history[-1]['eval_perplexity']:.3f}"
    assert shown in capsys.readouterr().err


def test_scores_change_nothing_of_the_weights(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files, bit for bit, as those of a Trainer that has a loss of the held-out rows and nothing else."""

    class LossOnly(AdapterTrainer):
        def __init__(self, **options: Any) -> None:
            options |= {"compute_metrics": None, "callbacks": []}
            options["eval_dataset"].rows = [
                {name: row[name] for name in ("input_ids", "labels")} for row in options["eval_dataset"].rows
            ]
            super().__init__(**options)

    monkeypatch.setenv(VARIABLE, str(tmp_path / "values.jsonl"))
    scored = train(tmp_path / "scored", tiny_llama_path, mood_data(), LONG)
    monkeypatch.setattr("passes.training.train.AdapterTrainer", LossOnly)
    monkeypatch.delenv(VARIABLE)
    plain = train(tmp_path / "plain", tiny_llama_path, mood_data(), LONG)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("scored", "plain")]
    assert weights[0] == weights[1]
    assert "eval_accuracy" in scored[0] and "eval_accuracy" not in plain[0]
    assert [entry["eval_loss"] for entry in scored] == [entry["eval_loss"] for entry in plain]


def test_windows_are_averaged_in_any_order() -> None:
    """Two documents of one and two windows: only the mean of both windows gives the second its label."""
    logits = np.array([[0.0, 3.0], [1.0, 0.0], [2.0, 0.0]])  # windows 2, 0, 1
    scores = DocumentScores(["a", "b"], ["a", "b"], [1, 2])
    assert scores(EvalPrediction((logits, np.array([2, 0, 1])), None)) == {"accuracy": 1.0, "f1_macro": 1.0}
    assert scores(EvalPrediction((logits, np.array([0, 1, 2])), None)) == {"accuracy": 0.0, "f1_macro": 0.0}
    logits[0, 0] = np.nan
    assert all(math.isnan(value) for value in scores(EvalPrediction((logits, np.array([2, 0, 1])), None)).values())


@pytest.mark.parametrize(("loss", "expected"), [(0.0, 1.0), (800.0, math.inf), (math.inf, math.inf)])
def test_perplexity(loss: float, expected: float) -> None:
    assert perplexity(loss) == expected and math.isnan(perplexity(math.nan))


def test_values_that_are_no_numbers_are_null(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line comes before the error: who watches may stop a diverged training at its first validation."""
    from runtime.errors import OlivalError

    file = tmp_path / "values.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    with pytest.raises(OlivalError, match="the training diverged"):
        diverging = {"learning_rate": 1e30, "max_grad_norm": 0.0}
        train(tmp_path / "adapter", tiny_llama_path, mood_data(), mood_data(1), **diverging)
    last = [line for line in read_from(file, 0)[0] if "values" in line][-1]
    assert last == {
        "stage": "training",
        "adapter": "test",
        "step": 3,
        "values": dict.fromkeys(("loss", "accuracy", "f1_macro")),
    }


def test_an_adapter_from_the_store_says_so(
    tmp_path: Path, tiny_llama_path: Path, run_pass: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from olive.model import HfModelHandler

    mood = data_config("mood", write_mood_csv(tmp_path / "mood.csv"))
    options = {"adapter_name": "mood", "train_data_config": mood, "rank": 4, "training_args": {"max_steps": 1}}
    file = tmp_path / "values.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    for _ in range(2):
        run_pass("ClassificationHead", HfModelHandler(str(tiny_llama_path)), options)
    cached = [line for line in read_from(file, 0)[0] if "progress" not in line]
    assert cached == [{"stage": "training", "adapter": "mood", "cached": True}]


def test_the_index_comes_back_as_it_is(tiny_llama_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from passes.training.classifier import PooledClassifier

    model = PooledClassifier(AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval(), 64, 3)
    ids, index = torch.tensor([[1, 40], [1, 41]]), torch.tensor([7, 3])
    with torch.no_grad():
        output = model(ids, torch.ones_like(ids), index=index)
    assert output["index"] is index and set(output) == {"logits", "index"}
