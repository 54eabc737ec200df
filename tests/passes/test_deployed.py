"""Training on the integers of the package: the base in PyTorch, the adapters, and what the exported graph computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from passes.deployed_check import deployed_options, fill_deployed
from passes.package import write_package
from passes.training.block_quantized import BlockQuantizedEmbedding, BlockQuantizedLinear, Blocks
from passes.training.deployed_base import load_deployed, main, quantized_base
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from runtime.errors import OlivalError
from tests.conftest import save_tiny_model
from tests.graph.reference import dequantized_weights, load_dequantized, run_graph
from tests.graph.torch_models import save_torch_model
from tests.passes.conftest import mood_data, story_data

TINY = Path("models/tiny")
IDS = np.array([[1, 17, 40, 9, 88, 63, 5, 31], [1, 9, 9, 45, 12, 77, 2, 30]])


def quantized(base: Path, folder: Path, precision: str = "int4", **quantization: Any) -> Path:
    """The exported base, in this process; computed in float32, as accuracy level 1 says."""
    folder.mkdir(parents=True)
    options = {"accuracy_level": 1, **quantization}
    asked = {"precision": precision, "execution_provider": "cpu", "quantization": options}
    assert main([str(base), str(folder), json.dumps(asked)]) == 0
    return folder


@pytest.mark.parametrize("zeros", [True, False], ids=["zero-points", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_computes_as_nn_linear_with_its_values(bits: int, zeros: bool) -> None:
    """Forward and backward, in one piece and in several; the last block reaches beyond the inputs."""
    random = np.random.default_rng(0)
    out, size_in, block = 50, 40, 16
    codes = random.integers(0, 2**bits, (out, 3, block), dtype=np.uint8)
    points = random.integers(0, 2**bits, (out, 3), dtype=np.uint8)
    scales = random.random((out, 3), dtype=np.float32)
    middle = points if zeros else np.full_like(points, 2 ** (bits - 1))
    weight = ((codes.astype(np.float32) - middle[..., None]) * scales[..., None]).reshape(out, -1)[:, :size_in]
    packed = codes if bits == 8 else codes[..., ::2] | (codes[..., 1::2] << 4)
    blocks = Blocks(
        torch.from_numpy(packed), torch.from_numpy(scales), torch.from_numpy(points) if zeros else None, bits, size_in
    )
    layer = BlockQuantizedLinear(blocks, torch.arange(out, dtype=torch.float32))
    plain = torch.nn.Linear(size_in, out)
    plain.load_state_dict({"weight": torch.from_numpy(weight.copy()), "bias": torch.arange(out, dtype=torch.float32)})
    x = torch.randn(2, 5, size_in, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    for piece in (2**22, 7 * size_in):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("passes.training.block_quantized._PIECE", piece)
            found, wanted = layer(x), plain(y)
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
            x.grad = y.grad = None
            found.square().sum().backward()
            wanted.square().sum().backward()
            torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-1)
    rows = BlockQuantizedEmbedding(layer, torch.float32)(torch.tensor([[3, 49], [0, 3]]))
    assert torch.equal(rows, torch.from_numpy(weight)[torch.tensor([[3, 49], [0, 3]])])


BASES: dict[str, tuple[Callable[[Path], Path], str, dict[str, Any]]] = {
    "llama": (save_tiny_model, "int4", {"algorithm": "rtn_last"}),
    "llama, mixed bits and zero points": (save_tiny_model, "int4", {"algorithm": "k_quant_mixed", "block_size": 16}),
    "llama, int8": (save_tiny_model, "int8", {}),
    "qwen2: biases, tied": (
        lambda folder: save_tiny_model(folder, "qwen2", tie_word_embeddings=True),
        "int4",
        {"algorithm": "rtn_last", "block_size": 16},
    ),
    "qwen2: tied, head in float": (
        lambda folder: save_tiny_model(folder, "qwen2", tie_word_embeddings=True),
        "int4",
        {"nodes_to_exclude": ["/lm_head/MatMul"]},
    ),
    "phi3: packed": (
        lambda folder: save_tiny_model(folder, "phi3", original_max_position_embeddings=128),
        "int4",
        {},
    ),
    "widened heads": (lambda folder: save_tiny_model(folder, "qwen2", head_dim=8), "int4", {}),
    "gpt2": (lambda folder: save_torch_model(folder, "gpt2"), "int4", {}),
    "bert": (lambda folder: save_torch_model(folder, "bert"), "int4", {"algorithm": "hqq"}),
}


@pytest.mark.parametrize(("save", "precision", "quantization"), BASES.values(), ids=BASES)
def test_the_base_computes_as_its_graph(
    save: Callable[[Path], Path], precision: str, quantization: dict[str, Any], tmp_path: Path
) -> None:
    """onnxruntime is the reference; in float32 as well it differs in the order of sums only."""
    base = save(tmp_path / "base")
    folder = quantized(base, tmp_path / "quantized", precision, **quantization)
    model = load_deployed(base, folder)
    graph = run_graph(folder / "model.onnx", IDS)
    with torch.no_grad():
        output = model(torch.from_numpy(IDS))
    name, found = ("logits", output.logits) if "logits" in graph else ("hidden", output.last_hidden_state)
    np.testing.assert_allclose(found.numpy(), graph[name], atol=2e-4 * max(1.0, float(np.abs(graph[name]).max())))
    assert not any(p.requires_grad for p in model.parameters())


def test_values_are_those_of_the_integers(tmp_path: Path) -> None:
    """models/tiny with a graph's weights, dequantized by numpy, in plain transformers: the same to the last bit."""
    from transformers import AutoModelForCausalLM

    folder = quantized(TINY, tmp_path / "quantized", algorithm="rtn_last")
    plain: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    load_dequantized(plain, folder / "model.onnx", tied=True)
    with torch.no_grad():
        ids = torch.from_numpy(IDS)
        assert torch.equal(load_deployed(TINY, folder)(ids).logits, plain(ids).logits)


