"""Adapter slots and the classification head, against transformers and PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from passes.graph.builder import build_base
from passes.graph.head import add_class_head
from passes.graph.slots import add_slots
from runtime.conversion import slot_tensors
from runtime.errors import PackageError
from tests.graph.reference import load_dequantized, run_graph

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K"
IDS = np.random.default_rng(0).integers(3, 290, (3, 9)).astype(np.int64)


class Built:
    """A base built twice: as the builder left it, and with slots and head."""

    def __init__(self, base: Path, folder: Path, precision: str, **quantization: Any) -> None:
        self.base, self.plain, self.graph = base, folder / "model.onnx", folder / "slots.onnx"
        build_base(base, folder, precision, "cpu", quantization or None, threads=2)
        model = onnx.load(self.plain, load_external_data=False)
        self.slots = add_slots(model)
        add_class_head(model)
        onnx.save(model, self.graph)

    def adapter(self, folder: Path) -> dict[str, np.ndarray]:
        return slot_tensors(folder, self.slots, 64)[0]


@pytest.fixture(scope="module")
def llama(tiny_llama_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tiny_llama_path, tmp_path_factory.mktemp("llama"), "fp32")


def torch_logits(base: Path, adapter: Path | None, ids: np.ndarray) -> np.ndarray:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return np.asarray(model.eval()(torch.from_numpy(ids)).logits.numpy())


def test_slot_table_and_inputs(llama: Built) -> None:
    assert list(llama.slots)[:5] == [
        f"model.layers.0.{t}" for t in ("attn.qkv_proj", "attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    qkv = {"in": 64, "out": 128, "parts": {"q_proj": 64, "k_proj": 32, "v_proj": 32}, "dtype": "float32"}
    assert llama.slots["model.layers.0.attn.qkv_proj"] == qkv
    assert llama.slots["model.layers.1.mlp.down_proj"] == {
        "in": 96,
        "out": 64,
        "parts": {"down_proj": 64},
        "dtype": "float32",
    }
    graph = onnx.load(llama.graph, load_external_data=False).graph
    inputs = [i.name for i in graph.input]
    assert len(inputs) == len(set(inputs))
    shapes = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    defaults = {i.name: list(i.dims) for i in graph.initializer}
    slot = "model.layers.0.attn.qkv_proj"
    assert shapes[f"{slot}.lora_A.weight"] == ["lora_n", 64, f"{slot}.lora_r"]
    assert shapes[f"{slot}.lora_B.weight"] == ["lora_n", f"{slot}.lora_r", 128]
    assert (defaults[f"{slot}.lora_A.weight"], defaults[f"{slot}.lora_B.weight"]) == ([1, 64, 0], [1, 0, 128])
    assert shapes["class_head.weight"] == ["lora_n", 64, "classes"]


@pytest.mark.parametrize(
    "precision, quantization", [("fp32", {}), ("int8", {}), ("int4", {}), ("int4", {"algorithm": "rtn_last"})]
)
def test_without_adapter_the_base_is_unchanged(
    tiny_qwen2_path: Path, tmp_path: Path, precision: str, quantization: dict[str, Any]
) -> None:
    built = Built(tiny_qwen2_path, tmp_path, precision, **quantization)
    mask = np.ones_like(IDS)
    mask[1, 6:] = 0
    before, after = run_graph(built.plain, IDS, mask), run_graph(built.graph, IDS, mask)
    assert np.array_equal(before["logits"], after["logits"])
    assert np.isfinite(after["logits"]).all()
    assert after["class_logits"].shape == (3, 0)


@pytest.mark.parametrize(
    "lora",
    [
        {"rank": 4},
        {"rank": 8, "use_rslora": True},
        {
            "rank": 8,
            "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5},
            "alpha_pattern": {"v_proj": 3, "model.layers.0.self_attn.o_proj": 7},
        },
        {"rank": 4, "target_modules": ["q_proj", "v_proj"]},
        {"rank": 3, "target_modules": ["down_proj"]},
    ],
)
def test_adapter_gives_the_logits_of_peft(
    llama: Built, make_peft_adapter: Callable[..., Path], lora: dict[str, Any]
) -> None:
    folder = make_peft_adapter(llama.base, **lora)
    wanted = torch_logits(llama.base, folder, IDS)
    found = run_graph(llama.graph, IDS, **llama.adapter(folder))["logits"]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found - run_graph(llama.graph, IDS)["logits"]).max() > 0.1


def test_attention_bias_and_tied_embeddings(
    tiny_qwen2_path: Path, tmp_path: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    built = Built(tiny_qwen2_path, tmp_path, "fp32")
    folder = make_peft_adapter(tiny_qwen2_path, rank=4)
    np.testing.assert_allclose(
        run_graph(built.graph, IDS)["logits"], torch_logits(tiny_qwen2_path, None, IDS), atol=1e-4
    )
    found = run_graph(built.graph, IDS, **built.adapter(folder))["logits"]
    np.testing.assert_allclose(found, torch_logits(tiny_qwen2_path, folder, IDS), atol=1e-4)


@pytest.mark.parametrize(
    "quantization",
    [
        {},
        {"symmetric": False},
        {"algorithm": "rtn"},
        {"algorithm": "k_quant_last", "block_size": 16},
        {"algorithm": "k_quant_mixed", "block_size": 16},
        {"algorithm": "hqq"},
    ],
)
def test_quantized_base_with_adapter(
    tiny_qwen2_path: Path, tmp_path: Path, make_peft_adapter: Callable[..., Path], quantization: dict[str, Any]
) -> None:
    """PEFT on the weights that the graph stores gives the graph's logits; the adapter itself is not quantized."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    built = Built(tiny_qwen2_path, tmp_path, "int4", accuracy_level=1, **quantization)
    folder = make_peft_adapter(tiny_qwen2_path, rank=4)
    model = AutoModelForCausalLM.from_pretrained(tiny_qwen2_path)
    load_dequantized(model, built.plain, tied=quantization.get("algorithm") in ("rtn", "k_quant_last", "k_quant_mixed"))
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(model, folder).eval()(torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(run_graph(built.graph, IDS, **built.adapter(folder))["logits"], wanted, atol=1e-4)


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not here")
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_intermediate_size_that_no_block_divides(
    tmp_path: Path, make_peft_adapter: Callable[..., Path], precision: str
) -> None:
    """stories260K: intermediate size 172, tied embeddings, trained weights."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    quantization = {"accuracy_level": 1} if precision == "int4" else {}
    built = Built(STORIES, tmp_path, precision, **quantization)
    folder = make_peft_adapter(STORIES, rank=8)
    model = AutoModelForCausalLM.from_pretrained(STORIES)
    load_dequantized(model, built.plain, tied=False)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(model, folder).eval()(torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(run_graph(built.graph, IDS, **built.adapter(folder))["logits"], wanted, atol=2e-4)


def stack(adapters: list[dict[str, np.ndarray]], slots: dict[str, Any]) -> dict[str, np.ndarray]:
    """One adapter per row: ranks are padded with zeros to the largest, an adapter without a slot gets rank 0 there."""
    stacked = {}
    for slot, entry in slots.items():
        for half, axis in (("A", 2), ("B", 1)):
            name = f"{slot}.lora_{half}.weight"
            empty = np.zeros((1, entry["in"], 0) if half == "A" else (1, 0, entry["out"]), np.float32)
            values = [a.get(name, empty) for a in adapters]
            widest = max(v.shape[axis] for v in values)
            pads = [[(0, widest - v.shape[axis]) if i == axis else (0, 0) for i in range(3)] for v in values]
            stacked[name] = np.concatenate([np.pad(v, p) for v, p in zip(values, pads, strict=True)])
    heads = [a["class_head.weight"] for a in adapters]
    widest = max(h.shape[2] for h in heads)
    stacked["class_head.weight"] = np.concatenate(
        [np.pad(h, ((0, 0), (0, 0), (0, widest - h.shape[2]))) for h in heads]
    )
    return stacked


def test_each_row_its_own_adapter(llama: Built, make_peft_adapter: Callable[..., Path]) -> None:
    folders = [
        make_peft_adapter(llama.base, rank=4, labels=["a", "b"]),
        make_peft_adapter(llama.base, rank=8, seed=1, labels=["a", "b", "c"]),
        make_peft_adapter(llama.base, rank=2, seed=2, labels=["a", "b"], target_modules=["v_proj"]),
    ]
    adapters = [llama.adapter(folder) for folder in folders]
    mixed = run_graph(llama.graph, IDS, **stack(adapters, llama.slots))
    for row, adapter in enumerate(adapters):
        alone = run_graph(llama.graph, IDS[row : row + 1], **adapter)
        np.testing.assert_allclose(mixed["logits"][row], alone["logits"][0], atol=1e-4)
        classes = adapter["class_head.weight"].shape[2]
        np.testing.assert_allclose(mixed["class_logits"][row, :classes], alone["class_logits"][0], atol=1e-4)


def final_states(base: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Hidden states after the final norm, by transformers."""
    import torch
    from transformers import AutoModel

    with torch.no_grad():
        output = AutoModel.from_pretrained(base).eval()(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    return np.asarray(output.last_hidden_state.numpy())


def test_head_reads_the_last_real_token(llama: Built) -> None:
    weight = np.random.default_rng(1).normal(size=(1, 64, 5)).astype(np.float32)
    mask = np.ones_like(IDS)
    mask[0, 4:] = 0
    mask[2, 1:] = 0
    states = final_states(llama.base, IDS, mask)
    found = run_graph(llama.graph, IDS, mask, **{"class_head.weight": weight})["class_logits"]
    wanted = np.stack([states[0, 3], states[1, 8], states[2, 0]]) @ weight[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def head_alone() -> bytes:
    """A graph of nothing but lm_head and classification head; its input ``final_norm`` (batch, seq, 4) is the state."""
    value, floats, ints = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    node = onnx.helper.make_node("MatMul", ["final_norm", "w"], ["logits"], "/lm_head/MatMul")
    weight = onnx.numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
    inputs = [value("final_norm", floats, ["b", "s", 4]), value("attention_mask", ints, ["b", "t"])]
    graph = onnx.helper.make_graph([node], "g", inputs, [value("logits", floats, ["b", "s", 2])], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    add_class_head(model)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    "mask, sequence, position",
    [
        ([1, 1, 1, 1], 4, 3),
        ([1, 1, 0, 0], 4, 1),  # right padding
        ([0, 0, 1, 1], 4, 3),  # left padding
        ([0, 1, 1, 0], 4, 2),  # both
        ([1, 1, 1, 1], 1, 0),  # decode step: three positions are cached
        ([0, 1, 1, 1], 1, 0),  # decode step of a row that was padded on the left
        ([1, 1, 1, 0], 2, 0),  # two new positions, of which one is padding
        ([1, 0, 0, 0], 2, 0),  # the last real token is in the cache
        ([0, 0, 0, 0], 4, 0),  # nothing real at all
    ],
)
def test_head_position(mask: list[int], sequence: int, position: int) -> None:
    import onnxruntime

    states = np.random.default_rng(0).normal(size=(2, sequence, 4)).astype(np.float32)
    feed = {
        "final_norm": states,
        "attention_mask": np.array([mask, [1] * len(mask)]),
        "class_head.weight": np.eye(4, dtype=np.float32)[None],
    }
    session = onnxruntime.InferenceSession(head_alone(), providers=["CPUExecutionProvider"])
    found = session.run(["class_logits"], feed)[0]
    np.testing.assert_array_equal(found, [states[0, position], states[1, -1]])


def test_logits_positions(llama: Built) -> None:
    """Chosen positions, none, and by default each row's last real token."""
    import onnxruntime

    mask = np.ones_like(IDS)
    mask[1, 5:] = 0
    full = run_graph(llama.graph, IDS, mask)["logits"]
    some = run_graph(llama.graph, IDS, mask, logits_positions=np.array([3, 0, -1]))["logits"]
    np.testing.assert_allclose(some[0], full[0, [3, 0, -1]], atol=1e-5)
    none = run_graph(llama.graph, IDS, mask, logits_positions=np.zeros(0, np.int64))["logits"]
    assert none.shape == (3, 0, full.shape[2])
    session = onnxruntime.InferenceSession(llama.graph, providers=["CPUExecutionProvider"])
    feed = {"input_ids": IDS, "attention_mask": mask}
    feed |= {
        i.name: np.zeros((3, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past")
    }
    last = session.run(["logits"], feed)[0]
    np.testing.assert_allclose(last[:, 0], full[[0, 1, 2], [-1, 4, -1]], atol=1e-5)


def test_graph_of_another_builder_is_refused() -> None:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["present.0.key"], "/encoder/MatMul")], "g",
        [value("x", 1, [1, 2]), value("w", 1, [2, 2])], [value("present.0.key", 1, [1, 2])],
    )  # fmt: skip
    with pytest.raises(PackageError, match="no MatMul named"):
        add_slots(onnx.helper.make_model(graph))
    with pytest.raises(PackageError, match="lm_head"):
        add_class_head(onnx.helper.make_model(graph))
