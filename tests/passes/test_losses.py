"""Losses against torch, scikit-learn and formulas in numpy; the option that chooses them; training with one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from passes.training.head_settings import HeadSettings
from passes.training.loss_choice import data_problems, loss_key, loss_problems, make_loss
from runtime.errors import OlivalError

NAMES = ["a", "b", "c", "d"]
LABELS = [0, 0, 0, 0, 0, 1, 1, 2]  # nobody has d
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 2, (8, 4))
FEATURES = RANDOM.normal(0, 3, (8, 16))
FEATURES[1], FEATURES[5] = FEATURES[0], FEATURES[2]  # equal texts: of one label, and of two
BALANCED = [8 / (3 * 5), 8 / (3 * 2), 8 / (3 * 1), 1.0]


def value(choice: Any, logits: Any = LOGITS, labels: Any = LABELS, features: Any = FEATURES) -> tuple[float, Any]:
    """The loss in float64 and its gradient by the logits; all gradients are finite."""
    inputs = [torch.tensor(x, requires_grad=True) for x in (logits, features)]
    loss = make_loss(choice, LABELS, NAMES).double()(inputs[0], torch.tensor(labels), inputs[1])
    loss.backward()
    assert all(x.grad is None or torch.isfinite(x.grad).all() for x in inputs)
    assert inputs[0].grad is not None
    return loss.item(), inputs[0].grad.numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    from scipy.special import log_softmax as reference

    return np.asarray(reference(logits, axis=1))


def smoothed(smoothing: float, weights: list[float]) -> float:
    """Weighted cross-entropy with targets 1 - s + s / classes and s / classes, by hand."""
    targets = np.full((8, 4), smoothing / 4)
    targets[np.arange(8), LABELS] += 1 - smoothing
    losses = -(targets * log_softmax(LOGITS) * weights).sum(axis=1)
    return float(losses.sum() / np.array(weights)[LABELS].sum())


def focal(gamma: float, weights: list[float]) -> float:
    p = np.exp(log_softmax(LOGITS)[np.arange(8), LABELS])
    shares = np.array(weights)[LABELS]
    return float((shares * (1 - p) ** gamma * -np.log(p)).sum() / shares.sum())


def contrastive(margin: float, weight: float) -> float:
    units = FEATURES / np.linalg.norm(FEATURES, axis=1, keepdims=True)
    pairs = []
    for i in range(8):
        for j in range(i):
            distance = float(np.linalg.norm(units[i] - units[j]))
            same = LABELS[i] == LABELS[j]
            pairs.append(distance**2 / 2 if same else max(0.0, margin - distance) ** 2 / 2)
    return (1 - weight) * smoothed(0, [1.0] * 4) + weight * float(np.mean(pairs))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("cross_entropy", smoothed(0, [1.0] * 4)),
        ("label_smoothing", smoothed(0.1, [1.0] * 4)),
        ("class_weighted", smoothed(0, BALANCED)),
        ({"type": "cross_entropy", "class_weights": "balanced", "label_smoothing": 0.2}, smoothed(0.2, BALANCED)),
        ({"type": "cross_entropy", "class_weights": {"b": 3, "d": 0.5}}, smoothed(0, [1, 3, 1, 0.5])),
        ("focal", focal(2, [1.0] * 4)),
        ({"type": "focal", "gamma": 0}, smoothed(0, [1.0] * 4)),
        ({"type": "focal", "gamma": 0.5, "class_weights": "balanced"}, focal(0.5, BALANCED)),
        ("contrastive", contrastive(1, 0.5)),
        ({"type": "contrastive", "margin": 1.8, "weight": 0.9}, contrastive(1.8, 0.9)),
    ],
    ids=str,
)
def test_values_follow_the_formulas(choice: Any, expected: float) -> None:
    assert value(choice)[0] == pytest.approx(expected, rel=1e-6)


def test_gradients_at_the_edges() -> None:
    """A focal loss at gamma 0 is torch's cross-entropy also in its gradient; sure rows leave no NaN in any loss."""
    logits = torch.tensor(LOGITS, requires_grad=True)
    nn.functional.cross_entropy(logits, torch.tensor(LABELS)).backward()
    assert logits.grad is not None
    np.testing.assert_allclose(value({"type": "focal", "gamma": 0})[1], logits.grad.numpy(), atol=1e-9)
    sure = np.where(np.eye(4)[LABELS] > 0, 500.0, -500.0)
    for choice in ("focal", {"type": "focal", "gamma": 0.5}, "contrastive", "label_smoothing"):
        assert np.isfinite(value(choice, sure)[0]) and np.isfinite(value(choice, -sure)[0])
    alone = value("contrastive", LOGITS[:1], LABELS[:1], FEATURES[:1])[0]  # no pairs
    assert alone == pytest.approx(-0.5 * log_softmax(LOGITS)[0, 0], rel=1e-6)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    from passes.training.losses import balanced_weights

    labels = RANDOM.integers(0, 6, 200)
    expected = compute_class_weight("balanced", classes=np.arange(6), y=labels)
    np.testing.assert_allclose(balanced_weights(labels.tolist(), 6).numpy(), expected, rtol=1e-6)


