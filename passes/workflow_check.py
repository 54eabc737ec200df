"""Finds everything that is wrong with a workflow before anything runs, and fingerprints what its passes read.

Olive's cache knows a pass by its options alone: it would hand out a stale model after a data file or the base has
changed. So the check writes the sha256 of both into each pass's `fingerprint` option, which is part of the cache key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from passes.registration import PASS_MODULES
from runtime.errors import ConfigError, OlivalError, nearest

RESERVED_NAMES = ("base", "latency", "size_on_disk")  # the table's own rows and metrics


def check_workflow(run_config: Any) -> list[str]:
    """Returns every problem of a parsed workflow (Olive's RunConfig), each naming key, value and what would be right.

    Fills in the `fingerprint` option of this workspace's passes.
    """
    ours = [
        (name, step)
        for name, steps in run_config.passes.items()
        for step in steps
        if step.type.rsplit(".", 1)[-1] in PASS_MODULES
    ]
    provider = _target_provider(run_config)
    problems: list[str] = []
    for name, step in ours:
        problems += _check_options(name, step, provider)
    problems += _check_names(ours)
    if ours:
        base, base_fingerprint = _check_base(run_config, ours, problems)
        _check_data(ours, base_fingerprint, problems)
        problems += _check_metrics(run_config.engine.evaluator, ours, base)
    problems += _check_output(Path(run_config.engine.output_dir))
    return problems


def _target_provider(run_config: Any) -> str:
    """The first execution provider of the workflow's target; Olive's default is the CPU's."""
    target = run_config.engine.target or run_config.engine.host
    accelerators = target.config.accelerators if target is not None else None
    providers = accelerators[0].get_ep_strs() if accelerators else None
    return str(providers[0]) if providers else "CPUExecutionProvider"


def _pass_class(step: Any) -> Any:
    import importlib

    module, name = PASS_MODULES[step.type.rsplit(".", 1)[-1]].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def _check_options(name: str, step: Any, provider: str) -> list[str]:
    from olive.hardware import DEFAULT_CPU_ACCELERATOR
    from pydantic import ValidationError

    step.config = dict(step.config or {})
    pass_class = _pass_class(step)
    known = pass_class.default_config(DEFAULT_CPU_ACCELERATOR)
    visible = [option for option in known if option not in ("fingerprint", "version")]
    problems = [
        f"passes.{name}.{option}: unknown option; {nearest(option, visible)}" for option in step.config if option not in known
    ]
    if problems:
        return problems
    try:
        config = pass_class.generate_config(DEFAULT_CPU_ACCELERATOR, dict(step.config), {}, True)
    except ValidationError as error:
        for problem in error.errors():
            option = ".".join(str(part) for part in problem["loc"][:1])
            line = f"passes.{name}.{option}: {problem['msg']}, but got {problem.get('input')!r}"
            if not any(p.startswith(f"passes.{name}.{option}:") for p in problems):
                problems.append(line if problem["type"] != "missing" else f"passes.{name}.{option}: is required")
        return problems
    return [f"passes.{name}.{problem}" for problem in pass_class.problems(config, provider)]


def _check_names(ours: list[tuple[str, Any]]) -> list[str]:
    problems = []
    taken: dict[str, str] = {}
    for name, step in ours:
        adapter = step.config.get("adapter_name")
        if not isinstance(adapter, str):
            continue
        where = f"passes.{name}.adapter_name"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter) or adapter in RESERVED_NAMES:
            problems.append(
                f"{where}: '{adapter}' cannot be a name; right are letters, digits, '_' and '-', and none of "
                f"{', '.join(RESERVED_NAMES)}"
            )
        if adapter in taken:
            problems.append(f"{where}: the adapter name '{adapter}' is taken by passes.{taken[adapter]}; names are unique")
        taken.setdefault(adapter, name)
    exports = [index for index, (_, step) in enumerate(ours) if "export" in step.type]
    if exports and (len(exports) > 1 or exports[0] != len(ours) - 1):
        problems.append(f"passes.{ours[exports[0]][0]}: MultiAdapterExport stands once, after every adapter's pass")
    return problems


def _check_base(run_config: Any, ours: list[tuple[str, Any]], problems: list[str]) -> tuple[Path | None, str]:
    from passes.base_model import local_folder
    from passes.graph.builder import check_base
    from runtime.manifest import base_fingerprint

    model = run_config.input_model
    if model.type.lower() != "hfmodel":
        problems.append(f"input_model.type: '{model.type}' is no HfModel; this workspace's passes start from one")
        return None, ""
    try:
        folder = local_folder(str(model.config["model_path"]))
        if any("export" in step.type for _, step in ours):
            check_base(folder)
        return folder, base_fingerprint(folder)
    except OlivalError as error:
        problems += [f"input_model.model_path: {p}" for p in _lines(error)]
        return None, ""


def _check_data(ours: list[tuple[str, Any]], base_fingerprint: str, problems: list[str]) -> None:
    from data.examples import load_data

    seen: dict[str, str] = {}
    for name, step in ours:
        digest = hashlib.sha256(base_fingerprint.encode())
        for option, value in step.config.items():
            if not option.endswith("data_config") or value is None:
                continue
            if isinstance(value, str):
                problems.append(f"passes.{name}.{option}: there is no data config '{value}' in data_configs")
                continue
            key = json.dumps(value if isinstance(value, dict) else value.model_dump(mode="json"), sort_keys=True, default=str)
            if key not in seen:
                data_name = value["name"] if isinstance(value, dict) else value.name
                try:
                    seen[key] = load_data(value).fingerprint
                except OlivalError as error:
                    problems += [f"data_configs.{data_name}: {p}" for p in _lines(error)]
                    seen[key] = ""
            digest.update(seen[key].encode())
        step.config["fingerprint"] = digest.hexdigest()


def _check_metrics(evaluator: Any, ours: list[tuple[str, Any]], base: Path | None) -> list[str]:
    if evaluator is None or base is None:
        return []
    from evaluators.workspace_evaluator import EVALUATOR_TYPE, check_metrics

    tasks = {
        step.config["adapter_name"]: "classification" if step.type.endswith("classificationhead") else "generation"
        for _, step in ours
        if isinstance(step.config.get("adapter_name"), str)
    }
    return check_metrics(evaluator, tasks) if evaluator.type == EVALUATOR_TYPE else []


def _check_output(output: Path) -> list[str]:
    folder = output
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return [f"output_dir: {output} cannot be made: {folder} is a file, not a folder"]
    parent = folder if folder != output else output.parent
    for candidate in {folder, parent}:
        if not os.access(candidate, os.W_OK):
            return [f"output_dir: {output} is not writable: no permission to write to {candidate}"]
    return []


def _lines(error: OlivalError) -> list[str]:
    return error.problems if isinstance(error, ConfigError) else [str(error)]
