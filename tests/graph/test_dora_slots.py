"""DoRA in a graph's slots, against PEFT and transformers: every kind of base, packed projections, widened heads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from passes.dora import BaseWeights, with_scales
from passes.graph.bottleneck_slots import add_bottleneck_slots
from passes.graph.builder import build_base
from passes.graph.head import add_class_head
from passes.graph.head_padding import head_layout, mark_slots
from passes.graph.slots import add_slots
from passes.graph.torch_export import export_base
from runtime.adapter_file import check_fits
from runtime.adapter_source import read_source
from runtime.bottleneck import PARTS
from runtime.conversion import slot_tensors
from runtime.stacking import stack
from tests.conftest import save_tiny_model
from tests.graph.reference import load_dequantized, run_graph
from tests.graph.test_slots import IDS, torch_logits
from tests.graph.torch_models import save_adapter, save_torch_model, torch_outputs

Make = Callable[..., Path]


def with_trained_magnitudes(folder: Path, seed: int = 0) -> Path:
    """The same DoRA folder with magnitudes as long as the rows of tiny bases, about 2, each another."""
    path, random = folder / "adapter_model.safetensors", np.random.default_rng(seed)
    tensors = load_file(path)
    for key in [key for key in tensors if "magnitude" in key]:
        tensors[key] = random.uniform(1, 3, tensors[key].shape).astype(np.float32)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


class Built:
    """A base as the builder left it, and with DoRA slots."""

    def __init__(self, base: Path, folder: Path, precision: str = "fp32", slots: str = "float", **options: Any) -> None:
        self.base, self.plain, self.graph = base, folder / "model.onnx", folder / "slots.onnx"
        build_base(base, folder, precision, "cpu", options or None, threads=2)
        model = onnx.load(self.plain, load_external_data=False)
        self.slots = add_slots(model, slots, dora=True)
        mark_slots(self.slots, head_layout(json.loads((base / "config.json").read_text(encoding="utf-8"))))
        add_class_head(model)
        onnx.save(model, self.graph)

    def adapter(self, folder: Path) -> dict[str, np.ndarray]:
        source = read_source(folder)
        if (source.config or {}).get("use_dora"):
            source = with_scales(source, BaseWeights(self.base))
        tensors, _ = slot_tensors(source, self.slots, 64)
        assert check_fits(tensors, self.slots, 64) == []
        return tensors

    def logits(self, adapter: dict[str, np.ndarray] | None = None) -> np.ndarray:
        return run_graph(self.graph, IDS, **(adapter or {}))["logits"]


@pytest.fixture(scope="module")
def qwen2(tiny_qwen2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Packed q, k and v with a bias, tied embeddings."""
    return Built(tiny_qwen2_path, tmp_path_factory.mktemp("qwen2"))


def test_without_adapter_the_base_is_unchanged(qwen2: Built) -> None:
    assert np.array_equal(run_graph(qwen2.plain, IDS)["logits"], qwen2.logits())
    graph = onnx.load(qwen2.graph, load_external_data=False).graph
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    name = "model.layers.0.attn.qkv_proj.lora_magnitude.weight"
    assert shapes[name] == ["lora_n", 1, 128]
    default = next(onnx.numpy_helper.to_array(i) for i in graph.initializer if i.name == name)
    assert default.shape == (1, 1, 128) and (default == 1).all()


@pytest.mark.parametrize(
    "dora",
    [
        {"rank": 4},
        {"rank": 8, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"rank": 3, "target_modules": ["k_proj", "down_proj"]},  # a part of the packed slot
    ],
    ids=str,
)
def test_logits_of_peft(qwen2: Built, make_peft_adapter: Make, dora: dict[str, Any]) -> None:
    folder = with_trained_magnitudes(make_peft_adapter(qwen2.base, use_dora=True, **dora))
    adapter = qwen2.adapter(folder)
    found = qwen2.logits(adapter)
    np.testing.assert_allclose(found, torch_logits(qwen2.base, folder, IDS), atol=1e-4)
    unscaled = {name: value for name, value in adapter.items() if "magnitude" not in name}
    assert np.abs(found - qwen2.logits(unscaled)).max() > 0.1  # the magnitudes do something


def test_each_row_its_own_kind(qwen2: Built, make_peft_adapter: Make) -> None:
    """DoRA, LoRA, DoRA of other projections and the base in one batch, each as alone."""
    sources = [
        with_trained_magnitudes(make_peft_adapter(qwen2.base, rank=4, use_dora=True)),
        make_peft_adapter(qwen2.base, rank=8, seed=1),
        with_trained_magnitudes(make_peft_adapter(qwen2.base, seed=2, use_dora=True, target_modules=["v_proj"])),
    ]
    ids = np.concatenate([IDS, IDS[:1]])
    adapters = [qwen2.adapter(folder) for folder in sources]
    found = run_graph(qwen2.graph, ids, **stack([*adapters, {}]))["logits"]
    for row, source in enumerate([*sources, None]):
        wanted = torch_logits(qwen2.base, source, ids[row : row + 1])
        np.testing.assert_allclose(found[row], wanted[0], atol=1e-4)


