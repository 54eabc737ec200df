"""What can be exported: architectures and providers that are claimed, and what is refused before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from passes.graph.builder import build_base
from passes.graph.checks import ARCHITECTURES, check_base, check_precision
from passes.graph.head import add_class_head
from passes.graph.head_padding import head_layout, mark_slots
from passes.graph.slots import add_slots
from runtime.conversion import slot_tensors
from runtime.errors import ConfigError, OlivalError
from tests.conftest import save_tiny_model
from tests.graph.reference import run_graph

IDS = np.random.default_rng(0).integers(3, 290, (2, 9)).astype(np.int64)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 64
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("ernie4_5", {}),
    ("gemma", {}),
    ("gemma2", {}),
    ("granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    ("hunyuan_v1_dense", {}),
    ("llama", {"rope_parameters": LLAMA3, "mlp_bias": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}),
    ("mistral", {"sliding_window": 4}),
    ("phi3", {"original_max_position_embeddings": 128}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("smollm3", {}),
]
# heads that are widened: each way to rotate, to scale the scores, and to normalize a head
PADDED: list[tuple[str, dict[str, Any]]] = [
    ("ernie4_5", {"head_dim": 12}),
    ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 13}),
    ("llama", {"head_dim": 24, "attention_bias": True, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    ("phi3", {"head_dim": 24, "original_max_position_embeddings": 128}),
    ("qwen3", {"head_dim": 6}),
    ("smollm3", {"head_dim": 100}),
]
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj", "down_proj")


def surgery(folder: Path, base: Path | None = None) -> tuple[Path, dict[str, Any]]:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    slots = add_slots(model)
    add_class_head(model)
    onnx.save(model, folder / "slots.onnx")
    if base is not None:
        mark_slots(slots, head_layout(json.loads((base / "config.json").read_text())))
    return folder / "slots.onnx", slots


@pytest.mark.parametrize("kind, changes", [*KINDS, *PADDED])
def test_architecture_with_lora_gives_the_logits_of_peft(
    tmp_path: Path, make_peft_adapter: Callable[..., Path], kind: str, changes: dict[str, Any]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "base", kind, **changes)
    build_base(base, tmp_path / "out", "fp32", "cpu", threads=2)
    graph, slots = surgery(tmp_path / "out", base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    assert model.config.architectures[0] in ARCHITECTURES
    present = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    folder = make_peft_adapter(base, target_modules=[m for m in MODULES if m in present])
    tensors, info = slot_tensors(folder, slots, 64)
    assert len(info["target_modules"]) in (4, 7)
    with torch.no_grad():
        wanted = PeftModel.from_pretrained(model, folder).eval()(torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(run_graph(graph, IDS, **tensors)["logits"], wanted, atol=1e-4)


LONGROPE = {
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "type": "longrope",  # as in the configurations that Phi-3 models are published with
        "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
    },
}


@pytest.mark.parametrize("provider", ["cpu", "dml"])
def test_phi3_with_longrope_on_both_sides_of_its_first_context(
    tmp_path: Path, make_peft_adapter: Callable[..., Path], provider: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "base", "phi3", **LONGROPE)
    build_base(base, tmp_path / "out", "fp32" if provider == "cpu" else "fp16", provider, threads=2)
    graph, slots = surgery(tmp_path / "out")
    folder = make_peft_adapter(base, target_modules=["qkv_proj", "o_proj"])
    tensors, _ = slot_tensors(folder, slots, 64)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    for length in (9, 16, 17, 40):
        ids = np.random.default_rng(length).integers(3, 290, (1, length)).astype(np.int64)
        with torch.no_grad():
            wanted = model(torch.from_numpy(ids)).logits.numpy()
        found = run_graph(graph, ids, **tensors)["logits"].astype(np.float32)
        np.testing.assert_allclose(found, wanted, atol=1e-4 if provider == "cpu" else 0.1)


def test_every_claimed_architecture_is_tested() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    kinds = {kind for kind, _ in KINDS}
    tested = {AutoModelForCausalLM._model_mapping[type(AutoConfig.for_model(kind))].__name__ for kind in kinds}
    assert tested == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "provider, precision", [("cuda", "fp16"), ("cuda", "int4"), ("cuda", "int8"), ("dml", "fp16"), ("dml", "int4")]
)
def test_graphs_for_gpus_run_on_the_cpu(
    tiny_llama_path: Path, tmp_path: Path, make_peft_adapter: Callable[..., Path], provider: str, precision: str
) -> None:
    """Structure and numbers in half precision; the kernels of the GPU itself are not run here."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    build_base(tiny_llama_path, tmp_path, precision, provider, threads=2)
    graph, slots = surgery(tmp_path)
    first = "q_proj" if provider == "dml" else "qkv_proj"
    assert next(iter(slots)) == f"model.layers.0.attn.{first}"
    assert {entry["dtype"] for entry in slots.values()} == {"float16"}
    config = json.loads((tmp_path / "genai_config.json").read_text())
    session = config["model"]["decoder"]["session_options"]
    (options,) = session["provider_options"]
    captured = {"cuda": "enable_cuda_graph", "dml": "enable_graph_capture"}[provider]
    assert list(options) == [provider] and options[provider].get(captured, "0") == "0"  # ranks of adapters are free
    assert session["intra_op_num_threads"] == 2 and config["search"]["past_present_share_buffer"] is True
    folder = make_peft_adapter(tiny_llama_path, labels=["a", "b"])
    tensors, _ = slot_tensors(folder, slots, 64)
    found = run_graph(graph, IDS, **tensors)
    assert found["class_logits"].shape == (2, 2)
    if precision == "fp16":
        with torch.no_grad():
            model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama_path), folder)
            wanted = model.eval()(torch.from_numpy(IDS)).logits.numpy()
        np.testing.assert_allclose(found["logits"].astype(np.float32), wanted, atol=0.1)
    plain, empty = run_graph(tmp_path / "model.onnx", IDS)["logits"], run_graph(graph, IDS)["logits"]
    # the CPU provider adds in float32, and so rounds a quantized projection's output to float16 in another place
    np.testing.assert_allclose(empty, plain, atol=0 if precision == "fp16" else 0.02)


