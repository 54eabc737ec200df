"""Every shipped workflow is what Olive parses, names only options that exist, and is formatted by one tool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from passes.registration import PASS_MODULES

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((REPOSITORY / "workflows").rglob("*.json"))


def parse(file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from olive.workflows.run.config import RunConfig

    monkeypatch.chdir(REPOSITORY)
    return RunConfig.parse_file_or_obj(file)


def test_there_are_workflows() -> None:
    assert {"quickstart.json", "cpu.json", "stories260k_cpu.json"} <= {file.name for file in WORKFLOWS}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda f: f.relative_to(REPOSITORY).as_posix())
def test_formatting(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda f: f.relative_to(REPOSITORY).as_posix())
def test_olive_parses_it_and_every_option_exists(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from passes.workflow_check import check_workflow

    config = parse(file, monkeypatch)
    assert config.passes and all(step.type in PASS_MODULES for steps in config.passes.values() for step in steps)
    base = Path(config.input_model.config["model_path"])
    problems = check_workflow(config)
    if base.is_dir():
        assert problems == []
    else:  # what a hub must give cannot be had here; nothing else may be wrong
        assert problems
        assert all(p.startswith(("input_model.model_path:", "data_configs.")) for p in problems), problems


# where variants of one workflow may differ: only there do their targets
OF_THE_TARGET = (
    "systems.",
    "output_dir",
    "passes.export.precision",
    "passes.export.quantization",
    "passes.export.threads",
    "passes.export.parity",
)
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "directml": "DmlExecutionProvider"}
VARIANTS = [file for file in WORKFLOWS if file.stem in PROVIDERS]


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """{"passes.export.precision": "int4", ...}; lists are leaves."""
    if not isinstance(value, dict):
        return {path.removesuffix("."): value}
    return {k: v for key, inner in value.items() for k, v in leaves(inner, f"{path}{key}.").items()}


@pytest.mark.parametrize("file", VARIANTS, ids=lambda f: f.relative_to(REPOSITORY).as_posix())
def test_variants_differ_only_in_their_target(file: Path) -> None:
    """So they share workflow_id, cache and every option that an adapter's place in the store depends on."""
    cpu, own = (leaves(json.loads(f.read_text(encoding="utf-8"))) for f in (file.with_name("cpu.json"), file))
    differing = {key for key in cpu.keys() | own.keys() if cpu.get(key, ...) != own.get(key, ...)}
    assert [key for key in differing if not key.startswith(OF_THE_TARGET)] == []
    (accelerator,) = own["systems.target.accelerators"]
    assert accelerator["execution_providers"] == [PROVIDERS[file.stem]]
    assert file.stem == "cpu" or {"output_dir", "systems.target.accelerators"} <= differing


def test_there_are_variants_for_every_target() -> None:
    assert {file.stem for file in VARIANTS} == set(PROVIDERS)


def test_targets_and_execution_providers_are_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Olive cannot tell that this workspace's export makes ONNX, and would not check the provider on its own."""
    for file in WORKFLOWS:
        (accelerator,) = parse(file, monkeypatch).engine.target.config.accelerators
        assert accelerator.device and accelerator.get_ep_strs()
