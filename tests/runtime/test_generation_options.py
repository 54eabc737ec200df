"""Options of generation: stop strings, constraints, sampling, chats, and what is wrong with options."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from runtime.decoding import TextStream
from runtime.errors import PackageError
from runtime.model import MultiAdapterModel
from runtime.options import read_options
from tests.conftest import SENTENCES

SCHEMA = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["tea", "soup", "pão"]},
        "note": {"type": "string", "maxLength": 6},
    },
    "required": ["count", "kind", "note"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "stop, wanted",
    [
        (["boils"], "The kettle sings before the water "),
        (["zebra"], "The kettle sings before the water boils."),
        (["water b", "sings before"], "The kettle "),
        (["before the wax", "er b"], "The kettle sings before the wat"),
        (["boils.!"], "The kettle sings before the water boils."),
        (["T"], ""),
    ],
)
def test_text_ends_before_a_stop_string(mixed_model: MultiAdapterModel, stop: list[str], wanted: str) -> None:
    """The stop strings are split over tokens: no piece may hold a part of one."""
    text = TextStream(mixed_model.tokenizer, stop)
    pieces = []
    for token in mixed_model.tokenizer.encode(SENTENCES[0], add_special_tokens=False).ids:
        pieces.append(text.push(token))
        assert wanted.startswith("".join(pieces))
        if text.stopped:
            break
    pieces.append(text.finish())
    assert "".join(pieces) == text.text() == wanted


def test_stop_strings_end_generation(mixed_model: MultiAdapterModel) -> None:
    requests: list[tuple[Any, str | None]] = [
        (text[:9], ("story", None)[i % 2]) for i, text in enumerate(SENTENCES[:6])
    ]
    whole = mixed_model.generate_batch(requests, 30)
    stops = [re.sub("\ufffd.*", "", text[len(text) // 2 :], flags=re.DOTALL)[:3] or "zebra" for text in whole]
    found = mixed_model.generate_batch(requests, 30, stop=stops)
    assert found != whole
    for text, request, full in zip(found, requests, whole, strict=True):
        assert not any(stop in text for stop in stops)
        assert mixed_model.generate(*request, 30, stop=stops) == text
        if text != full:
            assert "".join(mixed_model.stream(*request, 30, stop=stops)) == text
            assert full.startswith(tuple(text + stop for stop in stops))


@pytest.mark.parametrize("adapter", ["story", None])
def test_json_schema_is_kept(mixed_model: MultiAdapterModel, adapter: str | None) -> None:
    for options in ({}, {"temperature": 1.0, "seed": 3}, {"temperature": 1.5, "seed": 4, "top_k": 0}):
        for schema in (SCHEMA, json.dumps(SCHEMA)):
            answer = json.loads(mixed_model.generate("Tea:", adapter, 90, json_schema=schema, **options))
            assert list(answer) == ["count", "kind", "note"]
            assert answer["count"] in range(100) and answer["kind"] in ("tea", "soup", "pão")
            assert len(answer["note"]) <= 6


def test_regex_and_grammar_are_kept(mixed_model: MultiAdapterModel) -> None:
    requests: list[tuple[Any, str | None]] = [("The", "story"), ("A kettle", None), ("Hi", "chat")]
    found = mixed_model.generate_batch(requests, 40, regex="(yes|no|[a-f]{1,9})[0-9]{2}")
    assert all(re.fullmatch("(yes|no|[a-f]{1,9})[0-9]{2}", text) for text in found)
    assert found == [mixed_model.generate(*r, 40, regex="(yes|no|[a-f]{1,9})[0-9]{2}") for r in requests]
    text = mixed_model.generate("The", None, 40, grammar='start: "<" /[a-z]{3}/ ">"')
    assert re.fullmatch("<[a-z]{3}>", text)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"json_schema": {"type": "objct"}}, "json_schema cannot be used: .*objct"),
        ({"json_schema": "{bad"}, "json_schema is no JSON"),
        ({"json_schema": 3}, "json_schema is '3', but must be an object"),
        ({"regex": "(yes"}, "regex cannot be used: .*unclosed group"),
        ({"grammar": "start: other"}, "grammar cannot be used: .*other"),
        ({"regex": "a", "grammar": "b"}, "regex and grammar are both given"),
        ({"regex": "a", "stop_at_eos": False}, "regex says where the text ends"),
        ({"tempature": 1}, "there is no option 'tempature'; did you mean 'temperature'"),
        ({"top_k": -1, "seed": "x", "stop": [""]}, r"top_k is -1.*seed is 'x'.*stop is \[''\]"),
        ({"max_new_tokens": 0, "temperature": float("nan")}, "max_new_tokens is 0.*temperature is nan"),
        ({"repetition_penalty": 0, "min_new_tokens": 1.5}, "min_new_tokens is 1.5.*repetition_penalty is 0"),
        ({"stop_at_eos": "no", "regex": ""}, "stop_at_eos is 'no'.*regex is ''"),
    ],
)
def test_wrong_options_are_named(mixed_model: MultiAdapterModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError, match=f"(?s){message}"):
        mixed_model.generate("The", "story", **options)


def test_constraint_needs_a_build_that_has_it(mixed_model: MultiAdapterModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build without guidance takes any constraint and generates as if there were none."""
    engine: Any = mixed_model._engine()
    monkeypatch.setattr(engine, "_guides", None)
    monkeypatch.setattr(engine._og.GeneratorParams, "set_guidance", lambda *_: None)
    with pytest.raises(PackageError, match="regex needs an onnxruntime-genai that was built with guidance"):
        mixed_model.generate("The", None, 5, regex="a")


