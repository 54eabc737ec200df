"""Has a teacher answer the rows of a data config, once, and makes of its answers the data that a student learns."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.examples import ClassificationData, GenerationData, read_data
from data.teacher_answers import Lesson
from data.teaching import Unanswered
from passes.teaching.answer_store import AnswerStore, key_of
from passes.teaching.local_teacher import LocalTeacher
from passes.teaching.server_teacher import ServerTeacher
from passes.training.store import cache_folder
from runtime.errors import OlivalError

Data = ClassificationData | GenerationData
SHOWN = 80  # characters of an answer that could not be read


def load_taught(data_config: Any, base: Path, adapters: Mapping[str, Path]) -> Data:
    """`data.examples.load_data`, and rows with a teacher get its answers; those with true labels keep them.

    Args:
        data_config: an Olive DataConfig, or the dict of one.
        base: folder of the workflow's base.
        adapters: {name: folder} of the workflow's adapters that are trained by now.

    Raises:
        DataError: as `load_data`, or not a row has an answer that could be read.
        OlivalError: the teacher gives no answers; says how many are kept.
    """
    data = read_data(data_config)
    if not isinstance(data, Unanswered):
        return data
    return data.truth if data.truth is not None else data.answered(lessons(data, base, adapters))


def lessons(
    rows: Unanswered, base: Path, adapters: Mapping[str, Path], cache: Path | None = None
) -> list[Lesson | None]:
    """What the teacher's answer to each row says, None where no answer could be read; asks what is not kept yet.

    Data configs that read differently share the answers. Of a row's answers the first counts that its own reading can
    read, so what others ask for later changes nothing; and only answers that its own reading has asked for are
    `attempts`, so a row is not left out before it was asked for in the words of this reading.

    `cache` is the workflow's cache_dir; None is that of the run that Olive is in.

    Raises OlivalError as `load_taught` does.
    """
    settings = rows.teacher
    teacher: Any = ServerTeacher(settings) if settings.url else LocalTeacher(settings, base, adapters)
    weights = [] if settings.url else teacher.weights()
    store = AnswerStore((cache or cache_folder()) / "teacher", settings.name, [settings.identity(), weights])
    answers, attempts = store.answers(), store.attempts(_reader(rows))
    questions = list(dict.fromkeys(rows.questions))
    asked = 0
    for _ in range(rows.attempts if teacher.talks else 1):
        missing = [
            question
            for question in questions
            if _wants_asking(rows, teacher, answers.get(key_of(question), []), attempts[key_of(question)])
        ]
        if not missing:
            break
        asked += len(missing)
        _ask(rows, teacher, store, missing, answers)
        attempts.update(map(key_of, missing))
    found = [_lesson(rows, answers.get(key_of(question), [])) for question in rows.questions]
    _say(rows, found, answers, asked, store.file)
    return found


def _reader(rows: Unanswered) -> str:
    """Names a reading in the kept answers."""
    return key_of(json.dumps(dataclasses.asdict(rows.reading)))[:16]


def _wants_asking(rows: Unanswered, teacher: Any, given: Sequence[str], attempts: int) -> bool:
    """Whether a question with these answers, of which `attempts` are for this reading, is to be asked (again)."""
    left = attempts < rows.attempts if teacher.talks else not given  # one that cannot talk says the same to all
    return left and _lesson(rows, given) is None


def _lesson(rows: Unanswered, given: Sequence[str]) -> Lesson | None:
    """Of the answers to one question the first that can be read."""
    return next((lesson for text in given if (lesson := rows.reading.lesson(text)) is not None), None)


def _ask(
    rows: Unanswered, teacher: Any, store: AnswerStore, questions: list[str], answers: dict[str, list[str]]
) -> None:
    """One round: each answer is kept on disk and added to `answers`."""
    reader, conversations = _reader(rows), []
    for question in questions:
        talk = [{"role": "user", "content": question}]
        if given := answers.get(key_of(question)):
            talk += [{"role": "assistant", "content": given[-1]}]
            talk += [{"role": "user", "content": rows.reading.complaint()}]
        conversations.append(talk)
    with tqdm(total=len(questions), desc=f"teacher {rows.teacher.name}", unit="row",
              disable=not sys.stderr.isatty()) as bar:  # fmt: skip

        def keep(place: int, text: str) -> None:
            store.keep(questions[place], text, reader)
            answers.setdefault(key_of(questions[place]), []).append(text)
            bar.update()

        try:
            teacher.answer(conversations, keep)
        except OlivalError as error:
            kept = sum(_lesson(rows, answers.get(key_of(question), [])) is not None for question in rows.questions)
            raise OlivalError(
                f"{rows.source}: {error}\n{kept} of {len(rows.questions)} rows are answered and kept in {store.file}; "
                "the same command goes on from there"
            ) from error


def _say(
    rows: Unanswered, found: Sequence[Lesson | None], answers: Mapping[str, Sequence[str]], asked: int, file: Path
) -> None:
    """A line on how it went."""
    lost = [question for question, lesson in zip(rows.questions, found, strict=True) if lesson is None]
    line = f"teacher {rows.teacher.name}: {len(found) - len(lost)} of {len(found)} rows of {rows.source} answered"
    line += f", {asked} questions asked" if asked else ", all kept from an earlier run"
    if lost:
        said = answers.get(key_of(lost[0]), [""])[-1]
        shown = " ".join(said.split())
        line += f", {len(lost)} left out: their answers could not be read, such as {shown[:SHOWN]!r}"
        line += f"; raise `attempts`, or delete {file}, to ask them again"
    print(line, file=sys.stderr)
