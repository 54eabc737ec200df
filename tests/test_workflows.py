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


def test_targets_and_execution_providers_are_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Olive cannot tell that this workspace's export makes ONNX, and would not check the provider on its own."""
    for file in WORKFLOWS:
        (accelerator,) = parse(file, monkeypatch).engine.target.config.accelerators
        assert accelerator.device and accelerator.get_ep_strs()
