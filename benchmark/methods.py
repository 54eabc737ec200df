"""Methods of fine-tuning on one task of a workflow, side by side: `python -m benchmark.methods WORKFLOW --out DIR`.

Each method trains in a process of its own, with Olive, as the workflow would; its adapter is measured in PyTorch on the
held-out rows. Printed, and written to DIR as results.json, table.md, report.html and SVG, are trained parameters, peak
memory, time and quality with its 95 % interval, with the machine and the versions. A killed run goes on: what is
measured is kept in DIR, until options, data, base, versions or commit change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmark.fresh_process import WorkerError, run_fresh
from benchmark.method_report import figures, html_report, markdown, print_table
from benchmark.method_workflows import (
    RATES,
    Task,
    dropped_options,
    method_steps,
    method_workflow,
    read_task,
    teacher_of,
    used_data,
    used_files,
)
from benchmark.results import commit, machine, read_json, versions, write_json
from runtime.atomic_file import write_text
from runtime.errors import ConfigError, OlivalError, nearest
from runtime.manifest import base_fingerprint, file_sha256

METHODS = tuple(RATES)
PACKAGES = ("torch", "transformers", "peft", "olive-ai", "bitsandbytes")
RESULTS, REPORT, TABLE, MEASURED, WORK = "results.json", "report.html", "table.md", "measured", "work"
ANSWERS = "teacher"  # folder of a teacher's answers, as in a workflow's cache_dir; all methods learn the same ones


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0; 1 where something is wrong or a method failed, with the reasons on stderr; 130 when interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.methods",
        allow_abbrev=False,
        description="Trains each method of fine-tuning on one task of a workflow and compares them.",
    )
    parser.add_argument("workflow", type=Path, metavar="WORKFLOW", help="a workflow's JSON")
    parser.add_argument("--pass", dest="task", metavar="NAME", help="its training pass (default: the first one)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", default=None, help=f"of {', '.join(METHODS)}")
    parser.add_argument("--options", type=Path, metavar="JSON", help='by method: {"full": {"training_args": {...}}}')
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    options = parser.parse_args(arguments)
    try:
        return _compare(options)
    except OlivalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is measured", file=sys.stderr)
        return 130


def _compare(options: argparse.Namespace) -> int:
    methods = list(dict.fromkeys(options.methods or METHODS))
    given = read_json(options.options) if options.options else {}
    task = read_task(read_json(options.workflow), options.task, str(options.workflow))
    if problems := [*_method_problems(methods), *_option_problems(given, options.options), *_out_problems(options.out)]:
        raise ConfigError(problems)
    if options.task is None and task.others:
        _tell(f"comparing on pass '{task.name}'; --pass takes another: {', '.join(task.others)}")
    if dropped := dropped_options(task, given):
        _tell(f"{', '.join(dropped)}: left out: each method is trained in one process, which is measured")
    steps = method_steps(task, methods, given)
    refused = _refused(task, steps, options.out)
    if refused and (options.methods or len(refused) == len(steps)):
        raise ConfigError(list(dict.fromkeys(f"{method}: {p}" for method, found in refused.items() for p in found)))
    for method, found in refused.items():
        _tell(f"{method}: left out: {found[0]}")
    here = _conditions()
    failures = [{"method": method, "reason": "; ".join(found)} for method, found in refused.items()]
    measured, failed = [], False
    (options.out / MEASURED).mkdir(parents=True, exist_ok=True)
    for number, (method, step) in enumerate((m, s) for m, s in steps.items() if m not in refused):
        title = f"{number + 1}/{len(steps) - len(refused)} {method}"
        file = options.out / MEASURED / f"{method}-{_digest(task, step, here)}.json"
        if file.is_file():
            _tell(f"{title}: measured before, kept")
        else:
            _tell(title)
            try:
                write_json(file, train(task, method, step, options.out / WORK / method, options.out / ANSWERS))
            except WorkerError as error:
                _tell(f"{title}: failed: {error}")
                failures.append({"method": method, "reason": str(error)})
                failed = True
                continue
        measured.append(read_json(file))
    if not measured:
        print("error: no method could be measured; the reasons stand above", file=sys.stderr)
        return 1
    results = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "workflow": str(options.workflow),
        "pass": task.name,
        "base": str(_model_path(task)),
        **here,
        "machine": machine(),
        "methods": measured,
        "failures": failures,
    }
    _write(options.out, results)
    print_table(results)
    print(f"Written to {options.out / RESULTS}; {REPORT}, {TABLE} and plots beside it")
    return int(failed)


def train(task: Task, method: str, step: Mapping[str, Any], work: Path, answers: Path) -> dict[str, Any]:
    """Trains and measures one method in a new process; `work` is made anew, and removed in the end.

    `answers` is the folder of a teacher's answers; it is made where the data have a teacher, and stays.
    Raises WorkerError with the reason of a failure.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if any(teacher_of(data) for data in used_data(task, step)):
        answers.mkdir(parents=True, exist_ok=True)
        (work / "cache").mkdir()
        (work / "cache" / ANSWERS).symlink_to(answers.resolve(), target_is_directory=True)
    config, result = work / "workflow.json", work / "result.json"
    write_json(config, method_workflow(task, step, str(work / "cache"), str(work / "output")))
    run_fresh([sys.executable, "-m", "benchmark.training_worker", str(config), str(result)])
    timed = read_json(result)
    (record_file,) = (work / "cache" / "adapters").glob("*/training.json")
    record = read_json(record_file)
    quality = read_json(work / "output" / "evaluation.json")["quality"]
    found = {
        "method": method,
        "options": {key: value for key, value in step.items() if not key.endswith("data_config")},
        "trained": timed["trainable"],
        "base_parameters": record["base_parameters"],
        "seconds": timed["seconds"],
        "cpu_seconds": timed["cpu_seconds"],
        "steps": timed["steps"],
        "rows": record["rows"],
        "peak_rss_bytes": record["peak_rss_bytes"],
        "training_bytes": record["peak_rss_bytes"] - record["rss_before_bytes"],
        "peak_gpu_bytes": record.get("peak_gpu_bytes"),
        "adapter_bytes": (record_file.parent / "adapter_model.safetensors").stat().st_size,
        "quality": {row["metric"]: {name: row[column] for name, column in _COLUMNS} for row in quality},
    }
    shutil.rmtree(work)
    return found


