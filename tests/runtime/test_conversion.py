"""PEFT folders and Olive's adapter files into slot tensors: what is taken, and what is refused and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runtime.adapter_file import check_fits, read_adapter, stored_base_version, write_adapter
from runtime.adapter_source import read_safetensors
from runtime.conversion import slot_tensors
from runtime.errors import PackageError
from tests.runtime.olive_files import convert_with_olive

SLOTS: dict[str, dict[str, Any]] = {
    "model.layers.0.attn.qkv_proj": {
        "in": 8,
        "out": 16,
        "parts": {"q_proj": 8, "k_proj": 4, "v_proj": 4},
        "dtype": "float32",
    },
    "model.layers.0.attn.o_proj": {"in": 8, "out": 8, "parts": {"o_proj": 8}, "dtype": "float32"},
    "model.layers.0.mlp.gate_proj": {"in": 8, "out": 12, "parts": {"gate_proj": 12}, "dtype": "float32"},
    "model.layers.0.mlp.up_proj": {"in": 8, "out": 12, "parts": {"up_proj": 12}, "dtype": "float32"},
}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "base_model_name_or_path": "somewhere/else"}
MODULE = "base_model.model.model.layers.0."


def lora(module: str, size_in: int, size_out: int, rank: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        f"{MODULE}{module}.lora_A.weight": random.normal(size=(rank, size_in)).astype(np.float32),
        f"{MODULE}{module}.lora_B.weight": random.normal(size=(size_out, rank)).astype(np.float32),
    }


def one(name: str, rows: int, columns: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {f"base_model.model.{name}": np.ones((rows, columns), dtype)}


def write_folder(folder: Path, weights: dict[str, np.ndarray], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def delta(tensors: dict[str, np.ndarray], slot: str) -> np.ndarray:
    return np.asarray((tensors[f"{slot}.lora_A.weight"] @ tensors[f"{slot}.lora_B.weight"])[0])


def test_packed_slot_is_block_diagonal_and_misses_nothing(tmp_path: Path) -> None:
    q, v = lora("self_attn.q_proj", 8, 8, rank=3), lora("self_attn.v_proj", 8, 4, rank=2, seed=1)
    tensors, info = slot_tensors(write_folder(tmp_path, {**q, **v}), SLOTS, 8)
    slot = "model.layers.0.attn.qkv_proj"
    assert tensors[f"{slot}.lora_A.weight"].shape == (1, 8, 5)
    assert tensors[f"{slot}.lora_B.weight"].shape == (1, 5, 16)
    found = delta(tensors, slot)
    (qa, qb), (va, vb) = (tuple(pair.values()) for pair in (q, v))
    np.testing.assert_allclose(found[:, :8], (qb @ qa).T * 6 / 3, rtol=1e-5)
    np.testing.assert_array_equal(found[:, 8:12], 0)
    np.testing.assert_allclose(found[:, 12:], (vb @ va).T * 6 / 2, rtol=1e-5)
    assert info == {"rank": 3, "target_modules": ["q_proj", "v_proj"], "classes": None}
    assert set(tensors) == {f"{slot}.lora_A.weight", f"{slot}.lora_B.weight"}
    assert check_fits(tensors, SLOTS, 8) == []


@pytest.mark.parametrize(
    "config, scale",
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / np.sqrt(2)),
        ({"alpha_pattern": {"o_proj": 10}}, 5.0),
        ({"alpha_pattern": {"proj": 10}}, 3.0),  # PEFT matches whole name parts
        ({"alpha_pattern": {r"layers\.\d\.self_attn\.o_proj": 1}, "use_rslora": True}, 1 / np.sqrt(2)),
        ({"r": 64, "rank_pattern": {"o_proj": 2}}, 3.0),
    ],
)
def test_scale(tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    weights = lora("self_attn.o_proj", 8, 8)
    tensors, _ = slot_tensors(write_folder(tmp_path, weights, **config), SLOTS, 8)
    a, b = weights.values()
    np.testing.assert_allclose(delta(tensors, "model.layers.0.attn.o_proj"), (b @ a).T * scale, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights(tmp_path: Path, dtype: str) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    folder = write_folder(tmp_path, lora("self_attn.o_proj", 8, 8))
    weights = {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in lora("self_attn.o_proj", 8, 8).items()}
    save_torch(weights, folder / "adapter_model.safetensors")
    tensors, _ = slot_tensors(folder, SLOTS, 8)
    a, b = (value.float().numpy() for value in weights.values())
    np.testing.assert_allclose(delta(tensors, "model.layers.0.attn.o_proj"), (b @ a).T * 3, rtol=1e-5)


def test_graph_in_half_precision_gets_half_precision(tmp_path: Path) -> None:
    slots = {name: {**entry, "dtype": "float16"} for name, entry in SLOTS.items()}
    weights = {**lora("self_attn.o_proj", 8, 8), "base_model.model.score.weight": np.ones((3, 8), np.float32)}
    tensors, info = slot_tensors(write_folder(tmp_path, weights), slots, 8)
    assert {str(value.dtype) for value in tensors.values()} == {"float16"}
    assert tensors["class_head.weight"].shape == (1, 8, 3)
    assert info["classes"] == 3
    huge = {name: value * 1e6 for name, value in lora("self_attn.o_proj", 8, 8).items()}
    with pytest.raises(PackageError, match="not finite at float16"):
        slot_tensors(write_folder(tmp_path, huge), slots, 8)


def test_projections_packed_by_the_model_itself(tmp_path: Path) -> None:
    """Phi-3 has one LoRA for q, k and v, and one for gate and up."""
    weights = {**lora("self_attn.qkv_proj", 8, 16), **lora("mlp.gate_up_proj", 8, 24, seed=1)}
    tensors, _ = slot_tensors(write_folder(tmp_path, weights), SLOTS, 8)
    qa, qb, ga, gb = weights.values()
    np.testing.assert_allclose(delta(tensors, "model.layers.0.attn.qkv_proj"), (qb @ qa).T * 3, rtol=1e-5)
    both = np.concatenate([delta(tensors, f"model.layers.0.mlp.{name}") for name in ("gate_proj", "up_proj")], axis=1)
    np.testing.assert_allclose(both, (gb @ ga).T * 3, atol=1e-6)


@pytest.mark.parametrize(
    "config, weights, message",
    [
        ({"use_dora": True}, {}, "adapter_config.json: use_dora is true"),
        ({"peft_type": "IA3"}, {}, "peft_type is 'IA3'; only LORA"),
        ({"bias": "lora_only"}, {}, "bias is 'lora_only'; slots have no bias"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa_niter_4', which changes the base's weights"),
        ({}, lora("mlp.router", 8, 4), r"model.layers.\{n\}.mlp.router has no slot in this base"),
        ({}, one("lm_head.lora_A.weight", 2, 8), "lm_head.lora_A.weight: lm_head has no slot"),
        ({}, one("model.embed_tokens.weight", 9, 8), "embed_tokens.weight: has no slot"),
        ({}, lora("self_attn.q_proj", 16, 8), r"A \[16, 2\] and B \[2, 8\], but the base takes \[8, r\] and \[r, 8\]"),
        ({}, one("score.weight", 3, 16), r"the head has shape \[3, 16\], but the base takes \[classes, 8\]"),
        ({}, one("model.layers.0.mlp.up_proj.lora_A.weight", 2, 8), "mlp.up_proj comes without its lora_B"),
        ({}, one("model.layers.0.mlp.up_proj.lora_A.weight", 2, 8, np.int32), "dtype I32; valid: BF16"),
    ],
)  # fmt: skip
def test_what_slots_cannot_hold_is_named(
    tmp_path: Path, config: dict[str, Any], weights: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        slot_tensors(write_folder(tmp_path, weights or lora("self_attn.o_proj", 8, 8), **config), SLOTS, 8)


def test_everything_wrong_in_one_error(tmp_path: Path) -> None:
    weights = {
        "base_model.model.model.embed_tokens.weight": np.ones((9, 8), np.float32),
        **lora("self_attn.o_proj", 8, 8),
    }
    folder = write_folder(tmp_path, weights, use_dora=True, bias="all")
    with pytest.raises(PackageError) as caught:
        slot_tensors(folder, SLOTS, 8)
    for part in ("use_dora", "bias is 'all'", "embed_tokens.weight", str(folder / "adapter_config.json")):
        assert part in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match=r"adapter_config\.json: there is no such file"):
        slot_tensors(tmp_path, SLOTS, 8)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(PackageError, match="is a pickle, which is never loaded"):
        slot_tensors(tmp_path, SLOTS, 8)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(PackageError, match="is no LoRA configuration, it lacks peft_type, r, lora_alpha"):
        slot_tensors(tmp_path, SLOTS, 8)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(PackageError, match="is no safetensors file"):
        slot_tensors(tmp_path, SLOTS, 8)


@pytest.mark.parametrize("file_format", ["onnx_adapter", "safetensors"])
@pytest.mark.parametrize("rslora", [False, True])
def test_files_of_olive_convert_adapters(
    tmp_path: Path, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], file_format: str, rslora: bool
) -> None:
    """Olive's own command converts a PEFT folder; both ways into slots give the same tensors."""
    folder = make_peft_adapter(tiny_llama_path, rank=6, labels=["a", "b"], use_rslora=rslora)
    target = convert_with_olive(folder, tmp_path / f"olive.{file_format}")
    slots = tiny_slots()
    wanted, info = slot_tensors(folder, slots, 64)
    found, olive_info = slot_tensors(target, slots, 64)
    assert olive_info == info
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def tiny_slots() -> dict[str, dict[str, Any]]:
    """The slot table of conftest's tiny Llama."""
    sizes = {"attn.o_proj": (64, 64), "mlp.gate_proj": (64, 96), "mlp.up_proj": (64, 96), "mlp.down_proj": (96, 64)}
    slots: dict[str, dict[str, Any]] = {}
    for layer in range(2):
        parts = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
        slots[f"model.layers.{layer}.attn.qkv_proj"] = {"in": 64, "out": 128, "parts": parts, "dtype": "float32"}
        for name, (size_in, size_out) in sizes.items():
            part = {name.split(".")[1]: size_out}
            slots[f"model.layers.{layer}.{name}"] = {"in": size_in, "out": size_out, "parts": part, "dtype": "float32"}
    return slots


