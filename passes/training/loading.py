"""Loads the base that a training needs; where memory runs out already then, the error says what would fit."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from passes.base_model import DEPLOYED, load_base
from passes.training.deployed_base import load_deployed, quantized_base
from passes.training.memory import Plan, deployed_bytes, estimate, shape_of
from passes.training.methods import OPTIONS
from passes.training.out_of_memory import OutOfMemory, gb, is_out_of_memory, what_is_kept
from passes.training.settings import AdapterSettings
from passes.training.store import cache_folder

_SHARE = 0.9  # of the free memory that the weights of an option may take


def load_for_training(base: Path, settings: AdapterSettings, memory: tuple[float, float], checkpoints: Path) -> Any:
    """The frozen base of folder `base`, as the settings say.

    Args:
        memory: `passes.training.memory.free_bytes` before this.
        checkpoints: folder of the training's checkpoints, which an error mentions.

    Raises OutOfMemory when the base does not fit into memory.
    """
    if settings.cpu_offload and not torch.cuda.is_available():
        print(f"train {settings.adapter_name}: cpu_offload: there is no GPU, so nothing is offloaded", file=sys.stderr)
    if settings.deployed is not None:
        quantized = quantized_base(base, settings.deployed, cache_folder())
        with _explained(base, settings, memory, checkpoints):
            return load_deployed(base, quantized, settings.compute_dtype)
    with _explained(base, settings, memory, checkpoints):
        return load_base(
            base, settings.quantization, settings.base_dtype, settings.double_quantization, settings.cpu_offload
        )


@contextmanager
def _explained(base: Path, settings: AdapterSettings, memory: tuple[float, float], checkpoints: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_message(base, settings, memory, checkpoints)) from error


def _message(base: Path, settings: AdapterSettings, memory: tuple[float, float], checkpoints: Path) -> str:
    shape, (free, whole) = shape_of(base), memory
    held = settings.quantization or settings.base_dtype

    def weights(quantization: str | None, dtype: str) -> float:
        number = 4 if dtype == "float32" else 2
        if quantization == DEPLOYED and settings.deployed is not None:
            return deployed_bytes(shape, settings.deployed, number)
        return estimate(shape, Plan(0, 0, quantization=quantization, dtype_bytes=number)).total

    choices: list[tuple[str, str | None, str]] = []
    if settings.quantization is None and settings.method in (*OPTIONS["quantization"], "lora"):
        nf4 = "method qlora with quantization nf4" if settings.method == "lora" else "quantization nf4"
        choices += [(nf4, "nf4", settings.base_dtype), (f"{nf4} and compute_dtype bfloat16", "nf4", "bfloat16")]
    if settings.base_dtype == "float32" and settings.method != "full":
        choices.append(("compute_dtype bfloat16", settings.quantization, "bfloat16"))
    sizes = [(words, weights(quantization, dtype)) for words, quantization, dtype in choices]
    found = [f"\n  - {words}: {gb(size)}" for words, size in sizes if size <= _SHARE * free]
    fits = (
        f" These would fit, the weights alone counted:{''.join(found)}"
        if found
        else " No option makes the weights fit here: take a smaller base or more memory."
    )
    need = gb(weights(settings.quantization, settings.base_dtype))
    return (
        f"adapter '{settings.adapter_name}': out of memory while loading the base as {held}: its weights need "
        f"about {need}, and {gb(free)} of {gb(whole)} were free.{fits}\n{what_is_kept(checkpoints)}"
    )
