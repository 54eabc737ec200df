"""The seams of Olive that passes/registration.py wraps, and the names that a workflow relies on."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from passes.registration import PASS_MODULES, register

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PROJECT["tool"]["setuptools"]["packages"] + PROJECT["tool"]["setuptools"]["py-modules"]


def run_module() -> Any:
    return importlib.import_module("olive.workflows.run.run")


def test_olive_runs_a_workflow_through_the_wrapped_seams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llama_path: Path
) -> None:
    """`olive.workflows.run` looks `run_engine` up in its module and hands it the parsed workflow and the pass table."""
    from olive.package_config import OlivePackageConfig
    from olive.workflows import run
    from olive.workflows.run.config import RunConfig

    register()
    calls: list[tuple[Any, Any]] = []

    def run_engine(package_config: Any, run_config: Any) -> str:
        calls.append((package_config, run_config))
        return "result"

    monkeypatch.setattr(run_module(), "run_engine", run_engine)
    workflow = {
        "input_model": {"type": "HfModel", "model_path": str(tiny_llama_path)},
        "passes": {"story": {"type": "AdapterFineTune", "adapter_name": "story", "rank": 4}},
        "output_dir": str(tmp_path / "out"),
        "cache_dir": str(tmp_path / "cache"),
    }
    assert run(workflow) == "result"
    ((package_config, run_config),) = calls
    assert isinstance(package_config, OlivePackageConfig) and isinstance(run_config, RunConfig)
    (step,) = run_config.passes["story"]
    assert step.type.rsplit(".", 1)[-1] in PASS_MODULES
    assert step.config["rank"] == 4 and Path(run_config.engine.output_dir) == tmp_path / "out"


def test_the_wrapped_run_ends_in_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in Olive's module after registering calls passes.workflow_run with Olive's own function."""
    register()
    wrapper = run_module().run_engine
    assert wrapper.knows_workspace
    assert wrapper.__wrapped__.__module__ == "olive.workflows.run.run"
    assert list(wrapper.__wrapped__.__code__.co_varnames[:2]) == ["package_config", "run_config"]


@pytest.mark.parametrize("name", ["AdapterFineTune", "ClassificationHead", "MultiAdapterExport"])
def test_passes_resolve_by_name(name: str) -> None:
    from olive.package_config import OlivePackageConfig

    register()
    table = OlivePackageConfig.load_default_config()
    found = table.import_pass_module(name)
    assert found.__name__ == name and found.__module__ == PASS_MODULES[name.lower()].rsplit(".", 1)[0]
    assert table.get_pass_module_config(name.upper()).module_path == PASS_MODULES[name.lower()]


def test_every_registered_pass_is_tested_by_name() -> None:
    assert sorted(PASS_MODULES) == ["adapterfinetune", "classificationhead", "multiadapterexport"]


def test_stock_passes_still_resolve() -> None:
    from olive.package_config import OlivePackageConfig

    register()
    table = OlivePackageConfig.load_default_config()
    stock = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))["passes"]
    assert {"OnnxConversion", "ModelBuilder", "LoRA"} <= set(stock)
    for name, entry in stock.items():
        assert table.get_pass_module_config(name).module_path == entry["module_path"]
    assert table.import_pass_module("OnnxConversion").__module__ == "olive.passes.onnx.conversion"
    with pytest.raises(ValueError, match="nosuchpass"):
        table.import_pass_module("NoSuchPass")


def test_components_and_evaluator_resolve_by_name() -> None:
    from olive.data.registry import Registry as DataRegistry
    from olive.evaluator.registry import Registry as EvaluatorRegistry

    register()
    assert DataRegistry.get_load_dataset_component("rows").__module__ == "data.olive_components"
    for name in ("classification", "generation", "structured"):
        assert DataRegistry.get_pre_process_component(name).__module__ == "data.olive_components"
    assert EvaluatorRegistry.get("OlivalEvaluator").__module__ == "evaluators.workspace_evaluator"


def test_a_model_can_be_noted_twice() -> None:
    """Olive's search does that with every pass that two candidates share; its own function cannot."""
    from olive.engine.footprint import Footprint, FootprintNode

    register()
    footprint = Footprint()
    for path in ("first", "second"):
        footprint.record(model_id="x", model_config={"config": {"model_path": path}}, parent_model_id="y")
    assert footprint.get_model_path("x") == "second"
    with pytest.raises(ValueError, match="model_config"):
        FootprintNode.update.__wrapped__(footprint.nodes["x"], model_config={})


def test_a_workflow_with_a_custom_metric_can_be_written_down() -> None:
    """Olive does that when a run starts; its own functions fail on what such a metric does not have."""
    from olive.evaluator.olive_evaluator import OliveEvaluatorConfig

    register()
    metrics = [
        {"name": "a", "type": "custom", "sub_types": [{"name": "chrf", "priority": 1, "higher_is_better": True}]},
        {"name": "b", "type": "latency", "sub_types": [{"name": "p50", "priority": 2}]},
    ]
    config = OliveEvaluatorConfig.model_validate({"type": "OlivalEvaluator", "metrics": metrics})
    custom, latency = config.model_dump()["metrics"]
    assert custom["backend"] is None and custom["sub_types"][0]["metric_config"] is None
    assert latency["backend"] == "torch_metrics" and latency["sub_types"][0]["metric_config"]["repeat_test_num"] > 0
    again = OliveEvaluatorConfig.model_validate(config.model_dump())
    assert [metric.model_dump() for metric in again.metrics] == [custom, latency]


def test_registering_again_changes_nothing() -> None:
    """Olive executes the user_script once for each data config that names it, each time anew."""
    from olive.package_config import OlivePackageConfig

    register()
    before = run_module().run_engine, OlivePackageConfig.get_pass_module_config
    for _ in range(2):
        runpy.run_path(str(REPOSITORY / "register.py"))
    assert (run_module().run_engine, OlivePackageConfig.get_pass_module_config) == before
    assert not hasattr(before[0].__wrapped__, "knows_workspace")
    assert not hasattr(before[1].__wrapped__, "knows_workspace")


def test_register_script_defines_nothing() -> None:
    tree = ast.parse((REPOSITORY / "register.py").read_text(encoding="utf-8"))
    assert [type(node) for node in tree.body] == [ast.Expr, ast.Import, ast.Expr]
    assert ast.get_docstring(tree)
    assert ast.unparse(tree.body[-1]) == "passes.registration.register()"


@pytest.mark.parametrize("name", PACKAGES)
def test_each_package_resolves_inside_the_repository(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin).resolve().is_relative_to(REPOSITORY), f"{name} resolves to {spec.origin}"


def test_the_package_list_is_complete() -> None:
    inits = [file.parent.relative_to(REPOSITORY) for file in REPOSITORY.glob("*/**/__init__.py")]
    folders = {".".join(folder.parts) for folder in inits if folder.parts[0] not in ("tests", "build")}
    assert folders == set(PACKAGES) - {"register"}


def test_the_installed_workspace_is_this_repository(tmp_path: Path) -> None:
    """`olive` does not put the current directory on sys.path, so the packages must be installed from here."""
    code = "import sys, importlib.util as u; print(*(u.find_spec(n).origin for n in sys.argv[1:]), sep='\\n')"
    names = [name for name in PACKAGES if "." not in name]
    found = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(found) == len(names) > 0
    assert all(Path(origin).resolve().is_relative_to(REPOSITORY) for origin in found), found
