"""Agreement of two providers' outputs, against numpy and scipy by hand; what cannot be compared is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from benchmark.agreement import agreement
from benchmark.outputs import LONGEST, TEXTS, all_logits, main, token_rows
from runtime.errors import DataError
from runtime.model import MultiAdapterModel

Arrays = dict[str, np.ndarray]


def outputs(seed: int = 0) -> Arrays:
    """Two texts of 3 and 5 tokens: the base and a writer over 11 tokens, a classifier (its name has dots) of 3."""
    random = np.random.default_rng(seed)
    arrays: Arrays = {"ids.0": np.array([1, 2, 3]), "ids.1": np.array([1, 4, 5, 6, 7])}
    for row in (0, 1):
        tokens = len(arrays[f"ids.{row}"])
        arrays[f"base.{row}"] = random.normal(size=(tokens, 11)).astype(np.float32)
        arrays[f"adapter.blurbs.{row}"] = random.normal(size=(tokens, 11)).astype(np.float32)
        arrays[f"adapter.spam.v1.{row}"] = random.normal(size=(1, 3)).astype(np.float32)
    return arrays


def save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_the_same_outputs(tmp_path: Path) -> None:
    file = save(tmp_path / "cpu.npz", outputs())
    perfect = {"top1_agreement": 1.0, "kl_divergence": 0.0, "max_abs_difference": 0.0}
    assert agreement(file, save(tmp_path / "cuda.npz", outputs())) == [
        {"adapter": None, **perfect, "positions": 8},
        {"adapter": "blurbs", **perfect, "positions": 8},
        {"adapter": "spam.v1", **perfect, "positions": 2},
    ]


def test_other_outputs_against_scipy(tmp_path: Path) -> None:
    expected, actual = outputs(), outputs()
    random = np.random.default_rng(7)
    for name in actual:
        if not name.startswith("ids."):
            actual[name] += random.normal(scale=0.5, size=actual[name].shape).astype(np.float32)
    found = agreement(save(tmp_path / "a.npz", expected), save(tmp_path / "b.npz", actual))
    owners = {None: "base", "blurbs": "adapter.blurbs", "spam.v1": "adapter.spam.v1"}
    assert [entry["adapter"] for entry in found] == list(owners)
    for entry in found:
        p, q = (
            np.concatenate([arrays[f"{owners[entry['adapter']]}.{row}"] for row in (0, 1)]).astype(np.float64)
            for arrays in (expected, actual)
        )
        assert entry["positions"] == len(p)
        assert entry["top1_agreement"] == np.mean(p.argmax(-1) == q.argmax(-1))
        assert entry["max_abs_difference"] == pytest.approx(np.abs(p - q).max())
        assert entry["kl_divergence"] == pytest.approx(entropy(softmax(p, -1), softmax(q, -1), axis=-1).mean())
    assert any(entry["top1_agreement"] < 1 for entry in found)


def changed(name: str, value: Any) -> Arrays:
    arrays = outputs()
    arrays.pop(name)
    return arrays if value is None else {**arrays, name: value}


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        (changed("adapter.blurbs.1", None), "its outputs are of other rows or adapters: adapter.blurbs.1"),
        ({**outputs(), "adapter.x.0": np.zeros((1, 2))}, "its outputs are of other rows or adapters: adapter.x.0"),
        (changed("ids.1", np.array([1, 4, 5, 6, 8])), "ids, row 1, is of another text or shape than the reference's"),
        (changed("ids.0", np.array([1, 2])), "ids, row 0, is of another text or shape"),
        (changed("adapter.spam.v1.1", np.zeros((1, 4))), "adapter spam.v1, row 1, is of another text or shape"),
        (changed("base.0", np.full((3, 11), np.nan)), "logits of base, row 0, are not finite"),
        (changed("adapter.blurbs.1", np.full((5, 11), -np.inf)), "logits of adapter blurbs, row 1, are not finite"),
    ],
)
def test_outputs_that_cannot_be_compared(tmp_path: Path, arrays: Arrays, problem: str) -> None:
    good, bad = save(tmp_path / "good.npz", outputs()), save(tmp_path / "bad.npz", arrays)
    with pytest.raises(DataError) as error:
        agreement(good, bad)
    assert str(error.value).startswith(f"{bad}: {problem}")
    if "finite" in problem:  # the reference's are looked at as well
        with pytest.raises(DataError) as error:
            agreement(bad, good)
        assert str(error.value).startswith(f"{bad}: {problem}")


def test_outputs_of_a_package(package_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cpu.npz"
    assert main([str(package_folder), "--execution-provider", "cpu", "--output", str(file)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.npz"]
    model = MultiAdapterModel.load(package_folder)
    with np.load(file) as arrays:
        rows = [arrays[f"ids.{i}"].tolist() for i in range(len(token_rows(model)))]
        assert rows == [model.tokenizer.encode(text).ids[:LONGEST] for text in TEXTS]
        one = np.array([rows[1]])
        np.testing.assert_allclose(arrays["base.1"], model.logits(one)[0], atol=1e-6)
        np.testing.assert_allclose(arrays["adapter.story.1"], model.logits(one, adapter="story")[0], atol=1e-6)
        np.testing.assert_allclose(arrays["adapter.mood.1"], model.class_logits([rows[1]], "mood"), atol=1e-5)
    assert {name.rpartition(".")[0] for name in all_logits(model, ["mood"])} == {"ids", "adapter.mood"}
    assert {name.rpartition(".")[0] for name in all_logits(model, ["base"])} == {"ids", "base"}
    found = agreement(file, file)
    assert {(entry["adapter"], entry["top1_agreement"]) for entry in found} == {(None, 1), ("mood", 1), ("story", 1)}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--adapters", "mod,base"],
            "error: --adapters: there is no 'mod'; did you mean 'mood'? Valid: base, mood, st",
        ),
        (["--execution-provider", "dml"], "error: this onnxruntime has no DmlExecutionProvider"),
    ],
)
def test_outputs_that_cannot_be_had(
    package_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    problem: str,
) -> None:
    monkeypatch.setattr("runtime.session.onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    fixed = [str(package_folder), "--execution-provider", "cpu", "--output", str(tmp_path / "x.npz")]
    assert main([*fixed, *arguments]) == 1
    assert capsys.readouterr().err.startswith(problem) and list(tmp_path.iterdir()) == []
