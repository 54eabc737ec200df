"""Makes a graph read virtual tokens: ids behind its vocabulary, whose embedding, or keys and values, an adapter gives.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) and prefix tuning (Li and Liang 2021, arXiv:2101.00190). An
adapter's texts begin with its virtual tokens, so positions, masks and the key-value cache count them as any others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.graph.head_padding import head_size
from passes.graph.slots import add_optional_input, insert_nodes, rename_inputs
from runtime.adapter_source import stated_config
from runtime.errors import PackageError
from runtime.virtual_tokens import ACTIVE, EMBEDDING, kind_of

if TYPE_CHECKING:
    import onnx

IS_VIRTUAL = "/virtual/IsVirtual/output_0"  # bool (batch, sequence)
SLOTS = "virtual_tokens"  # in a manifest's extra_slots: the graph takes prompt tuning
PREFIX_SLOTS = "prefix"  # and prefix tuning as well
VIRTUAL_BASES = "prompt and prefix tuning are for bases that onnxruntime-genai's builder knows"
# their embedding layer scales what it gives, so that PEFT puts its prompts behind the factor; Granite's comes later
_SCALED_EMBEDDING = ("GemmaForCausalLM", "Gemma2ForCausalLM")
_INT64, _BOOL = 7, 9  # onnx.TensorProto's numbers


def wanted_slots(adapters: Iterable[Path]) -> list[str]:
    """What of SLOTS and PREFIX_SLOTS trained adapters (PEFT folders) need."""
    kinds = {kind_of(stated_config(folder)) for folder in adapters}
    return [SLOTS] * bool(kinds & {"prompt", "prefix"}) + [PREFIX_SLOTS] * ("prefix" in kinds)


def add_virtual_tokens(model: onnx.ModelProto, base: Path, padding: Mapping[str, Any] | None, prefix: bool) -> Any:
    """Adds inputs for virtual tokens, in place. Their defaults have no virtual token: a run without computes the base.

    - ``virtual.embedding.weight``: ("lora_n", "virtual_n", hidden), default (1, 0, hidden): what stands in the place of
      the embedding of the ids from `first_id` on.
    - ``virtual.prefix.weight``: ("lora_n", "prefix_n", 1), default (1, 0, 1): 1 where a virtual token's keys and values
      are replaced. A row of a mixed batch has zeros, which leave those that have computed them.
    - ``model.layers.0.attn.qkv_proj.prefix.weight``: ("lora_n", "prefix_n", query + key + value), default without
      virtual tokens: what stands in the place of the attention's input; ``k_proj`` and ``v_proj`` where that takes the
      three apart. After bias, LoRA and norms, before the rotation of keys.

    A virtual token is picked by one-hot @ table, which works for one table (lora_n 1) and for one per row.

    Args:
        model: a graph of onnxruntime-genai's builder; weights may be left as external data.
        base: folder of the base that it was built from.
        padding: see `passes.graph.head_padding.head_layout`.
        prefix: whether the inputs for prefix tuning are added; else only the first one.

    Returns:
        {"first_id"}, with "prefix" as in `runtime.virtual_tokens.prefix_tensors` where that was added.

    Raises:
        PackageError: the graph has no embedding that reads input_ids or no attention to put the inputs beside, or its
            rotation depends on the length of the text.
    """
    from onnx import helper

    graph = model.graph
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    first_id = int(config["vocab_size"])
    dtype = next(o.type.tensor_type.elem_type for o in graph.output if o.name == "present.0.key")
    graph.initializer.extend(
        helper.make_tensor(f"/virtual/{name}", _INT64, dims, values)
        for name, dims, values in (
            ("first_id", [], [first_id]),
            ("zero", [], [0]),
            ("one", [], [1]),
            ("last_axis", [1], [2]),
        )
    )
    front: list[onnx.NodeProto] = []

    def node(target: list[onnx.NodeProto], op: str, inputs: list[str], name: str, **attributes: int) -> str:
        output = f"{name}/output_0"
        target.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def one_hot(table: str, name: str) -> str:
        """(batch, sequence, virtual), of the graph's float type."""
        size = node(front, "Gather", [node(front, "Shape", [table], f"{name}/Shape"), "/virtual/one"], f"{name}/Count")
        numbers = node(front, "Range", ["/virtual/zero", size, "/virtual/one"], f"{name}/Range")
        return node(front, "Cast", [node(front, "Equal", [offset, numbers], f"{name}/Equal")], f"{name}/Cast", to=dtype)

    is_virtual = node(front, "GreaterOrEqual", ["input_ids", "/virtual/first_id"], "/virtual/IsVirtual")
    ids = node(front, "Where", [is_virtual, "/virtual/zero", "input_ids"], "/virtual/RealIds")
    offset = node(front, "Sub", ["input_ids", "/virtual/first_id"], "/virtual/Sub")
    offset = node(front, "Unsqueeze", [offset, "/virtual/last_axis"], "/virtual/Offset")
    chosen = node(front, "Unsqueeze", [is_virtual, "/virtual/last_axis"], "/virtual/Chosen")

    embedding, last = _embedding(graph, config["architectures"][0] in _SCALED_EMBEDDING)
    embedding.input[list(embedding.input).index("input_ids")] = ids
    hidden = int(config["hidden_size"])
    add_optional_input(model, EMBEDDING, dtype, ["lora_n", "virtual_n", hidden], [1, 0, hidden])
    inserted: dict[str, list[onnx.NodeProto]] = {last.name: []}  # name of the node to follow -> new nodes
    found = node(
        inserted[last.name],
        "MatMul",
        [one_hot(EMBEDDING, "/virtual/embedding"), EMBEDDING],
        "/virtual/embedding/MatMul",
    )
    replaced = node(inserted[last.name], "Where", [chosen, found, last.output[0]], "/virtual/embedding/Where")
    rename_inputs(graph, {last.output[0]: replaced})

    layout: dict[str, Any] = {"first_id": first_id}
    before: dict[str, list[onnx.NodeProto]] = {}  # name of the node to precede -> new nodes
    if prefix:
        add_optional_input(model, ACTIVE, dtype, ["lora_n", "prefix_n", 1], [1, 0, 1])
        hot = one_hot(ACTIVE, "/virtual/prefix")
        active = node(front, "MatMul", [hot, ACTIVE], "/virtual/prefix/MatMul")
        active = node(front, "Cast", [active], "/virtual/prefix/Active", to=_BOOL)
        layout["prefix"] = _prefix_layout(base, config, padding)
        for attention in (n for n in graph.node if n.op_type == "GroupQueryAttention"):
            layer = _layer(attention, layout["prefix"])
            added: list[onnx.NodeProto] = []
            before[attention.name] = added
            path = attention.name.rpartition("/")[0]
            places = (0,) if len(layer["inputs"]) == 1 else (1, 2)
            for place, (name, size) in zip(places, layer["inputs"].items(), strict=True):
                add_optional_input(model, name, dtype, ["lora_n", "prefix_n", size], [1, 0, size])
                own = f"{path}/{name.split('.')[-3]}/prefix"
                learned = node(added, "MatMul", [hot, name], f"{own}/MatMul")
                attention.input[place] = node(added, "Where", [active, learned, attention.input[place]], f"{own}/Where")
            layout["prefix"]["layers"].append(layer)
        if len(layout["prefix"]["layers"]) != config["num_hidden_layers"]:
            raise PackageError(
                f"the graph has {len(layout['prefix']['layers'])} GroupQueryAttention nodes, but the base has "
                f"{config['num_hidden_layers']} layers"
            )
    insert_nodes(graph, inserted, before, front)
    return layout


