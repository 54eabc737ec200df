"""Reads the integers of an exported graph: what MatMulNBits computes with, by the name of its slot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from passes.graph.slots import add_slots
from runtime.errors import OlivalError

if TYPE_CHECKING:
    import onnx

HEAD = "lm_head"


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight (out, in) in blocks along its inputs; a value is (code - zero) * scale.

    Attributes:
        codes: uint8 (out, blocks, block size * bits / 8); of 4 bits the lower half of a byte comes first.
        scales: float (out, blocks).
        zeros: (out, blocks), one for each block, uint8 or (HQQ) float; None: 2 ** (bits - 1).
        bits: 4 or 8.
        size_in: in; the last block may reach beyond it.
    """

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None
    bits: int
    size_in: int


@dataclass(frozen=True)
class QuantizedGraph:
    """What a graph holds as integers.

    Attributes:
        weights: by slot, such as model.layers.0.attn.qkv_proj; the language-model head is `HEAD`.
        slots: table of `passes.graph.slots.add_slots`.
        shares_embedding: whether the embedding reads the integers of the head.
    """

    weights: dict[str, QuantizedWeight]
    slots: dict[str, dict[str, Any]]
    shares_embedding: bool


def read_quantized(path: Path, modules: list[str]) -> QuantizedGraph:
    """Reads a graph without adapter slots.

    Args:
        path: model.onnx with its weights beside it.
        modules: see `passes.graph.slots.add_slots`.

    Raises:
        OlivalError: the embedding has integers of its own, which this function cannot read.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    stored = {i.name: i for i in model.graph.initializer}

    def values(name: str) -> np.ndarray:
        return np.array(onnx.numpy_helper.to_array(stored[name], base_dir=str(path.parent)))

    weights = {}
    scale_of_head = None
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            slot = node.name.rpartition("/MatMul")[0].removeprefix("/").replace("/", ".")
            weights[slot] = _weight(node, values)
            scale_of_head = node.input[2] if slot == HEAD else scale_of_head
    embeddings = [node for node in model.graph.node if node.op_type == "GatherBlockQuantized"]
    if any(node.input[2] != scale_of_head for node in embeddings):
        raise OlivalError(f"{path}: {embeddings[0].name} has integers of its own, and not those of the head")
    return QuantizedGraph(weights, add_slots(model, modules=modules), bool(embeddings))


def _weight(node: onnx.NodeProto, values: Any) -> QuantizedWeight:
    sizes = {a.name: a.i for a in node.attribute}
    bits, out, size_in = sizes.get("bits", 4), sizes["N"], sizes["K"]
    blocks = -(-size_in // sizes["block_size"])
    zeros = None
    if len(node.input) > 3 and node.input[3]:
        packed = values(node.input[3]).reshape(out, -1)
        if bits == 4 and packed.dtype == np.uint8:
            packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(out, -1)
        zeros = np.ascontiguousarray(packed[:, :blocks])
    codes = values(node.input[1]).reshape(out, blocks, -1)
    return QuantizedWeight(codes, values(node.input[2]).reshape(out, blocks), zeros, bits, size_in)
