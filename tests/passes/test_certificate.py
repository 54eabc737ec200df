"""What an export writes into the manifest of each target, and that a broken bound leaves the earlier package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from passes.multi_adapter_export import export
from runtime.errors import ConfigError
from runtime.manifest import read_manifest
from runtime.session import PROVIDERS


@pytest.fixture(scope="module")
def adapters(tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]) -> dict[str, Path]:
    """A classifier and a generator with random weights, and five rows each to compare."""
    folders = {
        "mood": make_peft_adapter(tiny_llama_path, labels=["bad", "good", "none"]),
        "story": make_peft_adapter(tiny_llama_path, rank=8, seed=1, settings={}),
    }
    for folder in folders.values():
        rows = [[1, 40 + i, 41, 99, 12 + i, 60][: 3 + i] for i in range(5)]
        (folder / "samples.json").write_text(json.dumps(rows), encoding="utf-8")
        info = {"task": "generation", **json.loads((folder / "adapter.json").read_text(encoding="utf-8"))}
        (folder / "adapter.json").write_text(json.dumps(info), encoding="utf-8")
    return folders


def run(base: Path, adapters: dict[str, Path], folder: Path, provider: str, precision: str, **parity: Any) -> None:
    options = {
        "adapter_precision": "float",
        "precision": precision,
        "quantization": None,
        "threads": 2,
        "name": "tiny",
        "parity": parity,
    }
    export(base, adapters, folder, execution_provider=provider, config=SimpleNamespace(**options))


@pytest.mark.parametrize(("provider", "precision"), [("cpu", "int4"), ("cuda", "fp16"), ("dml", "int4")])
def test_each_target_has_its_certificate(
    tiny_llama_path: Path, adapters: dict[str, Path], tmp_path: Path, provider: str, precision: str
) -> None:
    run(tiny_llama_path, adapters, tmp_path / "package", provider, precision, samples=4)
    manifest = read_manifest(tmp_path / "package")
    here = PROVIDERS[provider] in onnxruntime.get_available_providers()
    assert manifest["target"].get("not_executed", "").startswith("" if here else "this onnxruntime has no ")
    assert ("not_executed" in manifest["target"]) != here
    for name, entry in manifest["adapters"].items():
        exact, scores = entry["parity"]["fp32"], entry["parity"][precision]
        assert exact["executed_on"] == "cpu" and exact["max_abs_difference"] < 1e-4 and exact["top1_agreement"] == 1.0
        assert scores["executed_on"] == (provider if here else "cpu") and scores["samples"] == 4
        # rounding to float16, or to 4 bits, of logits between -6 and 6
        assert 1e-4 < scores["max_abs_difference"] < (0.1 if precision == "fp16" else 6)
        assert ("label_flips" in scores) == (name == "mood")
    assert [file.name for file in tmp_path.iterdir()] == ["package"]


def test_a_broken_bound_leaves_the_earlier_package(
    tiny_llama_path: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "package"
    run(tiny_llama_path, adapters, folder, "cpu", "fp32", max_abs_difference=1e-3, top1_agreement=1, label_flips=0)
    before = (folder / "package.json").read_bytes()
    with pytest.raises(ConfigError) as error:
        run(tiny_llama_path, adapters, folder, "cpu", "int4", fp32_max_abs_difference=1e-30, kl_divergence=1e-9)
    starts = [
        f"parity of adapter '{name}' with PyTorch: {score} is "
        for name in ("mood", "story")
        for score in ("fp32 max_abs_difference", "int4 kl_divergence")
    ]
    assert [p.startswith(s) for p, s in zip(error.value.problems, starts, strict=True)] == [True] * 4
    assert (folder / "package.json").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["package"]
