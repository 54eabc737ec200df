"""Reads a space file and finds everything that is wrong with it before anything runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError, nearest
from search.metric_names import VALIDATION, direction, tasks, workflow_metrics
from search.parameter_check import read_parameters
from search.providers import short_name
from search.pruning import pruner_problems
from search.samplers import sampler_problems
from search.space import DIRECTIONS, Constraint, Objective, Space
from search.watch import optunas
from search.workflow_paths import path_problem

KEYS = (
    "name", "workflow", "parameters", "objectives", "constraints", "sampler", "pruner", "trials", "time_limit_seconds",
    "seed", "storage", "output_dir", "retries", "quality_tolerance",
)  # fmt: skip
_CONSTRAINT = re.compile(r"\s*(?:(?P<target>[\w-]+)\s*:)?\s*(?P<metric>[\w-]+)\s*(?P<sense><=|>=)\s*(?P<bound>\S+)\s*")


def read_space(file: Path) -> Space:
    """The space of a file. Raises ConfigError with every problem: what is wrong, where, and what would be right."""
    content = _read_json(file, "space")
    if "passes" in content and "parameters" not in content:
        raise ConfigError([f"{file}: this is a workflow; a space file names it under 'workflow' (docs/search.md)"])
    problems = [f"{key}: unknown key; {nearest(key, KEYS)}" for key in content if key not in KEYS]
    problems += [
        f"{key}: is required" for key in ("workflow", "parameters", "objectives", "trials") if key not in content
    ]
    name = str(content.get("name", file.stem))
    if not re.fullmatch(r"[\w-]+", name):
        problems.append(f"name: '{name}' may have letters, digits, '_' and '-' only")
    files, workflows = _workflows(content.get("workflow"), problems)
    parameters = read_parameters(content.get("parameters"), problems)
    for parameter in parameters:
        for path in parameter.paths:
            for target, workflow in workflows.items():
                if problem := path_problem(workflow, path):
                    hint = "; an option to search over must stand in the workflow, if only with its default"
                    problems.append(f"parameters.{parameter.name}: {files[target]}: {problem}{hint}")
    metrics = {target: workflow_metrics(workflow) for target, workflow in workflows.items()}
    objectives = _objectives(content.get("objectives"), metrics, problems)
    constraints = _constraints(content.get("constraints", []), metrics, problems)
    sampler = content.get("sampler", {"type": "tpe"})
    problems += sampler_problems(sampler, parameters, len(objectives))
    pruners = content.get("pruner", [])
    pruners = pruners if isinstance(pruners, list) else [pruners]
    for index, pruner in enumerate(pruners):
        problems += _pruner_problems(pruner, "pruner" if len(pruners) == 1 else f"pruner.{index}", workflows)

    def number(
        key: str, default: Any, least: float, kinds: tuple[type, ...], words: str, most: float = math.inf
    ) -> Any:
        value = content.get(key, default)
        good = isinstance(value, int | float) and isinstance(value, kinds) and not isinstance(value, bool)
        if value is not None and not (good and math.isfinite(value) and least <= value <= most):
            problems.append(f"{key}: must be {words}, but got {value!r}")
        return value

    output = content.get("output_dir", str(Path("search-results") / name))
    if not isinstance(output, str) or not output:
        problems.append(f"output_dir: must be a folder's path, but got {output!r}")
    output = Path(str(output))
    space_fields: dict[str, Any] = {
        "trials": number("trials", None, 1, (int,), "a whole number from 1"),
        "seed": number("seed", 0, 0, (int,), "a whole number from 0"),
        "retries": number("retries", 3, 0, (int,), "a whole number from 0"),
        "time_limit_seconds": number("time_limit_seconds", None, 0, (int, float), "a number of seconds"),
        "quality_tolerance": number("quality_tolerance", 0.01, 0, (int, float), "a share from 0 to 1", 1),
        "storage": _storage(content.get("storage"), output, problems),
    }
    if problems:
        raise ConfigError([f"{file}: {problem}" for problem in problems])
    return Space(
        name=name, file=file, workflows=files, parameters=parameters, objectives=objectives, constraints=constraints,
        sampler=sampler, pruners=tuple(pruners), output=output, **space_fields,
    )  # fmt: skip


def _pruner_problems(pruner: Any, where: str, workflows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Of Optuna's options and of ours, which say whose curve is judged."""
    if not isinstance(pruner, dict):
        return pruner_problems(pruner, where)
    problems = pruner_problems(optunas(pruner), where)
    adapters = {name: task for workflow in workflows.values() for name, task in tasks(workflow).items()}
    adapter = pruner.get("adapter")
    if workflows and "adapter" in pruner and adapter not in adapters:
        problems.append(f"{where}.adapter: there is no adapter {adapter!r}; {nearest(adapter, adapters)}")
    elif "metric" in pruner:
        task = adapters.get(str(adapter)) or (
            "classification" if "classification" in adapters.values() else "generation"
        )
        metrics = ("accuracy",) if pruner.get("type") == "wilcoxon" else VALIDATION[task]
        if pruner["metric"] not in metrics:
            problems.append(
                f"{where}.metric: {pruner['metric']!r} does not fit here; {nearest(pruner['metric'], metrics)}"
            )
    return problems