_COLUMNS = (("value", "pytorch"), ("low", "low"), ("high", "high"), ("base", "base"))


def _refused(task: Task, steps: Mapping[str, Mapping[str, Any]], out: Path) -> dict[str, list[str]]:
    """What the check before a run says against a method; one process checks all of them."""
    folder = out / WORK / "check"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for method, step in steps.items():
        workflow = method_workflow(task, step, str(folder / "cache"), str(folder / "output"))
        write_json(folder / f"{method}.json", workflow)
    run_fresh([sys.executable, "-m", "passes.workflow_files", str(folder)])
    found = {name.removesuffix(".json"): lines for name, lines in read_json(folder / "problems.json").items() if lines}
    shutil.rmtree(folder)
    return {method: found[method] for method in steps if method in found}


def _digest(task: Task, step: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Of all that a measurement depends on: the training, its files, versions and commit."""
    from passes.training.loss_choice import content_sha256

    base = _model_path(task)
    parts = [
        method_workflow(task, step, "", ""),
        [file_sha256(file) for file in used_files(task, step)],
        content_sha256(step.get("loss")),  # of a user's loss, or of a distillation's teacher
        base_fingerprint(base) if base.is_dir() else str(base),
        here,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _conditions() -> dict[str, Any]:
    head, changed = commit()
    packages = {name: version(name) for name in PACKAGES}
    return {"versions": {**versions(), **packages}, "commit": head, "dirty": changed}


def _model_path(task: Task) -> Path:
    model = task.workflow.get("input_model")
    return Path(str(model.get("model_path") if isinstance(model, dict) else model))


def _method_problems(methods: Sequence[str]) -> list[str]:
    return [
        f"--methods {name}: there is no such method; {nearest(name, METHODS)}"
        for name in methods
        if name not in METHODS
    ]


def _option_problems(given: Any, file: Path | None) -> list[str]:
    if not isinstance(given, dict) or not all(isinstance(options, dict) for options in given.values()):
        return [
            f'--options {file}: must be an object of options by method, such as {{"full": {{"training_args": {{}}}}}}'
        ]
    return [
        f"--options {file}: there is no method '{name}'; {nearest(name, METHODS)}"
        for name in given
        if name not in METHODS
    ]


def _out_problems(out: Path) -> list[str]:
    if out.exists() and not out.is_dir():
        return [f"--out {out}: is a file; name a folder"]
    own = (RESULTS, REPORT, TABLE, MEASURED, WORK, ANSWERS)
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    foreign = sorted(n for n in names if n not in own and not n.endswith(".svg") and ".tmp" not in n)
    if foreign:
        return [
            f"--out {out}: has other things in it ({', '.join(foreign[:3])}); name a new folder or one of a former run"
        ]
    return []


def _write(out: Path, results: Mapping[str, Any]) -> None:
    write_json(out / RESULTS, results)
    write_text(out / TABLE, markdown(results))
    drawn = figures(results)
    for name, (svg, _) in drawn.items():
        write_text(out / f"{name}.svg", svg)
    write_text(out / REPORT, html_report(results, drawn))
    shutil.rmtree(out / WORK, ignore_errors=True)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
