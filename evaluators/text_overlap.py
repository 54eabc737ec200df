"""How near generated texts are to expected ones: exact match, BLEU, chrF (by sacrebleu) and ROUGE (by rouge-score)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from runtime.errors import DataError

ROUGE_TYPES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
ROW_SCORES = ("exact_match", *ROUGE_TYPES)
SCORES = ("exact_match", "bleu", "chrf", *ROUGE_TYPES)
PROGRESS_AFTER_SECONDS = 3


def text_scores(expected: Sequence[str], generated: Sequence[str]) -> dict[str, float]:
    """Scores of one generated text for each expected one; higher is better.

    exact_match and ROUGE are means over rows, in 0..1 (`text_row_scores`). bleu (Papineni and others 2002) and chrf
    (Popović 2015) are those of the whole corpus, not means over rows, in 0..100 as sacrebleu reports them, of the texts
    as they are given: `text_signatures` says with which settings.
    Raises DataError for empty or unequal lists, and for rows that are no text.
    """
    from sacrebleu.metrics import BLEU, CHRF

    by_row = text_row_scores(expected, generated)
    corpus = {name: metric.corpus_score(generated, [expected]) for name, metric in (("bleu", BLEU()), ("chrf", CHRF()))}
    scores = {name: sum(values) / len(values) for name, values in by_row.items()}
    scores |= {name: float(result.score) for name, result in corpus.items()}
    return {name: scores[name] for name in SCORES}


def text_row_scores(expected: Sequence[str], generated: Sequence[str]) -> dict[str, list[float]]:
    """{"exact_match", "rouge_1", "rouge_2", "rouge_l"}, each a list with a number in 0..1 for each row.

    They are means over rows, so `evaluators.intervals.mean_interval` and `paired_bootstrap` take them.
    Exact match compares after Unicode normalization (NFC) and with every run of white space as one space, none at the
    ends; case and punctuation count. ROUGE (Lin 2004) is the F-measure of unigrams, bigrams and the longest common
    subsequence of `words`; a text without any word scores 0, whatever is expected, as in rouge-score.
    Raises DataError as `text_scores` does.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from tqdm import tqdm

    _check(expected, generated)
    scorer = RougeScorer(list(ROUGE_TYPES.values()), tokenizer=_Words())
    columns: dict[str, list[float]] = {name: [] for name in ROW_SCORES}
    rows = list(zip(expected, generated, strict=True))
    for wanted, text in tqdm(rows, desc="ROUGE", unit="row", delay=PROGRESS_AFTER_SECONDS, leave=False):
        columns["exact_match"].append(float(_plain(wanted) == _plain(text)))
        measured = scorer.score(wanted, text)
        for name, rouge_type in ROUGE_TYPES.items():
            columns[name].append(float(measured[rouge_type].fmeasure))
    return columns


def text_signatures() -> dict[str, str]:
    """How each score is computed, as sacrebleu's signatures for BLEU and chrF (Post 2018), in words for the others."""
    from importlib.metadata import version

    from sacrebleu.metrics import BLEU, CHRF

    signatures = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score([""], [[""]])  # a signature holds the number of references, known after the first text
        signatures[name] = str(metric.get_signature())
    rouge = f"F-measure|words:unicode|case:lower|stemmer:no|version:{version('rouge-score')}"
    exact = "case:mixed|normalization:NFC|space:squashed"
    return {"exact_match": exact, **signatures, **dict.fromkeys(ROUGE_TYPES, rouge)}


def words(text: str) -> list[str]:
    """Lower-case runs of letters, digits and the marks on them, in Unicode's composed form (NFC).

    rouge-score's own tokenizer knows only a to z: "não" would be the words "n" and "o". On ASCII text both agree.
    Scripts that write no spaces (Chinese, Thai) give one word for a run; chrF is the score for them.

    >>> words("Não há pão-de-ló!")
    ['não', 'há', 'pão', 'de', 'ló']
    """
    lower = unicodedata.normalize("NFC", text.lower())
    return "".join(c if c.isalnum() or unicodedata.category(c)[0] == "M" else " " for c in lower).split()


class _Words:
    """The tokenizer object that rouge-score wants."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _check(expected: Sequence[str], generated: Sequence[str]) -> None:
    if isinstance(expected, str) or isinstance(generated, str):
        raise DataError("expected and generated must be lists of texts, not one text")
    if not len(expected) or len(expected) != len(generated):
        lengths = f"{len(expected)}, {len(generated)}"
        raise DataError(f"expected and generated must be equally long and not empty: {lengths}")
    for which, texts in (("expected", expected), ("generated", generated)):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{which}[{row}] must be a text, but got {text!r}")
