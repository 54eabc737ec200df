"""Bottleneck adapters as files: what becomes of their tensors, and what is refused and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from runtime.adapter_file import check_fits, write_adapter
from runtime.adapter_report import describe_source, inspect_text, width_text
from runtime.adapter_source import read_source
from runtime.conversion import slot_tensors
from runtime.errors import PackageError
from runtime.stacking import stack
from tests.bottlenecks import PREFIX, random_tensors
from tests.runtime.test_conversion import lora

ATTN, DOWN = "model.layers.0.attn.o_proj", "model.layers.0.mlp.down_proj"
SLOTS: dict[str, dict[str, Any]] = {
    "model.layers.0.mlp.up_proj": {"in": 8, "out": 12, "parts": {"up_proj": 12}, "dtype": "float32"},
    ATTN: {"in": 8, "out": 8, "parts": {"o_proj": 8}, "dtype": "float32", "extra": ["bottleneck"]},
    DOWN: {"in": 12, "out": 8, "parts": {"down_proj": 8}, "dtype": "float32", "extra": ["bottleneck"]},
}
PLAIN = {name: {key: value for key, value in entry.items() if key != "extra"} for name, entry in SLOTS.items()}
O_PROJ = f"{PREFIX}model.layers.0.self_attn.o_proj"
Weights = dict[str, np.ndarray]


def tensors(size: int = 3, seed: int = 0) -> Weights:
    return random_tensors("llama", size, seed, hidden=8, layers=1)


def write_folder(folder: Path, weights: Weights, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "BOTTLENECK", "bottleneck_size": 3, **config}), encoding="utf-8"
    )
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def test_tensors_go_into_their_slots_turned_round(tmp_path: Path) -> None:
    weights = {**tensors(), f"{PREFIX}score.weight": np.ones((2, 8), np.float32)}
    found, info = slot_tensors(write_folder(tmp_path / "a", weights, activation="gelu"), SLOTS, 8)
    assert info == {"rank": 0, "target_modules": ["down_proj", "o_proj"], "classes": 2, "bottleneck_size": 3}
    assert width_text(info) == "bottleneck 3" and width_text({"rank": 4}) == "rank 4"
    for part, shape in (("down.weight", (1, 8, 3)), ("down.bias", (1, 1, 3)), ("up.weight", (1, 3, 8))):
        assert found[f"{ATTN}.bottleneck_{part}"].shape == shape
        np.testing.assert_array_equal(
            found[f"{ATTN}.bottleneck_{part}"][0], np.atleast_2d(weights[f"{O_PROJ}.bottleneck_{part}"].T)
        )
    np.testing.assert_array_equal(
        found[f"{DOWN}.bottleneck_up.bias"][0, 0], weights[f"{PREFIX}model.layers.0.mlp.down_proj.bottleneck_up.bias"]
    )
    assert len(found) == 9 and check_fits(found, SLOTS, 8) == []
    write_adapter(tmp_path / "a.onnx_adapter", found)
    again, again_info = slot_tensors(tmp_path / "a.onnx_adapter", SLOTS, 8)
    assert again_info == info and all(np.array_equal(again[name], found[name]) for name in found)
    facts = describe_source(read_source(tmp_path / "a"))
    assert (facts["kind"], facts["bottleneck_sizes"], facts["targets"], facts["notes"]) == (
        "bottleneck",
        [3],
        ["down_proj", "o_proj"],
        [],
    )
    assert "bottleneck_sizes  3" in inspect_text(facts)


def test_graph_in_half_precision_gets_half_precision(tmp_path: Path) -> None:
    slots = {name: {**entry, "dtype": "float16"} for name, entry in SLOTS.items()}
    found, _ = slot_tensors(write_folder(tmp_path, tensors()), slots, 8)
    assert {str(value.dtype) for value in found.values()} == {"float16"}
    huge = {name: value * np.float32(1e6) for name, value in tensors().items()}
    with pytest.raises(PackageError, match="not finite at float16"):
        slot_tensors(write_folder(tmp_path, huge), slots, 8)


def changed(name: str, value: np.ndarray | None) -> Weights:
    """With one tensor of o_proj in another form, or without it."""
    weights = tensors()
    del weights[f"{O_PROJ}.bottleneck_{name}"]
    return weights if value is None else {**weights, f"{O_PROJ}.bottleneck_{name}": value.astype(np.float32)}


def renamed(old: str, new: str) -> Weights:
    return {name.replace(old, new): value for name, value in tensors().items()}


HOMELESS = "has no slot for a bottleneck adapter; the last projections of attention and MLP have"
WRONG: dict[str, tuple[Callable[[], Weights], dict[str, Any], str]] = {
    "half": (lambda: changed("up.bias", None), {}, "self_attn.o_proj comes without its bottleneck_up.bias"),
    "shape": (lambda: changed("down.weight", np.ones((3, 9))), {}, "bottleneck_down.weight [1, 9, 3]"),
    "turned": (lambda: changed("down.weight", np.ones((8, 3))), {}, "bottleneck_down.weight [1, 3, 8]"),
    "sizes": (lambda: changed("up.weight", np.ones((8, 4))), {}, "bottleneck_up.weight [1, 4, 8]"),
    "dimensions": (lambda: changed("up.bias", np.ones((1, 8))), {}, "bottleneck_up.bias [1, 8], but the base takes"),
    "no size": (lambda: tensors(0), {}, "o_proj has size 0, but bottleneck_size is 3"),
    "another size": (tensors, {"bottleneck_size": 4}, "o_proj has size 3, but bottleneck_size is 4"),
    "NaN": (lambda: changed("up.weight", np.full((8, 3), np.nan)), {}, "up.weight: holds values that are not finite"),
    "layer": (lambda: renamed("layers.0", "layers.7"), {}, f"o_proj {HOMELESS}"),
    "projection": (lambda: renamed("self_attn.o_proj", "mlp.up_proj"), {}, f"mlp.up_proj {HOMELESS}"),
    "twice": (lambda: {**tensors(), **renamed("self_attn", "attn")}, {}, "is taken by another tensor"),
    "of PEFT": (
        tensors,
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2},
        "is of a bottleneck adapter, but peft_type is 'LORA', not 'BOTTLENECK'",
    ),
    "LoRA too": (
        lambda: {**tensors(), **lora("mlp.up_proj", 8, 12)},
        {},
        "lora_A.weight: is of a LoRA, but peft_type is 'BOTTLENECK'",
    ),
    "no size in the configuration": (
        tensors,
        {"bottleneck_size": None},
        "adapter_config.json: bottleneck_size is None, but must be a whole number from 1 to 65536",
    ),
    "true": (tensors, {"bottleneck_size": True}, "bottleneck_size is True"),
    "zero": (tensors, {"bottleneck_size": 0}, "bottleneck_size is 0"),
    "activation": (tensors, {"activation": "relu"}, "activation is relu; slots compute 'gelu'"),
    "head": (lambda: {f"{PREFIX}score.weight": np.ones((2, 9), np.float32)}, {}, "the head has shape [2, 9]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str) -> None:
    make, config, message = WRONG[name]
    folder = write_folder(tmp_path, make(), **config)
    with pytest.raises(PackageError) as caught:
        slot_tensors(folder, SLOTS, 8)
    assert message in str(caught.value)


def test_a_package_without_such_slots_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PackageError) as caught:
        slot_tensors(write_folder(tmp_path, tensors()), PLAIN, 8)
    (line,) = str(caught.value).splitlines()[1:]
    assert "is a bottleneck adapter, but this package's graph has no slots for them" in line
    assert line.endswith("export it again with a pass of method 'bottleneck'")


def test_manifests_check_such_tensors(tmp_path: Path) -> None:
    good, _ = slot_tensors(write_folder(tmp_path, tensors()), SLOTS, 8)
    assert check_fits(good, SLOTS, 8) == []
    (lonely,) = check_fits({name: v for name, v in good.items() if name != f"{ATTN}.bottleneck_up.weight"}, SLOTS, 8)
    assert lonely == f"{ATTN} comes without its bottleneck_up.weight"
    (narrow,) = check_fits({**good, f"{ATTN}.bottleneck_up.bias": np.ones((1, 1, 7), np.float32)}, SLOTS, 8)
    assert narrow.startswith(f"{ATTN} has ") and "bottleneck_up.bias [1, 1, 7]" in narrow
    assert len(check_fits(good, PLAIN, 8)) == 8
    half = {**good, f"{ATTN}.bottleneck_up.bias": good[f"{ATTN}.bottleneck_up.bias"].astype(np.float16)}
    assert check_fits(half, SLOTS, 8) == [f"{ATTN}.bottleneck_up.bias has dtype float16, but the graph takes float32"]


def test_stacks_pad_sizes_with_zeros_that_change_nothing(tmp_path: Path) -> None:
    import torch

    small, _ = slot_tensors(write_folder(tmp_path / "s", tensors(2), bottleneck_size=2), SLOTS, 8)
    large, _ = slot_tensors(write_folder(tmp_path / "l", tensors(5, 1), bottleneck_size=5), SLOTS, 8)
    stacked, y = stack([small, {}, large]), np.random.default_rng(0).normal(size=(3, 4, 8)).astype("f")

    def added(values: Weights, y: np.ndarray) -> np.ndarray:
        down, d, up, u = (
            values[f"{ATTN}.bottleneck_{part}"] for part in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        return np.asarray(torch.nn.functional.gelu(torch.from_numpy(y @ down + d)).numpy() @ up + u)

    found = added(stacked, y)
    np.testing.assert_allclose(found[0], added(small, y[:1])[0], atol=1e-6)
    np.testing.assert_array_equal(found[1], 0)
    np.testing.assert_allclose(found[2], added(large, y[2:])[0], atol=1e-6)
