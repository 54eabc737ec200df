"""What a running workflow tells the one who watches it: a line of JSON for each validation and each part of rows.

The environment variable OLIVAL_INTERMEDIATE_VALUES names a file, and lines are appended to it (JSON Lines); without the
variable nothing happens. A search reads them while the workflow runs, and stops one that cannot win. The lines:

    {"stage": "training", "adapter": "spam", "step": 1, "values": {"loss": 0.16, "accuracy": 0.95, "f1_macro": 0.94}}
    {"stage": "training", "adapter": "spam", "progress": [40, 170]}
    {"stage": "training", "adapter": "spam", "cached": true}
    {"stage": "evaluation", "adapter": "spam", "model": "package", "metric": "accuracy", "rows": [[7, 1]], "of": 120}

`step` counts an adapter's validations from 1; a generation adapter has the values "loss" and "perplexity", a value that
is no number is null. `progress` is optimizer steps done and wanted. `cached`: the adapter was in the store, nothing is
trained. `rows` are pairs of a row's place in the data, from 0, and 1 where its label was found, else 0; `of` is the
number of all rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.errors import OlivalError

VARIABLE = "OLIVAL_INTERMEDIATE_VALUES"


def wanted() -> bool:
    """Whether someone watches: then, and only then, `report` writes."""
    return bool(os.environ.get(VARIABLE))


def report(line: Mapping[str, Any]) -> None:
    """Appends a line in one write of the operating system, so that those of several processes do not mix.

    Raises:
        ValueError: a value that JSON does not have, such as NaN.
        OlivalError: the file cannot be written, or not the whole line.
    """
    if not wanted():
        return
    content = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    file = os.environ[VARIABLE]
    try:
        with open(file, "ab", buffering=0) as stream:
            written = stream.write(content)
    except OSError as error:
        raise OlivalError(f"{file} ({VARIABLE}): cannot be written: {error.strerror}") from error
    if written != len(content):
        raise OlivalError(f"{file}: {written} of {len(content)} bytes were written; is the disk full?")


def read_from(file: Path, offset: int) -> tuple[list[dict[str, Any]], int]:
    """The lines from `offset` (bytes) on, and the offset to go on from; a file that is not there yet has none.

    A last line that is only half there is left for the next call. A whole line that is no JSON object is passed over:
    it is what a full disk or a kill left of one, and the values of the others still count.
    """
    if not file.exists():
        return [], offset
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read()
    whole = content[: content.rfind(b"\n") + 1]
    return [line for raw in whole.splitlines() if (line := _object(raw)) is not None], offset + len(whole)


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except ValueError:  # covers bytes that are no UTF-8
        return None
    return line if isinstance(line, dict) else None
