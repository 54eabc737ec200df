"""Exports with torch's ONNX exporter what onnxruntime-genai's builder does not know; plain onnxruntime runs the graph.

The graph has no key-value cache: classification needs none, and generation computes the whole text for each token.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from passes.base_model import load_base, load_tokenizer
from passes.graph.quantize import quantize_graph
from passes.graph.silence import silence
from runtime.errors import OlivalError

OPSET = 18  # has LayerNormalization as one node; MatMulNBits and every onnxruntime of this workspace go with it
# what a package needs to make token ids, and what says how the base generates
KEPT_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


class _Projection(nn.Module):
    """A linear layer as x @ W + b with W (in, out): one MatMul with a constant, as slots and quantization want it."""

    def __init__(self, linear: nn.Linear | Conv1D) -> None:
        super().__init__()
        weight = linear.weight if isinstance(linear, Conv1D) else linear.weight.T
        self.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias


class _Exported(nn.Module):
    """What the graph computes: the final hidden state and, where there is a language-model head, logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        head = self.model.get_output_embeddings()
        cache = {} if head is None else {"use_cache": False}
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **cache}
        hidden = self.model.base_model(**inputs).last_hidden_state
        return (hidden,) if head is None else (hidden, head(hidden))


def export_base(folder: Path, out: Path, precision: str, options: dict[str, Any]) -> list[str]:
    """Writes model.onnx, model.onnx.data and the tokenizer's files; no adapter is involved.

    Inputs are input_ids and attention_mask, int64 (batch, sequence); outputs are ``hidden``, the final hidden state
    (batch, sequence, hidden), and ``logits`` (batch, sequence, vocabulary) where the base has a language-model head.
    The MatMul of a linear layer is named /{module}/MatMul, that of the language-model head /lm_head/MatMul; quantized
    ones have more behind that name. Positions count from the first column, so rows are padded on the right.

    Args:
        folder: model folder in the format of transformers; see `passes.graph.checks.check_base`.
        out: made if it does not exist.
        precision: "fp32", "int8" or "int4".
        options: the quantization, complete; see `passes.graph.checks.check_precision`.

    Returns:
        Names of the modules whose MatMul may take a slot: every linear layer but the head.

    Raises:
        OlivalError: the export failed; the end of what the exporter printed is quoted.
    """
    import onnx_ir

    work = out / "export-work"
    work.mkdir(parents=True, exist_ok=True)
    try:
        with silence(f"exporting {folder.name} with torch"):
            model: Any = load_base(folder).to("cpu")
            model.set_attn_implementation("eager")
            modules = _linear_to_projection(model)
            graph = _export(model, work / "model.onnx")
            _name_nodes(graph, modules)
            if precision == "fp32":
                onnx_ir.save(graph, out / "model.onnx", external_data="model.onnx.data")
            else:
                quantize_graph(onnx_ir.to_proto(graph), out / "model.onnx", precision, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name in KEPT_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if not (out / "tokenizer.json").is_file():  # older BERTs have a vocab.txt alone, and the runtime wants this file
        load_tokenizer(folder).save_pretrained(out)
    return modules


def _linear_to_projection(model: Any) -> list[str]:
    """Replaces every linear layer, in place. Returns the names of all but the language-model head."""
    head, names = model.get_output_embeddings(), []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear | Conv1D):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _Projection(module))
            if module is not head:
                names.append(name)
    return names


def _export(model: Any, path: Path) -> Any:
    """The graph as an onnx_ir.Model, batch and sequence of any size.

    The exporter that traces: the one that captures programs (dynamo=True) gives an equal graph and takes 25 times as
    long. What a trace may freeze without a word, such as a branch on a shape, the tests of each architecture look for.
    """
    import onnx_ir
    from onnx_ir.passes import common

    ids = torch.ones((2, 8), dtype=torch.int64)
    axes = {0: "batch_size", 1: "sequence_length"}
    outputs = ["hidden", "logits"] if model.get_output_embeddings() is not None else ["hidden"]
    exported = _Exported(model).eval()
    with torch.no_grad():
        sizes = [value.shape[-1] for value in exported(ids, ids)]
        torch.onnx.export(
            exported,
            (ids, ids.clone()),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=outputs,
            dynamic_axes={name: axes for name in ("input_ids", "attention_mask", *outputs)},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx_ir.load(path)
    for clean in (common.IdentityEliminationPass(), common.LiftConstantsToInitializersPass(lift_all_constants=True)):
        clean(graph)
    for output, size in zip(graph.graph.outputs, sizes, strict=True):  # a trace does not know the last dimension
        output.shape = onnx_ir.Shape(["batch_size", "sequence_length", size])
    return graph


def _name_nodes(graph: Any, modules: list[str]) -> None:
    """Names the MatMul of each module, and the one that makes the logits.

    Raises OlivalError when one is not there: the exporter wrote that layer in another way.
    """
    missing = {f"model.{name}.weight": f"/{name}/MatMul" for name in modules}
    logits = any(output.name == "logits" for output in graph.graph.outputs)
    for node in graph.graph:
        if node.op_type != "MatMul":
            continue
        weight = node.inputs[1].name
        if weight in missing:
            node.name = missing.pop(weight)
        elif logits and node.inputs[0].name == "hidden":
            node.name, logits = "/lm_head/MatMul", False
    if missing or logits:
        lost = [*missing.values(), *(["/lm_head/MatMul"] if logits else [])]
        raise OlivalError(f"torch's exporter gave no MatMul with a constant weight for {', '.join(lost)}")
