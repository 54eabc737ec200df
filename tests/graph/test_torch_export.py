"""Bases that go through torch's exporter: the graph, its slots and its head against transformers and PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from passes.graph.checks import check_base, check_engine, check_precision
from passes.graph.head import add_class_head
from passes.graph.slots import add_slots
from passes.graph.torch_export import export_base
from runtime.conversion import slot_tensors
from runtime.errors import ConfigError
from tests.graph.reference import dequantized_weights, run_graph
from tests.graph.torch_models import CONFIGS, DECODERS, save_adapter, save_torch_model, torch_base, torch_outputs

RANDOM = np.random.default_rng(0)


class Exported:
    """A base exported, as the exporter left it and with slots and head."""

    def __init__(self, folder: Path, kind: str, precision: str = "fp32", **quantization: Any) -> None:
        self.kind, self.base = kind, save_torch_model(folder / "base", kind)
        self.plain, self.graph = folder / "out" / "model.onnx", folder / "out" / "slots.onnx"
        self.modules = export_base(
            self.base, self.plain.parent, precision, check_precision(precision, "cpu", quantization)
        )
        model = onnx.load(self.plain, load_external_data=False)
        self.slots = add_slots(model, modules=self.modules)
        self.pooling = "last" if kind in DECODERS else "first"
        add_class_head(model, self.pooling)
        onnx.save(model, self.graph)


def rows(batch: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids, and a mask that pads the rows on the right to different lengths."""
    ids = RANDOM.integers(3, 290, (batch, length)).astype(np.int64)
    mask = np.ones_like(ids)
    for row in range(1, batch):
        mask[row, max(1, length - 2 * row) :] = 0
    return ids, mask


def pooled(hidden: np.ndarray, mask: np.ndarray, pooling: str) -> np.ndarray:
    last = mask.sum(axis=1) - 1 if pooling == "last" else np.zeros(len(mask), int)
    return hidden[np.arange(len(mask)), last]


@pytest.mark.parametrize("kind", CONFIGS)
def test_graph_slots_and_head_agree_with_transformers_and_peft(kind: str, tmp_path: Path) -> None:
    built = Exported(tmp_path, kind)
    check_base(built.base)
    assert set(built.slots) == set(built.modules)
    for shape in [(3, 9), (1, 1), (2, 40)]:  # a trace that froze a size would be wrong in one of them
        ids, mask = rows(*shape)
        wanted, real = torch_outputs(built.base, kind, ids, mask), mask.astype(bool)
        plain, found = run_graph(built.plain, ids, mask), run_graph(built.graph, ids, mask)
        for name, value in wanted.items():
            np.testing.assert_allclose(plain[name][real], value[real], atol=1e-4)
        assert found["class_logits"].shape == (shape[0], 0)
        if "logits" in wanted:
            assert np.array_equal(found["logits"], plain["logits"])  # no adapter: the base, bit for bit
            last = run_graph(built.graph, ids, mask, logits_positions=np.array([-1]))["logits"]
            ends = mask.sum(axis=1) - 1  # of each row's real tokens
            assert last.shape[:2] == (shape[0], 1)
            np.testing.assert_allclose(last[:, 0], plain["logits"][np.arange(shape[0]), ends], atol=1e-5)
    ids, mask = rows(3, 9)
    real = mask.astype(bool)
    adapter = save_adapter(tmp_path / "adapter", built.base, kind)
    tensors, info = slot_tensors(adapter, built.slots, 64)
    assert info["classes"] == 3 and info["rank"] == 4
    wanted = torch_outputs(built.base, kind, ids, mask, adapter)
    found = run_graph(built.graph, ids, mask, **tensors)
    classes = pooled(wanted["hidden"], mask, built.pooling) @ tensors["class_head.weight"][0]
    np.testing.assert_allclose(found["class_logits"], classes, atol=1e-4)
    head_alone = run_graph(built.graph, ids, mask, **{"class_head.weight": tensors["class_head.weight"]})
    states = pooled(torch_outputs(built.base, kind, ids, mask)["hidden"], mask, built.pooling)
    np.testing.assert_allclose(head_alone["class_logits"], states @ tensors["class_head.weight"][0], atol=1e-4)
    assert np.abs(head_alone["class_logits"] - found["class_logits"]).max() > 0.1
    if "logits" in wanted:
        np.testing.assert_allclose(found["logits"][real], wanted["logits"][real], atol=1e-4)


@pytest.mark.parametrize("kind, precision, options", [("gpt2", "int4", {}), ("gpt2", "int8", {}), ("bert", "int4", {})])
def test_quantized_base_with_adapter(kind: str, precision: str, options: dict[str, Any], tmp_path: Path) -> None:
    """PEFT on the weights that the graph stores gives the graph's outputs; embeddings stay as they are."""
    import torch
    from peft import PeftModel

    built = Exported(tmp_path, kind, precision, accuracy_level=1, **options)
    weights = dequantized_weights(built.graph)
    assert {f"/{name}/MatMul" for name in built.modules} == set(weights) - {"/lm_head/MatMul"}
    assert ("/lm_head/MatMul" in weights) == (kind in DECODERS)
    ids, mask = rows(3, 9)
    if kind in DECODERS:
        assert np.array_equal(run_graph(built.plain, ids, mask)["logits"], run_graph(built.graph, ids, mask)["logits"])
    model = torch_base(built.base, kind)
    for name in built.modules:
        weight = model.get_submodule(name).weight
        values = torch.from_numpy(weights[f"/{name}/MatMul"].copy())
        weight.data.copy_(values if kind == "gpt2" else values.T)  # Conv1D keeps (in, out)
    adapter = save_adapter(tmp_path / "adapter", built.base, kind)
    with torch.no_grad():
        encoder = PeftModel.from_pretrained(model, adapter).eval().get_base_model().base_model
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        hidden = encoder(**inputs).last_hidden_state.numpy()
    tensors, _ = slot_tensors(adapter, built.slots, 64)
    found = run_graph(built.graph, ids, mask, **tensors)
    wanted = pooled(hidden, mask, built.pooling) @ tensors["class_head.weight"][0]
    np.testing.assert_allclose(found["class_logits"], wanted, atol=1e-4)
    if kind in DECODERS:
        logits = hidden @ weights["/lm_head/MatMul"]
        np.testing.assert_allclose(found["logits"][mask.astype(bool)], logits[mask.astype(bool)], atol=1e-4)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"architectures": ["GPT2LMHead"]}, "did you mean 'GPT2LMHeadModel'"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "T5ForConditionalGeneration, which has no tested export"),
        ({"architectures": ["BertForMaskedLM"], "is_decoder": True}, "is_decoder is true"),
        (
            {"architectures": ["OPTForCausalLM"], "hidden_size": 1024, "word_embed_proj_dim": 512},
            "word_embed_proj_dim is 512",
        ),
    ],
)
def test_bases_without_an_export(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        check_base(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        (("int4", "cuda", None), "execution_provider is 'cuda'"),
        (("int4", "cpu", {"algorithm": "k_quant"}), "algorithm is 'k_quant'.*Valid: default, hqq"),
    ],
)
def test_targets_that_this_export_does_not_have(options: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        check_engine(tmp_path, *options)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}), encoding="utf-8")
    check_engine(tmp_path, *options)
