"""DoRA's scales into slots, with numpy alone: where they go, and what is said of those that do not fit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from runtime.adapter_file import check_fits, read_adapter, write_adapter
from runtime.conversion import slot_tensors
from runtime.errors import PackageError
from runtime.stacking import stack
from tests.runtime.test_conversion import MODULE, SLOTS, lora, write_folder

DORA = {name: {**entry, "extra": ["dora"]} for name, entry in SLOTS.items()}
QKV, BASE = "model.layers.0.attn.qkv_proj", "00abcdef99"
V_PROJ, O_PROJ = (f"model.layers.0.self_attn.{name}_proj" for name in "vo")


def dora_folder(folder: Path, extra: dict[str, np.ndarray] | None = None) -> Path:
    """DoRA of v (8 -> 4) and o (8 -> 8), without scales."""
    weights = {**lora("self_attn.v_proj", 8, 4), **lora("self_attn.o_proj", 8, 8)}
    for name, size in (("v", 4), ("o", 8)):
        weights[f"{MODULE}self_attn.{name}_proj.lora_magnitude_vector"] = np.ones(size, np.float32)
    return write_folder(folder, {**weights, **(extra or {})}, use_dora=True)


def with_file(folder: Path, scales: dict[str, np.ndarray], **facts: str) -> Path:
    """The folder with a file of scales that says of itself what is right, unless `facts` says otherwise."""
    right = {"base": BASE, "weights": hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()}
    save_file(scales, folder / "dora_scale.safetensors", metadata={**right, **facts})
    return folder


def scales() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {V_PROJ: random.uniform(1, 2, 4).astype("f"), O_PROJ: random.uniform(1, 2, 8).astype("f")}


def test_a_part_of_a_packed_slot_is_scaled_alone(tmp_path: Path) -> None:
    given = scales()
    tensors, info = slot_tensors(with_file(dora_folder(tmp_path / "peft"), given), DORA, 8, BASE)
    assert info["target_modules"] == ["o_proj", "v_proj"]
    packed = tensors[f"{QKV}.lora_magnitude.weight"]
    assert packed.shape == (1, 1, 16) and (packed[0, 0, :12] == 1).all()
    np.testing.assert_array_equal(packed[0, 0, 12:], given[V_PROJ])
    np.testing.assert_array_equal(tensors["model.layers.0.attn.o_proj.lora_magnitude.weight"][0, 0], given[O_PROJ])
    assert check_fits(tensors, DORA, 8) == []
    assert "lora_magnitude.weight has no slot in the graph" in check_fits(tensors, SLOTS, 8)[0]
    short = {**tensors, f"{QKV}.lora_magnitude.weight": packed[:, :, :8]}
    assert check_fits(short, DORA, 8) == [
        f"{QKV}.lora_magnitude.weight has shape [1, 1, 8], but the graph takes [1, 1, 16]"
    ]
    path = tmp_path / "slot.onnx_adapter"
    write_adapter(path, tensors)
    again, _ = slot_tensors(path, DORA, 8)
    assert set(again) == set(read_adapter(path)) == set(tensors)
    assert all(np.array_equal(again[name], value) for name, value in tensors.items())


def test_a_stack_has_ones_where_a_row_has_no_scale() -> None:
    name = "slot.lora_magnitude.weight"
    stacked = stack([{"slot.lora_A.weight": np.ones((1, 2, 1), np.float16)}, {name: np.full((1, 1, 3), 2, np.float16)}])
    assert stacked[name].dtype == np.float16 and stacked[name].tolist() == [[[1, 1, 1]], [[2, 2, 2]]]
    assert stacked["slot.lora_A.weight"].tolist() == [[[1], [1]], [[0], [0]]]


SLOT_KEY = {f"{MODULE}self_attn.v_proj.lora_magnitude.weight": np.ones((1, 1, 4), np.float32)}


@pytest.mark.parametrize(
    ("change", "facts", "extra", "message"),
    [
        ({V_PROJ: np.ones(8, np.float32)}, {}, {}, "v_proj has 8 values, but the base has 4 outputs"),
        ({V_PROJ: None}, {}, {}, "dora_scale.safetensors has no scale of model.layers"),
        ({V_PROJ: np.full(4, np.nan, np.float32)}, {}, {}, f"not finite at float32: {QKV}.lora_magnitude.weight"),
        ({}, {"base": "11abcdef99"}, {}, "was made with another base, 11abcdef99, not 00abcdef99"),
        ({}, {"weights": "0"}, {}, "was made from other weights than those of adapter_model.safetensors"),
        ({}, {}, SLOT_KEY, "has the scale of a slot; a PEFT folder has a lora_magnitude_vector"),
    ],
)
def test_scales_that_do_not_fit_are_named(
    tmp_path: Path, change: dict[str, Any], facts: dict[str, str], extra: dict[str, np.ndarray], message: str
) -> None:
    given = {name: value for name, value in {**scales(), **change}.items() if value is not None}
    folder = with_file(dora_folder(tmp_path / "peft", extra), given, **facts)
    with pytest.raises(PackageError, match=message):
        slot_tensors(folder, DORA, 8, BASE)


def test_scales_that_are_not_there_or_lie_elsewhere(tmp_path: Path) -> None:
    folder = dora_folder(tmp_path / "peft")
    with pytest.raises(PackageError, match=rf"`python -m passes.dora {folder} --base BASE` writes it"):
        slot_tensors(folder, DORA, 8, BASE)
    with pytest.raises(PackageError, match=r"use_dora is true, but this package has no slots for DoRA.*merge"):
        slot_tensors(with_file(folder, scales()), SLOTS, 8, BASE)
    (folder / "dora_scale.safetensors").rename(tmp_path / "mine")
    (folder / "dora_scale.safetensors").symlink_to(tmp_path / "mine")
    with pytest.raises(PackageError, match="is a link that leaves the folder"):
        slot_tensors(folder, DORA, 8, BASE)
    (folder / "dora_scale.safetensors").unlink()
    (folder / "dora_scale.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PackageError, match=r"dora_scale\.safetensors: is no safetensors file"):
        slot_tensors(folder, DORA, 8, BASE)
