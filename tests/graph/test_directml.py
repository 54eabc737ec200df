"""Graphs for DirectML: its last onnxruntime is 1.24, so every operator must be one that this release knows."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from passes.graph.builder import build_base
from tests.conftest import save_tiny_model
from tests.graph.test_builder import surgery

# What onnxruntime 1.24.4 lists (get_all_operator_schema): contributed operator -> attributes, number of inputs
KNOWN = {
    "GatherBlockQuantized": ({"bits", "block_size", "gather_axis", "quantize_axis"}, 4),
    "GroupQueryAttention": (
        {"do_rotary", "kv_num_heads", "local_window_size", "num_heads", "qk_output", "rotary_interleaved", "scale"}
        | {"smooth_softmax", "softcap"},
        12,
    ),
    "MatMulNBits": ({"K", "N", "accuracy_level", "bits", "block_size"}, 6),
    "RotaryEmbedding": ({"interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim", "scale"}, 4),
    "SkipSimplifiedLayerNormalization": ({"epsilon"}, 4),
}
OPSET, IR_VERSION = 25, 10  # the newest ai.onnx that it knows, and an IR version that it reads


@pytest.mark.parametrize(
    "kind, precision", [("gemma2", "int4"), ("llama", "fp16"), ("mistral", "int4"), ("phi3", "int4"), ("qwen3", "int4")]
)
def test_every_operator_is_known_to_onnxruntime_1_24(tmp_path: Path, kind: str, precision: str) -> None:
    changes = {"phi3": {"original_max_position_embeddings": 128}, "mistral": {"sliding_window": 4}}.get(kind, {})
    base = save_tiny_model(tmp_path / "base", kind, tie_word_embeddings=kind == "qwen3", **changes)
    build_base(base, tmp_path / "out", precision, "dml", threads=2)
    model = onnx.load(surgery(tmp_path / "out")[0], load_external_data=False)
    assert model.ir_version <= IR_VERSION and not model.functions
    versions = {opset.domain: opset.version for opset in model.opset_import}
    assert versions[""] <= OPSET and set(versions) <= {"", "com.microsoft"}
    contributed = [node for node in model.graph.node if node.domain]
    assert len(contributed) > 4
    for node in contributed:
        attributes, inputs = KNOWN[node.op_type]
        assert {a.name for a in node.attribute} <= attributes, node.name
        assert len(node.input) <= inputs, node.name
    assert not any(node.op_type == "If" for node in model.graph.node)  # DirectML has none