OWN = '''"""Losses of a user."""
import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self, scale=2.0):
        super().__init__()
        self.scale = scale

    def forward(self, logits, labels):
        return self.scale * nn.functional.cross_entropy(logits, labels)


class Featured(nn.Module):
    def forward(self, logits, labels, features):
        return nn.functional.cross_entropy(logits, labels) + features.square().mean()


class Rows(nn.Module):
    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits, labels, reduction="none")


class Alone(nn.Module):
    def forward(self, logits):
        return logits.sum()


class WithOption(nn.Module):
    def forward(self, logits, labels, reduction="mean"):
        return nn.functional.cross_entropy(logits, labels, reduction=reduction)


class Optional(nn.Module):
    def forward(self, logits, labels, features=None):
        return nn.functional.cross_entropy(logits, labels) + features.square().mean()
'''

DATACLASS = """from __future__ import annotations

from dataclasses import dataclass

from beside import Scaled


@dataclass
class Options:
    scale: float = 2.0


class Doubled(Scaled):
    def __init__(self):
        super().__init__(Options().scale)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's file my_losses.py in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my_losses.py"
    file.write_text(OWN, encoding="utf-8")
    return file


def test_a_loss_of_the_user(own: Path) -> None:
    plain = value("cross_entropy")[0]
    assert value("my_losses.py:Scaled")[0] == pytest.approx(2 * plain)
    assert value({"type": "my_losses.py:Scaled", "scale": 3})[0] == pytest.approx(3 * plain)
    assert value(f"{own}:Featured")[0] == pytest.approx(plain + (FEATURES**2).mean())
    assert value("my_losses.py:WithOption")[0] == pytest.approx(plain)
    assert value("my_losses.py:Optional")[0] == value("my_losses.py:Featured")[0]
    with pytest.raises(OlivalError, match=r"loss 'my_losses.py:Rows': must return a scalar .* returned shape \[8\]"):
        value("my_losses.py:Rows")
    with pytest.raises(OlivalError, match=r"loss 'my_losses.py:Scaled': IndexError: Target 9 is out of bounds"):
        value("my_losses.py:Scaled", labels=[9] * 8)


def test_a_file_with_a_dataclass_and_a_module_beside_it(own: Path) -> None:
    folder = own.parent / "sub"
    folder.mkdir()
    own.rename(folder / "beside.py")
    (folder / "doubled.py").write_text(DATACLASS, encoding="utf-8")
    assert value("sub/doubled.py:Doubled")[0] == pytest.approx(2 * value("cross_entropy")[0])
    (folder / "ends.py").write_text("raise SystemExit(3)", encoding="utf-8")
    (problem,) = loss_problems("sub/ends.py:Any")
    assert problem == "loss: sub/ends.py cannot be imported: SystemExit: 3"


VALID = "Valid: binary_cross_entropy, class_weighted, contrastive, cross_entropy, distillation, focal, label_smoothing"
WRONG: list[tuple[Any, list[str]]] = [
    ("focl", [f"loss: 'focl' is unknown; did you mean 'focal'? {VALID}, or file.py:Class"]),
    ({"gamma": 2}, [f"loss.type: is required; {VALID}, or file.py:Class"]),
    (
        {"type": "focal", "gama": 2, "class_weights": "balance"},
        [
            "loss.gama: unknown option of focal; did you mean 'gamma'? Valid: class_weights, gamma",
            "loss.class_weights: must be null, 'balanced' or {label: weight}, but got 'balance'",
        ],
    ),
    ({"type": "focal", "gamma": -1}, ["loss.gamma: gamma >= 0 must hold, but got -1"]),
    ({"type": "focal", "gamma": float("nan")}, ["loss.gamma: gamma >= 0 must hold, but got nan"]),
    (
        {"type": "cross_entropy", "label_smoothing": 1, "class_weights": {"a": 0, "b": 2}},
        [
            "loss.label_smoothing: 0 <= label_smoothing < 1 must hold, but got 1",
            "loss.class_weights.a: must be a number above 0, but got 0",
        ],
    ),
    (
        {"type": "contrastive", "margin": 3, "weight": True},
        ["loss.margin: 0 < margin <= 2 must hold, but got 3", "loss.weight: 0 < weight < 1 must hold, but got True"],
    ),
    ({"type": "distillation", "temperature": 0}, [
        "loss.temperature: temperature > 0 must hold, but got 0",
        "loss.teacher: is required, the folder or the repository of a classifier of transformers",
    ]),
    ({"type": "distillation", "teacher": 5}, ["loss.teacher: must be a folder or a repository, but got 5"]),
    ("my_losses.py", ["loss: 'my_losses.py' names no class; right is my_losses.py:CLASS"]),
    ("my_loses.py:Scaled", [r"loss: there is no file 'my_loses.py' \(from .*\); did you mean 'my_losses.py'\? .*"]),
    (
        "my_losses.py:Scald",
        ["loss: my_losses.py has no torch.nn.Module 'Scald'; did you mean 'Scaled'? Valid: Alone, Featured, "
         "Optional, Rows, Scaled, WithOption"],
    ),
    ({"type": "my_losses.py:Scaled", "size": 1}, ["loss: my_losses.py:Scaled with {'size': 1}: TypeError: .*'size'"]),
    (
        "my_losses.py:Alone",
        ["loss: forward of my_losses.py:Alone must take (logits, labels) or (logits, labels, features)"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("choice", "expected"), WRONG, ids=lambda x: str(x)[:30])
def test_wrong_choices(own: Path, choice: Any, expected: list[str]) -> None:
    found = loss_problems(choice)
    assert len(found) == len(expected)
    for line, pattern in zip(found, expected, strict=True):
        assert line == pattern or re.fullmatch(pattern, line), line


def test_a_file_that_fails(own: Path) -> None:
    own.write_text("import nothing_of_this_name", encoding="utf-8")
    (problem,) = loss_problems("my_losses.py:Scaled")
    assert problem.startswith("loss: my_losses.py cannot be imported: ModuleNotFoundError: ")


def test_labels_of_class_weights() -> None:
    assert data_problems({"type": "focal", "class_weights": {"bad": 2, "god": 1}}, ["bad", "good"], False) == [
        "loss.class_weights: unknown label 'god'; did you mean 'good'? Valid: bad, good"
    ]


def test_cache_keys(own: Path) -> None:
    """The default leaves no trace; other ways to say the same loss have one key; a user's file counts by content."""
    assert HeadSettings().key() == {}
    assert loss_key({"type": "cross_entropy"}) is None
    assert loss_key("label_smoothing") == loss_key({"type": "cross_entropy", "label_smoothing": 0.1})
    assert loss_key("focal") == loss_key({"type": "focal", "gamma": 2.0}) != loss_key({"type": "focal", "gamma": 3.0})
    first = loss_key("my_losses.py:Scaled")
    own.write_text(OWN + "\n", encoding="utf-8")
    assert first is not None and loss_key("my_losses.py:Scaled") != first


