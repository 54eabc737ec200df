"""The evaluator that workflows name, before the export and on the package: numbers for Olive and a record beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.examples import GenerationData, load_data
from data.tokenizing import encode_generation
from evaluators.metric_check import metric_problems
from evaluators.perplexity import perplexity
from evaluators.subjects import evaluation_file
from evaluators.torch_model import TorchModel
from evaluators.workspace_evaluator import WorkspaceEvaluator
from passes.training.adapter_pass import ATTRIBUTE, BASE_ATTRIBUTE
from runtime.errors import ConfigError, DataError
from tests.conftest import SENTENCES
from tests.passes.conftest import data_config

OPTIONS = {"ttft": {"phase": "first_token", "prompt_tokens": 8, "new_tokens": 3}}


@pytest.fixture
def metrics(tmp_path: Path) -> list[Any]:
    """Olive metrics: the quality of "mood" and "story", the time to first token of the base, the size."""
    from olive.evaluator.metric import Metric

    from passes.registration import register

    register()
    mood, story = tmp_path / "mood.jsonl", tmp_path / "story.jsonl"
    labels = ["bad", "good", "none"] * 4
    mood.write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in zip(SENTENCES, labels, strict=True)))
    story.write_text("".join(json.dumps({"prompt": t[:9], "response": t[9:]}) + "\n" for t in SENTENCES[:4]))
    entries: list[dict[str, Any]] = [
        {
            "name": "mood",
            "type": "accuracy",
            "data_config": data_config("mood", mood),
            "sub_types": [{"name": "accuracy_score"}, {"name": "f1_score", "metric_config": {"average": "weighted"}}],
        },
        {
            "name": "story",
            "type": "accuracy",
            "data_config": data_config("story", story, "generation"),
            "sub_types": [
                {"name": "perplexity", "higher_is_better": False, "goal": {"type": "threshold", "value": 1.5}}
            ],
        },
        {"name": "ttft", "type": "latency", "sub_types": [{"name": "p50"}, {"name": "p90"}]},
        {"name": "size_on_disk", "type": "size_on_disk", "sub_types": [{"name": "bytes", "higher_is_better": False}]},
    ]
    return [Metric.model_validate(entry) for entry in entries]


def trained(base: Path, folders: dict[str, Path]) -> Any:
    from olive.model import HfModelHandler

    attributes = {ATTRIBUTE: {name: str(folder) for name, folder in folders.items()}}
    return HfModelHandler(str(base), model_attributes=attributes)


def test_before_the_export(tiny_llama_path: Path, adapter_folders: dict[str, Path], metrics: list[Any]) -> None:
    """Every number is that of the PyTorch model."""
    result = WorkspaceEvaluator(metric_options=OPTIONS).evaluate(trained(tiny_llama_path, adapter_folders), metrics)
    values = {name: sub.value for name, sub in result.root.items()}
    assert set(values) == {
        "mood-accuracy_score",
        "mood-f1_score",
        "story-perplexity",
        "ttft-p50",
        "ttft-p90",
        "size_on_disk-bytes",
    }
    model = TorchModel(tiny_llama_path, adapter_folders)
    data = load_data(metrics[0].data_config)
    rows = [model.tokenizer(text)["input_ids"] for text in SENTENCES]
    chosen = [model.labels("mood")[i] for i in model.class_logits(rows, "mood").argmax(axis=1)]
    right = sum(a == b for a, b in zip(chosen, ["bad", "good", "none"] * 4, strict=True))
    assert len(data) == 12 and values["mood-accuracy_score"] == pytest.approx(right / 12)
    pairs = GenerationData([text[:9] for text in SENTENCES[:4]], [text[9:] for text in SENTENCES[:4]])
    examples = encode_generation(model.tokenizer, pairs)
    wanted = perplexity(model, examples, "story")
    assert values["story-perplexity"] == pytest.approx(wanted, rel=1e-6)
    files = [file for folder in (tiny_llama_path, *adapter_folders.values()) for file in folder.rglob("*")]
    assert values["size_on_disk-bytes"] == sum(file.stat().st_size for file in files if file.is_file())
    assert 0 < values["ttft-p50"] <= values["ttft-p90"]


def test_on_the_package(
    tiny_llama_path: Path, adapter_folders: dict[str, Path], package_folder: Path, metrics: list[Any], tmp_path: Path
) -> None:
    """Every number is the package's; the record has all columns, the manifest the scores."""
    from olive.model import ONNXModelHandler

    folder = shutil.copytree(package_folder, tmp_path / "package")
    attributes = {
        ATTRIBUTE: {name: str(path) for name, path in adapter_folders.items()},
        BASE_ATTRIBUTE: str(tiny_llama_path),
    }
    handler = ONNXModelHandler(str(folder), onnx_file_name="model.onnx", model_attributes=attributes)
    relative = {"ttft-p50": {"type": "max-degradation", "value": 5.0}}
    result = WorkspaceEvaluator(metric_options=OPTIONS, relative_goals=relative).evaluate(handler, metrics)
    values = {name: sub.value for name, sub in result.root.items()}
    record = json.loads(evaluation_file().read_text(encoding="utf-8"))
    quality = {(row["adapter"], row["metric"]): row for row in record["quality"]}
    assert values["mood-accuracy_score"] == quality["mood", "accuracy"]["package"]
    assert values["mood-f1_score"] == quality["mood", "f1_weighted"]["package"]
    assert values["story-perplexity"] == quality["story", "perplexity"]["package"]
    for row in quality.values():
        assert row["package"] == pytest.approx(row["pytorch"], rel=1e-4)
    assert quality["mood", "accuracy"]["base"] is None  # no baselines.json beside these adapters
    assert quality["story", "perplexity"]["base"] != pytest.approx(quality["story", "perplexity"]["pytorch"], rel=0.01)
    assert quality["story", "perplexity"]["goal"]["value"] == 1.5
    times = {(row["adapter"], row["metric"]): row for row in record["latency"]}
    assert values["ttft-p50"] == times[None, "ttft_p50_ms"]["package"]
    assert times[None, "ttft_p50_ms"]["goal"] == relative["ttft-p50"] and "goal" not in times[None, "tpot_p50_ms"]
    assert {adapter for adapter, _ in times} == {None, "mood", "story"}
    assert all(row["package"] is not None and row["pytorch"] is not None for row in times.values())
    for (_, metric), row in times.items():
        if metric.endswith("p90_ms") or row["package"] is None:
            assert row["interval"] is None
        elif row["interval"] is not None:  # needs five runs
            assert row["interval"][0] <= row["package"] <= row["interval"][1]
    sizes = {row["part"]: row["package"] for row in record["sizes"]}
    assert values["size_on_disk-bytes"] == sizes["total"] == sizes["base"] + sizes["mood"] + sizes["story"]
    manifest = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    columns = ("base", "pytorch", "package")
    assert manifest["adapters"]["story"]["metrics"] == {
        "perplexity": {column: quality["story", "perplexity"][column] for column in columns}
    }


