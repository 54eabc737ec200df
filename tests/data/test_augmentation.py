"""Copies of rows: what the word operations keep, what the seed decides, and what comes out of a data config."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from data.augmentation import word_dropout, word_swap
from data.examples import ClassificationData, GenerationData, MultiLabelData, load_data
from runtime.errors import DataError

TEXTS = ["um dois três quatro cinco", "  two\n\nlines here ", "word", "", "a b", "repeat repeat repeat once"]


def is_part(part: list[str], whole: list[str]) -> bool:
    """Whether `part` is what is left of `whole` when some of it is taken out."""
    rest = iter(whole)
    return all(word in rest for word in part)


@pytest.mark.parametrize("text", TEXTS)
def test_dropout_leaves_words_in_order_and_one_at_least(text: str) -> None:
    for seed in range(50):
        words = word_dropout(text, 0.7, Random(seed)).split()
        assert is_part(words, text.split()) and (words or not text.split())
        assert word_dropout(text, 0.7, Random(seed)).split() == words
    assert word_dropout(text, 0.0, Random(0)) == text


def test_dropout_takes_the_share_that_it_is_told() -> None:
    text = " ".join(f"w{i}" for i in range(20_000))
    kept = len(word_dropout(text, 0.1, Random(1)).split())
    assert abs(kept - 18_000) < 5 * np.sqrt(20_000 * 0.1 * 0.9)


def test_dropout_keeps_the_lines_between_words() -> None:
    kept = {word_dropout("one\ntwo\n\nthree\n", 0.5, Random(seed)) for seed in range(40)}
    assert {"one\n\nthree\n", "one\ntwo\n", "two\n"} <= kept


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("times", [1, 3])
def test_swap_keeps_all_words_and_all_white_space(text: str, times: int) -> None:
    changed = set()
    for seed in range(30):
        made = word_swap(text, times, Random(seed))
        assert Counter(made.split()) == Counter(text.split())
        assert [len(p) for p in re.split(r"\S+", made)] == [len(p) for p in re.split(r"\S+", text)]
        if times == 1 and len(text.split()) > 1:
            differing = [(a, b) for a, b in zip(text.split(), made.split(), strict=True) if a != b]
            assert len(differing) in (0, 2) and {a for a, _ in differing} == {b for _, b in differing}
        changed.add(made)
    assert changed - {text} or len(set(text.split())) < 2


@pytest.fixture
def mails(tmp_path: Path) -> Path:
    file = tmp_path / "mails.csv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = [
            (f"s{i}", f"body of the mail number {i}", "spam" if i % 4 == 0 else "ham", f"answer {i}") for i in range(8)
        ]
        csv.writer(stream).writerows([("subject", "text", "label", "response"), *rows])
    return file


def config(file: Path, kind: str = "classification", load: dict[str, Any] | None = None, **options: Any) -> Any:
    loading = {"type": "rows", "data_files": str(file), **(load or {})}
    return {"name": "mails", "load_dataset_config": loading, "pre_process_data_config": {"type": kind, **options}}


def classification(*arguments: Any, **options: Any) -> ClassificationData:
    data = load_data(config(*arguments, **options))
    assert isinstance(data, ClassificationData)
    return data


def test_rows_come_first_and_copies_keep_label_and_number(mails: Path) -> None:
    options = {"word_dropout": 0.3, "word_swap": 1, "copies": 2}
    plain, data = classification(mails), classification(mails, augmentation=options)
    assert data.texts[:8] == plain.texts and data.labels[:8] == plain.labels and len(data) > 12
    assert data.row_numbers[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    for text, label, number in zip(data.texts, data.labels, data.row_numbers, strict=True):
        assert label == plain.labels[number - 1]
        assert not Counter(text.split()) - Counter(plain.texts[number - 1].split())
    assert max(Counter(data.row_numbers).values()) == 3
    assert plain.row_numbers == [] and plain.template == data.template


def test_the_seed_decides_and_the_fingerprint_follows(mails: Path) -> None:
    def made(**options: Any) -> ClassificationData:
        return classification(mails, augmentation={"word_dropout": 0.3, **options})

    assert made(seed=1).texts == made(seed=1).texts != made(seed=2).texts
    prints = [d.fingerprint for d in (classification(mails), made(), made(seed=1), made(copies=2), made(word_swap=1))]
    assert len(set(prints)) == 5


def test_templates_are_taken_in_turn_and_their_words_stay(mails: Path) -> None:
    variants = ["Mail: {text}", "{subject} / {text}", "{text}"]
    options = {"templates": variants, "copies": 3}
    data = classification(mails, augmentation=options)
    bodies = [f"body of the mail number {i}" for i in range(8)]
    # the third one says what the row itself says
    wanted = Counter(t for i, b in enumerate(bodies) for t in (b, f"Mail: {b}", f"s{i} / {b}"))
    assert Counter(data.texts) == wanted
    first = classification(mails, augmentation={"templates": variants[:2]}).texts[8:]
    assert {t.split()[0] == "Mail:" for t in first} == {True, False}  # one of them each, drawn by the seed
    own = classification(mails, text_template="{text}\nTopic:", augmentation={"word_swap": 2, "copies": 2})
    assert own.template == "{text}\nTopic:" and all(text.endswith("\nTopic:") for text in own.texts)
    assert len(set(own.texts)) > 8


def test_prompts_change_and_responses_do_not(mails: Path) -> None:
    options: dict[str, Any] = {"prompt": "text", "augmentation": {"word_dropout": 0.5, "copies": 2}}
    data = load_data(config(mails, "generation", **options))
    assert isinstance(data, GenerationData) and len(data.prompts) == len(data.responses) > 12
    for prompt, response, number in zip(data.prompts, data.responses, data.row_numbers, strict=True):
        assert response == f"answer {number - 1}"
        assert is_part(prompt.split(), f"body of the mail number {number - 1}".split())


def test_numbers_are_those_of_the_file_behind_a_split(mails: Path) -> None:
    load = {"split_part": "train", "validation_fraction": 0.25}
    data = classification(mails, load=load, augmentation={"word_dropout": 0.5})
    for text, number in list(zip(data.texts, data.row_numbers, strict=True))[:6]:
        assert text == f"body of the mail number {number - 1}"


def test_balance_follows_augmentation(mails: Path) -> None:
    data = classification(mails, augmentation={"word_dropout": 0.4, "copies": 3}, balance="oversample")
    assert len(set(Counter(data.labels).values())) == 1
    fewer = classification(mails, balance="undersample")
    assert Counter(fewer.labels) == {"ham": 2, "spam": 2}
    assert [fewer.texts[i] for i in range(4)] == [f"body of the mail number {n - 1}" for n in fewer.row_numbers]
    with pytest.raises(DataError, match=f"row {fewer.row_numbers[0]}: unknown label"):
        fewer.label_ids(["other"])


def test_several_labels_a_text(tmp_path: Path) -> None:
    file = tmp_path / "several.csv"
    file.write_text('text,label\none two three,"a,b"\nfour five six,\n', encoding="utf-8")
    options = {"multi_label": True, "augmentation": {"word_dropout": 0.4, "copies": 2}}
    data = classification(file, **options)
    assert isinstance(data, MultiLabelData) and len(data) > 2
    assert all(
        (sets == ["a", "b"]) == (number == 1) for sets, number in zip(data.label_sets, data.row_numbers, strict=True)
    )
    with pytest.raises(DataError, match="balance: is for one label a row"):
        classification(file, **options, balance="oversample")


WRONG: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        "classification",
        {"augmentation": {"word_droput": 0.1, "word_dropout": 1.0, "word_swap": -1, "copies": 0, "seed": "x"}},
        ["augmentation.word_droput: unknown; did you mean 'word_dropout'?", "0 <= word_dropout < 1 must hold",
         "word_swap: must be a whole number of at least 0, but is -1", "copies: must be a whole number of at least 1",
         "seed: must be a whole number of at least 0, but is 'x'"],
    ),
    (
        "classification",
        {"augmentation": {"templates": ["{txt}", "no column", "{", 3]}, "balance": "oversampel"},
        ["there is no column 'txt'; did you mean 'text'?", "names no column", "template '{'", "must be text, but is 3",
         "balance: 'oversampel' is unknown; did you mean 'oversample'?"],
    ),
    ("classification", {"augmentation": {}}, ["augmentation: changes nothing"]),
    ("classification", {"augmentation": {"copies": 4}}, ["augmentation: changes nothing"]),
    ("classification", {"augmentation": 0.1}, ["augmentation: must be an object"]),
    ("classification", {"augmentation": {"templates": "{text}"}}, ["templates: must be a list"]),
    ("classification", {"balance": 3}, ["balance: must be one of oversample, undersample, or an object"]),
    (
        "classification",
        {"balance": {"methd": 1, "shares": {"spam": 2, "eggs": 0.5}, "seed": -1}},
        ["balance.methd: unknown", "balance.method: None is unknown", "balance.seed", "balance.shares.eggs: no row",
         "the class 'ham' is missing", "balance.shares.spam: 0 < share < 1 must hold, but it is 2"],
    ),
    (
        "classification",
        {"balance": {"method": "oversample", "shares": {"spam": 0.5, "ham": 0.2}}},
        ["balance.shares: must sum up to 1, but sum up to 0.7"],
    ),
    ("generation", {"text_template": "{text}", "augmentation": {"word_swap": 1}}, ["excludes augmentation"]),
    ("generation", {"prompt": "text", "balance": "oversample"}, ["unknown parameter 'balance'"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "parts"), WRONG)
def test_everything_wrong_is_said_at_once(mails: Path, kind: str, options: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as error:
        load_data(config(mails, kind, **options))
    assert [part for part in parts if part not in str(error.value)] == []