def test_workflows_are_checked(own: Path, tiny_llama_path: Path) -> None:
    """Wrong losses are found before a run, and Olive's own cache learns that a user's file has changed."""
    from olive.workflows.run.config import RunConfig

    from passes.registration import register
    from passes.workflow_check import check_workflow
    from tests.passes.conftest import workflow

    register()

    def check(loss: Any, **training: Any) -> tuple[list[str], str]:
        content = workflow(own.parent / "w", tiny_llama_path)
        content["passes"]["mood"] |= {"loss": loss}
        content["passes"]["mood"]["training_args"] |= training
        config = RunConfig.parse_file_or_obj(content)
        return check_workflow(config), config.passes["mood"][0].config["fingerprint"]

    found, _ = check("my_losses.py:Scald")
    assert found[0].startswith("passes.mood.loss: my_losses.py has no torch.nn.Module 'Scald'; did you mean 'Scaled'?")
    found, _ = check({"type": "class_weighted", "class_weights": {"goood": 2}})
    assert found == ["passes.mood.loss.class_weights: unknown label 'goood'; did you mean 'good'? Valid: bad, good"]
    (line,) = check(["focal"])[0]
    assert line.startswith("passes.mood.loss: ") and "but got ['focal']" in line
    (line,) = check("focal", label_smoothing_factor=0.1)[0]
    assert line.startswith("passes.mood.training_args.label_smoothing_factor: replaces the loss")
    found, first = check("my_losses.py:Scaled")
    assert found == [] and check("my_losses.py:Scaled")[1] == first == check("my_losses.py:Featured")[1]
    own.write_text(OWN + "\n", encoding="utf-8")
    assert check("my_losses.py:Scaled")[1] != first


