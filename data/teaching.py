"""Rows that a teacher is to answer before a student can learn them: distillation by text.

A teacher is a language model that writes the answers, such as labels of rows that have none. Learning its answers is
sequence-level distillation (Kim and Rush 2016, 1606.07947); its reasoning may be learned too: before the answer (Ho,
Schmid and Yun 2022, 2212.10071; Magister et al. 2022, 2212.08410), or as a second task beside it ("Distilling
step-by-step", Hsieh et al. 2023, 2305.02301). Here rows become questions, and answers become data; `passes.teaching`
asks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data.examples import ClassificationData, GenerationData
from data.loading import check_columns, describe_rows
from data.preparing import filled_template, label_texts, prepare_classification, prepare_generation, source_of
from data.teacher_answers import ANSWER_MARK, Lesson, Reading, plain_label
from data.teacher_settings import TeacherSettings, teacher_problems
from runtime.errors import ConfigError, DataError, OlivalError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

REASONING = ("none", "before", "beside")
_ANSWER = "__answer__"  # the column that answers are put into
Data = ClassificationData | GenerationData


@dataclass(frozen=True)
class Unanswered:
    """Rows with the questions to their teacher.

    Attributes:
        questions: one per row, the prompt template already filled.
        teacher: who is asked.
        reading: how its answers are read.
        attempts: how often a row is asked whose answers are nonsense.
        truth: the rows with their true labels, where the teacher is asked to be scored and not to be learned from.
        true_labels: these labels, one per row; empty without `truth`.
        source: file or data set, for messages.
    """

    questions: list[str]
    teacher: TeacherSettings
    reading: Reading
    attempts: int
    make: Callable[[list[int], list[Lesson]], Data]
    truth: Data | None
    true_labels: list[str]
    source: str

    def answered(self, lessons: Sequence[Lesson | None]) -> Data:
        """The data to learn: `lessons` has one for each row, and rows with None are left out.

        Raises DataError when no row is left, or for a classifier when all have one label.
        """
        kept = [row for row, lesson in enumerate(lessons) if lesson is not None]
        if not kept:
            raise DataError(f"{self.source}: the teacher gave none of {len(lessons)} rows an answer that could be read")
        data = self.make(kept, [lesson for lesson in lessons if lesson is not None])
        if isinstance(data, ClassificationData) and len(set(data.labels)) == 1:
            raise DataError(f"{self.source}: the teacher gave all of {len(kept)} rows the label {data.labels[0]!r}")
        return data

    def example(self) -> Data:
        """The data as they will be but for the answers: for checks before the teacher is asked.

        Rows to classify get the labels in turn; where there are fewer rows than labels, rows come again until each
        label has occurred. Rows to write are answered all alike: the same row in other data is then found to be the
        same.
        """
        if self.truth is not None:
            return self.truth
        names, count = self.reading.labels or ("answer",), len(self.questions)
        alike = self.make(list(range(count)), [Lesson("reasoning", names[0])] * count)
        if not isinstance(alike, ClassificationData) or not count:
            return alike
        places = range(max(count, len(names)))
        labels = [names[place % len(names)] for place in places]
        return dataclasses.replace(alike.take([place % count for place in places]), labels=labels)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of everything that the answered data depend on, but for a local teacher's weights."""
        parts = [self.questions, self.teacher.identity(), dataclasses.asdict(self.reading), self.attempts]
        text = json.dumps([*parts, self.example().fingerprint], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


def taught_generation(
    dataset: Dataset,
    teacher: Any = None,
    prompt_template: str | None = None,
    labels: Sequence[str] | None = None,
    reasoning: str = "none",
    answer_mark: str = ANSWER_MARK,
    attempts: int = 3,
    label: str | None = None,
    prompt: str | None = None,
    template: str | None = None,
    reasoning_template: str | None = None,
    max_length: int = 256,
    packing: bool = False,
    chat_template: bool = False,
) -> Unanswered:
    """Rows for an adapter that writes what its teacher wrote.

    Args:
        teacher: see `data.teacher_settings`.
        prompt_template: format string over columns: what the teacher is asked.
        labels: the allowed answers; None takes any text.
        reasoning: "none" learns the answer alone; "before" the reasoning, the mark and the answer; "beside" two
            examples of a row, its answer, and under `reasoning_template` its reasoning.
        answer_mark: what the teacher is told to write between its reasoning and its answer.
        attempts: how often a row is asked whose answers are nonsense.
        label: column of the true label: the data are these labels, and the teacher is asked to be scored against them.
        prompt, template, max_length, packing, chat_template: the student's, as in `data.preparing.prepare_generation`.

    Raises:
        ConfigError: everything that is wrong with these options.
        DataError: a missing column or value.
    """
    problems = _problems(teacher, prompt_template, labels, answer_mark, attempts)
    if reasoning not in REASONING:
        problems.append(f"reasoning: {reasoning!r} is unknown; {nearest(reasoning, REASONING)}")
    if (reasoning == "beside") != (reasoning_template is not None):
        problems.append("reasoning_template: goes with reasoning 'beside', and that with it: the second task's prompt")
    if label is not None and labels is None:
        problems.append("label: the teacher is scored by its labels; give `labels`, the allowed answers")
    options = (max_length, packing, chat_template)

    def rows(
        kept: list[int], answers: list[str], column: str | None = prompt, student: str | None = template
    ) -> GenerationData:
        return prepare_generation(_part(dataset, kept, answers), column, _ANSWER, student, None, *options)

    def make(kept: list[int], lessons: list[Lesson]) -> GenerationData:
        if reasoning == "before":
            return rows(kept, [f"{lesson.reasoning} {answer_mark} {lesson.answer}" for lesson in lessons])
        data = rows(kept, [lesson.answer for lesson in lessons])
        if reasoning != "beside":
            return data
        second = rows(kept, [lesson.reasoning for lesson in lessons], None, reasoning_template)
        prompts, responses = data.prompts + second.prompts, data.responses + second.responses
        return dataclasses.replace(data, prompts=prompts, responses=responses)

    needs_reasoning = reasoning != "none" and label is None
    return _unanswered(dataset, problems, prompt_template, labels, answer_mark, needs_reasoning, teacher, attempts,
                       label, make, lambda answers: rows(list(range(len(dataset))), answers))  # fmt: skip


def taught_classification(
    dataset: Dataset,
    teacher: Any = None,
    prompt_template: str | None = None,
    labels: Sequence[str] | None = None,
    answer_mark: str = ANSWER_MARK,
    attempts: int = 3,
    label: str | None = None,
    text: str | None = None,
    text_template: str | None = None,
    max_length: int = 128,
    window_stride: int | None = None,
) -> Unanswered:
    """Rows for a classification head that gives the labels that its teacher wrote; options as above.

    Args:
        labels: all labels in the order of the head's outputs, required.
        text, text_template, max_length, window_stride: as in `data.preparing.prepare_classification`.
    """
    problems = _problems(teacher, prompt_template, labels, answer_mark, attempts)
    if labels is None:
        problems.append("labels: is required, the allowed answers")

    def rows(kept: list[int], answers: list[str]) -> ClassificationData:
        given = (text, _ANSWER, text_template, labels, max_length, window_stride)
        return prepare_classification(_part(dataset, kept, answers), *given)

    def make(kept: list[int], lessons: list[Lesson]) -> ClassificationData:
        return rows(kept, [lesson.answer for lesson in lessons])

    return _unanswered(dataset, problems, prompt_template, labels, answer_mark, False, teacher, attempts,
                       label, make, lambda answers: rows(list(range(len(dataset))), answers))  # fmt: skip


def _unanswered(
    dataset: Dataset,
    problems: list[str],
    prompt_template: str | None,
    labels: Sequence[str] | None,
    mark: str,
    needs_reasoning: bool,
    teacher: Any,
    attempts: int,
    label: str | None,
    make: Callable[[list[int], list[Lesson]], Data],
    make_truth: Callable[[list[str]], Data],
) -> Unanswered:
    source, questions, truth = source_of(dataset), [], []
    try:
        if isinstance(prompt_template, str):
            questions = filled_template(dataset, prompt_template, source)
    except OlivalError as error:
        problems.append(f"prompt_template: {error}")
    try:
        if label is not None:
            check_columns(dataset, [label], source)
            truth = label_texts(dataset, label, source)
            if not any(problem.startswith("labels:") for problem in problems):
                _check_truth(dataset, truth, labels or [], source)
    except OlivalError as error:
        problems.append(f"label: {error}")
    if problems:
        raise ConfigError(problems)
    reading = Reading(tuple(labels) if labels is not None else None, mark, needs_reasoning)
    true_data = make_truth(truth) if label is not None else None
    settings = TeacherSettings.from_options(teacher)
    return Unanswered(questions, settings, reading, attempts, make, true_data, truth, source)


def _problems(teacher: Any, prompt_template: Any, labels: Any, mark: Any, attempts: Any) -> list[str]:
    problems = teacher_problems(teacher)
    if not isinstance(prompt_template, str) or not prompt_template.strip():
        problems.append(f"prompt_template: must be text with columns in braces, but is {prompt_template!r}")
    if labels is not None:
        named = list(labels) if isinstance(labels, list | tuple) else []
        if len(named) < 2 or not all(isinstance(name, str) for name in named):
            problems.append(f"labels: must be a list of two or more texts, but is {labels!r}")
        elif not all(map(plain_label, named)) or len(set(map(plain_label, named))) < len(named):
            problems.append(f"labels: must differ by more than upper case, quotes and sentence marks, but are {named}")
    if not isinstance(mark, str) or not mark.strip():
        problems.append(f"answer_mark: must be text, but is {mark!r}")
    if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 1:
        problems.append(f"attempts: must be a whole number of at least 1, but is {attempts!r}")
    return problems


def _check_truth(dataset: Dataset, truth: Sequence[str], labels: Sequence[str], source: str) -> None:
    unknown = [row for row, name in enumerate(truth) if name not in labels]
    if unknown:
        name, where = truth[unknown[0]], describe_rows(dataset, unknown)
        raise DataError(f"{source}: unknown label {name!r} ({where}); {nearest(name, labels)}")


def _part(dataset: Dataset, kept: Sequence[int], answers: Sequence[str]) -> Dataset:
    """The rows at `kept`, with a column more."""
    from datasets import Dataset, Features, Value

    columns = {name: [values[row] for row in kept] for name, values in dataset.to_dict().items()}
    features = Features({**dataset.features, _ANSWER: Value("string")})
    part = Dataset.from_dict({**columns, _ANSWER: list(answers)}, features=features)
    part.info.dataset_name = dataset.info.dataset_name
    return part
