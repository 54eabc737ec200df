"""Slots that take A in eight bits: the base without adapters, PEFT's logits nearly, and less error than int4 makes."""

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
from passes.package import write_package
from runtime.adapter_file import check_fits, read_adapter, write_adapter
from runtime.conversion import slot_tensors
from runtime.errors import PackageError
from runtime.lora_quantization import quantize_a
from runtime.model import MultiAdapterModel
from tests.graph.reference import run_graph
from tests.graph.test_slots import torch_logits

IDS = np.random.default_rng(0).integers(3, 290, (3, 9)).astype(np.int64)
Graphs = dict[str, tuple[Path, dict[str, Any]]]  # form -> graph and slot table


@pytest.fixture(scope="module")
def int4(tiny_llama_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """An int4 base: as it was built, with float slots, with 8-bit slots."""
    folder = tmp_path_factory.mktemp("int4")
    build_base(tiny_llama_path, folder, "int4", "cpu", None, threads=2)
    graphs: Graphs = {"plain": (folder / "model.onnx", {})}
    for form in ("float", "int8"):
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        slots = add_slots(model, form)
        add_class_head(model)
        onnx.save(model, folder / f"{form}.onnx")
        graphs[form] = folder / f"{form}.onnx", slots
    return graphs


def test_quantize_a_is_off_by_half_a_step() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(40, 6)).astype(np.float32), generator.normal(size=(6, 9)).astype(np.float32)
    a[:, 2] = 0
    quantized, scaled = quantize_a(a, b)
    assert quantized.dtype == np.uint8 and quantized.min() >= 1
    step = np.abs(a).max(axis=0) / 127
    error = np.abs((quantized.astype(np.float64) - 128) @ scaled - a @ b)
    assert (error <= 40 * (step / 2 @ np.abs(b)) + 1e-5).all()
    assert (quantized[:, 2] == 128).all()
    np.testing.assert_allclose((quantized - 128.0)[:, :2] * step[:2], a[:, :2], atol=step.max() / 2 + 1e-6)


def test_without_adapter_the_base_is_unchanged(int4: Graphs) -> None:
    assert np.array_equal(run_graph(int4["plain"][0], IDS)["logits"], run_graph(int4["int8"][0], IDS)["logits"])


def test_error_is_below_the_base_s_own(
    int4: Graphs, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = make_peft_adapter(tiny_llama_path, rank=64)
    found = {}
    for form in ("float", "int8"):
        graph, slots = int4[form]
        found[form] = run_graph(graph, IDS, **slot_tensors(folder, slots, 64)[0])["logits"]
    base = run_graph(int4["plain"][0], IDS)["logits"]
    with torch.no_grad():
        exact = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()(torch.from_numpy(IDS)).logits.numpy()
    error, noise = np.abs(found["int8"] - found["float"]), np.abs(base - exact)
    assert 0 < error.mean() < noise.mean()
    assert np.abs(found["float"] - base).mean() > 2 * noise.mean()  # the adapter does something


def test_each_row_its_own_adapter(int4: Graphs, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]) -> None:
    """A row's result differs only by the rounding of x, whose scale is the batch's."""
    graph, slots = int4["int8"]
    folders = [make_peft_adapter(tiny_llama_path, rank=8, seed=seed) for seed in range(3)]
    rows = [slot_tensors(folder, slots, 64)[0] for folder in folders]
    mixed = run_graph(graph, IDS, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    for index, row in enumerate(rows):
        alone = run_graph(graph, IDS[index : index + 1], **row)["logits"][0]
        moved = np.abs(alone - run_graph(graph, IDS[index : index + 1])["logits"][0]).mean()
        assert np.abs(mixed["logits"][index] - alone).mean() < 0.1 * moved


def test_adapter_file(
    int4: Graphs, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """Tensors come back from a file, onnxruntime-genai generates with it, and float tensors are rounded."""
    import json

    import onnxruntime_genai as og

    graph, slots = int4["int8"]
    folder = make_peft_adapter(tiny_llama_path, rank=8)
    tensors = slot_tensors(folder, slots, 64)[0]
    write_adapter(tmp_path / "a.onnx_adapter", tensors)
    assert check_fits(read_adapter(tmp_path / "a.onnx_adapter"), slots, 64) == []
    assert slot_tensors(tmp_path / "a.onnx_adapter", slots, 64)[1]["rank"] == 8
    write_adapter(tmp_path / "float.onnx_adapter", slot_tensors(folder, int4["float"][1], 64)[0])
    assert (
        "lora_A.weight has dtype float32, but the graph takes uint8"
        in check_fits(read_adapter(tmp_path / "float.onnx_adapter"), slots, 64)[0]
    )
    for again in ("a", "float"):  # what is 8-bit already comes back as it is
        for name, value in slot_tensors(tmp_path / f"{again}.onnx_adapter", slots, 64)[0].items():
            np.testing.assert_allclose(value, tensors[name], rtol=1e-6)

    config = og.Config(str(graph.parent))
    config.clear_providers()
    config.overlay(json.dumps({"model": {"decoder": {"filename": graph.name}}}))
    model = og.Model(config)
    adapters = og.Adapters(model)
    adapters.load(str(tmp_path / "a.onnx_adapter"), "a")
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=20)
    generator = og.Generator(model, params)
    generator.set_active_adapter(adapters, "a")
    generator.append_tokens(IDS[0].tolist())
    wanted = run_graph(graph, IDS[:1], **tensors)["logits"][0, -1]
    np.testing.assert_allclose(generator.get_logits()[0, 0], wanted, atol=1e-3)


def test_package(tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path: Path) -> None:
    """A package with 8-bit slots is checked, loaded and run like any other."""
    folder = make_peft_adapter(tiny_llama_path, rank=8, labels=["a", "b"])
    manifest = write_package(
        tmp_path / "package",
        base_path=tiny_llama_path,
        adapter_folders={"mood": folder},
        precision="fp32",
        execution_provider="cpu",
        adapter_precision="int8",
        threads=2,
        name="p",
    )
    assert {slot["a_dtype"] for slot in manifest["slots"].values()} == {"uint8"}
    model = MultiAdapterModel.load(tmp_path / "package")
    found = model.logits(IDS, adapter="mood")
    wanted, base = torch_logits(tiny_llama_path, folder, IDS), model.logits(IDS)
    assert np.abs(found - wanted).mean() < 0.05 * np.abs(base - wanted).mean()


def test_half_precision_graphs_are_refused(int4: Graphs) -> None:
    model = onnx.load(int4["plain"][0], load_external_data=False)
    output = next(o for o in model.graph.output if o.name == "present.0.key")
    output.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(PackageError, match="need a graph in float32, but this one is in float16"):
        add_slots(model, "int8")
