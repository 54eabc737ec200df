"""References for graph tests: what MatMulNBits stores, read with numpy, and runs of a graph with onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def dequantized_weights(graph_path: Path) -> dict[str, np.ndarray]:
    """Node name without its quantization suffix -> float32 weight (in, out), of every MatMulNBits in a graph."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(graph_path)
    arrays = {i.name: i for i in model.graph.initializer}
    weights = {}
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        a = {x.name: x.i for x in node.attribute}
        bits, block = a.get("bits", 4), a["block_size"]
        raw = numpy_helper.to_array(arrays[node.input[1]]).reshape(a["N"], -1, block * bits // 8)
        blocks = raw.shape[1]
        codes = _unpack(raw, bits)
        scale = numpy_helper.to_array(arrays[node.input[2]]).astype(np.float32).reshape(a["N"], blocks, 1)
        if len(node.input) > 3 and node.input[3]:
            zero = numpy_helper.to_array(arrays[node.input[3]]).reshape(a["N"], -1)
            zero = (_unpack(zero, bits) if zero.dtype == np.uint8 else zero)[:, :blocks, None]
        else:
            zero = np.float32(2 ** (bits - 1))
        weight = ((codes - zero) * scale).reshape(a["N"], blocks * block)[:, : a["K"]]
        weights[node.name.split("MatMul")[0] + "MatMul"] = weight.T
    return weights


def _unpack(raw: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return raw.astype(np.float32)
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1).astype(np.float32)


def load_dequantized(torch_model: Any, graph_path: Path, tied: bool) -> None:
    """Puts a graph's dequantized weights into the transformers model that it was exported from."""
    import torch

    state = torch_model.state_dict()
    new = {}
    for name, weight in dequantized_weights(graph_path).items():
        if name == "/lm_head/MatMul":
            new["lm_head.weight"] = torch.from_numpy(weight.T.copy())
            if tied:
                new["model.embed_tokens.weight"] = new["lm_head.weight"]
            continue
        prefix = name.removeprefix("/").removesuffix("/MatMul").replace("/", ".").replace(".attn.", ".self_attn.")
        if prefix.endswith("qkv_proj"):
            base = prefix.removesuffix("qkv_proj")
            sizes = [state[f"{base}{p}.weight"].shape[0] for p in ("q_proj", "k_proj", "v_proj")]
            pieces = np.split(weight, np.cumsum(sizes)[:-1], axis=1)
            new |= {
                f"{base}{p}.weight": torch.from_numpy(w.T.copy())
                for p, w in zip(("q_proj", "k_proj", "v_proj"), pieces, strict=True)
            }
        else:
            new[f"{prefix}.weight"] = torch.from_numpy(weight.T.copy())
    for name, value in new.items():
        if name == "lm_head.weight" and not tied:
            torch_model.lm_head.weight = torch.nn.Parameter(value)  # of its own, so that the embedding stays as it is
        else:
            module, _, leaf = name.rpartition(".")
            getattr(torch_model.get_submodule(module), leaf).data.copy_(value)


def run_graph(
    path: Path, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, **inputs: np.ndarray
) -> dict[str, np.ndarray]:
    """Outputs of a graph without cached positions, by name: logits of every position, the cache left out."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids) if attention_mask is None else attention_mask,
        **inputs,
    }
    for item in session.get_inputs():
        if item.name.startswith("past_key_values") and item.name not in feed:
            dtype = np.float16 if item.type == "tensor(float16)" else np.float32
            feed[item.name] = np.zeros((len(input_ids), item.shape[1], 0, item.shape[3]), dtype)
        if item.name == "position_ids":
            feed[item.name] = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape).astype(np.int64)
    if "logits_positions" in [i.name for i in session.get_overridable_initializers()]:
        feed.setdefault("logits_positions", np.arange(input_ids.shape[1]))
    names = [o.name for o in session.get_outputs() if not o.name.startswith("present")]
    return dict(zip(names, session.run(names, feed), strict=True))