def prefix_problem(config: Mapping[str, Any]) -> str:
    """Why a base cannot have learned keys, from its config.json; empty where it can."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type")
    if kind != "longrope":
        return ""
    return "rope_type is longrope: it rotates keys by the length of the whole text, so that learned keys fit one length"


def _embedding(graph: onnx.GraphProto, scaled: bool) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """The node that reads input_ids, and the last one of the embedding, which is behind its factor where `scaled`."""
    readers = [n for n in graph.node if "input_ids" in n.input and n.op_type in ("Gather", "GatherBlockQuantized")]
    if len(readers) != 1:
        raise PackageError(f"one node must read the embedding of input_ids, but there are {len(readers)}")
    last = readers[0]
    if scaled:
        last = next(n for n in graph.node if last.output[0] in n.input and n.op_type == "Mul")
    return readers[0], last


def _prefix_layout(base: Path, config: Mapping[str, Any], padding: Mapping[str, Any] | None) -> dict[str, Any]:
    if problem := prefix_problem(config):
        raise PackageError(f"{base / 'config.json'}: {problem}")
    size = head_size(config)
    return {
        "kv_heads": int(config.get("num_key_value_heads") or config["num_attention_heads"]),
        "size": size,
        "padded_size": padding["padded_size"] if padding else size,
        "positions": list(padding["positions"]) if padding else list(range(size)),
        "frequencies": rotary_frequencies(base),
        "interleaved": False,
        "layers": [],
    }


def _layer(attention: onnx.NodeProto, prefix: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a layer by name with their sizes, and whether its attention rotates keys."""
    numbers = {a.name: a.i for a in attention.attribute}
    width = prefix["padded_size"]
    kv = numbers["kv_num_heads"] * width
    slot = attention.name.rpartition("/")[0].removeprefix("/").replace("/", ".")
    if attention.input[1]:
        inputs = {f"{slot}.k_proj.prefix.weight": kv, f"{slot}.v_proj.prefix.weight": kv}
    else:
        inputs = {f"{slot}.qkv_proj.prefix.weight": numbers["num_heads"] * width + 2 * kv}
    prefix["interleaved"] = prefix["interleaved"] or bool(numbers.get("rotary_interleaved"))
    return {"inputs": inputs, "rotated": bool(numbers.get("do_rotary"))}


def rotary_frequencies(base: Path) -> list[float]:
    """Radians per position of each rotated pair of dimensions, as the base's own rotation in transformers has them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        rotation = AutoModelForCausalLM.from_config(config).model.rotary_emb
    return [float(value) for value in type(rotation)(config).inv_freq]
