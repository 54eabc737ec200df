"""Perplexity: of a whole text by sliding windows, of prompt and response pairs, and the same per byte and word.

Everything here adds negative log-likelihoods and divides once, at the end: each token weighs the same, whatever row or
window it stands in. A row's sums are kept, so that rows can be resampled for an interval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from runtime.errors import OlivalError

Example = tuple[list[int], list[int]]  # input ids, labels (-100 where a token does not count)


LARGEST_EXPONENT = 709  # exp of more is no float64


class RowScore(NamedTuple):
    """What one row adds to a perplexity; `text_bytes` (UTF-8) and `words` are 0 where the row is no whole text."""

    negative_log_likelihood: float  # nats
    tokens: int
    text_bytes: int = 0
    words: int = 0


def perplexity(model: Any, examples: Sequence[Example], adapter: str | None, batch_size: int = 16) -> float:
    """Token-weighted perplexity over the labelled tokens of all examples together (not a mean of perplexities).

    See `example_scores`. Raises ValueError when no token counts.
    """
    scores = example_scores(model, examples, adapter, batch_size)
    if not any(score.tokens for score in scores):
        raise ValueError("perplexity needs at least one counted token")
    value = summary(scores)["perplexity"]
    return math.inf if value is None else value


def example_scores(
    model: Any, examples: Sequence[Example], adapter: str | None, batch_size: int = 16
) -> list[RowScore]:
    """The labelled tokens of each example, in order; a first token has nothing before it and never counts.

    Args:
        model: evaluators.torch_model.TorchModel or evaluators.package_model.PackageModel.
        examples: ids and labels of `data.tokenizing.encode_generation`.
        adapter: name of a generation adapter, None for the base.
        batch_size: rows of like length that are run together.

    Raises:
        OlivalError: logits are not finite; names the adapter and the row.
    """
    counted = [np.asarray(labels[1:]) != -100 for _, labels in examples]
    starts = [1 + int(found.argmax()) if found.any() else len(found) + 1 for found in counted]
    scores = model.token_scores([ids for ids, _ in examples], adapter, starts, batch_size)
    rows = []
    for (values, _), found, start in zip(scores, counted, starts, strict=True):
        chosen = found[start - 1 :]
        rows.append(RowScore(-float(values[chosen].sum()), int(chosen.sum())))
    return rows


def text_scores(
    model: Any,
    texts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    adapter: str | None,
    max_length: int,
    stride: int | None = None,
    prefix: int | None = None,
    batch_size: int = 16,
) -> list[RowScore]:
    """Negative log-likelihood of every token of each text, in windows of at most `max_length` tokens.

    Args:
        model: evaluators.torch_model.TorchModel or evaluators.package_model.PackageModel.
        texts: for their numbers of bytes and words.
        encoded: their ids; with the tokenizer's special tokens it is what lm-evaluation-harness scores.
        adapter: name of a generation adapter, None for the base.
        max_length: tokens that the model reads at once, at most its context.
        stride: new tokens that each window after the first scores, 1 to `max_length`, which is the default: see
            `windows`.
        prefix: id that stands before each text, such as BOS or EOS; None leaves a text's first token unscored.
        batch_size: windows that are run together.

    Raises:
        OlivalError: a stride out of range, a text without tokens to score, or logits that are not finite; names the
            row (of windows, in the latter case) and the adapter.
    """
    step = max_length if stride is None else stride
    if not 1 <= step <= max_length:
        raise OlivalError(f"1 <= stride <= max_length must hold, but got (stride={stride}, max_length={max_length})")
    lead = [] if prefix is None else [prefix]
    empty = [f"row {i}: has no token to score" for i, ids in enumerate(encoded) if len(lead) + len(ids) < 2]
    if empty:
        raise OlivalError("\n".join(empty))
    rows: list[Sequence[int]] = []
    starts: list[int] = []
    owners: list[int] = []
    for number, ids in enumerate(encoded):
        for row, start in windows([*lead, *ids], max_length, step):
            rows.append(row)
            starts.append(start)
            owners.append(number)
    sums, counts = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    for number, (values, _) in zip(owners, model.token_scores(rows, adapter, starts, batch_size), strict=True):
        sums[number] -= values.sum()
        counts[number] += len(values)
    return [
        RowScore(float(total), int(count), len(text.encode("utf-8")), word_count(text))
        for total, count, text in zip(sums, counts, texts, strict=True)
    ]


def text_perplexity(
    model: Any,
    texts: Sequence[str],
    encoded: Sequence[Sequence[int]],
    adapter: str | None,
    max_length: int,
    stride: int | None = None,
    prefix: int | None = None,
    batch_size: int = 16,
) -> dict[str, float | None]:
    """`summary` of `text_scores`: perplexity of whole texts, per token, byte and word."""
    return summary(text_scores(model, texts, encoded, adapter, max_length, stride, prefix, batch_size))


def summary(rows: Sequence[RowScore]) -> dict[str, float | None]:
    """Sums and perplexities of rows together.

    Returns tokens, negative_log_likelihood (nats) and perplexity, the exponential of their quotient. Where the rows are
    whole texts also bits_per_byte, byte_perplexity and word_perplexity: the same sum over bytes (UTF-8) and words,
    which is comparable between tokenizers (defined as in lm-evaluation-harness's rolling tasks). None is a perplexity
    beyond what a float holds.

    >>> summary([RowScore(6.0, 3), RowScore(2.0, 1)])["perplexity"] == math.exp(2)
    True
    """
    nats, tokens = math.fsum(row.negative_log_likelihood for row in rows), sum(row.tokens for row in rows)
    result: dict[str, float | None] = {
        "tokens": tokens,
        "negative_log_likelihood": nats,
        "perplexity": _exp(nats / tokens),
    }
    size, words = sum(row.text_bytes for row in rows), sum(row.words for row in rows)
    if size and words:
        result["bits_per_byte"] = nats / size / math.log(2)
        result["byte_perplexity"] = _exp(nats / size)
        result["word_perplexity"] = _exp(nats / words)
    return result


def windows(ids: Sequence[int], max_length: int, stride: int) -> Iterator[tuple[Sequence[int], int]]:
    """Cuts ids into (row, start): a row is what the model reads and predicts, its tokens from `start` on are scored.

    Every token but the first is scored once, with at least `max_length - stride` tokens before it once there are that
    many. The first window scores `max_length` tokens, each later one the next `stride`, the last what is left; all but
    the first read `max_length` tokens. With stride == max_length these are lm-evaluation-harness's rolling windows
    (get_rolling_token_windows with context_len 1, make_disjoint_window), of which the last reaches back for context.

    >>> [(list(row), start) for row, start in windows(range(6), max_length=3, stride=3)]
    [([0, 1, 2, 3], 1), ([2, 3, 4, 5], 2)]
    """
    done = min(max_length + 1, len(ids))
    yield ids[:done], 1
    while done < len(ids):
        end = min(done + stride, len(ids))
        begin = end - max_length - 1
        yield ids[begin:end], done - begin
        done = end


def word_count(text: str) -> int:
    """Pieces between white space, as lm-evaluation-harness counts them: white space at an end adds an empty one."""
    return len(re.split(r"\s+", text))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def _exp(nats: float) -> float | None:
    """A perplexity, None where no float can hold it: that of a word which is a whole text without white space."""
    return math.exp(nats) if nats < LARGEST_EXPONENT else None
