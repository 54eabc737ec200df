"""Rows to an instruction and a JSON answer, and everything that can be wrong with answer, schema and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data.examples import GenerationData, load_data
from data.structured import ordered
from runtime.errors import DataError, OlivalError
from runtime.prompts import fill

SCHEMA = {
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "place": {"type": "string"},
        "year": {"type": "integer"},
    },
    "required": ["items"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {"mood": {"enum": ["bom", "mau"]}, "why": {"type": "string"}},
            "required": ["mood"],
        }
    },
}
ROWS = [
    {"text": "Olá {você}!", "labels": [{"why": 'é "bom"', "mood": "bom"}, {"mood": "mau"}], "town": "Itu", "n": 7},
    {"text": "Tchau.", "labels": [{"mood": "mau", "why": "não"}], "town": "Bauru", "n": 8},
]
TEXTS = [
    '{"items": [{"mood": "bom", "why": "é \\"bom\\""}, {"mood": "mau"}]}',
    '{"items": [{"mood": "mau", "why": "não"}]}',
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text(json.dumps(SCHEMA), encoding="utf-8")


def load(rows: list[dict[str, Any]] = ROWS, **options: Any) -> GenerationData:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    Path("rows.jsonl").write_text("".join(lines), encoding="utf-8")
    given = {"template": "{text}\nJSON: ", "answer": {"items": "{labels}"}, "schema": "schema.json", **options}
    kept = {key: value for key, value in given.items() if value is not None}
    config = {"name": "news", "load_dataset_config": {"type": "rows", "data_files": "rows.jsonl"}}
    data = load_data({**config, "pre_process_data_config": {"type": "structured", **kept}})
    assert isinstance(data, GenerationData)
    return data


def test_a_template_of_the_answer_takes_values_with_their_type() -> None:
    """Keys in the schema's order; a key that only another row has is not there; format strings stay text."""
    data = load(answer={"year": "{n}", "place": "{town}, {n}", "items": "{labels}"}, max_length=99)
    wanted = [f'{text[:-1]}, "place": "{row["town"]}, {row["n"]}", "year": {row["n"]}}}'
              for text, row in zip(TEXTS, ROWS, strict=True)]  # fmt: skip
    assert data.responses == wanted
    assert data.prompts == ["Olá {você}!\nJSON: ", "Tchau.\nJSON: "]
    assert (data.template, data.max_length, data.packing, data.source) == ("{text}\nJSON: ", 99, False, "rows.jsonl")


def test_a_column_holds_the_answer_or_its_text() -> None:
    values = [{"text": row["text"], "answer": {"items": row["labels"]}} for row in ROWS]
    texts = [{**row, "answer": json.dumps(row["answer"])} for row in values]
    assert load(values, answer="answer").responses == load(texts, answer="answer").responses == TEXTS


def test_the_schema_in_the_instruction_is_there_in_a_package_too() -> None:
    """A deployed package fills the template with what its user gives, which is the text alone."""
    data = load(template="{schema}\n{text}\n")
    assert json.loads(data.prompts[0].splitlines()[0]) == SCHEMA
    assert [fill(data.template, row["text"]) for row in ROWS] == data.prompts  # type: ignore[arg-type]