def custom(metrics: list[Any], adapter: str, *scores: str) -> Any:
    """A metric of Olive's type "custom" on the rows of an adapter."""
    from olive.evaluator.metric import Metric

    rows = next(metric for metric in metrics if metric.name == adapter).data_config.model_dump()
    subs = [{"name": score} for score in scores]
    return Metric.model_validate({"name": f"{adapter}_more", "type": "custom", "data_config": rows, "sub_types": subs})


def test_custom_metrics(
    tiny_llama_path: Path, adapter_folders: dict[str, Path], package_folder: Path, metrics: list[Any], tmp_path: Path
) -> None:
    """Scores beyond Olive's own, of classes, written answers and cases, for both models and with intervals."""
    from olive.model import ONNXModelHandler
    from sacrebleu.metrics import CHRF

    from runtime.model import MultiAdapterModel

    case = {"id": "a", "category": "names", "language": "en", "pair": ["Ann is a good boss.", "Tom is a good boss."]}
    cases = tmp_path / "cases.json"
    cases.write_text(json.dumps([{**case, "same": ["boss"]}]), encoding="utf-8")
    asked = [custom(metrics, "mood", "precision_macro", "flip_rate"), custom(metrics, "story", "chrf", "pass_rate")]
    options: dict[str, dict[str, Any]] = {
        "mood_more": {"adapter": "mood", "cases": str(cases)},
        "story_more": {"adapter": "story", "cases": str(cases), "max_new_tokens": 5},
    }
    folder = shutil.copytree(package_folder, tmp_path / "package")
    attributes: dict[str, Any] = {ATTRIBUTE: {name: str(path) for name, path in adapter_folders.items()}}
    handler = ONNXModelHandler(
        str(folder), onnx_file_name="model.onnx", model_attributes={**attributes, BASE_ATTRIBUTE: str(tiny_llama_path)}
    )
    result = WorkspaceEvaluator(metric_options=options).evaluate(handler, asked)
    record = json.loads(evaluation_file().read_text(encoding="utf-8"))
    rows = {(row["adapter"], row["metric"]): row for row in record["quality"]}
    assert set(rows) == {("mood", "precision_macro"), ("mood", "flip_rate"), ("story", "chrf"), ("story", "pass_rate")}
    for (adapter, metric), row in rows.items():
        assert result.root[f"{adapter}_more-{metric}"].value == row["package"] == pytest.approx(row["pytorch"])
        assert row["higher_is_better"] == (metric != "flip_rate")
        assert metric == "chrf" or row["low"] <= row["package"] <= row["high"]
    model = MultiAdapterModel.load(package_folder)
    answers = [model.generate(text[:9], "story", max_new_tokens=5) for text in SENTENCES[:4]]
    wanted = CHRF().corpus_score(answers, [[text[9:] for text in SENTENCES[:4]]]).score
    assert rows["story", "chrf"]["package"] == pytest.approx(wanted)
    assert record["details"]["story_more"]["answers"]["package"] == answers
    assert record["details"]["mood_more"]["cases"]["package"]["pairs"]["names"]["total"] == 1
    assert not evaluation_file().with_name("evaluation-parts").exists()