def test_sampling_is_repeatable_and_stays_in_its_bounds(mixed_model: MultiAdapterModel) -> None:
    greedy = mixed_model.generate("The", "story", 12)
    assert mixed_model.generate("The", "story", 12, temperature=1.0, top_k=1) == greedy
    assert mixed_model.generate("The", "story", 12, temperature=1.0, top_k=0, top_p=1e-6) == greedy
    ids = mixed_model.encode_prompt("The kettle sings")
    assert set(mixed_model.tokens(ids, "story", 12, repetition_penalty=0.001)) <= set(ids), "only what was there"
    # more than the vocabulary has: onnxruntime-genai itself would read beyond its end
    everything = {"temperature": 1.0, "seed": 5, "top_k": 10**6}
    assert mixed_model.generate("The", "story", 12, **everything) == mixed_model.generate(
        "The", "story", 12, **{**everything, "top_k": 0}
    )
    requests: list[tuple[Any, str | None]] = [("The", "story"), ("A boat", None), ("Hi", "poem")]
    first, again, other = (mixed_model.generate_batch(requests, 12, temperature=1.2, seed=s) for s in (7, 7, 8))
    assert first == again != other


def test_min_new_tokens_keeps_the_end_away(own_model: MultiAdapterModel) -> None:
    """A token that the greedy text reaches soon becomes an end of sequences."""
    ids = own_model.encode_prompt("The")
    free = list(own_model.tokens(ids, "story", 20))
    end = free[3]
    path = own_model.folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = [2, end]
    path.write_text(json.dumps(config), encoding="utf-8")
    model = MultiAdapterModel.load(own_model.folder, verify=False)
    assert list(model.tokens(ids, "story", 20)) == free[: free.index(end) + 1]
    later = list(model.tokens(ids, "story", 20, min_new_tokens=10))
    assert len(later) >= 10 and end not in later[:9]


def test_messages_go_into_the_chat_template(mixed_model: MultiAdapterModel) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(mixed_model.folder)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": 'Where is the "blue" boat?'},
        {"role": "assistant", "content": "Gone."},
        {"role": "user", "content": "Since when, João?"},
    ]
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert mixed_model.encode_prompt(messages, "chat") == mixed_model.encode_prompt(messages) == wanted
    alone = mixed_model.generate(messages, "chat", 10)
    assert alone == "".join(mixed_model.stream(messages, "chat", 10)) != ""
    assert mixed_model.generate_batch([(messages, "chat"), ("Hi", "story")], 10)[0] == alone
    for prompt, adapter, message in (
        (messages, "story", "adapter 'story' has the template '{text}', which takes a text and no messages"),
        ([{"role": "user"}], "chat", "message 0 is {'role': 'user'}"),
        ([], None, "a prompt is a text, a dict of texts or a list of messages"),
    ):
        with pytest.raises(PackageError, match=re.escape(message)):
            mixed_model.generate(prompt, adapter)


def test_options_are_read_once_for_all() -> None:
    options = read_options({"stop": "end", "json_schema": {"type": "object"}})
    assert options.stop == ("end",) and options.guide is not None
    ours, name, text = options.guide
    assert (ours, name) == ("json_schema", "json_schema")
    assert json.loads(text)["x-guidance"]["whitespace_flexible"] is False
    own = {"type": "object", "x-guidance": {"whitespace_flexible": True}}
    assert json.loads(read_options({"json_schema": own}).json_schema or "") == own
