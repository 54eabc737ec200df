"""Answers that are held to a JSON Schema while they are written: how long they may become, so that none is cut.

Constrained decoding (Willard & Louf 2023, arXiv 2307.09702) permits at each step only tokens with which the text can
still become one that keeps the schema. The text at every step is therefore the beginning of a valid answer, and it is
valid itself unless it ends too early: the only cause is a limit on its length.
"""

from __future__ import annotations

from typing import Any

from runtime.errors import DataError
from runtime.json_answers import longest_json

SUFFIX = " (constrained)"  # of the names of scores


def answer_tokens(schema: Any, given: int | None = None) -> int:
    """Tokens that hold every answer which the schema permits, and the end of the sequence.

    A token is a byte of the text at least, whatever the tokenizer; a model may choose single bytes where longer tokens
    exist. `given` is the limit that the user set, None without one.

    Raises:
        DataError: `given` is less, or there is no limit: neither given, nor set by the schema.
    """
    try:
        needed = longest_json(schema) + 1
    except DataError as error:
        if given is None:
            raise DataError(f"{error}; or set max_new_tokens, which cuts longer answers") from error
        return given
    if given is not None and given < needed:
        raise DataError(
            f"max_new_tokens is {given}, but the schema permits answers of {needed - 1} bytes, which may take a token "
            f"each; leave it out, or give {needed} or more: an answer ends by itself"
        )
    return needed if given is None else given