@pytest.mark.parametrize(
    "changes, messages",
    [
        (
            {"head_dim": 9},
            ["head_dim is 9", "GroupQueryAttention takes multiples of 16", "only where their size is even"],
        ),
        ({"head_dim": None, "hidden_size": 100}, ["head_dim is 25"]),
        ({"head_dim": 24, "partial_rotary_factor": 0.5}, ["head_dim is 24", "partial_rotary_factor is 1 (here 0.5)"]),
        ({"architectures": ["LlamaForCausalLn"]}, ["did you mean 'LlamaForCausalLM'"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["rope_type is yarn"]),
        (
            {"architectures": ["HunYuanDenseV1ForCausalLM"], "rope_parameters": {"rope_theta": 5e5}},
            ["rope_theta is 500000, but the builder exports HunYuanDenseV1ForCausalLM with 10000 only"],
        ),
        ({"quantization_config": {"quant_method": "awq"}}, ["quantization_config is set"]),
        ({"architectures": ["T5Model"], "head_dim": 21}, ["2 problems", "T5Model", "head_dim is 21"]),
    ],
)
def test_base_that_cannot_be_exported(
    tiny_llama_path: Path, tmp_path: Path, changes: dict[str, Any], messages: list[str]
) -> None:
    config = json.loads((tiny_llama_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ConfigError) as caught:
        check_base(tmp_path)
    for message in messages:
        assert message in str(caught.value)
    with pytest.raises(ConfigError):
        build_base(tmp_path, tmp_path / "out", "int4", "cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "precision, provider, quantization, messages",
    [
        ("int4", "cpu", {"algorithm": "gptq"}, ["worse than rounding", "take k_quant or hqq"]),
        ("fp16", "cpu", None, ["precision is 'fp16', which cpu cannot run", "Valid: fp32, int4, int8"]),
        ("int4", "gpu", None, ["execution_provider is 'gpu'", "Valid: cpu, cuda, dml"]),
        ("fp32", "cpu", {"block_size": 32}, ["block_size has no meaning at precision fp32"]),
        ("int8", "cpu", {"algorithm": "rtn"}, ["int8 has only 'default'"]),
        ("int4", "cpu", {"algorithm": "k_quant", "symmetric": True}, ["k_quant always stores zero points"]),
        (
            "int4",
            "cpu",
            {"algoritm": "rtn", "block_size": 48, "accuracy_level": 7, "symmetric": "yes"},
            ["4 problems", "did you mean 'algorithm'", "block_size is 48", "accuracy_level is 7", "symmetric is 'yes'"],
        ),
    ],
)
def test_precision_that_cannot_be_had(
    precision: str, provider: str, quantization: dict[str, Any] | None, messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_precision(precision, provider, quantization)
    for message in messages:
        assert message in str(caught.value)


def test_odd_number_of_blocks_is_refused(tiny_llama_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="intermediate_size is 96, block_size is 32"):
        build_base(tiny_llama_path, tmp_path / "out", "int4", "cpu", {"algorithm": "k_quant_last"})


def test_builder_is_silent_and_its_failure_is_not(
    tiny_llama_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    build_base(tiny_llama_path, tmp_path / "good", "fp32", "cpu", threads=3)
    assert "".join(capfd.readouterr()) == ""
    config = json.loads((tmp_path / "good" / "genai_config.json").read_text())
    assert config["model"]["decoder"]["session_options"]["intra_op_num_threads"] == 3
    assert not (tmp_path / "good" / "builder-work").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_bytes((tiny_llama_path / "config.json").read_bytes())
    with pytest.raises(OlivalError, match="exporting bad at fp32 for cpu failed"):
        build_base(tmp_path / "bad", tmp_path / "out", "fp32", "cpu")
