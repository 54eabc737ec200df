"""Files that are written in one step: a reader finds the old one or the new one, never half of one."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new name beside `path` to write to; what is there in the end takes the place of `path`.

    Nothing changes where the writing fails. The name ends with `.tmp` and is used once: threads, processes and machines
    that share the folder may write at once, and the last one counts.

        with replacing(target) as temporary:
            save(temporary)
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file in one step; its folder must be there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
