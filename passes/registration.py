"""Teaches Olive this workspace's passes, data components, evaluator and run wrapper.

Olive has no registration for passes outside its own table, so two functions of Olive are wrapped while a workflow is
parsed: the lookup of a pass by name, and the function that runs a parsed workflow (see passes/workflow_run.py). A
third wrapper lets Olive's own search share a pass between candidates, and two functions of Olive's metrics are mended.
tests/test_registration.py fails when Olive moves one of them.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

PASS_MODULES = {
    "adapterfinetune": "passes.adapter_fine_tune.AdapterFineTune",
    "classificationhead": "passes.classification_head.ClassificationHead",
    "multiadapterexport": "passes.multi_adapter_export.MultiAdapterExport",
}


def task_of(step: Any) -> str:
    """What a training pass makes an adapter for."""
    return "classification" if step.type.endswith("classificationhead") else "generation"


def register() -> None:
    """Plugs the workspace into Olive; calling it again changes nothing."""
    importlib.import_module("data.olive_components")
    importlib.import_module("evaluators.workspace_evaluator")
    _teach_pass_names()
    _wrap_run()
    _mend_search()
    _mend_custom_metrics()


def _teach_pass_names() -> None:
    from olive.package_config import OlivePackageConfig
    from olive.passes.pass_config import PassModuleConfig

    original = OlivePackageConfig.get_pass_module_config
    if getattr(original, "knows_workspace", False):
        return

    @functools.wraps(original)
    def get_pass_module_config(self: OlivePackageConfig, pass_type: str) -> PassModuleConfig:
        path = PASS_MODULES.get(pass_type.lower())
        if path is None:
            return original(self, pass_type)
        return PassModuleConfig(
            module_path=path,
            supported_providers=["*"],
            supported_accelerators=["*"],
            supported_precisions=["*"],
        )

    get_pass_module_config.knows_workspace = True  # type: ignore[attr-defined]
    OlivePackageConfig.get_pass_module_config = get_pass_module_config


def _wrap_run() -> None:
    from passes.workflow_run import run_workflow

    run_module: Any = importlib.import_module("olive.workflows.run.run")
    original = run_module.run_engine
    if getattr(original, "knows_workspace", False):
        return

    @functools.wraps(original)
    def run_engine(package_config: Any, run_config: Any) -> Any:
        return run_workflow(original, package_config, run_config)

    run_engine.knows_workspace = True  # type: ignore[attr-defined]
    run_module.run_engine = run_engine


def _mend_search() -> None:
    """Olive 0.13's search fails every candidate after the first that begins with the same pass: it notes the pass's
    model again, by the field's alias, which pydantic 2 does not set."""
    from olive.engine.footprint import FootprintNode

    original = FootprintNode.update
    if getattr(original, "knows_aliases", False):
        return
    fields = {field.alias: name for name, field in FootprintNode.model_fields.items() if field.alias}

    @functools.wraps(original)
    def update(self: Any, **changes: Any) -> None:
        original(self, **{fields.get(name, name): value for name, value in changes.items()})

    update.knows_aliases = True  # type: ignore[attr-defined]
    FootprintNode.update = update


def _mend_custom_metrics() -> None:
    """Olive 0.13 cannot write down a workflow with a metric of type "custom": it has neither backend nor metric_config,
    and the functions that write these two ask None for its fields.

    pydantic has compiled them into the schemas of Metric and of everything that holds one, so they keep their identity
    and get another body.
    """
    from olive.evaluator.metric import Metric, SubMetric

    def written(self: Any, value: Any) -> Any:
        return value.model_dump() if hasattr(value, "model_dump") else value

    for function in (Metric.serialize_backend, SubMetric.serialize_metric_config):
        function.__code__ = written.__code__
