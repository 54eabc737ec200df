"""A distillation by `olive run`: teacher and students in one table, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import OlivalError
from tests.passes.chat_server import Reply, chat_server
from tests.passes.conftest import GOOD, REPOSITORY, data_config, mood_data

LABELS = ["bad", "good"]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def taught(name: str, file: Path, teacher: dict[str, Any], kind: str = "taught_generation", **options: Any) -> Any:
    asked = {"teacher": teacher, "prompt_template": "Mood? {text}", "labels": LABELS}
    return data_config(
        name, file, kind, **{**asked, "text_template" if "class" in kind else "template": "{text}\n", **options}
    )


def distillation(workflow: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    """A student that writes and one that classifies, taught by one teacher and scored on rows with true labels."""
    file = Path(workflow["output_dir"]).parent / "mood.csv"
    workflow["data_configs"] = [
        taught("writes_train", file, teacher, reasoning="before"),
        taught("writes_held_out", file, teacher, label="label"),
        taught("heads_train", file, teacher, "taught_classification"),
        taught("heads_held_out", file, teacher, "taught_classification", label="label"),
    ]
    steps = workflow["passes"]
    steps["story"] |= {"adapter_name": "writes", "train_data_config": "writes_train"}
    steps["mood"] |= {"adapter_name": "heads", "train_data_config": "heads_train"}
    steps["mood"].pop("validation_data_config")
    workflow["passes"] = {"writes": steps["story"], "heads": steps["mood"]}
    written = {"name": "label_accuracy", "priority": 1, "higher_is_better": True}
    workflow["evaluators"]["all"] |= {
        "metric_options": {"writes": {"max_new_tokens": 4}},
        "metrics": [
            {"name": "writes", "type": "custom", "data_config": "writes_held_out", "sub_types": [written]},
            {"name": "heads", "type": "accuracy", "data_config": "heads_held_out",
             "sub_types": [{"name": "accuracy_score", "priority": 2}]},
        ],
    }  # fmt: skip
    return workflow


def run(workflow: dict[str, Any]) -> None:
    from olive.workflows import run as olive_run

    from passes.registration import register

    register()
    olive_run(workflow)


def problems(workflow: dict[str, Any]) -> list[str]:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register
    from passes.workflow_check import check_workflow

    register()
    return check_workflow(RunConfig.parse_file_or_obj(json.loads(json.dumps(workflow))))


def test_a_workflow_compares_teacher_and_students(
    tiny_workflow: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight rows, one that the teacher gets wrong, one that it does not answer; the others are asked once."""
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    wrong, silent = GOOD[0], GOOD[1]

    def answer(request: dict[str, Any], _: int) -> Reply:
        text = request["messages"][0]["content"].removeprefix("Mood? ")
        label = "banana" if text == silent else "good" if text in GOOD and text != wrong else "bad"
        return Reply(f"I feel it. Answer: {label}")

    with chat_server(answer) as server:
        teacher = {"url": server.url, "model": "big", "api_key_env": "TEACHER_KEY"}
        run(distillation(tiny_workflow, teacher))
    texts = mood_data(1).texts
    assert sorted(set(server.questions[:8])) == sorted(f"Mood? {text}" for text in texts)
    # the silent one has three attempts of the student that reasons, and three in the words of the one that does not
    assert len(server.requests) == 8 + 2 + 3
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    (comparison,) = evaluation["distillation"]
    by_name = {model["name"]: model for model in comparison["models"]}
    assert list(by_name) == ["big", "writes", "heads"] and comparison["rows"] == 16
    right = [int(text not in (wrong, silent)) for text in mood_data(2).texts]
    assert by_name["big"]["right"] == right and by_name["big"]["accuracy"] == 12 / 16
    low, high = by_name["big"]["low"], by_name["big"]["high"]
    assert (low, high) == pytest.approx((0.5050, 0.8982), abs=1e-4)  # Wilson's interval of 12 of 16
    quality = {(row["adapter"], row["metric"]): row for row in evaluation["quality"]}
    for name, score in (("writes", "label_accuracy"), ("heads", "accuracy")):
        assert by_name[name]["accuracy"] == pytest.approx(quality[name, score]["pytorch"])
        assert by_name[name]["measured"] == "pytorch" and by_name[name]["role"] == "student"
        both = [(mine, its) for mine, its in zip(by_name[name]["right"], right, strict=True)]
        test = by_name[name]["against_teacher"]
        assert (test["only_second"], test["only_first"]) == (both.count((1, 0)), both.count((0, 1)))
    printed = capsys.readouterr().out
    assert "16 rows of mood.csv with true labels" in printed and "big (teacher)" in printed and "0.505-0.898" in printed
    written = "".join(
        file.read_text(encoding="utf-8", errors="ignore") for file in tmp_path.rglob("*") if file.is_file()
    )
    assert "TEACHER_KEY" in written and "sk-secret" not in written


