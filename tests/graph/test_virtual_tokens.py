"""Prompt and prefix tuning in an exported graph, against PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from passes.graph.builder import build_base
from passes.graph.head_padding import head_layout, mark_slots
from passes.graph.slots import add_slots
from passes.graph.virtual_tokens import add_virtual_tokens
from runtime.conversion import slot_tensors
from runtime.errors import PackageError
from tests.conftest import save_tiny_model
from tests.graph.reference import load_dequantized, run_graph
from tests.graph.test_builder import KINDS, LONGROPE, PADDED
from tests.virtual_adapters import save_virtual_adapter

VIRTUAL = 5
EVERY_DAY = ("gemma2", "phi3", "qwen2")  # several ways to rotate, to scale and to pack; the others are slow tests
IDS = np.random.default_rng(0).integers(3, 290, (2, 9)).astype(np.int64)
OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("phi3", {"original_max_position_embeddings": 128, "head_dim": 32, "partial_rotary_factor": 0.5}),
    ("qwen2", {"tie_word_embeddings": True}),
]


def built(base: Path, folder: Path, precision: str = "fp32", **quantization: Any) -> tuple[Path, dict[str, Any], Any]:
    """A graph with slots and virtual tokens, the slot table, and the layout of virtual tokens."""
    build_base(base, folder, precision, "cpu", quantization or None, threads=2)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    slots = add_slots(model)
    padding = head_layout(json.loads((base / "config.json").read_text()))
    virtual = add_virtual_tokens(model, base, padding, prefix=True)
    mark_slots(slots, padding)
    path = folder / "virtual.onnx"
    onnx.save(model, path)
    return path, slots, virtual


def torch_logits(base: Path, adapter: Path, ids: np.ndarray) -> np.ndarray:
    """PEFT's own logits of the text's tokens."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits
    return np.asarray(logits[:, -ids.shape[1] :].numpy())


def with_virtual(ids: np.ndarray, first_id: int, count: int = VIRTUAL) -> np.ndarray:
    return np.concatenate([np.tile(np.arange(first_id, first_id + count), (len(ids), 1)), ids], axis=1)


@pytest.mark.parametrize(
    "kind, changes",
    [
        pytest.param(kind, changes, marks=[] if kind in EVERY_DAY else pytest.mark.slow)
        for kind, changes in [*KINDS, *PADDED, *OTHERS]
    ],
)
def test_each_architecture_gives_the_logits_of_peft(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    base = save_tiny_model(tmp_path / "base", kind, **changes)
    graph, slots, virtual = built(base, tmp_path / "out")
    plain = run_graph(tmp_path / "out" / "model.onnx", IDS)["logits"]
    np.testing.assert_array_equal(run_graph(graph, IDS)["logits"], plain)  # without an adapter: the base, bit for bit
    for method in ("prompt", "prefix"):
        adapter = save_virtual_adapter(tmp_path / method, base, method, VIRTUAL)
        tensors, info = slot_tensors(adapter, slots, 64, virtual=virtual)
        assert info == {"rank": 0, "target_modules": [], "classes": None, "virtual_tokens": VIRTUAL}
        found = run_graph(graph, with_virtual(IDS, virtual["first_id"]), **tensors)["logits"][:, VIRTUAL:]
        wanted = torch_logits(base, adapter, IDS)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        assert np.abs(found - plain).max() > 0.1  # the adapter matters


def test_a_quantized_graph_computes_peft_on_its_own_weights(tmp_path: Path, tiny_qwen2_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    graph, slots, virtual = built(tiny_qwen2_path, tmp_path / "out", "int4", accuracy_level=1)
    for method in ("prompt", "prefix"):
        adapter = save_virtual_adapter(tmp_path / method, tiny_qwen2_path, method, VIRTUAL)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_qwen2_path)
        load_dequantized(model, graph, tied=False)
        tokens = torch.from_numpy(IDS)
        with torch.no_grad():
            peft = PeftModel.from_pretrained(model, adapter).eval()
            wanted = peft(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, -IDS.shape[1] :].numpy()
        tensors, _ = slot_tensors(adapter, slots, 64, virtual=virtual)
        found = run_graph(graph, with_virtual(IDS, virtual["first_id"]), **tensors)["logits"][:, VIRTUAL:]
        np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_half_precision_and_separate_projections(tmp_path: Path, tiny_llama_path: Path) -> None:
    """DirectML's graph takes keys and values apart; run on the CPU."""
    build_base(tiny_llama_path, tmp_path / "out", "fp16", "dml", threads=2)
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    slots = add_slots(model)
    virtual = add_virtual_tokens(model, tiny_llama_path, None, prefix=True)
    onnx.save(model, tmp_path / "out" / "virtual.onnx")
    for method in ("prompt", "prefix"):
        adapter = save_virtual_adapter(tmp_path / method, tiny_llama_path, method, VIRTUAL)
        tensors, _ = slot_tensors(adapter, slots, 64, virtual=virtual)
        assert {str(value.dtype) for value in tensors.values()} == {"float16"}
        ids = with_virtual(IDS, virtual["first_id"])
        found = run_graph(tmp_path / "out" / "virtual.onnx", ids, **tensors)["logits"][:, VIRTUAL:]
        np.testing.assert_allclose(found.astype(np.float32), torch_logits(tiny_llama_path, adapter, IDS), atol=0.1)


def test_a_base_whose_rotation_depends_on_the_length_takes_no_prefix(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "phi3", **LONGROPE)
    build_base(base, tmp_path / "out", "fp32", "cpu", threads=2)
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    with pytest.raises(PackageError, match="rope_type is longrope"):
        add_virtual_tokens(model, base, None, prefix=True)
