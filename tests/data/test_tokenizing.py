from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest

from data.examples import GenerationData
from data.tokenizing import (
    IGNORE,
    aggregate_windows,
    encode_example,
    encode_generation,
    encode_text,
    encode_windows,
    length_sorted_batches,
    pack_examples,
    pad_batch,
    pad_id,
)
from runtime.errors import DataError
from tests.data.tokenizers_for_tests import byte_tokenizer, word_tokenizer

BYTES, BARE, WORDS = byte_tokenizer(), byte_tokenizer(bos=False, eos=False), word_tokenizer()
CHATTY = byte_tokenizer(chat=True)


def _words(count: int) -> str:
    return " ".join(f"w{index}" for index in range(count))


def _own(text: str) -> list[int]:
    return [int(i) for i in BYTES(text, add_special_tokens=False)["input_ids"]]


def test_encode_text_keeps_special_tokens_when_cut() -> None:
    assert encode_text(WORDS, _words(3), 10) == [1, 4, 5, 6, 2]
    assert encode_text(WORDS, _words(8), 5) == [1, 4, 5, 6, 2]
    assert encode_text(BYTES, "abc", 3) == [0, *_own("ab")]


def test_encode_text_does_not_depend_on_the_tokenizers_state() -> None:
    tokenizer = word_tokenizer()
    tokenizer.truncation_side = "left"
    tokenizer(_words(9), truncation=True, max_length=4, padding="max_length")
    assert encode_text(tokenizer, _words(8), 5) == [1, 4, 5, 6, 2]


def test_encode_text_reads_special_tokens_inside_the_text() -> None:
    ids = encode_text(BYTES, "<s><s>abc", 5)
    assert ids == BYTES("<s><s>abc")["input_ids"][:5]


@pytest.mark.parametrize(
    ("tokenizer", "text", "max_length", "message"),
    [
        (WORDS, "w1", 2, "leaves no room beside the tokenizer's 2 special tokens"),
        (BARE, "a", 0, "leaves no room"),
        (BARE, "", 5, "makes no token"),
    ],
)
def test_encode_text_refuses(tokenizer: Any, text: str, max_length: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_text(tokenizer, text, max_length)


@pytest.mark.parametrize("count", [1, 6, 7, 8, 9, 12, 13, 50])
@pytest.mark.parametrize("stride", [1, 2, 4, 6])
def test_windows_cover_every_token_in_order(count: int, stride: int) -> None:
    windows = encode_windows(WORDS, _words(count), 8, stride)
    bodies = [window[1:-1] for window in windows]
    assert all(window[0] == 1 and window[-1] == 2 and len(window) <= 8 for window in windows)
    for number, body in enumerate(bodies):
        assert body[0] == 4 + number * stride
        assert body == list(range(body[0], body[0] + len(body)))
    assert {token for body in bodies for token in body} == set(range(4, 4 + count))
    assert bodies[-1][-1] == 3 + count
    assert all(body[-1] < 3 + count for body in bodies[:-1]), "only the last window reaches the end"


@pytest.mark.parametrize("stride", [0, -1, 7])
def test_windows_refuse_a_stride_that_skips_tokens(stride: int) -> None:
    with pytest.raises(DataError, match=r"1 <= window_stride <= max_length - special tokens must hold, but got"):
        encode_windows(WORDS, _words(3), 8, stride)


def test_aggregate_windows_is_the_mean_of_each_document() -> None:
    logits = np.array([[0, 2], [2, 4], [5, 5]], dtype=np.float32)
    result = aggregate_windows(logits, [2, 1])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[1, 3], [5, 5]])
    assert aggregate_windows(logits[:0], []).shape == (0, 2)
    for counts in ([2], [3, 0], [2, 2]):
        with pytest.raises(DataError, match="sum up to the windows"):
            aggregate_windows(logits, counts)


def test_only_the_response_is_learned() -> None:
    ids, labels = encode_example(BYTES, "ab", "cd", 20)
    assert ids == [0, *_own("abcd"), 1]
    assert labels == [IGNORE, IGNORE, IGNORE, *_own("cd"), 1]


def test_plain_text_is_learned_but_for_bos() -> None:
    assert encode_example(BYTES, "", "cd", 20) == ([0, *_own("cd"), 1], [IGNORE, *_own("cd"), 1])
    bare = [int(i) for i in BARE("cd")["input_ids"]]
    assert encode_example(BARE, "", "cd", 20) == (bare, bare)


def test_chat_wraps_the_prompt_in_the_tokenizers_template() -> None:
    ids, labels = encode_example(CHATTY, "hi", "yo", 100, template="chat")
    assert CHATTY.decode(ids) == "<s><user>hi<assistant>yo</s>"
    assert CHATTY.decode([label for label in labels if label != IGNORE]) == "yo</s>"
    with pytest.raises(DataError, match="no chat template"):
        encode_example(BYTES, "hi", "yo", 100, template="chat")


