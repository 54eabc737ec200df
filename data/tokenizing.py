"""Texts to token ids, windows, training examples and padded batches, with any transformers fast tokenizer.

A text's ids never depend on its neighbours in a batch: padding is added last, on the right, and the attention mask
comes from the lengths, so a padding id that equals the end-of-text id does no harm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from data.examples import GenerationData
from runtime.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = tuple[list[int], list[int]]

IGNORE = -100  # the label that torch's cross-entropy leaves out


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> list[int]:
    """Ids of a text with the special tokens that the tokenizer adds; a text that is too long loses its end.

    Raises:
        DataError: `max_length` has no room beside the special tokens, or the tokenizer makes no token of the text.
    """
    return encode_windows(tokenizer, text, max_length, None)[0]


def encode_windows(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, stride: int | None
) -> list[list[int]]:
    """Cuts a long text into windows, each with the special tokens and at most `max_length` ids.

    Args:
        stride: how many tokens one window starts after the one before; windows overlap by
            `max_length - special tokens - stride`. None gives the first window only (truncation).

    Returns:
        One window for a text that fits. The last window ends at the text's end and may be shorter.

    Raises:
        DataError: `max_length` has no room beside the special tokens, `stride` < 1 or so large that tokens would be
            skipped, or the tokenizer makes no token of the text.
    """
    ids = _ids(tokenizer, text, special=True)
    special = tokenizer.num_special_tokens_to_add(pair=False)
    room = max_length - special
    if room < 1:
        raise DataError(f"max_length={max_length} leaves no room beside the tokenizer's {special} special tokens")
    if stride is not None and not 1 <= stride <= room:
        raise DataError(f"1 <= window_stride <= max_length - special tokens must hold, but got ({stride}, {room})")
    if not ids:
        raise DataError(f"the tokenizer makes no token of the text {text[:40]!r}")
    if len(ids) <= max_length:
        return [ids]
    prefix, body, suffix = _parts(tokenizer, text, ids)
    starts = [0] if stride is None else range(0, len(body) - room + stride, stride)
    return [prefix + body[start : start + room] + suffix for start in starts]


def aggregate_windows(logits: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Mean of the logits of each document's windows.

    Args:
        logits: (windows, classes), the windows of one document after the other.
        counts: number of windows of each document, each at least 1; their sum is `windows`.

    Returns:
        (documents, classes), dtype of `logits`.

    Raises:
        DataError: the counts do not fit the logits.
    """
    if logits.ndim != 2 or any(count < 1 for count in counts) or sum(counts) != len(logits):
        raise DataError(f"counts must be >= 1 and sum up to the windows, but got {list(counts)} for {logits.shape}")
    ends = np.cumsum(counts, dtype=np.int64)
    means = [logits[end - count : end].mean(axis=0) for end, count in zip(ends, counts, strict=True)]
    return np.stack(means) if means else logits[:0]


def encode_example(
    tokenizer: PreTrainedTokenizerBase, prompt: str, response: str, max_length: int, template: str = "{prompt}"
) -> Example:
    """Ids and labels of one training example: the prompt as the deployed model will see it, the response, EOS.

    Args:
        prompt: the filled prompt; "" for plain text, of which all but the special tokens before it is learned.
        response: encoded by itself without special tokens; EOS follows when the tokenizer has one.
        max_length: the prompt is cut from its left first (BOS is kept), then the response from its end, EOS included;
            at least one response token is kept.
        template: "chat" wraps the prompt as a user's message in the tokenizer's chat template; any other template is
            already filled in `prompt`.

    Returns:
        (input ids, labels) of equal length; labels are -100 on the prompt.

    Raises:
        DataError: `max_length` < 1, "chat" without a chat template, or the tokenizer makes no token of the response.
    """
    if max_length < 1:
        raise DataError(f"max_length must be at least 1, but is {max_length}")
    head = encode_prompt(tokenizer, prompt, template)
    tail = _ids(tokenizer, response, special=False)
    if not tail:
        raise DataError(f"the tokenizer makes no token of the response {response[:40]!r}")
    if tokenizer.eos_token_id is not None:
        tail = [*tail, tokenizer.eos_token_id]
    bos = head[:1] if head and head[0] == tokenizer.bos_token_id else []
    bos = bos[: max_length - 1]
    body = head[1:] if head and head[0] == tokenizer.bos_token_id else head
    overflow = max(0, len(bos) + len(body) + len(tail) - max_length)
    head = bos + body[overflow:]
    tail = tail[: max_length - len(head)]
    return head + tail, [IGNORE] * len(head) + tail


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, template: str = "{prompt}") -> list[int]:
    """Ids of a prompt as the deployed model sees it, special tokens in place; `prompt` and `template` as above.

    Raises:
        DataError: "chat" without a chat template.
    """
    return _chat_ids(tokenizer, prompt) if template == "chat" else _ids(tokenizer, prompt, special=True)