def trained(base: Path, folder: Path, cache: Path, kind: str, algorithm: str) -> Path:
    """An adapter that was trained on the integers of `quantized_base`."""
    options = deployed_options("int4", "cpu", {"algorithm": algorithm})
    arguments = {"max_steps": 12, "learning_rate": 2e-3, "per_device_train_batch_size": 4}
    settings = AdapterSettings(
        kind, method="qlora", rank=4, quantization="deployed", deployed=options, training_args=arguments
    )
    data = mood_data() if kind == "mood" else story_data()
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OLIVE_CACHE_DIR", str(cache / "workflow"))
        train_adapter(folder, base, settings, data, None)
    return folder


def blurbs() -> list[np.ndarray]:
    """Token ids (1, seq) of twelve held-out texts, as models/tiny reads them."""
    from transformers import AutoTokenizer

    lines = Path("data/samples/blurbs_validation.jsonl").read_text(encoding="utf-8").splitlines()[:12]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return [np.array([tokenizer(json.loads(line)["response"])["input_ids"]]) for line in lines]


def torch_logits(model: Any, rows: list[np.ndarray]) -> list[np.ndarray]:
    with torch.no_grad():
        return [model(torch.from_numpy(ids)).logits.numpy() for ids in rows]


def test_the_package_computes_what_was_trained(tmp_path: Path) -> None:
    """models/tiny, int4: 1e-3 at accuracy level 1; at level 4 no more than the base alone differs.

    The reference is plain transformers and PEFT with numpy's dequantized weights of the package.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from runtime.adapter_file import read_adapter

    adapter = trained(TINY, tmp_path / "story", tmp_path / "cache", "story", "rtn_last")
    rows = blurbs()
    largest, mean = {}, {}
    for level in (1, 4):
        package = tmp_path / f"level{level}"
        write_package(
            package,
            base_path=TINY,
            adapter_folders={"story": adapter},
            precision="int4",
            execution_provider="cpu",
            quantization={"algorithm": "rtn_last", "accuracy_level": level},
            name="tiny",
        )
        base: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        load_dequantized(base, package / "model.onnx", tied=True)
        alone = torch_logits(base, rows)
        together = torch_logits(PeftModel.from_pretrained(base, adapter).eval(), rows)
        tensors = read_adapter(package / "adapters" / "story.onnx_adapter")
        for name, wanted, feed in (("base", alone, {}), ("adapter", together, tensors)):
            found = [run_graph(package / "model.onnx", ids, **feed)["logits"] for ids in rows]
            differences = [np.abs(f - w) for f, w in zip(found, wanted, strict=True)]
            largest[level, name] = max(float(d.max()) for d in differences)
            mean[level, name] = float(np.mean([d.mean() for d in differences]))
    assert largest[1, "adapter"] < 1e-3
    assert 1e-3 < mean[4, "adapter"] < 1.02 * mean[4, "base"]  # noise of eight-bit activations, measured in both
    # the very integers on which it was trained
    used = quantized_base(TINY, deployed_options("int4", "cpu", {"algorithm": "rtn_last"}), tmp_path / "cache")
    exported = dequantized_weights(tmp_path / "level4" / "model.onnx")
    for name, values in dequantized_weights(used / "model.onnx").items():
        np.testing.assert_array_equal(values, exported[name])


def test_a_head_is_trained_on_them_too(tiny_llama_path: Path, tmp_path: Path) -> None:
    adapter = trained(tiny_llama_path, tmp_path / "mood", tmp_path / "cache", "mood", "default")
    record = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in record["history"] if "loss" in entry]
    assert losses[-1] < losses[0]
    info = json.loads((adapter / "adapter.json").read_text(encoding="utf-8"))
    assert info["deployed"]["quantization"]["algorithm"] == "default" and info["labels"]
    assert len(list((tmp_path / "cache" / "deployed").iterdir())) == 1


def test_a_base_that_cannot_be_quantized_is_told(tiny_llama_path: Path, tmp_path: Path) -> None:
    options = deployed_options("int4", "cpu", {"algorithm": "k_quant", "block_size": 32})
    base = save_tiny_model(tmp_path / "odd", hidden_size=96, intermediate_size=96, num_attention_heads=6)
    with pytest.raises(OlivalError, match="odd number"):
        quantized_base(base, options, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "deployed").iterdir())


class Step:
    """What the check reads of Olive's pass configuration."""

    def __init__(self, type_: str, **config: Any) -> None:
        self.type, self.config = type_, config


