"""`python -m evaluators`: numbers against scikit-learn and PyTorch, going on after a kill, every mistake at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from evaluators.__main__ import main
from evaluators.package_model import PackageModel
from evaluators.torch_model import TorchModel
from tests.conftest import SENTENCES

LABELS = ["bad", "good", "none"]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Rows of both adapters, a text, cases and a schema, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "moods.csv").open("w", newline="", encoding="utf-8") as file:
        rows = zip(SENTENCES, LABELS * 4, strict=True)
        csv.writer(file).writerows([("sms", "mood"), *rows])
    stories = [json.dumps({"prompt": text[:9], "response": text[9:]}) for text in SENTENCES[:6]]
    (tmp_path / "stories.jsonl").write_text("\n".join(stories), encoding="utf-8")
    (tmp_path / "text.txt").write_text(" ".join(SENTENCES) * 2, encoding="utf-8")
    cases = [
        {
            "id": "a",
            "category": "gender",
            "language": "en",
            "pair": ["He is a nurse.", "She is a nurse."],
            "same": ["nurse"],
        },
        {
            "id": "b",
            "category": "edge",
            "language": "en",
            "prompt": "Good morning",
            "forbidden": ["zebra"],
            "perturb": ["upper"],
        },
    ]
    (tmp_path / "cases.json").write_text(json.dumps([{**case, "language": "en"} for case in cases]), encoding="utf-8")
    return {path.name: path for path in tmp_path.iterdir()}


def test_rows_texts_and_cases(
    files: dict[str, Path],
    package_folder: Path,
    tiny_llama_path: Path,
    adapter_folders: dict[str, Path],
    torch_model: TorchModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    rows = ["--data", "mood=moods.csv", "--text", "sms", "--label", "mood", "--data", "story=stories.jsonl"]
    torch_side = ["--base", str(tiny_llama_path), *(f"--peft={n}={f}" for n, f in adapter_folders.items())]
    others = ["--text-file", "text.txt", "--window", "32", "--stride", "16", "--cases", "cases.json"]
    arguments = [str(package_folder), *rows, *torch_side, *others, "--adapter", "story", "--max-new-tokens", "4"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    result = json.loads(Path("tiny-quality.json").read_text(encoding="utf-8"))
    scores = {(row["adapter"], row["metric"]): row for row in result["quality"]}

    chosen = torch_model.class_logits([torch_model.encode(text) for text in SENTENCES], "mood").argmax(axis=1)
    predicted = [LABELS[i] for i in chosen]
    for column in ("pytorch", "package"):
        assert scores["mood", "accuracy"][column] == pytest.approx(accuracy_score(LABELS * 4, predicted))
        wanted = f1_score(LABELS * 4, predicted, average="weighted")
        assert scores["mood", "f1_weighted"][column] == pytest.approx(wanted)
    accuracy = scores["mood", "accuracy"]
    assert accuracy["low"] <= accuracy["package"] <= accuracy["high"] and accuracy["low"] < accuracy["high"]
    confusion = result["details"]["mood"]["package"]["confusion_matrix"]
    assert sum(map(sum, confusion)) == len(SENTENCES)
    assert result["details"]["mood"]["comparison"]["mcnemar"] == {"only_first": 0, "only_second": 0, "p_value": 1.0}
    story = scores["story", "perplexity"]
    assert story["package"] == pytest.approx(story["pytorch"], rel=1e-4) and story["base"] != story["pytorch"]
    assert story["low"] < story["package"] < story["high"]
    texts = {(row["model"], row["adapter"]): row for row in result["texts"]}
    assert set(texts) == {(m, a) for m in ("pytorch", "package") for a in (None, "story")}
    for adapter in (None, "story"):
        value = texts["package", adapter]["word_perplexity"]
        assert value == pytest.approx(texts["pytorch", adapter]["word_perplexity"], rel=1e-4)
    assert result["cases"]["story"]["total"]["total"] == 2 and result["tasks"] is None
    assert result["versions"]["onnxruntime"] and result["package"]["precision"] == "fp32"
    for text in ("accuracy", "perplexity", "expected", "McNemar", "text.txt", "bias and robustness", "Written to"):
        assert text in shown


def test_a_limit_takes_the_first_rows(
    files: dict[str, Path], package_folder: Path, package_model: PackageModel
) -> None:
    rows = ["--data", "mood=moods.csv", "--text", "sms", "--label", "mood", "--data", "story=stories.jsonl"]
    assert main([str(package_folder), *rows, "--limit", "7"]) == 0
    result = json.loads(Path("tiny-quality.json").read_text(encoding="utf-8"))
    assert result["details"]["mood"]["rows"] == 7 and result["details"]["story"]["rows"] == 6  # it has no more
    right = [
        package_model.runtime.classify(text, "mood")[0].label == label
        for text, label in zip(SENTENCES[:7], LABELS * 3, strict=False)
    ]
    (accuracy,) = (r["package"] for r in result["quality"] if (r["adapter"], r["metric"]) == ("mood", "accuracy"))
    assert accuracy == pytest.approx(sum(right) / 7)


def test_answers_are_scored(
    files: dict[str, Path], package_folder: Path, package_model: PackageModel, torch_model: TorchModel
) -> None:
    from sacrebleu.metrics import CHRF

    arguments = ["--data", "story=stories.jsonl", "--metrics", "chrf,exact_match", "--max-new-tokens", "6"]
    assert main([str(package_folder), *arguments, "--output", "answers.json"]) == 0
    result = json.loads(Path("answers.json").read_text(encoding="utf-8"))
    scores = {row["metric"]: row for row in result["quality"]}
    answers = [package_model.runtime.generate(text[:9], "story", max_new_tokens=6) for text in SENTENCES[:6]]
    assert result["details"]["story"]["answers"]["package"] == answers
    expected = [text[9:] for text in SENTENCES[:6]]
    assert scores["chrf"]["package"] == pytest.approx(CHRF().corpus_score(answers, [expected]).score)
    assert scores["exact_match"]["package"] == 0 and set(scores) == {"chrf", "exact_match"}


def test_answers_are_held_to_a_schema(files: dict[str, Path], package_folder: Path) -> None:
    """Nonsense is no JSON; the details say why, and which fields were asked for."""
    rows = [json.dumps({"prompt": text, "response": json.dumps({"mood": "good"})}) for text in SENTENCES[:3]]
    Path("moods.jsonl").write_text("\n".join(rows), encoding="utf-8")
    Path("schema.json").write_text(json.dumps({"type": "object", "required": ["mood"]}), encoding="utf-8")
    arguments = ["--data", "story=moods.jsonl", "--schema", "schema.json", "--max-new-tokens", "4"]
    assert main([str(package_folder), *arguments]) == 0
    result = json.loads(Path("tiny-quality.json").read_text(encoding="utf-8"))
    scores = {row["metric"]: row["package"] for row in result["quality"]}
    structured = ("json_valid", "schema_valid", "json_exact", "fields_mean")
    assert [scores[name] for name in structured] == [0, 0, 0, 0] and "perplexity" in scores
    facts = result["details"]["story"]["structured"]["package"]
    assert facts["fields"] == {"mood": 0} and "no JSON" in facts["problems"][0]["problem"]


def test_what_was_finished_before_a_kill_is_not_computed_again(
    files: dict[str, Path], package_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(package_folder), "--data", "story=stories.jsonl", "--data", "mood=moods.csv"]
    arguments += ["--text", "sms", "--label", "mood"]
    original = PackageModel.class_logits
    calls: list[str] = []

    def killed(*_: Any) -> Any:
        raise KeyboardInterrupt

    def counted(name: str, function: Any) -> Any:
        def call(*values: Any) -> Any:
            calls.append(name)
            return function(*values)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(PackageModel, "class_logits", killed)
        assert main(arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not Path("tiny-quality.json").exists() and len(list(Path("tiny-quality.parts").iterdir())) == 2
    scored = PackageModel.token_scores
    monkeypatch.setattr(PackageModel, "token_scores", counted("tokens", scored))
    monkeypatch.setattr(PackageModel, "class_logits", counted("classes", original))
    assert main(arguments) == 0
    assert calls == ["classes"] and not Path("tiny-quality.parts").exists()
    assert main(arguments) == 0  # complete, so measured anew, and put in the former result's place
    assert calls.count("tokens") == 2


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ([], ["nothing to measure; give --data, --text-file, --cases or --tasks"]),
        (["--data", "mod=moods.csv"], ["there is no adapter 'mod'; did you mean 'mood'?"]),
        (["--data", "moods.csv"], ["--data moods.csv: whose is it? Write NAME=moods.csv; Valid: mood, story"]),
        (["--data", "mood=none.csv", "--adapter", "stry"], ["did you mean 'story'?", "--data mood=none.csv: "]),
        (["--data", "mood=moods.csv", "--text", "sms"], ["--data mood=moods.csv: ", "'label'"]),
        (["--data", "story=stories.jsonl", "--metrics", "blu"], ["--metrics blu: no such score; did you mean 'bleu'?"]),
        (["--data", "story=stories.jsonl", "--metrics", "accuracy"], ["none is for 'story'; Valid: bits_per_byte"]),
        (["--data", "story=stories.jsonl", "--metrics", "schema_valid"], ["schema_valid: needs --schema"]),
        (["--text-file", "none.txt", "--window", "4", "--stride", "5"], ["none.txt: there is no such", "5"]),
        (["--cases", "none.json"], ["--cases none.json: there is no such file"]),
        (["--cases", "--output", "moods.csv"], ["--output moods.csv: there is another file of this name"]),
        (["--cases", "--peft", "mood=.", "--batch-size", "0"], ["needs --base", "adapter.json", "--batch-size 0"]),
        (["--data", "mood=moods.csv", "--schema", "moods.csv"], ["--schema: moods.csv: no JSON: line 1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0].startswith("--") else "",
)
def test_mistakes_are_named_at_once(
    files: dict[str, Path],
    package_folder: Path,
    arguments: list[str],
    problems: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = files["moods.csv"].read_bytes()
    assert main([str(package_folder), *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and [p for p in problems if p not in message] == []
    assert files["moods.csv"].read_bytes() == before and not Path("tiny-quality.json").exists()


def test_no_package(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nowhere", "--cases"]) == 1
    assert "is no package" in capsys.readouterr().err
