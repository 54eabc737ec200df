"""The weights of a full fine-tuning outside of training: put into a model in memory, and written as a base folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.adapter_source import HEAD_KEY
from runtime.errors import PackageError
from runtime.peft_config import FULL

if TYPE_CHECKING:
    import torch

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # of shards that are not copied


def is_full(adapter: Path) -> bool:
    """Whether an adapter's folder is of method "full": its weights, if any, are the base's own."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return bool(config.get("peft_type") == FULL)


def replaces_base(adapter: Path) -> bool:
    """Whether an adapter changes the base's own weights, so that no other one can live beside it in a graph."""
    from safetensors import safe_open

    if not is_full(adapter):
        return False
    with safe_open(adapter / "adapter_model.safetensors", framework="np") as file:
        return any(key != HEAD_KEY for key in file.keys())  # noqa: SIM118


class OwnWeights:
    """Trained weights that take the place of a base's own while they are active; no others are in memory twice."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], adapter: Path) -> None:
        """
        Args:
            parameters: the base's, by the names that transformers gives them.
            adapter: folder of an adapter of method "full".

        Raises:
            PackageError: the base has no weight of such a name and shape; all of them in one error.
        """
        from safetensors.torch import load_file

        file = adapter / "adapter_model.safetensors"
        tensors = {name: value for name, value in load_file(file).items() if name != HEAD_KEY}
        problems = [
            f"{file}: {name} has shape {list(value.shape)}, but the base "
            + (f"takes {list(parameters[name].shape)}" if name in parameters else "has no such weight")
            for name, value in tensors.items()
            if name not in parameters or parameters[name].shape != value.shape
        ]
        if problems:
            raise PackageError("\n".join(problems[:20]))
        self._pairs = [(parameters[n], v.to(parameters[n].device, parameters[n].dtype)) for n, v in tensors.items()]

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model computes with the trained weights; afterwards with its own again."""
        before = [parameter.data for parameter, _ in self._pairs]
        try:
            for parameter, trained in self._pairs:
                parameter.data = trained
            yield
        finally:
            for (parameter, _), own in zip(self._pairs, before, strict=True):
                parameter.data = own


def write_full_base(base: Path, folder: Path, adapter: Path) -> None:
    """Writes a base folder with the weights of a full fine-tuning, all in float32; tied embeddings stay tied.

    Tokenizer and configuration are the base's; an encoder is written without heads and pooler.

    Raises:
        PackageError: see `OwnWeights`.
    """
    from passes.base_model import load_base

    model: Any = load_base(base).to("cpu")
    with OwnWeights(dict(model.named_parameters()), adapter).active():
        model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)  # the base's own, if it has one, follows
    for pattern in ("*.json", "*.model", "*.txt", "*.jinja"):
        for file in base.glob(pattern):
            if file.name not in _INDEXES:
                shutil.copyfile(file, folder / file.name)
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
