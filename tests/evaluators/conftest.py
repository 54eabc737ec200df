"""One set of adapters on the tiny Llama, in PyTorch and as a float32 package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluators.package_model import PackageModel
from evaluators.torch_model import TorchModel


@pytest.fixture(scope="session")
def adapter_folders(tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]) -> dict[str, Path]:
    """PEFT folders with random weights: "mood" classifies into bad, good and none; "story" generates."""
    return {
        "mood": make_peft_adapter(tiny_llama_path, rank=4, labels=["bad", "good", "none"]),
        "story": make_peft_adapter(tiny_llama_path, rank=8, seed=1, settings={"template": "{prompt}"}),
    }


@pytest.fixture(scope="session")
def package_folder(
    tiny_llama_path: Path, adapter_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same adapters in a float32 package."""
    from passes.package import write_package

    folder = tmp_path_factory.mktemp("package") / "tiny"
    write_package(
        folder,
        base_path=tiny_llama_path,
        adapter_folders=adapter_folders,
        precision="fp32",
        execution_provider="cpu",
        threads=2,
        name="tiny",
    )
    return folder


@pytest.fixture(scope="session")
def torch_model(tiny_llama_path: Path, adapter_folders: dict[str, Path]) -> TorchModel:
    return TorchModel(tiny_llama_path, adapter_folders)


@pytest.fixture(scope="session")
def package_model(package_folder: Path) -> PackageModel:
    return PackageModel(package_folder)
