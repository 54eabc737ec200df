"""`python -m passes.workflow_files FOLDER`: what is wrong with each workflow in a folder, without running any of them.

For who writes workflows, such as a search: one process checks many, and imports Olive and torch once. FOLDER gets
problems.json: {file name: [problem, ...]} of every other *.json in it. Workflows are checked as `olive run` checks them
before it begins, from the current folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from passes.registration import register
from passes.workflow_check import check_workflow
from runtime.atomic_file import write_text
from runtime.errors import ConfigError, OlivalError

PROBLEMS = "problems.json"


def file_problems(file: Path) -> list[str]:
    """Every problem of one workflow; what keeps Olive from reading it is a single one."""
    from olive.workflows.run.config import RunConfig

    try:
        return check_workflow(RunConfig.parse_file_or_obj(json.loads(file.read_text(encoding="utf-8"))))
    except OlivalError as error:
        return error.problems if isinstance(error, ConfigError) else [str(error)]
    except Exception as error:  # Olive's parsing runs the workflow's user_script, which raises anything
        return [" ".join(f"{type(error).__name__}: {error}".split())]


def main(folder: Path) -> None:
    """Writes FOLDER/problems.json."""
    register()
    files = sorted(file for file in folder.glob("*.json") if file.name != PROBLEMS)
    found = {file.name: file_problems(file) for file in files}
    write_text(folder / PROBLEMS, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
