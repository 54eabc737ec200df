"""Perturbations are repeatable, change what they say they change, and nothing else."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import unicodedata

import pytest

from evaluators.perturbations import (
    EMOJI,
    KEEPS_MEANING,
    NEIGHBOURS,
    PERTURBATIONS,
    TYPO_RATE,
    VERY_LONG_CHARACTERS,
    perturb,
    typos,
    very_long,
)
from runtime.errors import ConfigError

TEXTS = [
    "The parcel arrived on Tuesday, two days late and slightly wet.",
    "A Conceição não sabe se a reunião de amanhã é às 15h30.",
    "ok",
    "I",
    "",
    "   ",
    "12:30 / 45,90",
    "नमस्ते दुनिया",
    "한국어 문장입니다",
    "👩🏽‍💻 codes, 🇧🇷 cheers",
    "e\u0301 decomposed, cafe\u0301 too",
    "Straße İstanbul ﬁne",
    "lone \ud83d surrogate",
    "\x00 and \u2028 lines",
]


@pytest.mark.parametrize("name", PERTURBATIONS)
@pytest.mark.parametrize("text", TEXTS)
def test_repeatable_and_whole(name: str, text: str) -> None:
    changed = perturb(name, text, seed=3)
    assert changed == perturb(name, text, seed=3)
    if "\ud83d" not in text:
        assert changed.encode("utf-8").decode("utf-8") == changed  # no half of a surrogate pair came into being


def test_the_seed_and_the_text_decide_and_nothing_else() -> None:
    text = TEXTS[0]
    assert len({perturb("typos", text, seed) for seed in range(20)}) > 10
    code = f"from evaluators.perturbations import perturb; print(perturb('typos', {text!r}, 7))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.rstrip("\n") == perturb("typos", text, 7)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("upper", "não à Straße", "NÃO À STRASSE"),
        ("lower", "NÃO É 15H", "não é 15h"),
        ("no_accents", "Amanhã não há açúcar, cafe\u0301", "Amanha nao ha acucar, cafe"),
        ("no_accents", "नमस्ते 한국어 ½ ﬁ Ωμέγα", "नमस्ते 한국어 ½ ﬁ Ωμέγα"),
        ("empty", "anything", ""),
        ("typos", "12:30 / 45,90", "12:30 / 45,90"),
        ("emoji", "   ", "   "),
        ("very_long", "", ""),
    ],
)
def test_exact(name: str, text: str, expected: str) -> None:
    assert perturb(name, text) == expected


def test_typos_hit_the_stated_share_of_letters_and_only_those() -> None:
    text = "Grandmother planted seventeen tomatoes behind the old greenhouse, 40 cm apart, in 2019. " * 20
    letters = sum(map(str.isalpha, text))
    changed = typos(text, random.Random(1))
    assert len(re.findall(r"\d+|[^\w\s]", changed)) == len(re.findall(r"\d+|[^\w\s]", text))
    assert re.findall(r"\d+", changed) == re.findall(r"\d+", text)
    words, other = text.split(), changed.split()
    assert len(words) == len(other)
    assert [w[0] for w in words] == [w[0] for w in other]  # first letters stay
    hits = round(TYPO_RATE * letters)
    different = sum(a != b for a, b in zip(words, other, strict=True))
    assert 0.6 * hits <= different <= hits
    assert typos("fantastic", random.Random(0)) != "fantastic"  # at least one


def test_a_typo_is_a_neighbouring_key_a_dropped_or_a_doubled_letter() -> None:
    assert NEIGHBOURS["q"] == "w" and NEIGHBOURS["g"] == "fh" and NEIGHBOURS["m"] == "n"
    seen = {typos("xxSx", random.Random(seed)) for seed in range(200)}
    dropped, doubled = {"xxx", "xxS"}, {"xxxSx", "xxSSx", "xxSxx"}
    assert seen == dropped | doubled | {"xzSx", "xcSx", "xxAx", "xxDx", "xxSz", "xxSc"} | {"xSx"}


def test_emoji_stand_between_words_and_taking_them_out_gives_the_text_back() -> None:
    text = " ".join(f"word{i}" for i in range(40))
    changed = perturb("emoji", text)
    found = [part for part in changed.split() if part in EMOJI]
    assert len(found) == 5
    assert " ".join(part for part in changed.split() if part not in EMOJI) == text
    assert perturb("emoji", "ok") in {f"ok {sign}" for sign in EMOJI}


def test_whitespace_changes_no_word() -> None:
    for text in TEXTS:
        assert perturb("whitespace", text).split() == text.split()
    assert len({perturb("whitespace", TEXTS[0], seed) for seed in range(5)}) > 1


def test_very_long_has_the_stated_length() -> None:
    changed = perturb("very_long", "ab c")
    assert len(changed) == VERY_LONG_CHARACTERS and changed.startswith("ab c ab c ")
    assert len(very_long("🇧🇷", random.Random(0), 7)) == 7
    book = "x" * (VERY_LONG_CHARACTERS + 1)
    assert perturb("very_long", book) == book


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"no perturbation 'typo'; did you mean 'typos'\?"):
        perturb("typo", "text")
    assert set(PERTURBATIONS) - set(KEEPS_MEANING) == {"empty"}


def test_accents_as_unicode_has_them() -> None:
    """Against the usual recipe, on every Latin letter of the blocks that Portuguese and its neighbours need."""
    for code in range(0xC0, 0x180):
        letter = chr(code)
        plain = "".join(c for c in unicodedata.normalize("NFD", letter) if not unicodedata.combining(c))
        assert perturb("no_accents", letter) == (plain if plain.isascii() else letter)