def _read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        where = "" if file.is_absolute() else f" (the current folder is {Path.cwd()})"
        raise ConfigError([f"{file}: the {what} cannot be read: {error.strerror or error}{where}"]) from None
    except ValueError as error:
        raise ConfigError([f"{file}: the {what} is no JSON: {error}"]) from None
    if not isinstance(content, dict):
        raise ConfigError([f"{file}: the {what} must be a JSON object, but is {type(content).__name__}"])
    return content


def _workflows(given: Any, problems: list[str]) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """({target: file}, {target: content}) of the workflows that can be read."""
    if isinstance(given, str):
        try:
            given = {short_name(_read_json(Path(given), "workflow")): given}
        except ConfigError as error:
            problems += [f"workflow: {problem}" for problem in error.problems]
            return {}, {}
    if given is not None and not (
        isinstance(given, dict) and given and all(isinstance(path, str) for path in given.values())
    ):
        problems.append('workflow: must be a file, or {"cpu": file, "cuda": file}')
        given = {}
    files, contents = {}, {}
    for target, path in (given or {}).items():
        if not re.fullmatch(r"[\w-]+", target):
            problems.append(f"workflow: the target '{target}' may have letters, digits, '_' and '-' only")
        try:
            contents[target] = _read_json(Path(path), "workflow")
            files[target] = Path(path)
        except ConfigError as error:
            problems += [f"workflow: {problem}" for problem in error.problems]
    return files, contents


def _objectives(given: Any, metrics: Mapping[str, list[str]], problems: list[str]) -> tuple[Objective, ...]:
    """One for each target where none is named."""
    if given is None:
        return ()
    if not isinstance(given, list) or not given or not all(isinstance(o, dict) for o in given):
        problems.append('objectives: must be a list such as [{"metric": "spam-accuracy", "direction": "maximize"}]')
        return ()
    found: list[Objective] = []
    for index, entry in enumerate(given):
        where = f"objectives.{index}"
        keys = ("metric", "direction", "target")
        problems += [f"{where}.{key}: unknown key; {nearest(key, keys)}" for key in entry if key not in keys]
        metric = entry.get("metric")
        if not isinstance(metric, str):
            problems.append(f"{where}.metric: is required, the name of a metric")
            continue
        natural = direction(metric)
        way = entry.get("direction", natural)
        targets = _targets(entry.get("target"), metric, where, metrics, problems)
        if way not in DIRECTIONS:
            problems.append(f"{where}.direction: '{way}' is unknown; {nearest(way, DIRECTIONS)}")
        elif way != natural and targets:
            problems.append(f"{where}.direction: {metric} is better {'lower' if natural == 'minimize' else 'higher'}, "
                            f"so right is '{natural}', but got '{way}'")  # fmt: skip
        for target in targets:
            if any((o.metric, o.target) == (metric, target) for o in found):
                problems.append(f"{where}: {metric} of target {target} is an objective already")
            found.append(Objective(metric, way, target))
    return tuple(found)


def _constraints(given: Any, metrics: Mapping[str, list[str]], problems: list[str]) -> tuple[Constraint, ...]:
    if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
        problems.append('constraints: must be a list of texts such as ["spam-accuracy >= 0.93"]')
        return ()
    found = []
    for index, text in enumerate(given):
        where, match = f"constraints.{index}", _CONSTRAINT.fullmatch(text)
        bound = _float(match["bound"]) if match else None
        if match is None or bound is None:
            problems.append(f"{where}: '{text}' must read METRIC >= NUMBER or METRIC <= NUMBER, or TARGET: METRIC ...")
            continue
        for target in _targets(match["target"], match["metric"], where, metrics, problems):
            found.append(Constraint(match["metric"], match["sense"], bound, target))
    return tuple(found)


def _targets(
    target: str | None, metric: str, where: str, metrics: Mapping[str, list[str]], problems: list[str]
) -> list[str]:
    """The targets that an objective or constraint speaks of, as far as they measure the metric."""
    if target is not None and target not in metrics:
        if metrics:
            problems.append(f"{where}: there is no target '{target}'; {nearest(target, metrics)}")
        return []
    chosen = [target] if target is not None else list(metrics)
    lacking = [t for t in chosen if metric not in metrics[t]]
    for t in lacking:
        of = f" of target {t}" if len(metrics) > 1 else ""
        choices = nearest(metric, metrics[t]) if metrics[t] else "it has no evaluator with metrics"
        problems.append(f"{where}: the workflow{of} measures no '{metric}'; {choices}")
    return [t for t in chosen if t not in lacking]


def _storage(given: Any, output: Path, problems: list[str]) -> str:
    if given is None:
        return f"sqlite:///{(output / 'study.db').resolve()}"
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    check: Callable[[], Any] = lambda: make_url(given).get_dialect().import_dbapi()  # noqa: E731
    try:
        check()
    except (ArgumentError, AttributeError, NoSuchModuleError):
        problems.append(
            f"storage: '{given}' is no database URL; right are sqlite:///FILE and postgresql+psycopg://USER@HOST/NAME"
        )
    except ImportError as error:
        problems.append(
            f'storage: {given}: its driver is not installed ({error}); pip install -e ".[search]" has psycopg'
        )
    return str(given)


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
