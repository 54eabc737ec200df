"""Computes what DoRA multiplies each output with, m / |W + s B A|, from the base's weights, which a package lacks.

`python -m passes.dora FOLDER --base BASE` writes it beside the weights of a PEFT folder, for `runtime.adapters add`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from passes.base_model import load_base, local_folder, quieten_transformers
from passes.merged_base import changes_from_peft
from runtime.adapter_source import CONFIG, SCALES_FILE, Scales, Source, read_source, stated_config
from runtime.atomic_file import replacing
from runtime.errors import OlivalError, PackageError
from runtime.manifest import base_fingerprint, file_sha256


class BaseWeights:
    """Float32 weights of a base by layer, as PEFT sees them; the base is loaded when the first one is asked for."""

    def __init__(self, base: Path, fingerprint: str | None = None) -> None:
        self.base = base
        self.fingerprint = fingerprint or base_fingerprint(base)

    @cached_property
    def _model(self) -> Any:
        return load_base(self.base)

    @property
    def hidden_size(self) -> int:
        return int(self._model.config.hidden_size)

    def weight(self, layer: str) -> np.ndarray:
        """Weight (out, in) of a linear layer, such as model.layers.0.self_attn.q_proj.

        Raises:
            PackageError: the base has no such layer.
        """
        from transformers.pytorch_utils import Conv1D

        try:
            module = self._model.get_submodule(layer)
        except AttributeError as error:
            raise PackageError(f"{self.base}: has no layer {layer}, which the adapter was trained on") from error
        weight: np.ndarray = module.weight.detach().float().cpu().numpy()
        return weight.T if isinstance(module, Conv1D) else weight


def uses_dora(source: Path) -> bool:
    """Whether a folder's adapter_config.json asks for DoRA; what else is wrong with it, reading it says."""
    return stated_config(source).get("use_dora") is True


def with_scales(source: Source, weights: BaseWeights) -> Source:
    """A DoRA folder as it was read, with the scale of each output; raises as `dora_scales`."""
    scales = dora_scales(source, weights)
    return replace(source, scales=scales, sha256=scales.weights)


def dora_scales(source: Source, weights: BaseWeights) -> Scales:
    """The scale of each output of the layers of a DoRA folder.

    Raises:
        PackageError: the adapter is damaged, or was trained on another base.
    """
    changes, _ = changes_from_peft(source, weights.hidden_size)
    scales, problems = {}, []
    for layer, change in changes.items():
        weight, size = weights.weight(layer), (change.b.shape[1], change.a.shape[0])
        if weight.shape != size:
            problems.append(f"{source.path}: {layer} was made for {list(size)}, but the base has {list(weight.shape)}")
            continue
        if (scale := change.scale(weight)) is not None:
            scales[layer] = scale.astype(np.float32)
    if problems:
        raise PackageError("\n".join(problems[:20]))
    return Scales(scales, weights.fingerprint, file_sha256(source.path))


def write_scales(folder: Path, base: Path) -> Path:
    """Writes the scales beside the weights of a DoRA folder, in one step. Returns the file.

    Raises:
        PackageError: `folder` holds no sound DoRA adapter, or one of another base.
    """
    from safetensors.numpy import save_file

    if not uses_dora(folder):
        raise PackageError(f"{folder}: is no DoRA adapter, it has no {CONFIG} with use_dora true")
    scales = dora_scales(read_source(folder), BaseWeights(base))
    file = folder / SCALES_FILE
    with replacing(file) as temporary:
        save_file(scales.by_module, temporary, metadata={"base": scales.base, "weights": scales.weights})
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns 0, or 1 after printing an error."""
    parser = argparse.ArgumentParser(prog="python -m passes.dora", description=f"Writes {SCALES_FILE}.")
    parser.add_argument("folder", type=Path, help="PEFT folder with use_dora true")
    parser.add_argument("--base", required=True, help="the float base: a folder, or a name on the Hugging Face hub")
    options = parser.parse_args(arguments)
    quieten_transformers()
    try:
        print(f"wrote {write_scales(options.folder, local_folder(options.base))}")
    except (OlivalError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
