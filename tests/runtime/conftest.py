"""A package with adapters of different tasks, ranks and numbers of labels, and the PEFT folders that went into it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from passes.package import write_package
from runtime.model import MultiAdapterModel


class MixedPackage(NamedTuple):
    """A float32 package; "news" has no LoRA in its MLPs, "chat" takes the chat template."""

    folder: Path
    base: Path
    sources: dict[str, Path]


@pytest.fixture(scope="session")
def mixed_package(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> MixedPackage:
    base, folder = tiny_llama_path, tmp_path_factory.mktemp("packages") / "mixed"
    attention = ["q_proj", "v_proj", "o_proj"]
    sources = {
        "mood": make_peft_adapter(base, rank=4, labels=["bad", "good", "none"], settings={"template": "Text: {text}"}),
        "news": make_peft_adapter(base, rank=2, seed=5, labels=list("abcde"), target_modules=attention),
        "long": make_peft_adapter(
            base, rank=3, seed=6, labels=["x", "y"], settings={"max_length": 12, "window_stride": 5}
        ),
        "story": make_peft_adapter(base, rank=8, seed=1),
        "poem": make_peft_adapter(base, rank=3, seed=3, target_modules=attention),
        "chat": make_peft_adapter(base, rank=2, seed=2, settings={"template": "chat"}),
    }
    write_package(
        folder, base_path=base, adapter_folders=sources, precision="fp32", execution_provider="cpu", threads=2, name="m"
    )
    return MixedPackage(folder, base, sources)


@pytest.fixture(scope="session")
def mixed_model(mixed_package: MixedPackage) -> MultiAdapterModel:
    """Of `mixed_package`; for tests that leave its adapters as they are."""
    return MultiAdapterModel.load(mixed_package.folder)


@pytest.fixture
def own_model(mixed_package: MixedPackage, tmp_path: Path) -> MultiAdapterModel:
    """Of a copy of `mixed_package`, whose adapters may be changed."""
    shutil.copytree(mixed_package.folder, tmp_path / "package")
    return MultiAdapterModel.load(tmp_path / "package")