def test_one_adapter_free_and_held_to_a_schema(
    tiny_llama_path: Path, adapter_folders: dict[str, Path], package_folder: Path, metrics: list[Any], tmp_path: Path
) -> None:
    """Two metrics on the same rows: in one table by different names, to Olive each by its own."""
    from olive.evaluator.metric import Metric
    from olive.model import ONNXModelHandler

    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"enum": ["sim"]}), encoding="utf-8")
    rows = tmp_path / "moods.jsonl"
    rows.write_text(json.dumps({"prompt": "Bom?", "response": '"sim"'}) + "\n", encoding="utf-8")
    entry = {"type": "custom", "data_config": data_config("moods", rows, "generation")}
    sub_types = [{"name": "schema_valid"}, {"name": "fields_mean"}]
    asked = [Metric.model_validate({"name": name, **entry, "sub_types": sub_types}) for name in ("free", "held")]
    shared = {"adapter": "story", "schema": str(schema)}
    options = {"free": {**shared, "max_new_tokens": 6}, "held": {**shared, "constrained": True}}
    folder = shutil.copytree(package_folder, tmp_path / "package")
    attributes: dict[str, Any] = {ATTRIBUTE: {"story": str(adapter_folders["story"])}}
    handler = ONNXModelHandler(
        str(folder), onnx_file_name="model.onnx", model_attributes={**attributes, BASE_ATTRIBUTE: str(tiny_llama_path)}
    )
    result = WorkspaceEvaluator(metric_options=options).evaluate(handler, asked)
    values = {name: sub.value for name, sub in result.root.items()}
    assert values == {
        "free-schema_valid": 0, "free-fields_mean": 0, "held-schema_valid": 1, "held-fields_mean": 1
    }  # fmt: skip
    record = json.loads(evaluation_file().read_text(encoding="utf-8"))
    found = {row["metric"]: (row["base"], row["pytorch"], row["package"]) for row in record["quality"]}
    names = ("schema_valid", "fields_mean")
    free = dict.fromkeys(names, (0, 0, 0))
    assert found == {**free, **{f"{name} (constrained)": (1, 0, 1) for name in names}}


