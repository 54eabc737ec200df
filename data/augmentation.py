"""More training rows from the same file: copies of a row with words left out or swapped, or in another template.

Word dropout and word swap are the random deletion and random swap of Wei and Zou 2019, *EDA: Easy Data Augmentation
Techniques for Boosting Performance on Text Classification Tasks* (arXiv:1901.11196). Words change in the columns,
before a template is filled, so that its own words stay. What is to be learned, label or response, is that of the row.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from data.templates import fill, placeholders
from runtime.errors import OlivalError, nearest


@dataclass(frozen=True)
class Augmentation:
    """What the copies of each row are.

    Attributes:
        word_dropout: probability of each word of a copy to be left out, in 0..1 without 1; one word at least stays.
        word_swap: how many times two words of a copy, drawn at random, change places.
        templates: format strings over columns; a row's copies take them in turn, from one that is drawn. Empty: the
            row's own template.
        copies: of each row, beside the row itself.
        seed: the same seed gives the same copies.
    """

    word_dropout: float = 0.0
    word_swap: int = 0
    templates: Sequence[str] = ()
    copies: int = 1
    seed: int = 0


def augmentation_problems(option: Any, columns: Sequence[str]) -> list[str]:
    """What is wrong with the option `augmentation` of data with these columns; each line starts with its name."""
    fields = {f.name: f.default for f in dataclasses.fields(Augmentation)}
    if not isinstance(option, Mapping):
        return [f"augmentation: must be an object such as {{'word_dropout': 0.1}}, but is {option!r}"]
    problems = [f"augmentation.{key}: unknown; {nearest(key, fields)}" for key in option if key not in fields]
    values = {**fields, **option}
    dropout = values["word_dropout"]
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        problems.append(f"augmentation.word_dropout: 0 <= word_dropout < 1 must hold, but it is {dropout!r}")
    for key, least in (("word_swap", 0), ("copies", 1), ("seed", 0)):
        if type(values[key]) is not int or values[key] < least:
            problems.append(f"augmentation.{key}: must be a whole number of at least {least}, but is {values[key]!r}")
    templates = values["templates"]
    if isinstance(templates, str) or not isinstance(templates, Sequence):
        problems.append(f"augmentation.templates: must be a list of templates, but is {templates!r}")
    else:
        problems += [f"augmentation.templates: {p}" for t in templates for p in _template_problems(t, columns)]
    if not problems and not (dropout or values["word_swap"] or templates):
        problems.append("augmentation: changes nothing; give word_dropout, word_swap or templates, or leave it out")
    return problems


def copies(
    rows: Sequence[Mapping[str, str]],
    texts: Sequence[str],
    own: Callable[[Mapping[str, str]], str],
    augmentation: Augmentation,
) -> Iterator[tuple[int, str]]:
    """Yields (place of the row, text of a copy), row after row.

    A copy that is blank, or says what its row or another copy of it says, is left out.

    Args:
        rows: the values of the columns that `own` and the augmentation's templates name.
        texts: of the rows themselves.
        own: the row's own template.
    """
    templates = augmentation.templates
    for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
        random = Random(f"{augmentation.seed} {place}")
        turn = random.randrange(len(templates)) if templates else 0
        seen = {text}
        for copy in range(augmentation.copies):
            words = {
                column: word_dropout(
                    word_swap(value, augmentation.word_swap, random), augmentation.word_dropout, random
                )
                for column, value in row.items()
            }
            made = fill(templates[(turn + copy) % len(templates)], words) if templates else own(words)
            if made.strip() and made not in seen:
                seen.add(made)
                yield place, made


def word_dropout(text: str, probability: float, random: Random) -> str:
    """Leaves out each word with a probability, and the white space before it; one word stays if all would go.

    >>> word_dropout("one two three", 0.0, Random(0))
    'one two three'
    """
    pieces = _pieces(text)
    if not probability or len(pieces) < 2:
        return text
    kept = [piece for piece in pieces if random.random() >= probability] or [random.choice(pieces)]
    end = text[len(text.rstrip()) :]
    return kept[0].lstrip() + "".join(kept[1:]) + end


def word_swap(text: str, times: int, random: Random) -> str:
    """Two words, drawn at random, change places; so many times. White space stays where it is.

    >>> word_swap("one, two", 1, Random(0))
    'two one,'
    """
    spaces, words = re.split(r"\S+", text), text.split()
    if len(words) < 2:
        return text
    for _ in range(times):
        first, second = random.sample(range(len(words)), 2)
        words[first], words[second] = words[second], words[first]
    return spaces[0] + "".join(word + space for word, space in zip(words, spaces[1:], strict=True))


def _pieces(text: str) -> list[str]:
    """The words, each with the white space before it."""
    return re.findall(r"\s*\S+", text)


def _template_problems(template: Any, columns: Sequence[str]) -> list[str]:
    if not isinstance(template, str):
        return [f"a template must be text, but is {template!r}"]
    try:
        named = placeholders(template)
    except OlivalError as error:
        return [str(error)]
    if not named:
        return [f"template {template!r} names no column, such as {{text}}"]
    return [
        f"template {template!r}: there is no column {c!r}; {nearest(c, columns)}" for c in named if c not in columns
    ]