def test_a_teacher_that_is_down_costs_no_training(tiny_workflow: dict[str, Any], tmp_path: Path) -> None:
    """It is asked before the first training begins."""
    with chat_server(lambda *_: Reply(status=500)) as server:
        content = distillation(tiny_workflow, {"url": server.url, "model": "big", "retries": 0})
        content["passes"] = {"heads": content["passes"]["heads"], "writes": content["passes"]["writes"]}
        with pytest.raises(OlivalError, match="0 of 16 rows are answered"):
            run(content)
    assert not (tmp_path / "cache" / "adapters").exists() and not (tmp_path / "out").exists()


def test_mistakes_are_found_without_asking(
    tiny_workflow: dict[str, Any], tmp_path: Path, tiny_llama_path: Path
) -> None:
    content = distillation(tiny_workflow, {"url": "http://127.0.0.1:9/v1", "model": "big"})
    assert problems(content) == []
    train, held_out = content["data_configs"][0], content["data_configs"][3]
    train["pre_process_data_config"]["teacher"] = {"adapter": "writes"}
    content["data_configs"][2]["pre_process_data_config"]["teacher"] = {"model_path": str(tmp_path / "none")}
    del held_out["pre_process_data_config"]["label"]
    found = problems(content)
    assert [line.split(";")[0].split(" here")[0] for line in found] == [
        "data_configs.writes_train: teacher.adapter: no pass before this one trains 'writes'",
        f"data_configs.heads_train: teacher.model_path: '{tmp_path / 'none'}' is neither a model folder",
        "evaluator.metrics.heads.data_config: 'heads_held_out' is answered by a teacher, but scores need true labels: "
        "name their column in its `label`",
    ]
    train["pre_process_data_config"]["teacher"] = {"model_path": str(tiny_llama_path), "max_new_tokens": 128}
    (line, *_) = problems(content)
    assert line.endswith("teacher.max_new_tokens: is 128, but the teacher's context is 128")
    content["passes"] = {"heads": content["passes"]["heads"], "writes": content["passes"]["writes"]}
    train["pre_process_data_config"]["teacher"] = {"adapter": "heads"}
    assert "data_configs.writes_train: teacher.adapter: 'heads' classifies and writes no text" in " ".join(
        problems(content)
    )
    content["data_configs"][0]["pre_process_data_config"]["template"] = "{txt}"
    assert any(
        line.startswith("data_configs.writes_train: mood.csv: there is no column 'txt'") for line in problems(content)
    )


@pytest.mark.slow
def test_our_workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """workflows/tasks/distillation.json as it is: a teacher and its three students find most of the labels."""
    monkeypatch.chdir(REPOSITORY)
    content = json.loads((REPOSITORY / "workflows" / "tasks" / "distillation.json").read_text(encoding="utf-8"))
    run({**content, "cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "out")})
    (comparison,) = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))["distillation"]
    found = {model["name"]: model["accuracy"] for model in comparison["models"]}
    assert list(found) == ["teacher", "labels_only", "reasoning_beside", "reasoning_before"]
    assert comparison["rows"] == 120 and min(found.values()) > 0.8  # 0.55 of the rows are ham
    assert {model["measured"] for model in comparison["models"]} == {"teacher", "package"}
