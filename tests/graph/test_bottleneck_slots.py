"""Slots of bottleneck adapters in exported graphs: what they add, and that they add nothing without an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from passes.graph.bottleneck_slots import add_bottleneck_slots
from passes.graph.builder import build_base
from passes.graph.head import add_class_head
from passes.graph.slots import add_slots
from runtime.adapter_file import check_fits
from runtime.conversion import slot_tensors
from tests.bottlenecks import save_bottleneck
from tests.conftest import save_tiny_model
from tests.graph.reference import run_graph
from tests.graph.test_directml import IR_VERSION, KNOWN, OPSET

IDS = np.random.default_rng(0).integers(3, 290, (3, 9)).astype(np.int64)
SLOT = "model.layers.0.attn.o_proj"


def build(
    base: Path, folder: Path, precision: str, provider: str = "cpu", adapter_precision: str = "float"
) -> tuple[onnx.ModelProto, dict[str, dict[str, Any]], Path]:
    """(the graph with slots and head, its slot table, its file); model.onnx beside it is what the builder left."""
    build_base(base, folder, precision, provider, None, threads=2)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    slots = add_slots(model, adapter_precision)
    add_bottleneck_slots(model, slots)
    add_class_head(model)
    onnx.save(model, folder / "slots.onnx")
    return model, slots, folder / "slots.onnx"


def test_inputs_and_slot_table(tiny_llama_path: Path, tmp_path: Path) -> None:
    model, slots, _ = build(tiny_llama_path, tmp_path, "fp32")
    assert [slot for slot, entry in slots.items() if "extra" in entry] == [
        f"model.layers.{i}.{name}" for i in (0, 1) for name in ("attn.o_proj", "mlp.down_proj")
    ]
    inputs = [i.name for i in model.graph.input]
    assert len(inputs) == len(set(inputs))
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    defaults = {i.name: list(i.dims) for i in model.graph.initializer}
    expected: dict[str, tuple[list[Any], list[int]]] = {
        "bottleneck_down.weight": (["lora_n", 64, f"{SLOT}.bottleneck"], [1, 64, 0]),
        "bottleneck_down.bias": (["lora_n", 1, f"{SLOT}.bottleneck"], [1, 1, 0]),
        "bottleneck_up.weight": (["lora_n", f"{SLOT}.bottleneck", 64], [1, 0, 64]),
        "bottleneck_up.bias": (["lora_n", 1, 64], [1, 1, 64]),
    }
    assert {part: (shapes[f"{SLOT}.{part}"], defaults[f"{SLOT}.{part}"]) for part in expected} == expected
    assert "model.layers.0.mlp.up_proj.bottleneck_up.bias" not in shapes


@pytest.mark.parametrize(("kind", "precision"), [("qwen2", "fp32"), ("qwen2", "int4"), ("gemma2", "fp32")])
def test_without_adapter_the_base_is_unchanged(tmp_path: Path, kind: str, precision: str) -> None:
    """Bit for bit; o_proj of Gemma 2 is followed by a norm, and that of others by the residual sum."""
    base = save_tiny_model(tmp_path / "base", kind)
    _, slots, graph = build(base, tmp_path / "out", precision)
    mask = np.ones_like(IDS)
    mask[1, 6:] = 0
    before, after = run_graph(graph.with_name("model.onnx"), IDS, mask), run_graph(graph, IDS, mask)
    np.testing.assert_array_equal(after["logits"], before["logits"])
    found, _ = slot_tensors(save_bottleneck(tmp_path / "a", "qwen2"), slots, 64)
    assert check_fits(found, slots, 64) == []
    assert np.abs(run_graph(graph, IDS, mask, **found)["logits"] - after["logits"]).max() > 0.1


def test_beside_lora_in_8_bits(tmp_path: Path, tiny_llama_path: Path) -> None:
    """Bottlenecks stay floats there, so their result is that of a graph with LoRA slots in floats."""
    found = []
    for precision in ("float", "int8"):
        _, slots, graph = build(tiny_llama_path, tmp_path / precision, "fp32", adapter_precision=precision)
        values, _ = slot_tensors(save_bottleneck(tmp_path / "a", "llama"), slots, 64)
        found.append(run_graph(graph, IDS, **values)["logits"])
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


@pytest.mark.parametrize("provider", ["cuda", "dml"])
def test_half_precision(tmp_path: Path, tiny_llama_path: Path, provider: str) -> None:
    """The graph for a GPU, run by the CPU's kernels, is near the exact one; DirectML knows its operators."""
    _, exact_slots, exact = build(tiny_llama_path, tmp_path / "exact", "fp32")
    model, slots, graph = build(tiny_llama_path, tmp_path / provider, "fp16", provider)
    folder = save_bottleneck(tmp_path / "a", "llama")
    wanted = run_graph(exact, IDS, **slot_tensors(folder, exact_slots, 64)[0])["logits"]
    found = run_graph(graph, IDS, **slot_tensors(folder, slots, 64)[0])["logits"]
    assert np.abs(found - wanted).max() < 0.05 * wanted.std()
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions[""] <= OPSET and set(versions) <= {"", "com.microsoft"} and model.ir_version <= IR_VERSION
    contributed = {node.op_type for node in model.graph.node if node.domain}
    # onnxruntime 1.24 lists Gelu of com.microsoft: no attributes, one input, float16 and float32
    assert contributed - set(KNOWN) == {"Gelu"}