@pytest.mark.parametrize("choice", ["focal", "contrastive", "class_weighted", "my_losses.py:Featured"])
def test_training_minimizes_the_chosen_loss(own: Path, tiny_llama_path: Path, choice: str) -> None:
    """The first loss of the Trainer's log is the loss of the untouched base under the head's first weights."""
    from passes.training.settings import AdapterSettings
    from passes.training.train import train_adapter
    from tests.passes.conftest import mood_data

    settings = AdapterSettings("mood", rank=4, training_args={
        "max_steps": 8, "learning_rate": 0.01, "logging_strategy": "steps", "logging_steps": 1,
    })  # fmt: skip
    folder = own.parent / "adapter"
    folder.mkdir()
    train_adapter(folder, tiny_llama_path, settings, mood_data(1), mood_data(1), HeadSettings(loss=choice))
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert record["head"] == HeadSettings(loss=choice).key()
    # 8 rows of 2 classes, a head near 0: p is near 1/2, so the cross-entropy is near log 2 and the focal loss a quarter
    start = {"focal": np.log(2) / 4, "class_weighted": np.log(2)}
    if choice in start:
        assert losses[0] == pytest.approx(start[choice], rel=0.3)


def test_distillation_follows_its_formula() -> None:
    from scipy.special import rel_entr, softmax

    from passes.training.losses import DistillationLoss

    teacher = RANDOM.normal(0, 3, (8, 4))
    for temperature, weight in ((2.0, 0.5), (5.0, 0.9)):
        p, q = softmax(teacher / temperature, axis=1), softmax(LOGITS / temperature, axis=1)
        expected = (1 - weight) * smoothed(0, [1.0] * 4)
        expected += weight * temperature**2 * float(rel_entr(p, q).sum(axis=1).mean())
        inputs = [torch.tensor(x) for x in (LOGITS, LABELS, FEATURES, teacher)]
        assert DistillationLoss(temperature, weight)(*inputs).item() == pytest.approx(expected, rel=1e-6)


def save_teacher(folder: Path, base: Path, id2label: dict[int, str]) -> Path:
    """A sequence classifier of transformers with the tokenizer of `base`."""
    import shutil

    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, id2label=id2label, label2id={v: k for k, v in id2label.items()},
        initializer_range=0.5, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    for file in base.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def test_a_student_learns_what_its_teacher_says(tmp_path: Path, tiny_llama_path: Path) -> None:
    """The labels are noise to this teacher; at weight 0.95 the student's answers come near the teacher's."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from evaluators.torch_model import TorchModel
    from passes.training.settings import AdapterSettings
    from passes.training.teacher import teacher_logits
    from passes.training.train import train_adapter
    from tests.passes.conftest import mood_data

    teacher = save_teacher(tmp_path / "teacher", tiny_llama_path, {0: "good", 1: "bad"})  # not in the data's order
    data, names = mood_data(1), ["bad", "good"]
    said = teacher_logits(teacher, data.texts, names, batch_size=3)
    model: Any = AutoModelForSequenceClassification.from_pretrained(teacher).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(teacher)
    with torch.no_grad():
        for text, row in zip(data.texts, said, strict=True):
            ids = torch.tensor([tokenizer(text)["input_ids"][:64]])
            np.testing.assert_allclose(row[::-1], model(ids).logits[0].numpy(), atol=1e-5)
    choice = {"type": "distillation", "teacher": str(teacher), "weight": 0.95, "temperature": 1}
    assert data_problems(choice, names, False) == []
    assert data_problems(choice, ["a", "b"], False) == [
        "loss.teacher: its labels are good, bad, but those of the data a, b"
    ]
    assert loss_problems({**choice, "teacher": str(tiny_llama_path)}) == [
        f"loss.teacher: {tiny_llama_path}: is a LlamaForCausalLM, but a teacher is an ...ForSequenceClassification"
    ]
    training = {"max_steps": 30, "learning_rate": 0.01, "per_device_train_batch_size": 8}
    folder = tmp_path / "adapter"
    folder.mkdir()
    head = HeadSettings(loss=choice)
    train_adapter(folder, tiny_llama_path, AdapterSettings("mood", rank=4, training_args=training), data, data, head)
    student = TorchModel(tiny_llama_path, {"mood": folder})
    found = student.class_logits([student.encode(text) for text in data.texts], "mood")
    gaps = [row[1] - row[0] for row in found], [row[1] - row[0] for row in said]
    assert np.corrcoef(*gaps)[0, 1] > 0.9
    key = head.key()["loss"]
    assert str(teacher) not in json.dumps(key) and len(key["teacher"]) == 64