def test_a_killed_evaluation_goes_on(
    tiny_llama_path: Path, adapter_folders: dict[str, Path], metrics: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at the second metric: the first one's rows are not computed again."""
    model = trained(tiny_llama_path, adapter_folders)
    with monkeypatch.context() as patch:
        patch.setattr(TorchModel, "token_scores", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            WorkspaceEvaluator().evaluate(model, metrics[:2])
    assert len(list(evaluation_file().with_name("evaluation-parts").iterdir())) == 1

    def never(*_: Any) -> Any:
        raise AssertionError("computed again")

    monkeypatch.setattr(TorchModel, "class_logits", never)
    result = WorkspaceEvaluator().evaluate(model, metrics[:2])
    assert 0 <= result.root["mood-accuracy_score"].value <= 1


@pytest.mark.parametrize(
    ("adapter", "scores", "options", "problem"),
    [
        ("mood", ["acuracy"], {}, "sub_types: 'acuracy' does not fit here; did you mean 'accuracy'?"),
        ("story", ["flip_rate"], {}, "sub_types: 'flip_rate' does not fit here"),
        ("story", ["schema_valid"], {}, "story_more.schema: schema_valid needs it, the file of a JSON Schema"),
        ("story", ["chrf"], {"schema": "none.json"}, "story_more.schema: none.json: cannot be read"),
        ("story", ["chrf"], {"cases": "none.json"}, "none of the metric's scores uses it; those are pass_rate"),
        ("story", ["pass_rate"], {"cases": "none.json"}, "story_more.cases: none.json"),
        ("story", ["chrf"], {"max_new_tokens": 0}, "max_new_tokens: must be a whole number from 1, but got 0"),
        ("story", ["chrf"], {"stop": "x"}, "stop: must be a list of texts, but got 'x'"),
        ("story", ["chrf"], {"phase": "classify"}, "story_more.phase: unknown option; "),
    ],
)
def test_mistakes_in_custom_metrics(
    metrics: list[Any], adapter: str, scores: list[str], options: dict[str, Any], problem: str
) -> None:
    tasks = {"mood": "classification", "story": "generation"}
    chosen = {f"{adapter}_more": {"adapter": adapter, **options}}
    assert any(problem in found for found in metric_problems([custom(metrics, adapter, *scores)], tasks, chosen))


def test_on_a_package_for_a_provider_that_is_not_here(
    tiny_llama_path: Path, adapter_folders: dict[str, Path], package_folder: Path, metrics: list[Any], tmp_path: Path
) -> None:
    """PyTorch and sizes are measured, the package's column stays empty and says so."""
    from olive.model import ONNXModelHandler

    folder = shutil.copytree(package_folder, tmp_path / "package")
    manifest = json.loads((folder / "package.json").read_text(encoding="utf-8"))
    manifest["target"]["execution_provider"] = "dml"
    (folder / "package.json").write_text(json.dumps(manifest), encoding="utf-8")
    attributes = {
        ATTRIBUTE: {name: str(path) for name, path in adapter_folders.items()},
        BASE_ATTRIBUTE: str(tiny_llama_path),
    }
    handler = ONNXModelHandler(str(folder), onnx_file_name="model.onnx", model_attributes=attributes)
    WorkspaceEvaluator(metric_options=OPTIONS).evaluate(handler, metrics)
    record = json.loads(evaluation_file().read_text(encoding="utf-8"))
    assert record["not_executed"].startswith("this onnxruntime has no DmlExecutionProvider")
    assert record["precision"] == "fp32"
    for measured in (*record["quality"], *record["latency"]):
        assert measured["package"] is None and measured["not_measured"] is True
        assert measured["pytorch"] is not None
    assert all(part["package"] > 0 and "not_measured" not in part for part in record["sizes"])


def test_an_adapter_that_is_not_there(tiny_llama_path: Path, metrics: list[Any]) -> None:
    with pytest.raises(ConfigError) as error:
        WorkspaceEvaluator().evaluate(trained(tiny_llama_path, {}), metrics)
    assert error.value.problems == [
        f"evaluator.metrics.{name}: '{name}' is no adapter of this workflow; There is nothing to choose from."
        for name in ("mood", "story")
    ]


def test_a_label_that_the_adapter_does_not_know(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], metrics: list[Any]
) -> None:
    folder = make_peft_adapter(tiny_llama_path, labels=["bad", "good"])
    with pytest.raises(DataError, match=r"unknown label 'none'; Valid: bad, good"):
        WorkspaceEvaluator().evaluate(trained(tiny_llama_path, {"mood": folder}), metrics[:1])
