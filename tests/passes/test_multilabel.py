"""Several labels a text: loss, thresholds, training, package, scores; also with a thousand labels."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.examples import MultiLabelData
from evaluators.finished_parts import FinishedParts
from evaluators.measuring import Measuring
from evaluators.package_model import PackageModel
from evaluators.parity import label_flips
from evaluators.quality import CLASSIFICATION, classification_quality
from evaluators.torch_model import TorchModel
from passes.package import write_package
from passes.training.head_settings import HeadSettings
from passes.training.loss_choice import data_problems, make_loss
from passes.training.settings import AdapterSettings
from passes.training.thresholds import best_thresholds
from passes.training.train import train_adapter
from runtime.adapter_settings import checked_settings
from runtime.classification import classification, sigmoid
from runtime.errors import DataError, PackageError
from tests.passes.conftest import BAD, GOOD, REPOSITORY, data_config, mood_data, workflow
from tests.passes.test_workflow_check import problems

NAMES = ["bad", "good", "long", "never"]
TARGET: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}


def tagged(repeats: int = 1, **settings: Any) -> MultiLabelData:
    """Good, bad, and of these the long ones; the last text has no label."""
    texts = [*GOOD, *BAD] * repeats + ["Seven."] * repeats
    sets = [
        sorted([*(["good"] if t in GOOD else ["bad"] if t in BAD else []), *(["long"] if len(t) > 26 else [])])
        for t in texts
    ]
    return MultiLabelData(texts, [", ".join(row) for row in sets], NAMES, label_sets=sets, **settings)


def train(folder: Path, base: Path, data: Any, validation: Any, steps: int, **head: Any) -> dict[str, Any]:
    folder.mkdir()
    training = {"max_steps": steps, "learning_rate": 0.01, "per_device_train_batch_size": 9}
    settings = AdapterSettings("tags", rank=4, training_args=training)
    train_adapter(folder, base, settings, data, validation, HeadSettings(**head))
    content: dict[str, Any] = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    return content


def test_the_loss_follows_its_formula() -> None:
    random = np.random.default_rng(0)
    logits, truth = random.normal(0, 2, (6, 3)), random.integers(0, 2, (6, 3))
    truth[:, 2] = 0
    rows = [np.flatnonzero(row).tolist() for row in truth]
    p, inputs = 1 / (1 + np.exp(-logits)), (torch.tensor(logits), torch.tensor(truth), torch.zeros(6, 2))
    counts = truth.sum(axis=0)
    balanced = [*((6 - counts[:2]) / counts[:2]), 1.0]
    choices: list[tuple[Any, list[float]]] = [
        ("cross_entropy", [1.0] * 3),  # the default stands for its like
        ({"type": "binary_cross_entropy", "class_weights": "balanced"}, balanced),
        ({"type": "binary_cross_entropy", "class_weights": {"b": 5}}, [1.0, 5.0, 1.0]),
    ]
    for choice, weights in choices:
        expected = -(np.array(weights) * truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean()
        loss = make_loss(choice, rows, ["a", "b", "c"], True).double()
        assert loss(*inputs).item() == pytest.approx(expected, rel=1e-6)


def test_thresholds_have_the_best_f1() -> None:
    """No other threshold has a better one by scikit-learn, equal probabilities and hopeless labels included."""
    from sklearn.metrics import f1_score

    random = np.random.default_rng(1)
    truth = random.random((30, 6)) < [0.5, 0.1, 0.02, 0.9, 0.3, 0.0]
    probabilities = sigmoid(random.normal(0, 1, (30, 6)) + 2 * truth)
    probabilities[:, 4] = probabilities[:, 4].round(1)
    truth[0, 2] = True
    found = best_thresholds(probabilities, truth)
    assert found[5] == 0.5
    for column in range(5):
        wanted, p = truth[:, column], probabilities[:, column]
        best = max(f1_score(wanted, p >= t) for t in set(p))
        assert f1_score(wanted, p >= found[column]) == pytest.approx(best, abs=1e-12)
        assert np.abs(p - found[column]).min() > 1e-6  # rounding moves no row across


def test_training_package_and_scores(tmp_path: Path, tiny_llama_path: Path) -> None:
    from sklearn.metrics import accuracy_score, f1_score, precision_score

    data = tagged(max_length=12, window_stride=6)  # the long ones in windows
    described = train(tmp_path / "tags", tiny_llama_path, data, data, steps=40)
    reference = TorchModel(tiny_llama_path, {"tags": tmp_path / "tags"})
    write_package(
        tmp_path / "package", base_path=tiny_llama_path, adapter_folders={"tags": tmp_path / "tags"}, name="t", **TARGET
    )
    package = PackageModel(tmp_path / "package")
    assert package.thresholds("tags") == reference.thresholds("tags") == described["thresholds"]
    assert described["labels"] == NAMES and described["thresholds"][3] == 0.5

    truth = data.label_matrix(NAMES)
    logits = package.runtime.class_logits(data.texts, "tags")
    np.testing.assert_allclose(best_thresholds(sigmoid(logits), truth), described["thresholds"], atol=1e-3)
    chosen = torch.tensor(logits).sigmoid().numpy() >= described["thresholds"]
    assert f1_score(truth[:, :3], chosen[:, :3], average="micro") > 0.9  # it has learned its rows
    for text, row, p in zip(data.texts, chosen, torch.tensor(logits).sigmoid().numpy(), strict=True):
        found = package.runtime.classify(text, "tags")[0]
        assert set(found.labels) == {name for name, on in zip(NAMES, row, strict=True) if on}
        assert list(found.probabilities.values()) == pytest.approx(p.tolist(), abs=1e-4)
        assert found.probability == max(found.probabilities.values()) == found.probabilities[found.label]
        assert list(found.labels) == sorted(found.labels, key=lambda name: -found.probabilities[name])

    models = {"pytorch": reference, "package": package}
    who = {name: lambda adapter: [adapter] for name in models}
    measuring = Measuring(models, who, reference.tokenizer, FinishedParts(tmp_path / "parts"))
    quality = classification_quality(measuring, "tags", data, CLASSIFICATION)
    for name in models:
        scores = {score: values[name] for score, values in quality.scores.items()}
        assert scores["accuracy"] == accuracy_score(truth, chosen)
        assert scores["f1_micro"] == pytest.approx(f1_score(truth, chosen, average="micro"))
        assert scores["precision_weighted"] == pytest.approx(precision_score(truth, chosen, average="weighted"))
        assert set(quality.details[name]["per_label"]) == set(NAMES)
    low, high = quality.intervals["accuracy"]["package"]
    assert low <= quality.scores["accuracy"]["package"] <= high
    assert quality.details["comparison"]["mcnemar"]["p_value"] == 1
    with pytest.raises(DataError, match="unknown label"):
        other = MultiLabelData(["a"], ["odd"], ["odd"], label_sets=[["odd"]])
        classification_quality(measuring, "tags", other, ["accuracy"])


def test_a_thousand_labels(tmp_path: Path, tiny_llama_path: Path) -> None:
    names = [f"tag {i:04}" for i in range(1200)]
    sets = [[names[(37 * i + j) % 1200] for j in range(i % 5)] for i in range(16)]
    texts = [*GOOD, *BAD] * 2
    data = MultiLabelData(texts, [", ".join(row) for row in sets], names, label_sets=sets)
    choice = {"type": "binary_cross_entropy", "class_weights": "balanced"}
    described = train(tmp_path / "tags", tiny_llama_path, data, data, steps=4, loss=choice)
    assert len(described["thresholds"]) == 1200
    write_package(
        tmp_path / "package", base_path=tiny_llama_path, adapter_folders={"tags": tmp_path / "tags"}, name="t", **TARGET
    )
    package, reference = PackageModel(tmp_path / "package"), TorchModel(tiny_llama_path, {"tags": tmp_path / "tags"})
    rows = [reference.encode(text) for text in texts]
    np.testing.assert_allclose(package.class_logits(rows, "tags"), reference.class_logits(rows, "tags"), atol=1e-3)
    assert len(package.runtime.classify(texts[1], "tags")[0].probabilities) == 1200


def test_without_validation_rows_every_threshold_is_a_half(tmp_path: Path, tiny_llama_path: Path) -> None:
    described = train(tmp_path / "tags", tiny_llama_path, tagged(), None, steps=1)
    assert described["thresholds"] == [0.5] * 4


def test_meaning_of_logits() -> None:
    entry = {"labels": ["a", "b", "c"], "thresholds": [0.6, 0.2, 0.5]}
    found = classification(np.array([0.0, -1.0, -800.0], np.float32), entry)
    assert found.labels == ("b",) and found.label == "a" and found.probability == 0.5
    assert list(found.probabilities.values()) == pytest.approx([0.5, 0.2689414, 0.0])
    assert classification(np.array([-9.0, -9.0, -9.0], np.float32), entry).labels == ()
    one = classification(np.array([0.0, 1.0, -1.0], np.float32), {"labels": ["a", "b", "c"]})
    assert one.labels == ("b",) and sum(one.probabilities.values()) == pytest.approx(1)
    flips = label_flips(np.array([[1.0, -1.0, 3.0]]), np.array([[1.0, -2.0, 3.0]]), "abc", [0.6, 0.2, 0.5])
    assert [(f["pytorch"]["label"], f["package"]["label"]) for f in flips] == [("a, b, c", "a, c")]


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 2, 0.5], [0.5, "x", 0.5], 0.5])
def test_wrong_thresholds(thresholds: Any) -> None:
    given = {"task": "classification", "labels": ["a", "b", "c"], "thresholds": thresholds}
    with pytest.raises(
        PackageError, match=r"thresholds is .*, but must be 3 probabilities, one for each of the labels"
    ):
        checked_settings("x", given, 3, {})


def test_losses_and_data_must_fit() -> None:
    assert data_problems(None, NAMES, True) == data_problems("binary_cross_entropy", NAMES, True) == []
    assert data_problems("my.py:Loss", NAMES, True) == []
    assert data_problems("focal", NAMES, True) == [
        "loss: 'focal' is for one label a text, but the data have several; Valid: binary_cross_entropy, file.py:Class"
    ]
    assert data_problems("binary_cross_entropy", NAMES, False) == [
        "loss: 'binary_cross_entropy' is for data with multi_label: true"
    ]


def tag_workflow(folder: Path, base: Path) -> dict[str, Any]:
    """`workflow` whose mood adapter tags."""
    content = workflow(folder, base)
    data, file = tagged(4), folder / "tags.jsonl"
    lines = [json.dumps({"text": t, "tags": s}) for t, s in zip(data.texts, data.label_sets, strict=True)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number, name in enumerate(("mood_train", "mood_validation")):
        options: dict[str, Any] = {"label": "tags", "multi_label": True, "label_names": NAMES}
        content["data_configs"][number] = data_config(name, file, **options)
    return content


def test_workflows_are_checked(tmp_path: Path, tiny_llama_path: Path) -> None:
    content = tag_workflow(tmp_path / "w", tiny_llama_path)
    assert problems(content) == []
    content = tag_workflow(tmp_path / "w", tiny_llama_path)
    content["data_configs"][1] = data_config("mood_validation", tmp_path / "w" / "mood.csv", multi_label=False)
    content["passes"]["mood"]["training_args"]["label_smoothing_factor"] = 0.1
    content["passes"]["mood"]["early_stopping"] = {"metric": "accuracy"}
    found = problems(content)
    assert (
        "passes.mood.early_stopping.metric: 'accuracy' is not measured on data with several labels a text; "
        "Valid: loss, f1_micro, f1_macro"
    ) in found
    assert "passes.mood.validation_data_config: multi_label must be as in the training data" in found
    assert any(p.startswith("passes.mood.training_args.label_smoothing_factor: is for one label") for p in found)


@pytest.mark.slow
def test_olive_run(tmp_path: Path, tiny_llama_path: Path) -> None:
    content = tag_workflow(tmp_path / "w", tiny_llama_path)
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    done = subprocess.run(["olive", "run", "--config", str(file)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    package = PackageModel(tmp_path / "w" / "out")
    entry = package.runtime.adapters["mood"]
    assert len(entry["thresholds"]) == 4 and entry["parity"]["fp32"]["max_abs_difference"] <= 1e-3
    assert entry["metrics"]["accuracy"]["package"] is not None
    assert len(package.runtime.classify(mood_data(1).texts, "mood")) == 8
    rows = tmp_path / "w" / "tags.jsonl"
    command = ["python", "-m", "evaluators", str(tmp_path / "w" / "out"), "--data", f"mood={rows}", "--label", "tags"]
    output = tmp_path / "quality.json"
    done = subprocess.run([*command, "--output", str(output)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mood: label" in done.stdout and "never" in done.stdout
    details = json.loads(output.read_text(encoding="utf-8"))["details"]["mood"]["package"]
    assert details["hamming_loss"] is not None and set(details["per_label"]) == set(NAMES)
