from __future__ import annotations

import random
import string
import unicodedata
from typing import Any

import pytest
import sacrebleu
from rouge_score import tokenize
from rouge_score.rouge_scorer import RougeScorer
from torchmetrics.functional.text import chrf_score, sacre_bleu_score

from evaluators.intervals import mean_interval
from evaluators.text_overlap import ROW_SCORES, SCORES, text_row_scores, text_scores, text_signatures, words
from runtime.errors import DataError

EXPECTED = [
    "The quick brown fox jumps over the lazy dog.",
    "O gato dorme em cima da mesa da cozinha, não é?",
    "She sells sea shells by the sea shore every day.",
]
GENERATED = [
    "The quick brown fox jumped over the lazy dog!",
    "O gato dorme em cima da cadeira da cozinha.",
    "She sells sea shells by the sea every single day.",
]


def test_bleu_and_chrf_agree_with_torchmetrics() -> None:
    scores = text_scores(EXPECTED, GENERATED)
    references = [[text] for text in EXPECTED]
    assert list(scores) == list(SCORES)
    assert scores["bleu"] == pytest.approx(100 * float(sacre_bleu_score(GENERATED, references)), abs=1e-4)
    chrf: Any = chrf_score(GENERATED, references, n_word_order=0)
    assert scores["chrf"] == pytest.approx(100 * float(chrf), abs=1e-3)


def test_the_corpus_is_scored_and_not_the_mean_of_rows() -> None:
    """7 of 8 words, 5 of 6 bigrams, 3 of 4 and 1 of 2 longer ones are right over both rows: BLEU by its definition."""
    expected, generated = ["a b c d", "e f g h"], ["a b c d", "e f g x"]
    precisions = [7 / 8, 5 / 6, 3 / 4, 1 / 2]
    product = precisions[0] * precisions[1] * precisions[2] * precisions[3]
    scores = text_scores(expected, generated)
    assert scores["bleu"] == pytest.approx(100 * product**0.25)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(generated, [expected]).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(generated, [expected]).score)


@pytest.mark.parametrize("seed", range(5))
def test_rouge_is_that_of_rouge_score_on_ascii_text(seed: int) -> None:
    draw = random.Random(seed)
    vocabulary = ["cat", "Dog", "it's", "a_b", "42", "the", "runs", "--"]
    pairs = [[" ".join(draw.choices(vocabulary, k=draw.randint(1, 12))) for _ in "12"] for _ in range(20)]
    expected, generated = ([pair[side] for pair in pairs] for side in (0, 1))
    rows, scorer = text_row_scores(expected, generated), RougeScorer(["rouge1", "rouge2", "rougeL"])
    for index, (wanted, text) in enumerate(pairs):
        reference = scorer.score(wanted, text)
        for name, rouge_type in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert rows[name][index] == pytest.approx(reference[rouge_type].fmeasure)


def test_rows_made_by_hand_and_their_means() -> None:
    """3 of 4 expected words in 5 generated ones; bigrams: 1 of 3 and 4; longest common subsequence: 3."""
    expected, generated = ["não há pão aqui", "sim"], ["Não há mais pão, hoje", "sim"]
    rows, means = text_row_scores(expected, generated), text_scores(expected, generated)
    assert list(rows) == list(ROW_SCORES)
    assert rows["rouge_1"] == pytest.approx([2 * 3 / (4 + 5), 1])
    assert rows["rouge_2"] == pytest.approx([2 * 1 / (3 + 4), 0])  # one word has no bigram
    assert rows["rouge_l"] == pytest.approx([2 * 3 / (4 + 5), 1])
    assert rows["exact_match"] == [0, 1]
    for name, values in rows.items():
        assert means[name] == pytest.approx(sum(values) / 2)
        low, high = mean_interval(values)
        assert low <= means[name] <= high


def test_accents_make_words_different_and_no_words_apart() -> None:
    """The default tokenizer of rouge-score splits at accents, and then finds words that are not there."""
    assert words("Não há pão-de-ló: 3,5 kg!") == ["não", "há", "pão", "de", "ló", "3", "5", "kg"]
    assert text_row_scores(["avó"], ["avô"])["rouge_1"] == [0]
    assert RougeScorer(["rouge1"]).score("avó", "avô")["rouge1"].fmeasure == 1
    decomposed = unicodedata.normalize("NFD", "Não há pão")
    assert text_row_scores(["não há pão"], [decomposed])["rouge_1"] == [1]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]  # vowel signs are marks, not letters


def test_words_of_ascii_are_those_of_rouge_score() -> None:
    draw = random.Random(0)
    for text in ["".join(draw.choices(string.printable, k=60)) for _ in range(200)]:
        assert words(text) == tokenize.tokenize(text, None)


@pytest.mark.parametrize(
    ("expected", "generated", "same"),
    [
        ("São Paulo", "  São \n Paulo ", True),
        ("São Paulo", unicodedata.normalize("NFD", "São Paulo"), True),
        ("", " ", True),
        ("São Paulo", "são paulo", False),
        ("São Paulo", "São Paulo.", False),
        ("São Paulo", "Sao Paulo", False),
        ("São Paulo", "", False),
        ("😀", "😀", True),
    ],
)
def test_exact_match(expected: str, generated: str, same: bool) -> None:
    assert text_row_scores([expected], [generated])["exact_match"] == [float(same)]


@pytest.mark.parametrize(("expected", "generated"), [([""], [""]), (["a b"], [""]), ([""], ["a b"]), (["!?"], ["!?"])])
def test_texts_without_words_have_scores(expected: list[str], generated: list[str]) -> None:
    scores = text_scores(expected, generated)
    assert scores["rouge_1"] == scores["rouge_2"] == scores["rouge_l"] == 0
    assert all(0 <= scores[name] <= 100 for name in SCORES)


def test_equal_texts_score_the_most() -> None:
    assert text_scores(EXPECTED, EXPECTED) == pytest.approx({**dict.fromkeys(SCORES, 1), "bleu": 100, "chrf": 100})


def test_signatures_say_how() -> None:
    signatures = text_signatures()
    assert set(signatures) == set(SCORES)
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    for name, metric in (("bleu", bleu), ("chrf", chrf)):
        metric.corpus_score(GENERATED, [EXPECTED])
        assert signatures[name] == str(metric.get_signature())
    assert "tok:13a" in signatures["bleu"] and "stemmer:no" in signatures["rouge_1"]


@pytest.mark.parametrize(
    ("expected", "generated", "message"),
    [
        ([], [], "equally long and not empty: 0, 0"),
        (["a"], ["a", "b"], "equally long and not empty: 1, 2"),
        (["a", "b"], ["a", None], r"generated\[1\] must be a text, but got None"),
        ([3], ["3"], r"expected\[0\] must be a text, but got 3"),
        ("ab", "ab", "must be lists of texts"),
    ],
)
def test_unusable_input_is_named(expected: Any, generated: Any, message: str) -> None:
    for scores in (text_scores, text_row_scores):
        with pytest.raises(DataError, match=message):
            scores(expected, generated)
