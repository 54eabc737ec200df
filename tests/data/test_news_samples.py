"""Our own 300 news items: labels within the schema, three sentences each, all emotions, and room in the tiny base."""

from __future__ import annotations

import dataclasses
import json
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.examples import GenerationData, load_data
from data.splits import count_repeats, find_duplicates
from data.tokenizing import encode_generation
from evaluators.constrained import answer_tokens

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLES = REPOSITORY / "data" / "samples"
SCHEMA = json.loads((SAMPLES / "news_pt.schema.json").read_text(encoding="utf-8"))
WORKFLOW = json.loads((REPOSITORY / "workflows" / "tasks" / "news_pt.json").read_text(encoding="utf-8"))
ENDS = re.compile(r"(?<=[.!?])(\"?) (?=[\"A-ZÀ-Ý0-9])")  # the end of a sentence, and how the next one begins
PARTS = {"train": 240, "validation": 60}


def rows_of(part: str) -> list[dict[str, Any]]:
    text = (SAMPLES / f"news_pt_{part}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def loaded() -> dict[str, GenerationData]:
    """As the workflow loads them, which checks every answer against the schema."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        for part, config in zip(PARTS, WORKFLOW["data_configs"], strict=True):
            data = load_data(config)
            assert isinstance(data, GenerationData)
            found[part] = data
    return found


def test_answers_are_the_labels(loaded: dict[str, GenerationData]) -> None:
    for part, data in loaded.items():
        rows = rows_of(part)
        assert len(rows) == len(data) == PARTS[part]
        answers = [json.loads(text) for text in data.responses]
        assert answers == [{"sentences": row["labels"]} for row in rows]
        assert [data.template.replace("{text}", row["text"]) for row in rows] == data.prompts


@pytest.mark.parametrize("part", PARTS)
def test_items_are_three_sentences_in_composed_unicode(part: str) -> None:
    for row in rows_of(part):
        text = row["text"]
        assert len(ENDS.split(text)[::2]) == 3, text
        assert text == unicodedata.normalize("NFC", text) == " ".join(text.split()) and len(text.split()) <= 45


@pytest.mark.parametrize("part", PARTS)
def test_every_label_occurs(part: str) -> None:
    """Each emotion has 5 % or more; polarities go with emotions: joy is positive, and only what is neutral feels so."""
    labels = [label for row in rows_of(part) for label in row["labels"]]
    fields = SCHEMA["properties"]["sentences"]["items"]["properties"]
    emotions, polarities = (Counter(label[key] for label in labels) for key in ("emotion", "polarity"))
    assert set(emotions) == set(fields["emotion"]["enum"]) and set(polarities) == set(fields["polarity"]["enum"])
    assert min(emotions.values()) >= 0.05 * len(labels) and min(polarities.values()) >= 0.15 * len(labels)
    pairs = {(label["emotion"], label["polarity"]) for label in labels}
    assert {p for e, p in pairs if e == "Felicidade"} == {"Positivo"}
    assert {p for e, p in pairs if e == "Neutro"} == {"Neutro"}
    for emotion in ("Tristeza", "Raiva", "Nojo", "Medo", "Desprezo"):
        assert {p for e, p in pairs if e == emotion} == {"Negativo"}


def test_parts_share_no_item_and_no_sentence(loaded: dict[str, GenerationData]) -> None:
    train, held_out = loaded["train"].prompts, loaded["validation"].prompts
    assert find_duplicates(train, held_out) == [] and count_repeats(train) == count_repeats(held_out) == 0
    sentences = [{sentence for row in rows_of(part) for sentence in ENDS.split(row["text"])[::2]} for part in PARTS]
    assert sentences[0] & sentences[1] == set()


def test_prompt_and_answer_fit_the_tiny_base(loaded: dict[str, GenerationData]) -> None:
    """Whole answers are learned within max_length, and the longest that the schema permits fits the context."""
    from passes.base_model import context_length, load_tokenizer

    base = REPOSITORY / "models" / "tiny"
    tokenizer, context = load_tokenizer(base), context_length(base)
    assert context is not None
    for data in loaded.values():
        whole = encode_generation(tokenizer, dataclasses.replace(data, max_length=context * 4))
        assert max(len(ids) for ids, _ in whole) <= data.max_length
        prompts = [sum(label == -100 for label in labels) for _, labels in whole]
        assert max(prompts) + answer_tokens(SCHEMA) <= context
