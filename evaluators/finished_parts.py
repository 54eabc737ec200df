"""Keeps the finished parts of an evaluation on disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runtime.atomic_file import write_text


class FinishedParts:
    """Parts by key: what is there is read, what is not is computed and written. `clear` ends the evaluation.

    A key says everything that the part depends on: model, adapter, data, options. Another key is another part, so a
    changed data file or package is never answered with old numbers.
    """

    def __init__(self, folder: Path | None) -> None:
        """`folder` is made when the first part is written; None keeps nothing."""
        self.folder = folder
        self.read = 0  # parts that an earlier run had finished

    def get(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """The part's value, which must be what JSON can hold; floats come back exactly as they were."""
        if self.folder is None:
            return compute()
        text = json.dumps(key, sort_keys=True, ensure_ascii=False)
        file = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        if file.exists():
            self.read += 1
            return json.loads(file.read_text(encoding="utf-8"))["value"]
        value = compute()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"key": key, "value": value}, ensure_ascii=False))
        return value

    def clear(self) -> None:
        """Removes all parts: the evaluation is complete, and the next one measures anew."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def files_identity(*files: Path) -> list[list[Any]]:
    """Name, bytes and time of change (ns) of files: a key's stand-in for their content."""
    return [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in files]
