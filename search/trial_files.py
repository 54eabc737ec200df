"""The files of a trial: complete workflows that `olive run` reproduces it with."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.atomic_file import write_text
from search.space import Space
from search.workflow_paths import REMOVE, set_value

LOG, VALUES, WORKFLOW, PACKAGE = "log.txt", "intermediate_values.jsonl", "workflow.json", "package"


def trial_folder(space: Space, slot: int, attempt: int) -> Path:
    """trials/NNNN; a further attempt has one of its own: a worker that was cut off may still write into the first."""
    return space.output / "trials" / (f"{slot:04d}" if attempt == 0 else f"{slot:04d}-attempt-{attempt + 1}")


def write_workflows(space: Space, values: Mapping[str, Any], folder: Path, slot: int) -> dict[str, Path]:
    """Writes each target's workflow with a trial's values: {target: file}. What an earlier run left there is removed.

    Beside the values, three things differ from the space's workflow: output_dir is the trial's, workflow_id is one of
    its own (so that workers share the cache and not Olive's files in it), and goals are left out: a package that misses
    one is still a measurement, and the space's constraints say what a package must keep.
    """
    if folder.exists():
        shutil.rmtree(folder)
    files = {}
    for target in space.workflows:
        place = folder / target if space.several_targets else folder
        workflow = trial_workflow(space, target, values)
        workflow["output_dir"] = str(place / PACKAGE)
        workflow["workflow_id"] = f"{workflow.get('workflow_id', 'search')}-{space.name}-{target}-{slot:04d}"
        place.mkdir(parents=True)
        files[target] = place / WORKFLOW
        write_text(files[target], json.dumps(workflow, indent=2, ensure_ascii=False) + "\n")
    return files


def trial_workflow(space: Space, target: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A target's workflow with a trial's values in place and without goals."""
    workflow = copy.deepcopy(space.workflow(target))
    inactive = [p for p in space.parameters if p.name not in values and p.inactive == "remove"]
    active = [p for p in space.parameters if p.name in values]
    taken = {path for p in active for path in p.paths}
    for parameter in inactive:
        for path in parameter.paths:
            if path not in taken:
                set_value(workflow, path, REMOVE)
                taken.add(path)
    for parameter in active:
        for path in parameter.paths:
            set_value(workflow, path, copy.deepcopy(values[parameter.name]))
    for evaluator in (workflow.get("evaluators") or {}).values():
        for metric in evaluator.get("metrics") or []:
            for sub in metric.get("sub_types") or []:
                sub.pop("goal", None)
    return workflow


def drop_run_cache(file: Path) -> None:
    """Removes what Olive keeps of one finished run; trained adapters stay, they lie beside it for all runs."""
    workflow = json.loads(file.read_text(encoding="utf-8"))
    shutil.rmtree(Path(workflow.get("cache_dir", ".olive-cache")) / workflow["workflow_id"], ignore_errors=True)