SEARCHED = {"olive_parameter_type": "SearchParameter", "type": "Categorical", "support": ["int4", "int8"]}
TRAINS = "passes.tone.quantization: 'deployed' trains on the integers of the package, but"
WRONG: dict[str, tuple[dict[str, Any], list[dict[str, Any]], list[str]]] = {
    "no export": ({}, [], [f"{TRAINS} the workflow has no MultiAdapterExport; add one, or take nf4 or fp4"]),
    "an export in float": (
        {},
        [{"precision": "fp32"}],
        [f"{TRAINS} the export's precision 'fp32' has none; leave it out"],
    ),
    "an export that is searched": (
        {},
        [{"precision": SEARCHED}],
        [f"{TRAINS} Olive's search would choose them after the training; `python -m search` does not"],
    ),
    "dora": (
        {"method": "dora"},
        [{}],
        [f"{TRAINS} DoRA needs a base in float or of bitsandbytes; take nf4, or qlora"],
    ),
}


@pytest.mark.parametrize(("options", "exports", "expected"), WRONG.values(), ids=WRONG)
def test_what_keeps_a_training_from_them(
    options: dict[str, Any], exports: list[dict[str, Any]], expected: list[str]
) -> None:
    steps = [Step("adapterfinetune", quantization="deployed", **options), *(Step("x.export", **e) for e in exports)]
    ours = [("tone", steps[0]), *(("export", step) for step in steps[1:])]
    assert fill_deployed(ours, "cpu") == expected


def test_the_export_s_options_are_filled_in() -> None:
    train = Step("adapterfinetune", quantization="deployed")
    other = Step("adapterfinetune", quantization="nf4", deployed={"precision": "int8"})  # not for users
    export = Step("multiadapterexport", quantization={"algorithm": "rtn_last", "accuracy_level": 1})
    assert fill_deployed([("tone", train), ("story", other), ("export", export)], "cpu") == []
    assert "deployed" not in other.config
    assert train.config["deployed"] == {
        "precision": "int4", "execution_provider": "cpu",
        "quantization": {"algorithm": "rtn_last", "block_size": 32, "symmetric": True, "nodes_to_exclude": []},
    }  # fmt: skip
