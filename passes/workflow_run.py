"""Runs a parsed Olive workflow so that it either ends with a whole result or changes nothing and says why.

Olive alone logs most failures and exits 0 with the former output in place, copies files one by one into output_dir,
and keeps evaluations by model alone. Here the workflow is checked before anything runs, everything is written to a
folder beside output_dir, and that folder takes output_dir's place only when the run is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from passes.base_model import quieten_transformers
from passes.teaching.ahead import ask_ahead
from passes.workflow_check import cache_dir, check_workflow
from runtime.atomic_folder import recover_folder, replace_folder
from runtime.errors import ConfigError, OlivalError
from runtime.manifest import MANIFEST, read_manifest, write_manifest


def run_workflow(run_engine: Callable[[Any, Any], Any], package_config: Any, run_config: Any) -> Any:
    """Checks `run_config` (Olive's RunConfig), runs it with Olive's `run_engine`, and puts the result in output_dir.

    Returns Olive's WorkflowOutput. Raises OlivalError; from the command line prints it and exits with code 1 instead.
    """
    try:
        return _run(run_engine, package_config, run_config)
    except OlivalError as error:
        if not _on_command_line():
            raise
        print(f"\nerror: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def _run(run_engine: Callable[[Any, Any], Any], package_config: Any, run_config: Any) -> Any:
    _quieten_libraries()
    problems = check_workflow(run_config, package_config)
    if problems:
        workflow = _workflow_file()
        raise ConfigError([f"{workflow}: {p}" if workflow else p for p in problems])
    engine = run_config.engine
    ask_ahead(run_config, cache_dir(engine))
    output = Path(engine.output_dir)
    staging = output.with_name(f"{output.name.replace('.', '_')}-unfinished")  # a dot would make Olive see a file
    recover_folder(output)
    if staging.exists():
        shutil.rmtree(staging)
    cache = cache_dir(engine)
    _drop_broken_cache_files(cache)
    evaluation_file = cache / run_config.workflow_id / "evaluation.json"
    for file in evaluation_file.parent.glob("evaluation*.json"):
        file.unlink()
    engine.output_dir = staging
    engine.clean_evaluation_cache = True  # Olive keeps evaluations by model, whatever the metrics or their data are
    try:
        result = run_engine(package_config, run_config)
        if run_config.passes and not result.has_output_model():
            raise OlivalError("the workflow made no model; the log above names the pass that failed")
        if engine.search_strategy and run_config.passes:  # the last package measured need not be the best one
            best = result.get_best_candidate().model_id
            evaluation_file = evaluation_file.with_name(f"evaluation-{best}.json")
        manifest = read_manifest(staging, verify=False) if (staging / MANIFEST).exists() else None
        # a missed goal ends the run here: the former package stays
        evaluation = _evaluation(evaluation_file, manifest, output)
        if evaluation is not None:
            shutil.copy(evaluation_file, staging / "evaluation.json")
        _finish(staging, output, cache / run_config.workflow_id / "olive_config.json")
    finally:
        engine.output_dir = output
        shutil.rmtree(staging, ignore_errors=True)
    from evaluators.report import print_report

    print_report(evaluation, manifest, output)
    return result


def _evaluation(file: Path, manifest: dict[str, Any] | None, output: Path) -> dict[str, Any] | None:
    """What the evaluator measured, None without one; ConfigError when a goal is missed."""
    if not file.exists():
        return None
    from evaluators.report import missed_goals, print_report

    evaluation: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if missed := missed_goals(evaluation):
        print_report(evaluation, manifest, output, written=False)
        raise ConfigError([f"goal missed, {output} is left as it was: {goal}" for goal in missed])
    return evaluation


def _finish(staging: Path, output: Path, resolved_workflow: Path) -> None:
    """Gives the staging folder its final name, also inside the files in which Olive wrote it.

    A package from the cache was exported under an earlier evaluator or goal: its manifest gets the present workflow.
    """
    if (staging / MANIFEST).exists():
        manifest = read_manifest(staging, verify=False)
        manifest["workflow"] = json.loads(resolved_workflow.read_text(encoding="utf-8"))
        write_manifest(staging, manifest)
    for file in staging.glob("*.json"):
        text = file.read_text(encoding="utf-8")
        final = text.replace(json.dumps(str(staging))[1:-1], json.dumps(str(output))[1:-1])
        if final != text:
            file.write_text(final, encoding="utf-8")
    replace_folder(staging, output)


def _drop_broken_cache_files(cache_dir: Path) -> None:
    """Removes cache entries that a killed run left half-written: Olive reads them without a check."""
    for file in [*cache_dir.glob("*/runs/*/*.json"), *cache_dir.glob("*/resources/*.json")]:
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            file.unlink()


def _quieten_libraries() -> None:
    """Leaves the terminal to the workspace's own progress and to warnings that a user can act on."""
    quieten_transformers()
    # Olive raises its own log level to print each pass once more when a run ends
    logging.getLogger("olive.engine.engine").addFilter(lambda record: "_dump_run_history" not in record.funcName)


def _on_command_line() -> bool:
    return Path(sys.argv[0]).stem == "olive" or sys.argv[0].endswith(("olive/__main__.py", "olive\\__main__.py"))


def _workflow_file() -> str | None:
    """The workflow that `olive run --config FILE` names, if Olive was started that way."""
    if _on_command_line():
        for flag, value in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
            if flag in ("--config", "--run-config"):
                return value
            if flag.startswith(("--config=", "--run-config=")):
                return flag.split("=", 1)[1]
    return None
