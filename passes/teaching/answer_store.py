"""Keeps every answer of a teacher the moment it is there: a run that ends early loses none, and asks none again.

A file of JSON lines for each teacher with its settings, {"question": sha256, "answer": text}; the answers of one
question stand in the order in which they were given. A line is written by one call at the end of the file, between two
line feeds: a line that a killed process left unfinished is closed by the next one and not read, and processes that
share the file do not mix their lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from runtime.errors import OlivalError


class AnswerStore:
    """The answers of one teacher."""

    def __init__(self, folder: Path, name: str, identity: Any) -> None:
        """
        Args:
            folder: made when the first answer is kept.
            name: of the teacher, for people who look into the folder.
            identity: everything that answers depend on but for the question, as JSON.
        """
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("utf-8")).hexdigest()
        self.file = folder / f"{re.sub('[^A-Za-z0-9_-]+', '_', name)[-40:]}-{digest[:16]}.jsonl"

    def answers(self) -> dict[str, list[str]]:
        """{key of the question: its answers so far}."""
        found: dict[str, list[str]] = {}
        if not self.file.exists():
            return found
        for line in self.file.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                found.setdefault(str(record["question"]), []).append(str(record["answer"]))
            except (ValueError, TypeError, KeyError):  # empty, or cut off by a kill
                continue
        return found

    def keep(self, question: str, answer: str) -> None:
        """Appends the next answer of a question. Raises OlivalError when the file cannot be written."""
        line = json.dumps({"question": key_of(question), "answer": answer})  # escaped: one line, whatever is in it
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab", buffering=0) as stream:
                stream.write(f"\n{line}\n".encode())
        except OSError as error:
            raise OlivalError(f"{self.file}: an answer of the teacher cannot be kept: {error}") from error


def key_of(question: str) -> str:
    """sha256 (hex) of a question's text."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()