def encode_generation(tokenizer: PreTrainedTokenizerBase, data: GenerationData) -> list[Example]:
    """All training examples of a data set: line by line, or packed.

    Packed plain text (no prompt) is cut into pieces rather than truncated, so that nothing of a long text is lost.
    """
    examples = []
    for prompt, response in zip(data.prompts, data.responses, strict=True):
        limit = sys.maxsize if data.packing and not prompt else data.max_length
        examples.append(encode_example(tokenizer, prompt, response, limit, data.template))
    return pack_examples(examples, data.max_length) if data.packing else examples


def pack_examples(examples: Sequence[Example], max_length: int) -> list[Example]:
    """Joins consecutive examples into blocks of at most `max_length` ids.

    An example that fits into a block is never split, so a response stays with its prompt; a longer one is cut into
    pieces. Every token is kept once and in order. Attention reaches back over the block's earlier examples.

    Raises:
        DataError: `max_length` < 1, or an example whose ids and labels differ in length.
    """
    if max_length < 1:
        raise DataError(f"max_length must be at least 1, but is {max_length}")
    blocks: list[Example] = []
    for ids, labels in examples:
        if len(ids) != len(labels):
            raise DataError(f"ids and labels must have one length, but have {len(ids)} and {len(labels)}")
        for start in range(0, len(ids), max_length):
            piece = ids[start : start + max_length]
            if not blocks or len(blocks[-1][0]) + len(piece) > max_length:
                blocks.append(([], []))
            blocks[-1][0].extend(piece)
            blocks[-1][1].extend(labels[start : start + max_length])
    return blocks


def pad_batch(
    examples: Sequence[Example] | Sequence[Sequence[int]], pad_id: int, multiple_of: int = 1
) -> dict[str, np.ndarray]:
    """Pads ids, or (ids, labels) tuples, on the right to the longest of the batch, rounded up to `multiple_of`.

    Returns:
        input_ids, attention_mask (1 for real tokens) and, when given, labels (-100 on padding): (batch, length), int64.

    Raises:
        DataError: an empty batch, an example without tokens, or labels of another length.
    """
    pairs = [_as_pair(example) for example in examples]
    if not pairs:
        raise DataError("a batch needs at least one example")
    with_labels = pairs[0][1] is not None
    for number, (ids, labels) in enumerate(pairs):
        if not len(ids) or (labels is not None) != with_labels or (labels is not None and len(labels) != len(ids)):
            raise DataError(f"example {number} of the batch has {len(ids)} ids and labels {labels!r}")
    length = -(-max(len(ids) for ids, _ in pairs) // multiple_of) * multiple_of
    batch = {
        "input_ids": np.full((len(pairs), length), pad_id, dtype=np.int64),
        "attention_mask": np.zeros((len(pairs), length), dtype=np.int64),
    }
    if with_labels:
        batch["labels"] = np.full((len(pairs), length), IGNORE, dtype=np.int64)
    for row, (ids, labels) in enumerate(pairs):
        batch["input_ids"][row, : len(ids)] = ids
        batch["attention_mask"][row, : len(ids)] = 1
        if labels is not None:
            batch["labels"][row, : len(ids)] = labels
    return batch


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: pad, else EOS, else 0. Any id is safe because the attention mask says what is padding."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def length_sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Batches of indices of similar length, the longest first (so that too little memory shows at once).

    Every index stands in one batch; ties keep their order; the last batch may be smaller.

    >>> length_sorted_batches([2, 9, 5], 2)
    [[1, 2], [0]]
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, but is {batch_size}")
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """All ids of a text. `verbose=False` drops the warning about the model's length: the callers cut."""
    return list(tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"])


def _parts(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Splits ids with special tokens into (special tokens before, the text's own ids, special tokens after)."""
    body = _ids(tokenizer, text, special=False)
    for start in range(len(ids) - len(body) + 1):
        if ids[start : start + len(body)] == body:
            return ids[:start], body, ids[start + len(body) :]
    raise DataError(f"the tokenizer encodes {text[:40]!r} differently with special tokens; it cannot be cut to length")


def _chat_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        raise DataError("chat_template is on, but the tokenizer has no chat template; use a prompt `template` instead")
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False))


def _as_pair(example: Any) -> tuple[Sequence[int], Sequence[int] | None]:
    """(ids, labels or None). A pair is a tuple of two sequences; anything else is ids alone."""
    if isinstance(example, tuple) and len(example) == 2 and not isinstance(example[0], int | np.integer):
        return example
    return example, None
