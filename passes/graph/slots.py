"""Adds adapter slots to an exported base: y' = y + (x @ A) @ B beside each projection, A and B optional inputs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from runtime.adapter_file import MAGNITUDE
from runtime.dora import DORA
from runtime.errors import PackageError
from runtime.lora_quantization import ZERO_POINT

if TYPE_CHECKING:
    import onnx

# the builder's names: /model/layers.0/attn/qkv_proj/MatMul at float, .../MatMul_Q4 or similar once quantized
_PROJECTION = re.compile(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/MatMul(?:_\w+)?")
_FLOATS = {1: "float32", 10: "float16", 16: "bfloat16"}  # onnx.TensorProto's numbers
_UINT8 = 2
_ONE, _ZERO_POINT = "/lora/one", "/lora/zero_point"
ADAPTER_PRECISIONS = ("float", "int8")


def add_slots(
    model: onnx.ModelProto, precision: str = "float", modules: Collection[str] = (), dora: bool = False
) -> dict[str, dict[str, Any]]:
    """Adds a slot to each projection of each layer, in place; weights may be left as external data.

    A slot ``model.layers.0.attn.o_proj`` has two inputs of the graph's float type. Their defaults have rank 0, so a run
    that sets neither computes the base:

    - ``model.layers.0.attn.o_proj.lora_A.weight``: ("lora_n", in, r), default (1, in, 0)
    - ``model.layers.0.attn.o_proj.lora_B.weight``: ("lora_n", r, out), default (1, 0, out)

    ``lora_n`` is 1 (one adapter for all rows) or the batch size (each row its own); r is free per slot. The sum comes
    after a projection's bias, so that onnxruntime still fuses the bias into its quantized MatMul.

    At precision "int8" A is uint8 with the zero point 128 (see `runtime.lora_quantization`), and x is rounded to eight
    bits as it runs, with one scale for the whole batch: less to read at high ranks, for a small error in every row.

    With `dora` a slot computes y' = g (W x + B A x) + bias (Liu et al. 2024, arXiv:2402.09353, equation 5, where
    g = m / |W + BA| is constant once the adapter is trained), by a third input:

    - ``model.layers.0.attn.o_proj.lora_magnitude.weight``: ("lora_n", 1, out), default ones (1, 1, out)

    Sum and product then stand before a projection's bias, which onnxruntime can no longer fuse into its MatMul.

    Args:
        modules: for a graph of `passes.graph.torch_export`, the PyTorch modules that take a slot, such as
            ``transformer.h.0.attn.c_attn``: the slot has the same name. Empty: the projections of the model builder.
        dora: slots that hold DoRA as well.

    Returns:
        The slot table: {slot: {"in", "out", "parts": {projection: its share of out}, "dtype"}}; at precision "int8"
        also "a_dtype"; with `dora` also "extra": ["dora"].

    Raises:
        PackageError: the graph has no projection with a name of the model builder or of `modules`, the size of one is
            unknown, or precision is "int8" and the graph does not compute in float32.
    """
    from onnx import helper

    graph = model.graph
    dtype = next(o.type.tensor_type.elem_type for o in graph.output if o.name in ("present.0.key", "hidden"))
    shapes = {i.name: list(i.dims) for i in graph.initializer}
    if precision == "int8":
        if _FLOATS[dtype] != "float32":
            raise PackageError(f"8-bit slots need a graph in float32, but this one is in {_FLOATS[dtype]}")
        graph.initializer.append(helper.make_tensor(_ONE, dtype, [], [1.0]))
        graph.initializer.append(helper.make_tensor(_ZERO_POINT, _UINT8, [], [ZERO_POINT]))
    slots: dict[str, dict[str, Any]] = {}
    inserted: dict[str, list[onnx.NodeProto]] = {}  # name of the node to follow -> new nodes
    renamed: dict[str, str] = {}
    for node in graph.node:
        prefix, separator, _ = node.name.rpartition("/MatMul")
        slot = prefix.removeprefix("/").replace("/", ".")
        match = _PROJECTION.fullmatch(node.name)
        known = slot in modules if modules else match is not None
        if not separator or not known or node.op_type not in ("MatMul", "MatMulNBits"):
            continue
        size_in, size_out = _sizes(node, shapes)
        last = node if dora else bias_add(graph, node, shapes) or node
        y, path = last.output[0], f"{prefix}/lora"
        a, b = f"{slot}.lora_A.weight", f"{slot}.lora_B.weight"
        inserted[last.name] = [
            _times_a(node.input[0], a, f"{path}_A/MatMul", precision),
            helper.make_node(
                "MatMul", [f"{path}_A/MatMul/output_0", b], [f"{path}_B/MatMul/output_0"], f"{path}_B/MatMul"
            ),
            helper.make_node("Add", [y, f"{path}_B/MatMul/output_0"], [f"{path}/Add/output_0"], f"{path}/Add"),
        ]
        renamed[y] = f"{path}/Add/output_0"
        if dora:
            renamed[y] = f"{path}_magnitude/Mul/output_0"
            inserted[last.name].append(
                helper.make_node(
                    "Mul", [f"{path}/Add/output_0", slot + MAGNITUDE], [renamed[y]], f"{path}_magnitude/Mul"
                )
            )
            add_optional_input(model, slot + MAGNITUDE, dtype, ["lora_n", 1, size_out], [1, 1, size_out], ones=True)
        add_optional_input(
            model, a, _UINT8 if precision == "int8" else dtype, ["lora_n", size_in, f"{slot}.lora_r"], [1, size_in, 0]
        )
        add_optional_input(model, b, dtype, ["lora_n", f"{slot}.lora_r", size_out], [1, 0, size_out])
        target = slot.rpartition(".")[2]
        packed = match is not None and target == "qkv_proj"
        parts = _qkv_parts(graph, slot.split(".")[2], size_out) if packed else {target: size_out}
        slots[slot] = {"in": size_in, "out": size_out, "parts": parts, "dtype": _FLOATS[dtype]}
        if precision == "int8":
            slots[slot]["a_dtype"] = "uint8"
        if dora:
            slots[slot]["extra"] = [DORA]
    if not slots:
        raise PackageError(
            f"the graph has no MatMul named {next(iter(modules), '/model/layers.{l}/{attn|mlp}/{projection}')}/MatMul "
            "to put a slot beside"
        )
    for added in inserted.values():  # x may itself be the output of a projection with a slot
        added[0].input[0] = renamed.get(added[0].input[0], added[0].input[0])
    rename_inputs(graph, renamed)
    insert_nodes(graph, after=inserted)
    return slots


def rename_inputs(graph: onnx.GraphProto, renamed: Mapping[str, str]) -> None:
    """Lets every node read new values in the place of old ones."""
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in renamed:
                node.input[place] = renamed[name]


def insert_nodes(
    graph: onnx.GraphProto,
    after: Mapping[str, Sequence[onnx.NodeProto]],
    before: Mapping[str, Sequence[onnx.NodeProto]] | None = None,
    front: Sequence[onnx.NodeProto] = (),
) -> None:
    """Puts new nodes in front of all, and before and behind those that are named."""
    rewired = type(graph)()  # protobuf lists have no insert: collect the nodes, then swap the lists
    rewired.node.extend(front)
    for node in graph.node:
        rewired.node.extend([*(before or {}).get(node.name, ()), node, *after.get(node.name, ())])
    del graph.node[:]
    graph.node.extend(rewired.node)


def add_optional_input(
    model: onnx.ModelProto,
    name: str,
    dtype: int,
    shape: Sequence[int | str],
    default: Sequence[int],
    ones: bool = False,
) -> None:
    """Adds a graph input that a caller may leave out: its default is a tensor of zeros, or ones, of shape `default`."""
    from onnx import helper

    sizes = [int(size) for size in default]
    # 1 as ONNX stores it, little endian: 8 bits, half precisions, float32
    one = {_UINT8: b"\1", 10: b"\0\x3c", 16: b"\x80\x3f"}.get(dtype, b"\0\0\x80\x3f")
    value = one if ones else b"\0" * len(one)
    count = 1
    for size in sizes:
        count *= size
    model.graph.input.append(helper.make_tensor_value_info(name, dtype, shape))
    model.graph.initializer.append(helper.make_tensor(name, dtype, sizes, value * count, raw=True))


def _times_a(x: str, a: str, name: str, precision: str) -> onnx.NodeProto:
    """The node that computes x @ A."""
    from onnx import helper

    if precision == "float":
        return helper.make_node("MatMul", [x, a], [f"{name}/output_0"], name)
    inputs = [x, a, _ONE, _ZERO_POINT]
    return helper.make_node("DynamicQuantizeMatMul", inputs, [f"{name}/output_0"], name, domain="com.microsoft")


def _sizes(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> tuple[int, int]:
    """Input and output size of a MatMul with a constant weight, quantized or not."""
    if node.op_type == "MatMulNBits":
        attributes = {a.name: a.i for a in node.attribute}
        return attributes["K"], attributes["N"]
    shape = shapes.get(node.input[1], [])
    if len(shape) != 2:
        raise PackageError(
            f"{node.name}: its weight {node.input[1]} must be a constant with two dimensions, but has {shape}"
        )
    return shape[0], shape[1]


def bias_add(graph: onnx.GraphProto, matmul: onnx.NodeProto, shapes: dict[str, list[int]]) -> onnx.NodeProto | None:
    """The Add of a constant vector right behind `matmul`, if there is one."""
    users = [n for n in graph.node if matmul.output[0] in n.input]
    if len(users) == 1 and users[0].op_type == "Add" and any(len(shapes.get(i, [])) == 1 for i in users[0].input):
        return users[0]
    return None


def _qkv_parts(graph: onnx.GraphProto, layer: str, size_out: int) -> dict[str, int]:
    """How the output of a packed projection divides into q, k and v, from the layer's attention node."""
    name = f"/model/layers.{layer}/attn/GroupQueryAttention"
    attention = next((n for n in graph.node if n.name == name), None)
    if attention is None:
        raise PackageError(f"{name}: the graph packs q, k and v, but has no such node to say how")
    heads = {a.name: a.i for a in attention.attribute}
    size = size_out // (heads["num_heads"] + 2 * heads["kv_num_heads"])
    kv = heads["kv_num_heads"] * size
    return {"q_proj": heads["num_heads"] * size, "k_proj": kv, "v_proj": kv}
