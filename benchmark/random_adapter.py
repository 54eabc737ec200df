"""Random LoRA adapters on all seven projections of a random base, as PEFT folders: each route converts the same one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmark.random_base import PROJECTIONS
from runtime.atomic_file import replacing


def save_random_adapter(folder: Path, base: Path, rank: int, seed: int = 0) -> None:
    """Writes a PEFT folder (float16) whose adapter changes the base's outputs; one of an earlier call is left.

    Args:
        folder: made if it does not exist.
        base: a model folder whose projections have Llama's names, such as one of `benchmark.random_base`.
        rank: the r of every projection; alpha is 2 r.
        seed: of A and B, both normal with standard deviation 0.02.
    """
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = folder / "adapter_model.safetensors"
    if path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, file in _weight_map(base).items():
        module = name.removesuffix(".weight")
        if module == name or module.rsplit(".", 1)[-1] not in PROJECTIONS:
            continue
        with safe_open(base / file, "numpy") as weights:
            size_out, size_in = weights.get_slice(name).get_shape()
        for half, size in (("A", (rank, size_in)), ("B", (size_out, rank))):
            value = (0.02 * generator.standard_normal(size, np.float32)).astype(np.float16)
            tensors[f"base_model.model.{module}.lora_{half}.weight"] = value
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(PROJECTIONS),
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})


def _weight_map(base: Path) -> dict[str, str]:
    """The file of each weight."""
    from safetensors import safe_open

    index = base / "model.safetensors.index.json"
    if index.is_file():
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    with safe_open(base / "model.safetensors", "numpy") as weights:
        return {name: "model.safetensors" for name in weights.keys()}  # noqa: SIM118 - it has no iterator
