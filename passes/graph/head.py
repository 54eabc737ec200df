"""Adds a classification head to an exported base, and computes logits only where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from passes.graph.slots import add_optional_input
from runtime.errors import PackageError

if TYPE_CHECKING:
    import onnx

_INT64 = 7  # onnx.TensorProto's number


def add_class_head(model: onnx.ModelProto, pooling: str = "last", left_out: str | None = None) -> None:
    """Adds output ``class_logits`` (batch, classes), in place: pooled final states @ ``class_head.weight``.

    `pooling` says how: "last", a row's last real token; "first", the first column, which encoders such as BERT are
    trained to classify with (rows are padded on the right); "mean" or "max" of each feature over a row's real tokens,
    of those that this run computes, 0 where there is none, without those where the bool (batch, sequence) `left_out` is
    true: virtual tokens. `passes.training.pooling` is the same in PyTorch. The final
    state is the graph's output ``hidden``, which is taken away, or what the builder feeds to its language-model head.

    Two optional inputs:

    - ``class_head.weight``: ("lora_n", hidden, "classes"), graph's float type, default (1, hidden, 0): no classes.
      ``lora_n`` is 1 or the batch size.
    - ``logits_positions``: int64 ("logits_length",), default [-1]: the positions of ``logits``, which gets the shape
      (batch, logits_length, vocab). -1 is each row's last real token, which is all that generation reads of a prompt;
      0 to sequence - 1 are the positions of ``input_ids``; none at all spares the largest MatMul of the graph.
      Only graphs with a language-model head have it.

    A row's last real token is the last 1 in its attention_mask: that index minus the number of cached positions, or 0.
    This holds for padding on either side and for decode steps.

    Raises:
        PackageError: the graph has neither an output ``hidden`` nor a /lm_head/MatMul fed by a final norm.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    lm_head = next((n for n in graph.node if n.name.startswith("/lm_head/MatMul")), None)
    final = next((o for o in graph.output if o.name == "hidden"), None)
    if final is not None:
        hidden, dtype = final.name, final.type.tensor_type.elem_type
        hidden_size = final.type.tensor_type.shape.dim[2].dim_value
        graph.output.remove(final)
    elif lm_head is not None and "final_norm" in lm_head.input[0]:
        hidden, hidden_size = lm_head.input[0], _hidden_size(model, lm_head)
        dtype = next(o.type.tensor_type.elem_type for o in graph.output if o.name == "logits")
    else:
        raise PackageError("the graph has no /lm_head/MatMul fed by /model/layers.{l}/final_norm_layernorm")
    constants = {"zero": 0, "one": 1, "zero_vector": [0], "one_vector": [1]}
    for key, value in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.int64), f"/class_head/{key}"))
    add_optional_input(model, "class_head.weight", dtype, ["lora_n", hidden_size, "classes"], [1, hidden_size, 0])
    if lm_head is not None:
        graph.input.append(helper.make_tensor_value_info("logits_positions", _INT64, ["logits_length"]))
        graph.initializer.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), "logits_positions"))

    def node(op: str, inputs: list[str], name: str, **attributes: int) -> str:
        output = f"/class_head/{name}/output_0"
        nodes.append(helper.make_node(op, inputs, [output], f"/class_head/{name}", **attributes))
        return output

    nodes: list[onnx.NodeProto] = []
    zero, one, one_vector = "/class_head/zero", "/class_head/one", "/class_head/one_vector"
    if lm_head is not None or pooling != "first":
        total = node("Gather", [node("Shape", ["attention_mask"], "MaskShape"), one], "Total", axis=0)
        sequence = node("Gather", [node("Shape", [hidden], "HiddenShape"), one], "Sequence", axis=0)
        cached = node("Sub", [total, sequence], "Cached")
    if lm_head is not None or pooling == "last":
        positions = node("Mul", ["attention_mask", node("Range", [zero, total, one], "Range")], "Positions")
        last = node("ReduceMax", [positions, one_vector], "Last", keepdims=1)  # (batch, 1)
        index = node("Max", [node("Sub", [last, cached], "Shift"), zero], "Index")
        row = node(
            "GatherND", [hidden, node("Unsqueeze", [index, one_vector], "Index3D")], "Row", batch_dims=1
        )  # (batch, 1, hidden)
    if pooling == "last":
        pooled = row
    elif pooling == "first":
        pooled = node("Slice", [hidden, "/class_head/zero_vector", one_vector, one_vector], "Row0")
    else:
        start = node("Unsqueeze", [cached, "/class_head/zero_vector"], "Start")
        stop = node("Unsqueeze", [total, "/class_head/zero_vector"], "Stop")
        mask = node("Slice", ["attention_mask", start, stop, one_vector], "Mask")  # of this run's tokens
        if left_out is not None:
            mask = node("Where", [left_out, zero, mask], "OwnMask")
        pooled = _over_real_tokens(model, hidden, mask, pooling, dtype, node)
    product = node("MatMul", [pooled, "class_head.weight"], "MatMul")
    nodes.append(helper.make_node("Squeeze", [product, one_vector], ["class_logits"], "/class_head/Squeeze"))
    if lm_head is not None:
        rows = node("Concat", [hidden, row], "LogitsRows", axis=1)
        lm_head.input[0] = node("Gather", [rows, "logits_positions"], "LogitsPositions", axis=1)
    rewired = type(graph)()  # protobuf lists have no insert: collect the nodes, then swap the lists
    for existing in graph.node:
        rewired.node.extend([*nodes, existing] if lm_head is not None and existing.name == lm_head.name else [existing])
    if lm_head is None:
        rewired.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(rewired.node)
    graph.output.append(helper.make_tensor_value_info("class_logits", dtype, ["batch_size", "classes"]))
    # onnxruntime-genai takes one row of logits per prompt from a graph that declares one, and all positions otherwise
    for logits in (o for o in graph.output if o.name == "logits"):
        length = logits.type.tensor_type.shape.dim[1]
        length.Clear()
        length.dim_value = 1


