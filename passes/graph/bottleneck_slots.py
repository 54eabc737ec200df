"""Adds slots of bottleneck adapters behind those of LoRA: y' = y + gelu(y @ D + d) @ U + u, optional inputs all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from passes.block_outputs import is_block_output
from passes.graph.slots import add_optional_input, bias_add, insert_nodes, rename_inputs
from runtime.bottleneck import BOTTLENECK, PARTS

if TYPE_CHECKING:
    import onnx

_CONTRIBUTED = "com.microsoft"


def add_bottleneck_slots(model: onnx.ModelProto, slots: Mapping[str, dict[str, Any]]) -> None:
    """Adds the inputs of bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751) to the last projection of each
    attention and MLP, in place, and "extra": ["bottleneck"] to those entries of `slots`.

    A slot ``model.layers.0.attn.o_proj`` with n outputs gets four inputs of the graph's float type. Their defaults have
    size 0, so that a run without them computes what it did:

    - ``model.layers.0.attn.o_proj.bottleneck_down.weight``: ("lora_n", n, s), default (1, n, 0)
    - ``model.layers.0.attn.o_proj.bottleneck_down.bias``: ("lora_n", 1, s), default (1, 1, 0)
    - ``model.layers.0.attn.o_proj.bottleneck_up.weight``: ("lora_n", s, n), default (1, 0, n)
    - ``model.layers.0.attn.o_proj.bottleneck_up.bias``: ("lora_n", 1, n), default zeros (1, 1, n)

    ``lora_n`` is 1 or the batch size. Adapters of several sizes are padded with zeros, which changes nothing: gelu(0)
    is 0. The activation is the exact one with erf; onnxruntime's own operator, which the CPU, CUDA and DirectML have at
    every opset.

    Args:
        slots: table of `passes.graph.slots.add_slots`, which has been there before.
    """
    from onnx import helper

    graph = model.graph
    dtypes = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    sizes = {i.name: list(i.dims) for i in graph.initializer}
    added: dict[str, list[onnx.NodeProto]] = {}  # name of a slot's last node -> new nodes
    renamed: dict[str, str] = {}
    for slot, entry in slots.items():
        if not is_block_output(slot):
            continue
        prefix = next(n.name for n in graph.node if f"{slot}.lora_B.weight" in n.input).removesuffix("/lora_B/MatMul")
        last = [n for n in graph.node if n.name.startswith(f"{prefix}/")][-1]
        last = bias_add(graph, last, sizes) or last  # where a slot stands before a projection's bias
        y, path, size = last.output[0], f"{prefix}/bottleneck", entry["out"]
        shapes: list[tuple[list[int | str], list[int]]] = [
            (["lora_n", size, f"{slot}.bottleneck"], [1, size, 0]),
            (["lora_n", 1, f"{slot}.bottleneck"], [1, 1, 0]),
            (["lora_n", f"{slot}.bottleneck", size], [1, 0, size]),
            (["lora_n", 1, size], [1, 1, size]),
        ]
        for part, (shape, default) in zip(PARTS, shapes, strict=True):
            add_optional_input(model, f"{slot}.{part}", dtypes[f"{slot}.lora_B.weight"], shape, default)
        down, down_bias, up, up_bias = (f"{slot}.{part}" for part in PARTS)
        nodes: list[onnx.NodeProto] = []
        value = y
        for op, name, weight in (
            ("MatMul", "down/MatMul", down),
            ("Add", "down/Add", down_bias),
            ("Gelu", "Gelu", None),
            ("MatMul", "up/MatMul", up),
            ("Add", "up/Add", up_bias),
            ("Add", "Add", y),
        ):
            inputs = [value] if weight is None else [value, weight] if weight is not y else [y, value]
            domain = _CONTRIBUTED if op == "Gelu" else None
            value = f"{path}/{name}/output_0"
            nodes.append(helper.make_node(op, inputs, [value], f"{path}/{name}", domain=domain))
        added[last.name], renamed[y] = nodes, value
        entry["extra"] = [*entry.get("extra", []), BOTTLENECK]
    if all(opset.domain != _CONTRIBUTED for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIBUTED, 1))
    rename_inputs(graph, renamed)
    insert_nodes(graph, after=added)
