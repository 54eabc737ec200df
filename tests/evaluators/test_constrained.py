"""Answers held to a schema: all of them keep it, none is cut, and what cannot be so is said before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from data.examples import GenerationData
from evaluators.__main__ import main
from evaluators.constrained import answer_tokens
from evaluators.finished_parts import FinishedParts
from evaluators.measuring import Measuring
from evaluators.metric_check import metric_problems
from evaluators.package_model import PackageModel
from evaluators.quality import AnswerOptions, Quality, generation_quality
from evaluators.report import constrained_note, number_text
from evaluators.scoring import quality_rows
from evaluators.torch_model import TorchModel
from evaluators.workspace_evaluator import answer_options
from passes.answer_room import room_problems
from passes.data_check import check_data
from runtime.errors import DataError
from tests.conftest import SENTENCES

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"mood": {"enum": ["bom", "mau"]}, "why": {"type": "string", "maxLength": 4}},
    "required": ["mood", "why"],
    "additionalProperties": False,
}
TOKENS = len('{"mood": "bom", "why": "') + 4 * 6 + len('"}') + 1
OPEN = {"type": "object", "properties": {"why": {"type": "string"}}}
ROWS = GenerationData(
    [text[:12] for text in SENTENCES[:6]],
    [json.dumps({"mood": "bom" if row % 2 else "mau", "why": "x"}) for row in range(6)],
    source="moods",
)
WANTED = ("perplexity", "json_valid", "schema_valid", "fields_mean")


@pytest.fixture(scope="module")
def measured(
    package_model: PackageModel, torch_model: TorchModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Quality, Measuring]:
    """Scores under the constraint, and what measured them: it keeps the answers, so a second look is cheap."""
    parts = FinishedParts(tmp_path_factory.mktemp("parts") / "parts")
    models = {"pytorch": torch_model, "package": package_model}
    measuring = Measuring(models, dict.fromkeys(models, lambda _: 1), torch_model.tokenizer, parts)
    options = AnswerOptions(TOKENS, (), SCHEMA, constrained=True)
    return generation_quality(measuring, "story", ROWS, WANTED, options, base="pytorch"), measuring


def test_every_answer_keeps_the_schema(measured: tuple[Quality, Measuring]) -> None:
    """An untrained package writes nonsense; held to the schema it writes 6 of 6 valid answers, by jsonschema itself."""
    quality, _ = measured
    answers = quality.details["answers"]["package"]
    for answer in answers:
        jsonschema.validate(json.loads(answer), SCHEMA)
    moods = [json.loads(answer)["mood"] for answer in answers]
    right = [mood == json.loads(row)["mood"] for mood, row in zip(moods, ROWS.responses, strict=True)]
    scores = {name: values["package"] for name, values in quality.scores.items()}
    assert scores["json_valid (constrained)"] == scores["schema_valid (constrained)"] == 1
    assert scores["$.mood (constrained)"] == sum(right) / 6
    assert scores["fields_mean (constrained)"] == (sum(right) / 6 + scores["$.why (constrained)"]) / 2


def test_pytorch_writes_freely_and_the_table_says_so(measured: tuple[Quality, Measuring]) -> None:
    """The base answers in the package, under the constraint; likelihoods know no constraint, in name and value."""
    quality, measuring = measured
    assert quality.scores["schema_valid (constrained)"] == {"base": 1, "pytorch": 0, "package": 1}
    free = generation_quality(measuring, "story", ROWS, WANTED, AnswerOptions(TOKENS, (), SCHEMA), base="pytorch")
    assert free.scores["schema_valid"] == {"base": 0, "pytorch": 0, "package": 0}
    assert free.details["answers"]["pytorch"] == quality.details["answers"]["pytorch"]
    assert free.scores["perplexity"] == quality.scores["perplexity"]
    rows = quality_rows("story", quality)
    assert "PyTorch" in constrained_note(rows) and constrained_note(quality_rows("story", free)) == ""
    assert number_text("chrf (constrained)", 12.345) == "12.35" and number_text("$.a", 0.5) == "0.500"


def test_finished_answers_are_known_by_their_schema(
    package_model: PackageModel, torch_model: TorchModel, tmp_path: Path
) -> None:
    """Parts of a killed run: free answers are not taken for constrained ones, nor those of another schema."""
    measuring = Measuring(
        {"package": package_model}, {"package": lambda _: 1}, torch_model.tokenizer, FinishedParts(tmp_path / "parts")
    )
    other = {"enum": ["sim"]}
    found = [measuring.answers("package", "story", ROWS.take([0]), 8, (), schema) for schema in (None, other, True)]
    assert found[1] == ['"sim"'] and found[0] != found[1] and found[2] not in found[:2]


def test_limits() -> None:
    assert answer_tokens(SCHEMA) == TOKENS
    assert answer_tokens(SCHEMA, TOKENS + 50) == TOKENS + 50 and answer_tokens(OPEN, 7) == 7
    with pytest.raises(DataError, match=rf"permits answers of {TOKENS - 1} bytes.*leave it out, or give {TOKENS} or"):
        answer_tokens(SCHEMA, TOKENS - 1)
    with pytest.raises(DataError, match=r"an object with any keys.*; or set max_new_tokens, which cuts longer answers"):
        answer_tokens(OPEN)


@pytest.fixture
def schemas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, schema in (("schema", SCHEMA), ("open", OPEN)):
        Path(f"{name}.json").write_text(json.dumps(schema), encoding="utf-8")
    pairs = zip(ROWS.prompts, ROWS.responses, strict=True)
    lines = [json.dumps({"prompt": prompt, "answer": json.loads(response)}) for prompt, response in pairs]
    Path("moods.jsonl").write_text("\n".join(lines), encoding="utf-8")


def metric(*scores: str) -> Any:
    from olive.evaluator.metric import Metric

    from passes.registration import register

    register()
    step = {"type": "structured", "template": "{prompt}", "answer": "answer", "schema": "schema.json"}
    rows = {"type": "rows", "data_files": "moods.jsonl"}
    config = {"name": "moods", "load_dataset_config": rows, "pre_process_data_config": step}
    sub_types = [{"name": score} for score in scores]
    return Metric.model_validate({"name": "held", "type": "custom", "data_config": config, "sub_types": sub_types})


@pytest.mark.parametrize(
    ("scores", "options", "problem"),
    [
        (
            ["json_valid"],
            {"schema": "schema.json", "constrained": "yes"},
            "constrained: must be true or false, but got",
        ),
        (["json_valid"], {"constrained": True}, "held.schema: constrained needs it, the file of a JSON Schema"),
        (["json_valid"], {"schema": "open.json", "constrained": True}, "constrained: schema at $: an object with any"),
        (
            ["json_valid"],
            {"schema": "schema.json", "constrained": True, "max_new_tokens": 9},
            "max_new_tokens is 9, but",
        ),
        (["json_valid"], {"schema": "schema.json", "constraned": True}, "constraned: unknown option; did you mean"),
        (["chrf"], {"schema": "schema.json"}, "none of the metric's scores uses it"),
    ],
)
def test_mistakes(schemas: None, scores: list[str], options: dict[str, Any], problem: str) -> None:
    problems = metric_problems([metric(*scores)], {"story": "generation"}, {"held": {"adapter": "story", **options}})
    assert len(problems) == 1 and problem in problems[0]


def test_what_is_right_has_no_problem_and_is_sized(schemas: None) -> None:
    for options in ({"schema": "schema.json"}, {"schema": "open.json", "max_new_tokens": 30}):
        chosen: dict[str, Any] = {"adapter": "story", "constrained": True, **options}
        for score in ("json_valid", "chrf"):  # all that is written is held
            assert metric_problems([metric(score)], {"story": "generation"}, {"held": chosen}) == []
        assert answer_options(chosen).max_new_tokens == options.get("max_new_tokens", TOKENS)
    assert answer_options({}) == AnswerOptions()


def test_room_in_the_context(schemas: None, tiny_llama_path: Path, torch_model: TorchModel) -> None:
    """Prompts that leave an answer too little are refused, to the token, virtual tokens counted."""
    options = {"schema": "schema.json", "constrained": True}
    longest = max(len(torch_model.tokenizer(prompt)["input_ids"]) for prompt in ROWS.prompts)
    assert room_problems(options, ROWS, tiny_llama_path, longest + TOKENS + 3, virtual=3) == []
    (problem,) = room_problems(options, ROWS, tiny_llama_path, longest + TOKENS + 2, virtual=3)
    assert problem.startswith(f"constrained: an answer may take {TOKENS} tokens of the {longest + TOKENS + 2}")
    assert problem.endswith(f"has {longest}")
    assert room_problems({"schema": "schema.json"}, ROWS, tiny_llama_path, 1, 0) == []
    assert room_problems(options, ROWS, tiny_llama_path, None, 0) == []


def test_the_check_of_a_workflow_asks_for_room(
    schemas: None, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for an engine that can be held: one that runs other bases cannot."""
    from types import SimpleNamespace

    chosen = {"held": {"adapter": "story", "schema": "schema.json", "constrained": True}}
    evaluator = SimpleNamespace(metrics=[metric("json_valid")], type_args={"metric_options": chosen})

    def check() -> list[str]:
        return check_data([], {"story": "generation"}, evaluator, tiny_llama_path, "")

    rows = [json.loads(line) for line in Path("moods.jsonl").read_text(encoding="utf-8").splitlines()]
    step = evaluator.metrics[0].data_config.pre_process_data_config.params
    step["max_length"] = 128  # the tiny base's context
    assert check() == []
    rows[2]["prompt"] = "x" * 100
    Path("moods.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (problem,) = check()
    assert (
        problem.startswith("evaluator.metric_options.held.constrained: ")
        and "1 of 6 have more; that of row 3" in problem
    )
    monkeypatch.setattr("passes.answer_room.engine_of", lambda _: "onnxruntime")
    assert "constrained: needs onnxruntime-genai" in check()[0]


def test_from_the_command_line(schemas: None, package_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "story=moods.jsonl", "--schema", "schema.json", "--constrained", "--answer", "answer"]
    arguments += ["--metrics", "schema_valid,fields_mean"]
    assert main([str(package_folder), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "schema_valid (constrained)" in printed and "$.mood (constrained)" in printed
    result = json.loads(Path("tiny-quality.json").read_text(encoding="utf-8"))
    values = {row["metric"]: (row["base"], row["package"]) for row in result["quality"]}
    assert values["schema_valid (constrained)"] == (1, 1)  # the base is the package's too
    assert set(values) == {f"{name} (constrained)" for name in ("schema_valid", "fields_mean", "$.mood", "$.why")}
    assert main([str(package_folder), *arguments, "--answer", '{"mood": "{answer}"}']) == 1
    assert "6 of 6 answers do not keep the schema" in capsys.readouterr().err
    assert main([str(package_folder), "--data", "story=moods.jsonl", "--constrained", "--answer", "answer"]) == 1
    problems = capsys.readouterr().err
    assert "--constrained: needs --schema" in problems and "--answer: needs --schema" in problems
    assert main([str(package_folder), *arguments, "--max-new-tokens", "5"]) == 1
    assert "--constrained: max_new_tokens is 5, but" in capsys.readouterr().err
    assert main([str(package_folder), *arguments, "--answer", "{mood"]) == 1
    assert "--answer {mood: no JSON: line 1 column 2" in capsys.readouterr().err
