"""What a data set is made of: class balance, lengths, duplicates and languages."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.examples import ClassificationData, GenerationData, MultiLabelData
from data.splits import count_repeats
from data.tokenizing import encode_text

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier
    from transformers import PreTrainedTokenizerBase

# Identifying a language takes about half a millisecond, so large sets are sampled; 2,000 rows tell a share to 2 points.
LANGUAGE_ROWS = 2000
# Below this confidence (py3langid's normalised probability) a text counts as "unknown": most are too short to tell.
LANGUAGE_CONFIDENCE = 0.5

LENGTH_FIELDS = ("min", "mean", "p50", "p95", "max")


def describe(
    data: ClassificationData | GenerationData, tokenizer: PreTrainedTokenizerBase | None = None
) -> dict[str, Any]:
    """Statistics of a data set, ready for JSON.

    Texts of a generation data set are prompt and response together.

    Returns:
        source, kind, rows, fingerprint; classes {name: {count, share}} (classification only, in the order of the
        names); characters, words (separated by white space) and, with a tokenizer, tokens (special tokens included,
        uncut), each {min, mean, p50, p95, max}; duplicates (rows that repeat an earlier text, normalised); languages
        {ISO 639 code or "unknown": share} over language_rows evenly spaced rows.
    """
    if isinstance(data, ClassificationData):
        kind, texts = "classification", data.texts
    else:
        kind = "generation"
        texts = [f"{prompt}\n{response}".strip() for prompt, response in zip(data.prompts, data.responses, strict=True)]
    result: dict[str, Any] = {
        "source": data.source,
        "kind": kind,
        "rows": len(texts),
        "fingerprint": data.fingerprint,
    }
    if isinstance(data, ClassificationData):
        labels = [name for row in data.label_sets for name in row] if isinstance(data, MultiLabelData) else data.labels
        counts = Counter(labels)
        result["classes"] = {
            name: {"count": counts[name], "share": counts[name] / max(len(texts), 1)} for name in data.label_names
        }
    result["characters"] = _lengths([len(text) for text in texts])
    result["words"] = _lengths([len(text.split()) for text in texts])
    if tokenizer is not None:
        result["tokens"] = _lengths([len(encode_text(tokenizer, text, max_length=2**31)) for text in texts])
    result["duplicates"] = count_repeats(texts)
    sample = texts[:: -(-len(texts) // LANGUAGE_ROWS)] if texts else []
    result["languages"] = languages(sample)
    result["language_rows"] = len(sample)
    return result


def languages(texts: Sequence[str]) -> dict[str, float]:
    """Share of each language, the largest first, by py3langid (naive Bayes over byte n-grams, Lui and Baldwin 2012).

    Short texts are often taken for a related language; read the shares as a hint.
    """
    if not texts:
        return {}
    identifier = _identifier()
    counts = Counter(identifier.classify(text)[0] for text in texts)
    return {
        "unknown" if code == "und" else code: count / len(texts)
        for code, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    }


def format_statistics(statistics: dict[str, Any]) -> str:
    """The statistics of `describe` as a table for the terminal."""
    lines = [f"{statistics['source'] or 'data set'}: {statistics['rows']} rows, {statistics['kind']}"]
    if "classes" in statistics:
        width = max(len("class"), *(len(name) for name in statistics["classes"]))
        lines += ["", f"{'class':<{width}}  {'rows':>8}  {'share':>7}"]
        for name, balance in statistics["classes"].items():
            lines.append(f"{name:<{width}}  {balance['count']:>8}  {balance['share']:>7.1%}")
    lines += ["", f"{'length':<10}" + "".join(f"{field:>9}" for field in LENGTH_FIELDS)]
    for unit in ("characters", "words", "tokens"):
        if statistics.get(unit):
            lines.append(f"{unit:<10}" + "".join(f"{_number(statistics[unit][field]):>9}" for field in LENGTH_FIELDS))
    shares = ", ".join(f"{code} {share:.1%}" for code, share in list(statistics["languages"].items())[:8])
    lines += [
        "",
        f"duplicates within: {statistics['duplicates']}",
        f"languages ({statistics['language_rows']} rows looked at): {shares or 'none'}",
        f"fingerprint: {statistics['fingerprint']}",
    ]
    return "\n".join(lines)


@functools.cache
def _identifier() -> LanguageIdentifier:
    """The model of py3langid, read once: unpacking it takes half a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LANGUAGE_CONFIDENCE)


def _lengths(values: list[int]) -> dict[str, float] | None:
    """min, mean, median, 95th percentile and max; None for no rows."""
    if not values:
        return None
    p50, p95 = np.percentile(values, [50, 95])
    return {
        "min": min(values),
        "mean": float(np.mean(values)),
        "p50": float(p50),
        "p95": float(p95),
        "max": max(values),
    }


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