def test_chat_template() -> None:
    data = load(template="{text}", chat_template=True)
    assert data.template == "chat" and data.prompts == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"schema": "none.json"}, ["schema: none.json: cannot be read: No such file"]),
        ({"schema": "rows.jsonl"}, ["schema: rows.jsonl: no JSON: line 2 column 1"]),
        ({"schema": "bad.json"}, ["bad.json: schema at $.properties.a.type: 'strng' is not one of"]),
        (
            {"schema": None, "answer": None, "template": None, "chat_template": "yes"},
            ["template must be a text", "answer must be", "schema must be", "chat_template must be true or false"],
        ),
        ({"answer": "label"}, ["rows.jsonl: there is no column 'label'; did you mean 'labels'?"]),
        ({"answer": {"items": ["{lables}"]}}, ["there is no column 'lables'; did you mean 'labels'?"]),
        ({"answer": {"items": []}}, ['answer {"items": []} names no column, such as {labels}']),
        ({"template": "{txt}"}, ["there is no column 'txt'; did you mean 'text'?"]),
        ({"template": "JSON:"}, ["names no column"]),
        ({"template": "{schema} {text}", "chat_template": True}, ["template has {schema}, which a package cannot"]),
        ({"max_length": 0}, ["max_length must be a whole number of at least 1"]),
        ({"anser": "labels"}, ["structured: unknown parameter 'anser'; did you mean 'answer'?"]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_wrong_options(options: dict[str, Any], problems: list[str]) -> None:
    Path("bad.json").write_text('{"properties": {"a": {"type": "strng"}}}', encoding="utf-8")
    with pytest.raises(OlivalError) as error:
        load(**options)
    assert "data config 'news'" in str(error.value)
    assert [problem for problem in problems if problem not in str(error.value)] == []


def test_every_row_that_does_not_fit_is_named() -> None:
    rows: list[dict[str, Any]] = [
        {"text": "a", "answer": '{"items": [{"mood": "ruim"}]}'},
        {"text": "b", "answer": '{"items": []}'},
        {"text": "c", "answer": '{"items": []'},
        {"text": "d", "answer": '{"items": [], "items": []}'},
        {"text": "e", "answer": '{"itens": []}'},
        {"text": "f", "answer": None},
    ]
    with pytest.raises(DataError) as error:
        load(rows, answer="answer")
    title, *lines = str(error.value).splitlines()
    assert title.endswith("rows.jsonl: 5 of 6 answers do not keep the schema")
    assert [line.partition(":")[0] for line in lines] == ["row 1", "row 3", "row 4", "row 5", "row 6"]
    assert lines[0] == "row 1: $.items[0].mood: 'ruim' is not one of ['bom', 'mau']"
    assert "no JSON: line 1 column 13" in lines[1] and "'items' is given twice" in lines[2]


def test_a_long_list_of_rows_is_cut() -> None:
    with pytest.raises(DataError) as error:
        load([{"text": str(n), "labels": n} for n in range(50)])
    assert len(str(error.value).splitlines()) == 22 and str(error.value).endswith("and 30 more")


def test_numbers_are_those_of_the_file_in_a_part_of_it() -> None:
    """In one of the two parts stands row 17, which is wrong."""
    answers = ['{"items": []}'] * 40
    answers[16] = "1"
    lines = [json.dumps({"text": str(n), "answer": answer}) for n, answer in enumerate(answers)]
    Path("rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    step = {"type": "structured", "template": "{text}", "answer": "answer", "schema": "schema.json"}
    found = []
    for part in ("train", "validation"):
        rows = {"type": "rows", "data_files": "rows.jsonl", "split_part": part}
        try:
            load_data({"name": "news", "load_dataset_config": rows, "pre_process_data_config": step})
        except DataError as error:
            found += str(error).splitlines()[1:]
    assert found == ["row 17: $: 1 is not of type 'object'"]


@pytest.mark.parametrize(
    ("value", "schema", "keys"),
    [
        ({"b": 1, "a": 2, "z": 3}, {"properties": {"a": {}, "b": {}}}, ["a", "b", "z"]),
        ({"b": None, "a": None}, {"properties": {"a": {}, "b": {}}, "required": ["a"]}, ["a"]),
        ({"z": None}, {"properties": {"a": {}}}, ["z"]),
        ({"b": 1, "a": 1}, {"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"a": {}, "b": {}}}}}, ["a", "b"]),
        ({"b": 1, "a": 1}, {"$ref": "#"}, ["b", "a"]),
    ],
)
def test_order_of_keys(value: dict[str, Any], schema: Any, keys: list[str]) -> None:
    assert list(ordered(value, schema, schema)) == keys


def test_order_within_a_list_with_places() -> None:
    schema = {"prefixItems": [{"properties": {"a": {}, "b": {}}}], "items": {"properties": {"c": {}, "a": {}}}}
    rows = [{"b": 1, "a": 1}, {"a": 1, "c": 1}]
    assert [list(row) for row in ordered(rows, schema, schema)] == [["a", "b"], ["c", "a"]]
