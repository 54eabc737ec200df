"""Rows to an instruction and an answer in JSON that keeps a JSON Schema.

The answers are written as constrained decoding writes them (`runtime.json_answers`): on one line, with the same
separators, keys in the order of the schema's `properties`. So a model that has learned them and one that is held to the
schema agree on every token but the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.examples import GenerationData
from data.json_schema import parse_json, read_schema, schema_problem, schema_validator
from data.loading import check_columns, row_number
from data.preparing import prepare_generation, source_of
from data.templates import fill, placeholders
from runtime.errors import ConfigError, DataError
from runtime.json_answers import json_text, target

if TYPE_CHECKING:
    from datasets import Dataset

LISTED_PROBLEMS = 20  # rows with a problem that the error lists; it counts all of them
ANSWER = "__answer__"  # the column of the finished answers
PLACE = re.compile(r"\{([^{}]+)\}")  # a text of an answer that is one placeholder: the column's value with its type


def prepare_structured(
    dataset: Dataset,
    template: str | None = None,
    answer: Any = None,
    schema: str | None = None,
    max_length: int = 256,
    chat_template: bool = False,
) -> GenerationData:
    """Rows to prompts and JSON answers.

    Args:
        template: format string over columns that makes the prompt. `{schema}` in it is the schema's JSON text, which
            becomes part of the template, so that a deployed package puts it in by itself; not with `chat_template`,
            under which a package knows no other template.
        answer: the column that holds the answer, a JSON value or its text; or the answer itself, an object or list in
            which a text "{column}" stands for the column's value with its type, and other texts are format strings,
            such as {"sentences": "{labels}", "title": "{place}: {title}"}.
        schema: file of a JSON Schema (draft 2020-12), relative to the current directory.
        max_length: tokens per example.
        chat_template: the prompt becomes a user's message in the tokenizer's chat template.

    A key that is null though the schema does not require it is left out: tables fill with null what a row does not
    have.

    Raises:
        ConfigError: with every option that is wrong.
        DataError: a missing column or value; all rows whose answer is no JSON or does not keep the schema, with their
            numbers and the place in the answer.
    """
    source = source_of(dataset)
    problems = _option_problems(template, answer, schema, chat_template)
    rules: Any = True
    try:
        rules = read_schema(Path(schema)) if isinstance(schema, str) else True
    except DataError as error:
        problems.append(f"schema: {error}")
    if problems:
        raise ConfigError(problems)
    assert isinstance(template, str)
    if "schema" in placeholders(template):
        if "schema" in dataset.column_names:
            raise DataError(f"{source}: {{schema}} is the JSON Schema, but there is a column 'schema' too; rename it")
        if chat_template:
            raise DataError("template has {schema}, which a package cannot put into a chat; take one of the two")
        template = template.replace("{schema}", json_text(rules).replace("{", "{{").replace("}", "}}"))
    check_columns(dataset, placeholders(template), source)
    with_answers = dataset.add_column(ANSWER, _answers(dataset, answer, rules, source))
    return prepare_generation(
        with_answers, response=ANSWER, template=template, max_length=max_length, chat_template=chat_template
    )


def _option_problems(template: Any, answer: Any, schema: Any, chat_template: Any) -> list[str]:
    problems = []
    if not isinstance(template, str):
        problems.append(f"template must be a text over columns, such as '{{text}}\\n', but is {template!r}")
    if not isinstance(answer, str | dict | list) or not answer:
        problems.append(f"answer must be a column, or the answer with {{columns}} in it, but is {answer!r}")
    if not isinstance(schema, str) or not schema:
        problems.append(f"schema must be the file of a JSON Schema, but is {schema!r}")
    if not isinstance(chat_template, bool):
        problems.append(f"chat_template must be true or false, but is {chat_template!r}")
    return problems


def _answers(dataset: Dataset, answer: Any, schema: Any, source: str) -> list[str]:
    """The answers' texts, every one checked."""
    columns = [answer] if isinstance(answer, str) else list(dict.fromkeys(_columns(answer)))
    if not columns:
        raise DataError(f"{source}: answer {json_text(answer)} names no column, such as {{labels}}")
    check_columns(dataset, columns, source)
    validator = schema_validator(schema)
    texts, wrong = [], []
    for number, row in enumerate(dataset.select_columns(columns)):
        try:
            value = _cell(row[answer]) if isinstance(answer, str) else _built(answer, row)
            value = ordered(value, schema, schema)
            texts.append(json_text(value, schema))
            problem = schema_problem(validator, value)
        except (TypeError, ValueError) as error:
            problem = f"no JSON: {error}"
        if problem is not None:
            wrong.append(f"row {row_number(dataset, number)}: {problem}")
    if wrong:
        title = f"{source}: {len(wrong)} of {len(dataset)} answers do not keep the schema"
        more = [f"and {len(wrong) - LISTED_PROBLEMS} more"] if len(wrong) > LISTED_PROBLEMS else []
        raise DataError("\n".join([title, *wrong[:LISTED_PROBLEMS], *more]))
    return texts


def ordered(value: Any, schema: Any, root: Any) -> Any:
    """A value with its keys in the order of the schema's `properties`, without nulls that nothing requires.

    Conditions within `anyOf` and its like are not looked at: which of them holds is not known here.
    """
    followed: set[str] = set()
    while isinstance(schema, Mapping) and schema.get("$ref", "") not in ("", *followed) and "properties" not in schema:
        followed.add(schema["$ref"])
        schema = target(root, schema["$ref"])
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, dict):
        fields, required = schema.get("properties", {}), schema.get("required", [])
        keys = sorted(value, key=lambda key: list(fields).index(key) if key in fields else len(fields))
        kept = [key for key in keys if value[key] is not None or key in required or key not in fields]
        return {key: ordered(value[key], fields.get(key, True), root) for key in kept}
    if isinstance(value, list):
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        return [ordered(item, first[i] if i < len(first) else rest, root) for i, item in enumerate(value)]
    return value


def _columns(answer: Any) -> list[str]:
    """The columns that an answer names, in order."""
    if isinstance(answer, str):
        return placeholders(answer)
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else []
    return [column for part in parts for column in _columns(part)]


def _built(answer: Any, cells: Mapping[str, Any]) -> Any:
    """The answer with the row's values in it."""
    if isinstance(answer, dict):
        return {key: _built(part, cells) for key, part in answer.items()}
    if isinstance(answer, list):
        return [_built(part, cells) for part in answer]
    if not isinstance(answer, str):
        return answer
    match = PLACE.fullmatch(answer)
    return cells[match[1]] if match else fill(answer, cells)


def _cell(value: Any) -> Any:
    return parse_json(value) if isinstance(value, str) else value
