"""What `python -m evaluators` is asked to measure, checked whole before anything is computed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.examples import ClassificationData, GenerationData
from data.json_schema import parse_json, read_schema
from data.loading import load_rows
from data.preparing import prepare_classification, prepare_generation
from data.structured import prepare_structured
from data.templates import placeholders
from evaluators.case_quality import CASES
from evaluators.constrained import answer_tokens
from evaluators.quality import CLASSIFICATION, GENERATION, LIKELIHOOD, STRUCTURED, AnswerOptions
from runtime.errors import ConfigError, DataError, OlivalError, nearest
from runtime.manifest import read_manifest

# where each text has one label, micro averages and weighted recall are the accuracy again
USUAL = ("accuracy", "f1_macro", "f1_weighted", "precision_macro", "recall_macro")
KIND = "olival quality"  # marks a result file, which alone may be overwritten


@dataclass(frozen=True)
class Plan:
    """A request to measure a package. None or empty means not asked for.

    `rows` and `wanted` are by adapter.
    """

    package: Path
    manifest: Mapping[str, Any]
    output: Path
    adapter: str | None
    batch_size: int
    execution_provider: str | None
    rows: Mapping[str, ClassificationData | GenerationData]
    wanted: Mapping[str, Sequence[str]]
    answers: AnswerOptions
    base: Path | None
    peft: Mapping[str, Path]
    text_file: Path | None
    window: int | None
    stride: int | None
    cases: Path | None
    tasks: Sequence[str]
    include_path: Path | None
    num_fewshot: int | None
    limit: int | None


def read_plan(options: argparse.Namespace) -> Plan:
    """The plan that command line options make (see evaluators/__main__.py).

    Raises:
        PackageError: the package is damaged.
        ConfigError: everything else that is wrong, all at once.
    """
    manifest = read_manifest(options.package, verify=False)
    adapters, problems = manifest["adapters"], []
    if options.adapter is not None and options.adapter not in adapters:
        problems.append(f"--adapter {options.adapter}: no such adapter; {nearest(options.adapter, adapters)}")
    for flag in ("batch_size", "max_new_tokens", "window", "stride", "limit"):
        if (value := getattr(options, flag)) is not None and value < 1:
            problems.append(f"--{flag.replace('_', '-')} {value}: must be 1 or more")
    files = _named(options.data, "--data", options.adapter, adapters, problems)
    peft = _named(options.peft, "--peft", options.adapter, adapters, problems)
    if peft and options.base is None:
        problems.append("--peft needs --base, the base that the adapters were trained on")
    problems += [f"--peft {name}={path}: has no adapter.json" for name, path in peft.items() if not _is_trained(path)]
    if options.base is not None and not (options.base / "config.json").is_file():
        problems.append(f"--base {options.base}: is no model folder, it has no config.json")
    chosen = options.metrics.split(",") if options.metrics else []
    rows: dict[str, Any] = {}
    wanted: dict[str, Sequence[str]] = {}
    for name, file in files.items():
        if name not in adapters:
            continue
        try:
            rows[name] = _load(file, adapters[name], options)
        except OlivalError as error:
            problems.append(f"--data {name}={file}: {error}")
        wanted[name] = _wanted(name, adapters[name]["task"], chosen, options.schema is not None, problems)
    schema, most = None, options.max_new_tokens or AnswerOptions.max_new_tokens
    try:
        schema = read_schema(options.schema) if options.schema is not None else None
    except DataError as error:
        problems.append(f"--schema: {error}")
    for flag in ("constrained", "answer"):
        if getattr(options, flag) and options.schema is None:
            problems.append(f"--{flag}: needs --schema")
    if options.constrained and schema is not None:
        try:
            most = answer_tokens(schema, options.max_new_tokens)
        except DataError as error:
            problems.append(f"--constrained: {error}")
    cases = None if options.cases is None else Path(options.cases) if options.cases else CASES
    for flag, path in (("--text-file", options.text_file), ("--cases", cases)):
        if path is not None and not path.is_file():
            problems.append(f"{flag} {path}: there is no such file")
    if options.include_path is not None and not options.include_path.is_dir():
        problems.append(f"--include-path {options.include_path}: there is no such folder")
    if options.window is not None and options.stride is not None and options.stride > options.window:
        problems.append(f"--stride <= --window must hold, but got {options.stride} and {options.window}")
    if not (files or options.text_file or cases or options.tasks):
        problems.append("nothing to measure; give --data, --text-file, --cases or --tasks")
    output = options.output or Path(f"{options.package.resolve().name}-quality.json")
    problems += _output_problems(output)
    if problems:
        raise ConfigError(problems)
    answers = AnswerOptions(most, tuple(options.stop), schema, options.constrained, options.answer_mark)
    tasks = options.tasks.split(",") if options.tasks else []
    return Plan(
        options.package, manifest, output, options.adapter, options.batch_size, options.execution_provider,
        rows, wanted, answers, options.base, peft, options.text_file, options.window, options.stride,
        cases, tasks, options.include_path, options.num_fewshot, options.limit,
    )  # fmt: skip


def _named(
    values: Sequence[str], flag: str, default: str | None, adapters: Mapping[str, Any], problems: list[str]
) -> dict[str, Path]:
    """`NAME=PATH` of a repeatable flag, by name; a PATH alone belongs to `default`, or to the only adapter."""
    default = default or (next(iter(adapters)) if len(adapters) == 1 else None)
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or Path(value).exists():
            name, path = default or "", value
        if not name:
            problems.append(f"{flag} {value}: whose is it? Write NAME={value}; {nearest('', adapters)}")
        elif name not in adapters:
            problems.append(f"{flag} {value}: there is no adapter '{name}'; {nearest(name, adapters)}")
        elif name in found:
            problems.append(f"{flag} {value}: {name} has {found[name]} already")
        else:
            found[name] = Path(path)
    return found


def _is_trained(folder: Path) -> bool:
    return (folder / "adapter.json").is_file()


def _load(file: Path, entry: Mapping[str, Any], options: argparse.Namespace) -> ClassificationData | GenerationData:
    """Rows of a file as an adapter of the package takes them: its template, labels and length."""
    dataset = load_rows(str(file))
    if options.limit is not None:
        dataset = dataset.select(range(min(max(options.limit, 1), len(dataset))))  # below 1 is refused beside this
    classifies = entry["task"] == "classification"
    template, column = entry["template"], options.text if classifies else options.prompt
    if template != "chat" and column is not None:
        names = placeholders(template)
        if len(names) != 1:
            raise DataError(f"the adapter's template {template!r} takes the columns {', '.join(names)}, not one")
        template = template.replace("{" + names[0] + "}", "{" + column + "}")
    if classifies:
        length, stride = entry["max_length"] or 2**31, entry["window_stride"]
        several = entry.get("thresholds") is not None
        return prepare_classification(dataset, None, options.label, template, entry["labels"], length, stride, several)
    length = entry["max_length"] or 2**31
    if options.answer is not None and options.schema is not None:
        chat = template == "chat"
        filled = "{" + (column or "prompt") + "}" if chat else template
        return prepare_structured(dataset, filled, _answer(options.answer), str(options.schema), length, chat)
    if template == "chat":
        return prepare_generation(dataset, column, options.response, max_length=length, chat_template=True)
    return prepare_generation(dataset, None, options.response, template, max_length=length)


def _answer(text: str) -> Any:
    """A column's name, or the JSON in which columns stand."""
    if not text.startswith(("{", "[")):
        return text
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(f"--answer {text}: no JSON: {error}") from error


