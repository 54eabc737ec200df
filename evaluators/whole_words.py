"""Whether a text holds a word: whole words, without regard to case and accents."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache


def fold(text: str) -> str:
    """The form in which texts are compared: case folded, without accents, curly apostrophes straight.

    >>> fold("Não É l’été")
    "nao e l'ete"
    """
    parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in parts if not unicodedata.combining(c)).replace("’", "'")


def holds(folded: str, word: str) -> bool:
    """Whether a folded text holds a word or phrase as a whole; a word that ends in * also with other endings.

    >>> holds(fold("Ele é PREGUIÇOSO."), "preguiços*"), holds("the classes", "class")
    (True, False)
    """
    return _pattern(word).search(folded) is not None


def is_word(text: str) -> bool:
    """Whether `holds` can ever find it: it starts and, but for a * at its end, ends with a letter or digit."""
    return re.fullmatch(r"\w(.*\w)?\*?", fold(text), flags=re.DOTALL) is not None


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    start = fold(word).removesuffix("*")
    phrase = r"\s+".join(re.escape(part) for part in start.split())
    return re.compile(rf"(?<!\w){phrase}" + ("" if word.endswith("*") else r"(?!\w)"))
