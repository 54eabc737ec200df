"""How far 8-bit adapters move the logits, next to how far the base's own quantization moves them."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np


def quantization_errors(base: Path, int4: Path, float_adapter: Path, int8_adapter: Path) -> dict[str, dict[str, float]]:
    """Mean and largest absolute difference of logits over 32 random tokens.

    Args:
        base: the float model in the format of transformers.
        int4: folder with model.onnx, slots.onnx and slots_int8.onnx.
        float_adapter, int8_adapter: the same adapter in both forms.

    Returns:
        {"base_int4": transformers at float32 against model.onnx, "adapter_int8": slots.onnx against slots_int8.onnx
        with their adapters}, each {"mean", "max"}.
    """
    ids = np.random.default_rng(0).integers(3, 259, (1, 32))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # torch's memory goes with it
        exact = pool.submit(_torch_logits, base, ids).result()
    logits = {
        "float32": exact,
        "int4": _graph_logits(int4 / "model.onnx", ids, None),
        "float": _graph_logits(int4 / "slots.onnx", ids, float_adapter),
        "int8": _graph_logits(int4 / "slots_int8.onnx", ids, int8_adapter),
    }
    pairs: Mapping[str, tuple[str, str]] = {"base_int4": ("float32", "int4"), "adapter_int8": ("float", "int8")}
    differences = {name: np.abs(logits[a] - logits[b]) for name, (a, b) in pairs.items()}
    return {name: {"mean": float(d.mean()), "max": float(d.max())} for name, d in differences.items()}


def _torch_logits(base: Path, ids: np.ndarray) -> np.ndarray:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids)).logits[0].numpy())


def _graph_logits(graph: Path, ids: np.ndarray, adapter: Path | None) -> np.ndarray:
    import onnxruntime

    from runtime.adapter_file import read_adapter

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), **(read_adapter(adapter) if adapter else {})}
    feed |= {
        i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values")
    }
    if any(i.name == "logits_positions" for i in session.get_overridable_initializers()):
        feed["logits_positions"] = np.arange(ids.shape[1])
    return np.asarray(session.run(["logits"], feed)[0][0])