def _wanted(name: str, task: str, chosen: list[str], with_schema: bool, problems: list[str]) -> Sequence[str]:
    """The scores of one adapter: those chosen that its task has, or all that need no text to be written."""
    valid = CLASSIFICATION if task == "classification" else GENERATION
    unknown = [score for score in chosen if score not in (*CLASSIFICATION, *GENERATION)]
    if unknown:
        problems += [f"--metrics {score}: no such score; {nearest(score, valid)}" for score in unknown]
    elif chosen and not set(chosen) & set(valid):
        problems.append(f"--metrics {','.join(chosen)}: none is for '{name}'; {nearest('', valid)}")
    if "schema_valid" in chosen and not with_schema:
        problems.append("--metrics schema_valid: needs --schema")
    default = USUAL if task == "classification" else LIKELIHOOD
    if task != "classification" and with_schema and not chosen:
        return (*LIKELIHOOD, *STRUCTURED)
    return [score for score in valid if score in chosen] if chosen else default


def _output_problems(output: Path) -> list[str]:
    """A result may only be put in the place of a former one."""
    if output.is_dir():
        return [f"--output {output}: is a folder"]
    if not output.exists():
        return []
    try:
        former = json.loads(output.read_text(encoding="utf-8"))
    except ValueError:
        former = None
    if isinstance(former, dict) and former.get("kind") == KIND:
        return []
    return [f"--output {output}: there is another file of this name, which is no former result"]