def test_beside_bottlenecks(qwen2: Built, make_peft_adapter: Make) -> None:
    """DoRA's product stands before a projection's bias, a bottleneck behind it: each as in a graph of its own."""
    graphs = {}
    for dora in (False, True):
        model = onnx.load(qwen2.plain, load_external_data=False)
        slots = add_slots(model, dora=dora)
        add_bottleneck_slots(model, slots)
        add_class_head(model)
        graphs[dora] = qwen2.graph.with_name(f"both-{dora}.onnx")
        onnx.save(model, graphs[dora])
    assert slots["model.layers.0.attn.o_proj"]["extra"] == ["dora", "bottleneck"]
    folder = with_trained_magnitudes(make_peft_adapter(qwen2.base, use_dora=True))
    found = run_graph(graphs[True], IDS, **qwen2.adapter(folder))["logits"]
    np.testing.assert_allclose(found, torch_logits(qwen2.base, folder, IDS), atol=1e-4)
    random, bottleneck = np.random.default_rng(0), {}
    for slot in ("model.layers.0.attn.o_proj", "model.layers.1.mlp.down_proj"):
        for part, shape in zip(PARTS, [(1, 64, 4), (1, 1, 4), (1, 4, 64), (1, 1, 64)], strict=True):
            bottleneck[f"{slot}.{part}"] = random.normal(size=shape).astype(np.float32) * np.float32(0.3)
    alone = run_graph(graphs[False], IDS, **bottleneck)["logits"]
    np.testing.assert_allclose(run_graph(graphs[True], IDS, **bottleneck)["logits"], alone, atol=1e-5)
    assert np.abs(alone - qwen2.logits()).max() > 0.1


@pytest.mark.parametrize("slots", ["float", "int8"])
def test_quantized_base(tiny_qwen2_path: Path, tmp_path: Path, make_peft_adapter: Make, slots: str) -> None:
    """The graph computes g (Wq x + s B A x) + b: Wq as it is stored, g from the float base by PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    built = Built(tiny_qwen2_path, tmp_path, "int4", slots, accuracy_level=1)
    plain = run_graph(built.plain, IDS)["logits"]
    np.testing.assert_allclose(built.logits(), plain, atol=1e-4)  # the bias is added behind the product
    folder = with_trained_magnitudes(make_peft_adapter(built.base, use_dora=True))
    peft: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(built.base), folder)
    stored: Any = AutoModelForCausalLM.from_pretrained(built.base)
    load_dequantized(stored, built.plain, tied=False)
    with torch.no_grad():
        for name, module in peft.base_model.model.named_modules():
            if hasattr(module, "lora_magnitude_vector") and module.lora_magnitude_vector:
                delta = module.get_delta_weight("default")
                magnitude = module.lora_magnitude_vector["default"].weight
                scale = magnitude / (module.base_layer.weight + delta).norm(dim=1)
                weight = stored.get_submodule(name).weight
                weight.copy_(scale[:, None] * (weight + delta))
        wanted = stored.eval()(torch.from_numpy(IDS)).logits.numpy()
    found = built.logits(built.adapter(folder))
    # eight bits of A and x: as much as tests/graph/test_int8_slots.py allows LoRA, below the base's own rounding
    np.testing.assert_allclose(found, wanted, atol=1e-4 if slots == "float" else 0.5)
    assert np.abs(found - plain).max() > 1


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_widened_heads_and_packed_weights(tmp_path: Path, make_peft_adapter: Make, kind: str) -> None:
    """Heads of 8 dimensions in a graph with 16; Phi-3 keeps q, k and v in one weight, and gate and up."""
    own: dict[str, Any] = {"original_max_position_embeddings": 128} if kind == "phi3" else {}
    targets: dict[str, Any] = {"target_modules": ["qkv_proj", "o_proj", "gate_up_proj"]} if kind == "phi3" else {}
    base = save_tiny_model(tmp_path / "base", kind, head_dim=8, **own)
    folder = with_trained_magnitudes(make_peft_adapter(base, use_dora=True, **targets))
    built = Built(base, tmp_path / "built")
    np.testing.assert_allclose(built.logits(built.adapter(folder)), torch_logits(base, folder, IDS), atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_bases_of_torch_s_exporter(tmp_path: Path, kind: str) -> None:
    """GPT-2 keeps its weights turned round (Conv1D); every projection of both has a bias."""
    base = save_torch_model(tmp_path / "base", kind)
    folder = with_trained_magnitudes(save_adapter(tmp_path / "adapter", base, kind, use_dora=True))
    (tmp_path / "out").mkdir()
    modules = export_base(base, tmp_path / "out", "fp32", {})
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    slots = add_slots(model, modules=modules, dora=True)
    add_class_head(model, "first" if kind == "bert" else "last")
    onnx.save(model, tmp_path / "out" / "model.onnx")
    tensors, _ = slot_tensors(with_scales(read_source(folder), BaseWeights(base)), slots, 64)
    assert sum("magnitude" in name for name in tensors) == len(slots) > 7
    found = run_graph(tmp_path / "out" / "model.onnx", IDS, **tensors)
    wanted = torch_outputs(base, kind, IDS, np.ones_like(IDS), folder)
    classes = wanted["hidden"][:, 0 if kind == "bert" else -1] @ tensors["class_head.weight"][0]
    np.testing.assert_allclose(found["class_logits"], classes, atol=1e-4)
    if kind == "gpt2":
        np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-4)
