"""Named, seeded changes of a text that leave its meaning: what people really type at a model.

A model that is robust gives the same verdict on a text and on its perturbed form: the invariance tests of CheckList
(Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of NLP Models with CheckList", section 2.2). Every function
is pure: the same text and seed give the same result in any process and any order. They work on code points, so a
character that is stored as a surrogate pair elsewhere is never cut in two.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable

from runtime.errors import ConfigError, nearest

TYPO_RATE = 0.04  # of the letters: about one in five words, which people still read without effort
VERY_LONG_CHARACTERS = 8000  # about 2,000 tokens: more than a classifier's max_length, and seconds on a small CPU
# Neutral ones: an emoji with a mood or a person would change what a text says. Some take two code points.
EMOJI = ("📎", "🗓️", "✏️", "🧭", "📦", "🪑", "🔢", "☑️")
WORDS_PER_EMOJI = 8
SPACES = ("  ", "\t", "\n", "\u00a0")  # two blanks, tab, new line, no-break space
# What a finger hits by mistake: the keys to the left and right on a QWERTY keyboard, the same on Portuguese ones
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOURS = {row[i]: row[max(i - 1, 0) : i] + row[i + 1 : i + 2] for row in _ROWS for i in range(len(row))}
_WORD = re.compile(r"[^\W\d_]+")  # letters only: a typo in a number would change what is said


def perturb(name: str, text: str, seed: int = 0) -> str:
    """The text, changed by the perturbation of this name; some texts have nothing to change and come back as they are.

    Raises:
        ConfigError: there is no such perturbation.

    >>> perturb("no_accents", "Amanhã não há aula")
    'Amanha nao ha aula'
    """
    if name not in PERTURBATIONS:
        raise ConfigError([f"there is no perturbation '{name}'; {nearest(name, PERTURBATIONS)}"])
    # the text is part of the seed: what becomes of it does not depend on the texts before it
    return PERTURBATIONS[name](text, random.Random(f"{seed}:{name}:{text}".encode("utf-8", "surrogatepass")))


def typos(text: str, rng: random.Random, rate: float = TYPO_RATE) -> str:
    """A neighbouring key, a dropped or a doubled letter at `rate` of the letters, and at least at one.

    Words of four letters or more are hit, after their first letter; in a text without any, all letters may be.
    """
    words = list(_WORD.finditer(text))
    letters = [i for word in words for i in range(*word.span())]
    places = [i for word in words if len(word[0]) >= 4 for i in range(word.start() + 1, word.end())] or letters
    if not places:
        return text
    hit = rng.sample(places, min(len(places), max(1, round(rate * len(letters)))))
    characters = list(text)
    for i in hit:
        letter = characters[i]
        kinds = ["", letter + letter]
        if near := NEIGHBOURS.get(letter.lower()):
            key = rng.choice(near)
            kinds.append(key.upper() if letter.isupper() else key)
        characters[i] = rng.choice(kinds)
    return "".join(characters)


def upper(text: str, _: random.Random) -> str:
    """EVERYTHING IN CAPITALS."""
    return text.upper()


def lower(text: str, _: random.Random) -> str:
    """everything in small letters."""
    return text.lower()


def emoji(text: str, rng: random.Random) -> str:
    """A neutral emoji after about one in `WORDS_PER_EMOJI` words, and at least one."""
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    if not ends:
        return text
    for end in sorted(rng.sample(ends, max(1, len(ends) // WORDS_PER_EMOJI)), reverse=True):
        text = f"{text[:end]} {rng.choice(EMOJI)}{text[end:]}"
    return text


def no_accents(text: str, _: random.Random) -> str:
    """Latin letters without accents, cedilla and tilde, as on a keyboard that lacks them; other scripts stay."""
    bare = []
    for character in unicodedata.normalize("NFC", text):
        base = unicodedata.normalize("NFD", character)[0]
        bare.append(base if base.isascii() and base.isalpha() else character)
    return "".join(bare)


def whitespace(text: str, rng: random.Random) -> str:
    """Blanks before and after, and about a third of the gaps between words wider or of another kind."""
    changed = re.sub(r"\s+", lambda gap: rng.choice(SPACES) if rng.random() < 1 / 3 else gap[0], text.strip())
    return f"  {changed} \n"


def very_long(text: str, _: random.Random, characters: int = VERY_LONG_CHARACTERS) -> str:
    """The text again and again, a blank between, cut at `characters`; a longer text stays as it is."""
    if not text or len(text) >= characters:
        return text
    return ((text + " ") * (characters // (len(text) + 1) + 1))[:characters]


def empty(text: str, _: random.Random) -> str:
    """Nothing at all."""
    return ""


PERTURBATIONS: dict[str, Callable[[str, random.Random], str]] = {
    function.__name__: function for function in (typos, upper, lower, emoji, no_accents, whitespace, very_long, empty)
}
# all but "empty" leave the meaning: the answer or the label should stay
KEEPS_MEANING = tuple(name for name in PERTURBATIONS if name != "empty")