def test_file_in_slot_form_passes_through(tmp_path: Path) -> None:
    tensors, info = slot_tensors(write_folder(tmp_path / "peft", lora("self_attn.v_proj", 8, 4)), SLOTS, 8)
    path = tmp_path / "ours.onnx_adapter"
    write_adapter(path, tensors, base_fingerprint="00abcdef99")
    assert stored_base_version(path) == 0x00ABCDE
    found, found_info = slot_tensors(path, SLOTS, 8)
    assert found_info == info
    assert all(np.array_equal(found[name], tensors[name]) for name in tensors)
    assert set(read_adapter(path)) == set(tensors)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.npz", b"", "an adapter is a PEFT folder"),
        ("a.onnx_adapter", b"", "is no .onnx_adapter file, .* it has 0 bytes"),
        ("a.onnx_adapter", b"plainly something else, and long enough", "is no .onnx_adapter file"),
        ("a.safetensors", b"x", "is no safetensors file"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PackageError, match=message):
        slot_tensors(tmp_path / name, SLOTS, 8)


def test_int4_adapter_of_olive_is_refused(tmp_path: Path) -> None:
    save_file(
        {"model.layers.0.self_attn.q_proj.lora_A.quant.weight": np.ones((2, 2), np.uint8).astype(np.float32)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(PackageError, match="without --quantize_int4"):
        slot_tensors(tmp_path / "a.safetensors", SLOTS, 8)


def test_check_fits_names_every_tensor() -> None:
    slot = "model.layers.0.attn.o_proj"
    good = {
        f"{slot}.lora_A.weight": np.ones((1, 8, 2), np.float32),
        f"{slot}.lora_B.weight": np.ones((1, 2, 8), np.float32),
    }
    assert check_fits(good, SLOTS, 8) == []
    assert check_fits({}, SLOTS) == ["holds no tensors"]
    (wrong_rank,) = check_fits({**good, f"{slot}.lora_B.weight": np.ones((1, 3, 8), np.float32)}, SLOTS)
    assert "[1, 3, 8], but the graph takes [1, 2, 8]" in wrong_rank
    (lonely,) = check_fits({f"{slot}.lora_A.weight": good[f"{slot}.lora_A.weight"]}, SLOTS)
    assert "without its lora_B" in lonely
    half = check_fits({name: value.astype(np.float16) for name, value in good.items()}, SLOTS)
    assert len(half) == 2 and "float16, but the graph takes float32" in half[0]
    (unknown,) = check_fits({**good, "model.layers.0.attn.o_prj.lora_A.weight": np.ones((1, 8, 2), np.float32)}, SLOTS)
    assert "did you mean 'model.layers.0.attn.o_proj.lora_A.weight'" in unknown
    (head,) = check_fits({"class_head.weight": np.ones((1, 9, 2), np.float32)}, SLOTS, 8)
    assert "[1, 8, classes]" in head


def test_safetensors_reader_agrees_with_the_library(tmp_path: Path) -> None:

    save_file(lora("self_attn.q_proj", 8, 8), tmp_path / "a.safetensors")
    wanted = load_file(tmp_path / "a.safetensors")
    found, _ = read_safetensors(tmp_path / "a.safetensors")
    assert set(found) == set(wanted)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
