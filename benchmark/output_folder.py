"""The benchmark's output folder: what a killed run has measured is kept and found again; nothing foreign is touched."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmark.results import read_json, read_results
from benchmark.results_schema import MEASUREMENT, problems
from runtime.errors import DataError
from runtime.manifest import MANIFEST, file_sha256

RESULTS, REPORT, MEASUREMENTS, UNFINISHED = "results.json", "report.html", "measurements", "unfinished"


class OutputFolder:
    """A folder with results.json, report.html and `measurements`; while a run goes on also `unfinished`."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, or takes that of a former run.

        Raises:
            DataError: it is a file, has something else in it, or its results.json is not of this benchmark.
        """
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise DataError(f"--output {folder}: is a file; name a folder")
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        foreign = sorted(n for n in names if n not in (RESULTS, REPORT, MEASUREMENTS, UNFINISHED) and ".tmp" not in n)
        if foreign:
            raise DataError(
                f"--output {folder}: has other things in it ({', '.join(foreign[:3])}); name a new folder or one of a "
                "former benchmark"
            )
        if RESULTS in names:
            read_results(self.folder / RESULTS)  # one of a newer version is not overwritten
        self.unfinished = self.folder / UNFINISHED
        self.unfinished.mkdir(parents=True, exist_ok=True)

    def file(self, package: str, execution_provider: str, folder: Path, conditions: Mapping[str, Any]) -> Path:
        """Where a worker writes; another package.json, option, version or commit makes another name."""
        key = {"manifest": file_sha256(folder / MANIFEST), "folder": str(folder), **conditions}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        return self.unfinished / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', package)}.{execution_provider}.{digest}.json"

    def finish(self, files: Collection[Path]) -> None:
        """Puts the workers' files in the place of those of a former run; files of other options go."""
        for path in self.unfinished.iterdir():
            if path not in files:
                path.unlink()
        shutil.rmtree(self.folder / MEASUREMENTS, ignore_errors=True)
        self.unfinished.replace(self.folder / MEASUREMENTS)


def read_measurement(path: Path) -> dict[str, Any]:
    """Reads a worker's file.

    Raises:
        DataError: it is not there, no JSON, or does not keep to the schema.
    """
    content = read_json(path)
    if found := problems(content, MEASUREMENT):
        raise DataError(f"{path}: is no measurement: " + "; ".join(found))
    return dict(content)
