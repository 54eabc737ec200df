"""Keeps every answer of a teacher the moment it is there: a run that ends early loses none, and asks none again.

A file of JSON lines for each teacher with its settings, {"question": sha256, "answer": text, "reader": text}; the
answers of one question stand in the order in which they were given, and the reader is who asked for it. A line is
written by one call at the end of the file, between two line feeds: a line that a killed process left unfinished is
closed by the next one and not read, and processes that share the file do not mix their lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
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
        for question, answer, _ in self._records():
            found.setdefault(question, []).append(answer)
        return found

    def attempts(self, reader: str) -> Counter[str]:
        """{key of the question: how many of its answers a reader has asked for}."""
        return Counter(question for question, _, asker in self._records() if asker == reader)

    def _records(self) -> list[tuple[str, str, str]]:
        """(key of the question, answer, reader) of each line."""
        found: list[tuple[str, str, str]] = []
        if not self.file.exists():
            return found
        for line in self.file.read_bytes().split(b"\n"):
            try:
                record = json.loads(line)
                found.append((str(record["question"]), str(record["answer"]), str(record.get("reader", ""))))
            except (ValueError, TypeError, KeyError, AttributeError):  # empty, or cut off by a kill
                continue
        return found

    def keep(self, question: str, answer: str, reader: str = "") -> None:
        """Appends the next answer of a question. Raises OlivalError when the file cannot be written."""
        record = {"question": key_of(question), "answer": answer, "reader": reader}
        line = json.dumps(record)  # escaped: one line, whatever is in it
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab", buffering=0) as stream:
                stream.write(f"\n{line}\n".encode())
        except OSError as error:
            raise OlivalError(f"{self.file}: an answer of the teacher cannot be kept: {error}") from error


def key_of(question: str) -> str:
    """sha256 (hex) of a question's text."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()
