"""What an answer of a language model says: its label, and the reasoning before it."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

ANSWER_MARK = "Answer:"
# What models put around a label: white space, quotes, markup, sentence marks. '+', '-' and '#' may be a label's own.
_AROUND = " \t\r\n\"'“”‘’«»`*_.,:;!?()[]{}<>"


@dataclass(frozen=True)
class Lesson:
    """What a student learns of one row; `reasoning` may be empty."""

    reasoning: str
    answer: str


@dataclass(frozen=True)
class Reading:
    """How a teacher's answers are read.

    Attributes:
        labels: the allowed answers; None allows any text.
        mark: what stands between the reasoning and the answer; the last one in a text counts.
        reasoning: an answer must have reasoning before the mark.
    """

    labels: tuple[str, ...] | None = None
    mark: str = ANSWER_MARK
    reasoning: bool = False

    def lesson(self, text: str) -> Lesson | None:
        """What an answer teaches; None for nonsense: no allowed label, no text, or no reasoning where it is needed.

        >>> Reading(("ham", "spam"), reasoning=True).lesson("It offers a prize.\\nAnswer: **Spam**.")
        Lesson(reasoning='It offers a prize.', answer='spam')
        """
        reasoning, answer = split_answer(text, self.mark)
        if self.labels is not None:
            by_text = {plain_label(label): label for label in self.labels}
            answer = by_text.get(plain_label(_first_line(answer)), "")
        return Lesson(reasoning, answer) if answer and (reasoning or not self.reasoning) else None

    def complaint(self) -> str:
        """What a teacher is told of an answer that is nonsense."""
        wanted = f"one of {', '.join(self.labels)} and nothing else" if self.labels is not None else "the answer"
        if self.reasoning:
            return f"That could not be read. First give the reasoning, then write '{self.mark}' and {wanted}."
        return f"That could not be read. Write {wanted}."


def split_answer(text: str, mark: str) -> tuple[str, str]:
    """(what stands before the last `mark`, what stands after it), without white space around; ("", text) without one.

    Upper and lower case of the mark are the same.
    """
    place = text.lower().rfind(mark.lower())  # lower() keeps lengths of all but a few letters, casefold() does not
    if place < 0 or len(text.lower()) != len(text):
        place = text.rfind(mark)
    return ("", text.strip()) if place < 0 else (text[:place].strip(), text[place + len(mark) :].strip())


def plain_label(text: str) -> str:
    """A label as it is compared: in lower case, Unicode's composed form, without quotes and marks around it."""
    return unicodedata.normalize("NFC", text).strip(_AROUND).casefold()


def label_rights(expected: Sequence[str], answers: Sequence[str], mark: str) -> list[bool]:
    """Whether the label that each answer ends with is the one of the expected text, (rows,).

    The label is the first line behind the last `mark`, of the whole text without one, compared as `plain_label`.
    """

    def label(text: str) -> str:
        return plain_label(_first_line(split_answer(text, mark)[1]))

    return [
        bool(label(wanted)) and label(text) == label(wanted) for wanted, text in zip(expected, answers, strict=True)
    ]


def _first_line(text: str) -> str:
    """The first line with a letter or digit in it: a code fence or a rule is none; without one the first with text."""
    lines = [line for line in text.splitlines() if plain_label(line)]
    return next((line for line in lines if any(map(str.isalnum, line))), lines[0] if lines else "")
