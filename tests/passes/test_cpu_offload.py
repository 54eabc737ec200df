"""CPU offload: what is asked of transformers where there is a GPU, and training with weights that are elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from passes import base_model
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from tests.passes.conftest import mood_data, story_data

# what accelerate does with a module "on the CPU" beside a GPU it does with one on the disk beside the CPU: its weights
# have no values but during a forward pass
PLACES = {
    **{"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"},
    **{"model.layers.1": "disk", "model.norm": "disk", "lm_head": "disk"},
}


@pytest.mark.parametrize(("quantization", "offload"), [(None, True), ("nf4", True), ("nf4", False)])
def test_what_transformers_is_asked_for(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str | None, offload: bool
) -> None:
    """On a GPU with 10 GB free, which this machine need not have."""
    asked: dict[str, Any] = {}
    nothing = SimpleNamespace(requires_grad_=lambda _: None, eval=lambda: None)

    def from_pretrained(folder: Path, **options: Any) -> Any:
        asked.update(options)
        return nothing

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 10**9, 16 * 10**9))
    auto = SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setattr(base_model, "model_class", lambda folder: (auto, {}))
    base_model.load_base(tiny_llama_path, quantization, cpu_offload=offload)
    if offload:
        assert asked["device_map"] == "auto" and asked["max_memory"][0] == 7 * 10**9 and asked["max_memory"]["cpu"] > 0
    else:
        assert asked["device_map"] == {"": "cuda"} and "max_memory" not in asked
    if quantization is not None:
        assert asked["quantization_config"].llm_int8_enable_fp32_cpu_offload is offload


@pytest.mark.parametrize("data", [mood_data(), story_data()], ids=["classification", "generation"])
def test_offloaded_weights_train_the_same_adapter(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any
) -> None:
    """LoRA beside layers that are offloaded and layers that are not."""
    losses, places = {}, {"device_map": PLACES, "offload_folder": str(tmp_path / "offload")}
    for name in ("near", "far"):
        if name == "far":
            monkeypatch.setattr(base_model, "_placement", lambda _: places)
        folder = tmp_path / name
        folder.mkdir()
        training = {"max_steps": 8, "learning_rate": 0.01, "logging_strategy": "steps", "logging_steps": 1}
        settings = AdapterSettings("test", rank=4, cpu_offload=name == "far", training_args=training)
        train_adapter(folder, tiny_llama_path, settings, data, None)
        history = json.loads((folder / "training.json").read_text(encoding="utf-8"))["history"]
        losses[name] = [entry["loss"] for entry in history if "loss" in entry]
        weights = load_file(folder / "adapter_model.safetensors")
        assert all(value.any() for value in weights.values())
    if isinstance(data, type(story_data())):  # B is 0 at first, so that the first loss is the base's
        assert losses["far"][0] == pytest.approx(losses["near"][0], rel=1e-5)
    assert losses["far"][-1] < 0.9 * losses["far"][0]


def test_without_a_gpu_nothing_is_offloaded(
    tmp_path: Path, tiny_llama_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for offload in (False, True):
        folder = tmp_path / str(offload)
        folder.mkdir()
        settings = AdapterSettings("test", rank=4, cpu_offload=offload, training_args={"max_steps": 2})
        train_adapter(folder, tiny_llama_path, settings, mood_data(), None)
        found.append((folder / "adapter_model.safetensors").read_bytes())
        said = "train test: cpu_offload: there is no GPU, so nothing is offloaded\n" in capsys.readouterr().err
        assert said == (offload and not torch.cuda.is_available())
    assert found[0] == found[1]
