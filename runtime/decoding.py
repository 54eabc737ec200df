"""From token ids to text, piece by piece, ending before a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class TextStream:
    """The text of one answer as its tokens arrive. No piece that is handed out holds any part of a stop string.

    >>> text = TextStream(tokenizer, ["\\n\\n"])  # doctest: +SKIP
    >>> pieces = [text.push(token) for token in tokens] + [text.finish()]  # doctest: +SKIP
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = stop
        self._tokens: list[int] = []
        self._held = ""  # may be the beginning of a stop string
        self._given = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Takes the next token; returns the text that is certain now, which may be empty."""
        self._tokens.append(token)
        self._held += self._decoder.step(self._tokenizer, token) or ""
        ends = [i for stop in self._stop if (i := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._give(min(ends), drop=True)
        return self._give(len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0))

    def finish(self) -> str:
        """What was held back, once no further token comes."""
        return self._give(len(self._held))

    def text(self) -> str:
        """The whole text so far: up to the stop string, or of all tokens."""
        return self._given if self.stopped else str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))

    def _give(self, length: int, drop: bool = False) -> str:
        piece, self._held = self._held[:length], "" if drop else self._held[length:]
        self._given += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it.

    >>> _overlap("one, two", "two, three")
    3
    """
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