@pytest.mark.parametrize(
    ("max_length", "text", "learned"),
    [
        (9, "<s>abcdWXYZ"[:7] + "WXY", "WXY</s>"),
        (8, "<s>bcdWXY", "WXY</s>"),
        (5, "<s>WXY", "WXY</s>"),
        (4, "<s>WXY", "WXY"),
        (2, "<s>W", "W"),
        (1, "W", "W"),
    ],
)
def test_the_prompt_is_cut_from_its_left_then_the_response(max_length: int, text: str, learned: str) -> None:
    ids, labels = encode_example(BYTES, "abcd", "WXY", max_length)
    assert BYTES.decode(ids).removesuffix("</s>") == text
    assert BYTES.decode([label for label in labels if label != IGNORE]) == learned
    assert len(ids) == len(labels) <= max_length


def test_example_properties_hold_for_random_lengths() -> None:
    draw = random.Random(0)
    for _ in range(200):
        prompt, response = "p" * draw.randint(0, 30), "r" * draw.randint(1, 30)
        max_length = draw.randint(1, 40)
        ids, labels = encode_example(BYTES, prompt, response, max_length)
        learned = [label for label in labels if label != IGNORE]
        assert len(ids) == len(labels) <= max_length
        assert learned and learned[0] == _own("r")[0]
        assert ids[len(ids) - len(learned) :] == learned
        assert len(ids) == min(max_length, 1 + len(prompt) + len(response) + 1)


def test_examples_without_a_response_are_refused() -> None:
    with pytest.raises(DataError, match="no token of the response"):
        encode_example(BYTES, "a", "", 10)
    with pytest.raises(DataError, match="at least 1"):
        encode_example(BYTES, "a", "b", 0)


def test_packing_keeps_every_token_and_splits_only_what_does_not_fit() -> None:
    draw = random.Random(1)
    for _ in range(50):
        sizes = [draw.randint(1, 12) for _ in range(draw.randint(1, 20))]
        numbers = iter(range(10_000))
        examples = [(piece := [next(numbers) for _ in range(size)], [-number for number in piece]) for size in sizes]
        blocks = pack_examples(examples, 8)
        assert [i for ids, _ in blocks for i in ids] == [i for ids, _ in examples for i in ids]
        assert all(0 < len(ids) <= 8 and [-i for i in ids] == labels for ids, labels in blocks)
        for ids, _ in examples:
            if len(ids) <= 8:
                assert any(set(ids) <= set(block) for block, _ in blocks)
    assert pack_examples([], 8) == []
    with pytest.raises(DataError, match="one length"):
        pack_examples([([1, 2], [1])], 8)


def test_encode_generation_cuts_packed_plain_text_and_truncates_the_rest() -> None:
    plain = GenerationData([""], ["x" * 25], max_length=10, packing=True)
    blocks = encode_generation(BYTES, plain)
    assert [len(ids) for ids, _ in blocks] == [10, 10, 7]
    whole = encode_example(BYTES, "", "x" * 25, sys.maxsize)[0]
    assert [i for ids, _ in blocks for i in ids] == whole
    pair = GenerationData(["p" * 9, "q"], ["r" * 9, "s"], max_length=10, packing=False)
    assert [len(ids) for ids, _ in encode_generation(BYTES, pair)] == [10, 4]


def test_pad_batch_pads_right_and_masks_by_length() -> None:
    # The pad id 1 is also a real token at the end of the first row: the mask must not mistake it.
    batch = pad_batch([([0, 5, 1], [-100, 5, 1]), ([0, 1], [-100, 1])], pad_id=1, multiple_of=4)
    assert {name: array.dtype for name, array in batch.items()} == dict.fromkeys(batch, np.dtype(np.int64))
    np.testing.assert_array_equal(batch["input_ids"], [[0, 5, 1, 1], [0, 1, 1, 1]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(batch["labels"], [[-100, 5, 1, -100], [-100, 1, -100, -100]])


def test_a_texts_ids_never_depend_on_its_neighbours() -> None:
    draw = random.Random(2)
    texts = ["".join(draw.choices("abc </s>", k=draw.randint(1, 30))) for _ in range(12)]
    alone = [encode_text(BYTES, text, 16) for text in texts]
    for _ in range(20):
        chosen = draw.sample(range(12), k=draw.randint(1, 12))
        batch = pad_batch([encode_text(BYTES, texts[index], 16) for index in chosen], pad_id(BYTES))
        assert sorted(batch) == ["attention_mask", "input_ids"]
        for row, index in enumerate(chosen):
            real = batch["attention_mask"][row] == 1
            assert batch["input_ids"][row][real].tolist() == alone[index]
            assert real.tolist() == sorted(real.tolist(), reverse=True)


@pytest.mark.parametrize("batch", [[], [[]], [([1], [1, 2])], [([1], [1]), [2]]])
def test_pad_batch_refuses(batch: list[Any]) -> None:
    with pytest.raises(DataError, match="batch"):
        pad_batch(batch, 0)


def test_pad_id_falls_back_to_eos_and_zero() -> None:
    assert [pad_id(tokenizer) for tokenizer in (WORDS, BYTES, BARE)] == [0, 1, 0]


def test_length_sorted_batches_hold_every_index_once() -> None:
    lengths = [random.Random(3).randint(1, 50) for _ in range(23)]
    batches = length_sorted_batches(lengths, 4)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(23))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert [len(batch) for batch in batches] == [4] * 5 + [3]
    assert length_sorted_batches([], 4) == []
    with pytest.raises(DataError, match="batch_size"):
        length_sorted_batches([1], 0)