def _over_real_tokens(
    model: onnx.ModelProto, hidden: str, mask: str, pooling: str, dtype: int, node: Callable[..., str]
) -> str:
    """Mean or max over axis 1 of `hidden` (batch, seq, hidden) where `mask` (batch, seq) is 1: (batch, 1, hidden)."""
    from onnx import TensorProto, helper

    # what stands in the place of padding; the least number of float16 lies above bfloat16's and float32's
    fill = 0.0 if pooling == "mean" else {TensorProto.FLOAT16: -65504.0}.get(dtype, -3.3e38)
    values = [("fill", dtype, [], [fill]), ("nothing", dtype, [], [0.0]), ("two_vector", _INT64, [1], [2])]
    model.graph.initializer.extend(helper.make_tensor(f"/class_head/{n}", *rest) for n, *rest in values)
    one_vector = "/class_head/one_vector"
    counts = node("ReduceSum", [mask, one_vector], "Counts", keepdims=1)  # (batch, 1)
    real = node("Cast", [node("Unsqueeze", [mask, "/class_head/two_vector"], "Mask3D")], "Real", to=TensorProto.BOOL)
    filled = node("Where", [real, hidden, "/class_head/fill"], "Filled")
    if pooling == "max":
        largest = node("ReduceMax", [filled, one_vector], "Largest", keepdims=1)
        some = node(
            "Cast", [node("Unsqueeze", [counts, "/class_head/two_vector"], "Counts3D")], "Some", to=TensorProto.BOOL
        )
        return node("Where", [some, largest, "/class_head/nothing"], "Max")
    # shares before the product: a sum of many states may be too large for float16
    parts = [
        node("Cast", [value], f"{name}Float", to=TensorProto.FLOAT)
        for name, value in (("Mask", mask), ("Counts", node("Max", [counts, "/class_head/one"], "AtLeastOne")))
    ]
    shares = node("Cast", [node("Div", parts, "Shares")], "SharesCast", to=dtype)
    return node("MatMul", [node("Unsqueeze", [shares, one_vector], "Shares3D"), filled], "Mean")


def _hidden_size(model: onnx.ModelProto, lm_head: onnx.NodeProto) -> int:
    """Size of the final hidden state, from the language-model head that reads it."""
    if lm_head.op_type == "MatMulNBits":
        return next(a.i for a in lm_head.attribute if a.name == "K")
    shapes = {i.name: list(i.dims) for i in model.graph.initializer}
    if lm_head.input[1] not in shapes:
        raise PackageError(f"{lm_head.name}: its weight {lm_head.input[1]} must be a constant")
    return shapes[lm_head.input[1]][0]
