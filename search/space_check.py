"""Has the workflow check look at what a search will try, before its first trial: each value alone, all in one process.

A pass refuses values that the space file cannot know to be wrong, such as a rank of 0; without this check each trial
that draws one would fail. It starts the check as a trial starts Olive, for `search` imports no pass.
"""

from __future__ import annotations

import json
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError, OlivalError
from search.distributions import json_text
from search.failure import failure_reason
from search.olive_run import olive_run
from search.samplers import ends
from search.space import Parameter, Space
from search.study import open_study
from search.trial_files import PACKAGE, trial_folder, trial_workflow
from search.workflow_paths import get_value

_FOUND = "problems.json"  # see passes/workflow_files.py


def check_before_first_trial(space: Space) -> None:
    """Raises ConfigError with every problem of the workflows and of the space's values, as far as a value alone has it.

    A study that has a trial is left alone. Values that are wrong only together still fail their trials. Writes nothing
    that stays. Raises OlivalError where the check itself does not end well.
    """
    if _has_begun(space):
        return
    asked = [(target, *one) for target in space.workflows for one in each_alone(space, target)]
    print(f"checking {space.name}: the workflow with {len(asked)} choices of values", file=sys.stderr)
    workflows = [trial_workflow(space, target, values) for target, _, values in asked]
    for number, workflow in enumerate(workflows):
        workflow["output_dir"] = str(trial_folder(space, number, 0) / PACKAGE)
    problems: list[str] = []
    usual: dict[str, list[str]] = {}  # of the target's workflow with the usual values, which all others share
    for (target, parameter, values), found in zip(asked, _checked(workflows), strict=True):
        if parameter is None:
            usual[target] = found
            problems += [f"{space.workflows[target]}: {problem}" for problem in found]
            continue
        where = f"{space.file}: parameters.{parameter}: {json_text(values[parameter])}"
        where += f" (target {target})" if space.several_targets else ""
        problems += [f"{where}: {problem}" for problem in found if problem not in usual[target]]
    if problems:
        raise ConfigError(problems)


def each_alone(space: Space, target: str) -> list[tuple[str | None, dict[str, Any]]]:
    """(None, the usual values), then (parameter, values) of each of its choices or ends beside the usual values.

    Usual is what the target's workflow has, or the first of a parameter's values where that is none of them. A
    parameter that counts only under others' values gets these.
    """
    workflow = space.workflow(target)
    usual = {p.name: _usual(p, get_value(workflow, p.paths[0])) for p in space.parameters}
    found: list[tuple[str | None, dict[str, Any]]] = [(None, _active(space, usual))]
    for parameter in space.parameters:
        for value in ends(parameter):
            values = _active(space, {**usual, **_needed(space, usual, parameter), parameter.name: value})
            if parameter.name in values and all(values != known for _, known in found):
                found.append((parameter.name, values))
    return found


def _usual(parameter: Parameter, present: Any) -> Any:
    if parameter.kind == "categorical":
        return present if present in parameter.choices else parameter.choices[0]
    number = isinstance(present, int | float) and not isinstance(present, bool)
    first, last = ends(parameter)[0], ends(parameter)[-1]
    return present if number and first <= present <= last else first


def _needed(space: Space, usual: Mapping[str, Any], parameter: Parameter) -> dict[str, Any]:
    """Values of other parameters under which this one counts."""
    needed: dict[str, Any] = {}
    for name, allowed in parameter.when.items():
        needed |= _needed(space, usual, space.parameter(name))
        needed[name] = usual[name] if usual[name] in allowed else allowed[0]
    return needed


def _active(space: Space, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values whose parameters count, as a trial draws them."""
    drawn: dict[str, Any] = {}
    for parameter in space.parameters:
        if parameter.is_active(drawn):
            drawn[parameter.name] = values[parameter.name]
    return drawn


def _has_begun(space: Space) -> bool:
    try:
        return bool(open_study(space).get_trials(deepcopy=False))
    except OlivalError:  # there is none, or the worker will say what is wrong with it
        return False


def _checked(workflows: list[dict[str, Any]]) -> list[list[str]]:
    """The problems of each workflow."""
    with tempfile.TemporaryDirectory(prefix="search-check-") as name:
        folder, asked = Path(name), Path(name) / "workflows"
        asked.mkdir()
        for number, workflow in enumerate(workflows):
            (asked / f"{number:05d}.json").write_text(json.dumps(workflow), encoding="utf-8")
        log = folder / "log.txt"
        ended = olive_run(asked, log, folder / "values.jsonl", lambda: None, _check)
        if ended.code != 0:
            reason = failure_reason(ended.code, ended.peak_rss_bytes, log)
            raise OlivalError(f"the workflow check before the first trial failed: {reason}")
        found: dict[str, list[str]] = json.loads((asked / _FOUND).read_text(encoding="utf-8"))
    return [found[f"{number:05d}.json"] for number in range(len(workflows))]


def _check(folder: str) -> None:
    """In the new process: `python -m passes.workflow_files FOLDER`."""
    sys.argv = ["passes.workflow_files", folder]
    runpy.run_module("passes.workflow_files", run_name="__main__")
