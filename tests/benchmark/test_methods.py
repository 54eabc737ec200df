"""The comparison of methods: which workflows are trained, what is kept and shown; two methods really are trained."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmark import memory, methods
from benchmark.fresh_process import WorkerError
from benchmark.method_report import figures, html_report, markdown, print_table
from benchmark.method_workflows import RATES, Task, method_steps, method_workflow, read_task
from benchmark.results import read_json
from passes.teaching.answer_store import AnswerStore
from passes.training.methods import METHODS, OPTIONS
from runtime.errors import ConfigError
from tests.passes.conftest import data_config, write_mood_csv

QUICKSTART = Path(__file__).resolve().parents[2] / "workflows" / "quickstart.json"


def quickstart(name: str | None = None) -> Task:
    return read_task(read_json(QUICKSTART), name, "quickstart.json")


def test_there_is_a_rate_for_every_method() -> None:
    assert set(RATES) == set(METHODS) == set(methods.METHODS)


@pytest.mark.parametrize("name", ["spam", "blurbs"])
def test_each_method_has_its_own_options_and_passes_the_check(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register
    from passes.workflow_check import check_workflow

    register()
    monkeypatch.chdir(QUICKSTART.parents[1])
    task = quickstart(name)
    steps = method_steps(task, METHODS, {})
    assert list(steps) == list(METHODS)
    for method, step in steps.items():
        assert step["method"] == method and step["training_args"]["num_train_epochs"] >= 3
        assert [key for key in step if method not in OPTIONS.get(key, (method,))] == []
        workflow = method_workflow(task, step, str(tmp_path / "cache"), str(tmp_path / "output"))
        assert list(workflow["passes"]) == [name] and len(workflow["data_configs"]) == 2
        if method in ("qlora", "full", "prefix") or name == "spam":
            assert check_workflow(RunConfig.parse_file_or_obj(workflow)) == []


def test_the_own_method_is_the_workflows_and_the_others_have_rates_of_their_own() -> None:
    task = quickstart("spam")
    steps = method_steps(task, METHODS, {"full": {"freeze": {"last_n_blocks": 2}, "training_args": {"max_steps": 3}}})
    assert steps["qlora"] == {**task.step, "method": "qlora"}
    assert "quantization" not in steps["lora"] and steps["lora"]["rank"] == task.step["rank"]
    factor = task.step["training_args"]["learning_rate"] / RATES["qlora"]
    for method in METHODS:
        assert steps[method]["training_args"]["learning_rate"] == pytest.approx(RATES[method] * factor)
    assert steps["full"]["freeze"] == {"last_n_blocks": 2}
    assert steps["full"]["training_args"]["max_steps"] == 3 and steps["full"]["training_args"]["num_train_epochs"] == 6
    plain = {**task.step, "quantization": "deployed", "training_args": {"gradient_checkpointing": True}}
    others = method_steps(task._replace(step=plain), ["qlora", "lora", "prefix"], {})
    assert others["qlora"]["quantization"] == "nf4" and "learning_rate" not in others["qlora"]["training_args"]
    assert others["lora"]["training_args"] == {"gradient_checkpointing": True, "learning_rate": 2e-4}
    assert "gradient_checkpointing" not in others["prefix"]["training_args"]


def test_the_rows_are_those_of_the_metric_else_of_the_validation() -> None:
    content = read_json(QUICKSTART)
    assert quickstart().name == "spam" and quickstart().others == ["intent", "blurbs"]
    content["evaluators"]["quality_and_speed"]["metrics"][0]["data_config"] = "others"
    assert read_task(content, "spam", "w.json").held_out == "others"
    del content["evaluators"]
    assert read_task(content, "spam", "w.json").held_out == "spam_validation"


STEP = {"type": "ClassificationHead", "adapter_name": "mood", "train_data_config": "rows"}


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ([], None, "w.json: is no workflow with passes"),
        ({"passes": {}}, None, "w.json: is no workflow with passes"),
        ({"passes": {"export": {"type": "MultiAdapterExport"}}}, None, "has no training pass"),
        ({"passes": {"mood": STEP}}, "mod", "there is no training pass 'mod'; did you mean 'mood'?"),
        ({"passes": {"mood": STEP}}, None, r"passes.mood.validation_data_config: is needed"),
    ],
)
def test_workflows_that_cannot_be_compared_on(content: Any, name: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_task(content, name, "w.json")


@pytest.mark.parametrize("nested", [False, True])
def test_a_task_that_needs_another_pass_is_refused(nested: bool) -> None:
    options = {"teacher": {"adapter": "wise"}}
    rows = {"type": "taught_classification", **({"params": options} if nested else options)}
    step = {**STEP, "continues": "calm", "validation_data_config": "held_out"}
    data = [{"name": "rows", "pre_process_data_config": rows}, {"name": "other", "pre_process_data_config": rows}]
    with pytest.raises(ConfigError) as caught:
        read_task({"data_configs": data, "passes": {"mood": step}}, None, "w.json")
    continues, teacher = caught.value.problems
    assert (
        continues.startswith("w.json: passes.mood.continues: goes on from 'calm', but")
        and "leave out continues and replay" in continues
    )
    assert teacher.startswith("w.json: data_configs.rows.pre_process_data_config.teacher.adapter: asks 'wise', but")
    assert "teacher.url or teacher.model_path" in teacher
    with pytest.raises(ConfigError) as caught:  # rows to measure on that are missing are said in one with these
        read_task({"data_configs": data, "passes": {"mood": {**STEP, "continues": "calm"}}}, None, "w.json")
    assert len(caught.value.problems) == 3 and "validation_data_config: is needed" in caught.value.problems[-1]
    served = {"type": "taught_classification", "teacher": {"url": "http://localhost/v1", "model": "wise"}}
    inline = {**STEP, "train_data_config": {"pre_process_data_config": served}, "validation_data_config": "held_out"}
    assert read_task({"data_configs": data, "passes": {"mood": inline}}, None, "w.json").name == "mood"


def test_every_file_of_a_task_counts(tmp_path: Path) -> None:
    names = ("a.csv", "b.csv", "held_out.csv", "rules.json", "loss.py")
    for name in names:
        (tmp_path / name).write_text("one", encoding="utf-8")
    a, b, held_out, rules, loss = (str(tmp_path / name) for name in names)
    train = {
        "name": "rows",
        "load_dataset_config": {"data_files": [a, b]},
        "pre_process_data_config": {"type": "structured", "params": {"schema": rules}},
    }
    inline = {"load_dataset_config": {"params": {"data_files": held_out}}}
    step = {**STEP, "method": "lora", "loss": f"{loss}:Own", "validation_data_config": inline}
    task = read_task({"data_configs": [train], "passes": {"mood": step}, "input_model": {}}, None, "w.json")
    digests = [methods._digest(task, step, {})]
    assert methods._digest(task, step, {}) == digests[0]
    for name in names:
        (tmp_path / name).write_text("other", encoding="utf-8")
        digests.append(methods._digest(task, step, {}))
    assert len(set(digests)) == 1 + len(names)


def test_methods_share_the_answers_of_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method's own store is written to in place of a training; the next method finds the answer in its own."""
    taught = {"type": "taught_classification", "teacher": {"url": "http://localhost/v1", "model": "wise"}}
    step = {**STEP, "method": "lora", "train_data_config": {"pre_process_data_config": taught}}
    task = Task({}, "mood", step, "held_out", [])
    found = []

    def trained(command: list[str]) -> None:
        cache = Path(read_json(Path(command[-2]))["cache_dir"])
        store = AnswerStore(cache / "teacher", "wise", [])
        found.append(store.answers())
        store.keep("why?", "because")
        raise WorkerError("stopped")

    monkeypatch.setattr(methods, "run_fresh", trained)
    for method in ("lora", "full", "lora"):
        with pytest.raises(WorkerError, match="stopped"):
            methods.train(task, method, step, tmp_path / "work" / method, tmp_path / "teacher")
    assert [sum(map(len, answers.values())) for answers in found] == [0, 1, 2]
    with pytest.raises(WorkerError):
        methods.train(task, "dora", {**step, "train_data_config": "rows"}, tmp_path / "dora", tmp_path / "teacher")
    assert found[-1] == {}


def measured(method: str, accuracy: float = 0.9, **others: Any) -> dict[str, Any]:
    score = {"value": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.05, "base": None}
    return {
        "method": method,
        "options": {"method": method, "training_args": {"learning_rate": 2e-4}},
        "trained": 1000,
        "base_parameters": 200_000,
        "seconds": 3.0,
        "cpu_seconds": 5.5,
        "steps": 3,
        "rows": 16,
        "peak_rss_bytes": 900e6,
        "training_bytes": 120e6,
        "peak_gpu_bytes": None,
        "adapter_bytes": 4000,
        "quality": {"accuracy": score, "f1_macro": {**score, "value": accuracy - 0.01}},
        **others,
    }


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    machine = {"model": "CPU <1>", "cores": 2, "memory_bytes": 2**33, "gpus": []}
    about = {"created": "2026-01-01T00:00:00+00:00", "workflow": "w.json", "pass": "mood", "base": "models/<b>"}
    versions = {"versions": {"torch": "2.0"}, "commit": "a" * 40, "dirty": True}
    failed = [{"method": "dora", "reason": "why <not>"}]
    return {**about, **versions, "machine": machine, "methods": list(rows), "failures": failed}


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    found = results(measured("lora"), measured("full", 0.8, trained=200_000))
    table = markdown(found)
    assert "| lora | 0.0002 | 1,000 | 0.50 | 120 | 900 | 3.00 | 5.50 | 0.900 (0.800-0.950) | 0.890" in table
    assert "| full | 0.0002 | 200,000 | 100.00 |" in table
    drawn = figures(found)
    assert set(drawn) == {"accuracy", "f1_macro"}
    assert "higher is better" in drawn["accuracy"].caption and drawn["accuracy"].svg.startswith("<svg")
    page = html_report(found, drawn)
    assert page.count("<svg") == 2 and "models/&lt;b&gt;" in page and "why &lt;not&gt;" in page
    assert "<not>" not in page and "<1>" not in page
    print_table(found)
    said = " ".join(capsys.readouterr().out.split())
    assert "not measured: dora: why <not>" in said and "torch 2.0" in said and "aaaaaaaaaaaa with changes" in said
    lower = results(*[measured(m, quality={"perplexity": measured(m, 7.0)["quality"]["accuracy"]}) for m in ("lora",)])
    assert "lower is better" in figures(lower)["perplexity"].caption


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the command on quickstart; trainings are only noted. Returns (exit code, trained methods, stderr)."""
    trained: list[str] = []

    def train(task: Task, method: str, step: Mapping[str, Any], work: Path, answers: Path) -> dict[str, Any]:
        trained.append(method)
        if method == "dora":
            raise WorkerError("it broke")
        if method == "prompt":
            raise KeyboardInterrupt
        return measured(method)

    monkeypatch.setattr(methods, "train", train)
    monkeypatch.setattr(methods, "_refused", lambda *arguments: {})

    def call(*arguments: str) -> tuple[int, list[str], str]:
        trained.clear()
        code = methods.main([str(QUICKSTART), "--out", str(tmp_path / "out"), *arguments])
        return code, list(trained), capsys.readouterr().err

    return call


def test_a_run_goes_on_from_what_is_measured(run: Callable[..., Any], tmp_path: Path) -> None:
    code, trained, said = run("--methods", "lora", "prompt", "full")
    assert (code, trained) == (130, ["lora", "prompt"]) and "goes on from what is measured" in said
    assert "comparing on pass 'spam'; --pass takes another: intent, blurbs" in said
    code, trained, said = run("--methods", "lora", "full")
    assert (code, trained) == (0, ["full"]) and "1/2 lora: measured before, kept" in said
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "results.json", "report.html", "table.md", "measured", "accuracy.svg", "f1_macro.svg"
    }  # fmt: skip
    found = read_json(tmp_path / "out" / "results.json")
    assert [m["method"] for m in found["methods"]] == ["lora", "full"] and {"torch", "peft"} <= set(found["versions"])
    other = tmp_path / "options.json"
    other.write_text('{"lora": {"rank": 2}}', encoding="utf-8")
    assert run("--methods", "lora", "full", "--options", str(other))[1] == ["lora"]


def test_each_method_is_trained_in_one_process(run: Callable[..., Any], tmp_path: Path) -> None:
    task = quickstart("spam")
    several = task._replace(step={**task.step, "processes": 2, "accelerate_config": "accelerate.yaml"})
    assert method_steps(several, METHODS, {"full": {"processes": 3}}) == method_steps(task, METHODS, {})
    other = tmp_path / "options.json"
    other.write_text('{"lora": {"processes": 2}}', encoding="utf-8")
    code, _, said = run("--methods", "lora", "--options", str(other))
    assert code == 0 and "processes: left out: each method is trained in one process" in said
    assert "left out" not in run("--methods", "lora")[2]


def test_a_method_that_fails_leaves_the_others(run: Callable[..., Any], tmp_path: Path) -> None:
    code, trained, said = run("--methods", "dora", "lora")
    assert (code, trained) == (1, ["dora", "lora"]) and "1/2 dora: failed: it broke" in said
    found = read_json(tmp_path / "out" / "results.json")
    assert found["failures"] == [{"method": "dora", "reason": "it broke"}] and len(found["methods"]) == 1
    assert run("--methods", "dora", "--pass", "intent")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "lorra"], "error: --methods lorra: there is no such method; did you mean 'lora'?"),
        (["--pass", "spm"], "error: .*there is no training pass 'spm'; did you mean 'spam'?"),
        (["--options", "nowhere.json"], "error: nowhere.json: there is no such file"),
        (["--out", str(QUICKSTART)], "error: --out .*: is a file; name a folder"),
        (["--out", str(QUICKSTART.parent)], "error: --out .*: has other things in it"),
    ],
)
def test_bad_input(run: Callable[..., Any], arguments: list[str], said: str) -> None:
    code, trained, found = run(*arguments)
    assert (code, trained) == (1, []) and re.search(said, found)


def test_bad_options(run: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "options.json"
    for content, said in (('{"lorra": {}}', "there is no method 'lorra'"), ("[]", "must be an object of options")):
        file.write_text(content, encoding="utf-8")
        code, trained, found = run("--options", str(file))
        assert (code, trained) == (1, []) and said in found


@pytest.mark.slow
def test_methods_are_trained_and_measured(tmp_path: Path, tiny_llama_path: Path) -> None:
    """Two methods really; a third one is refused by the check, whose words are shown."""
    rows = write_mood_csv(tmp_path / "mood.csv")
    accelerator = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}
    step = {
        **STEP,
        "train_data_config": "mood_train",
        "validation_data_config": "mood_held_out",
        "rank": 4,
        "processes": 2,
    }
    workflow = {
        "workflow_id": "tiny",
        "input_model": {"type": "HfModel", "model_path": str(tiny_llama_path)},
        "systems": {"target": {"type": "LocalSystem", "accelerators": [accelerator]}},
        "data_configs": [data_config("mood_train", rows), data_config("mood_held_out", rows)],
        "passes": {"mood": {**step, "training_args": {"num_train_epochs": 1}}},
        "target": "target",
        "host": "target",
    }
    file, options, out = tmp_path / "w.json", tmp_path / "o.json", tmp_path / "out"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    options.write_text('{"prompt": {"virtual_tokens": 0}}', encoding="utf-8")
    command = [str(file), "--out", str(out), "--options", str(options)]
    assert methods.main([*command, "--methods", "prompt"]) == 1
    assert methods.main([*command, "--methods", "lora", "full"]) == 0
    found = read_json(out / "results.json")
    lora, full = found["methods"]
    parameters = full["trained"] - 2 * 64  # the head is not the base's
    assert lora["trained"] < full["trained"] and parameters < full["base_parameters"] < parameters + 310 * 64
    for one in (lora, full):
        assert 0 <= one["quality"]["accuracy"]["low"] <= one["quality"]["accuracy"]["value"] <= 1
        assert 0 < one["training_bytes"] < one["peak_rss_bytes"] and one["cpu_seconds"] > 0
    assert not (out / "work").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "error: nothing to estimate; give --estimate 7B"),
        (["--estimate", "8B"], "error: --estimate 8B: is neither a model folder nor a size of LLaMA"),
        (["--estimate", "7B", "--batch", "0"], "error: --batch 0: must be 1 or more"),
    ],
)
def test_wrong_estimates(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(arguments) == 1
    assert capsys.readouterr().err.startswith(said)


def test_estimates_of_a_model_folder(tiny_llama_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main(["--estimate", str(tiny_llama_path), "--dtype", "float32", "--rank", "4"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("full, 16 bits", "LoRA", "QLoRA", "activations"))
    found = {
        s.name: need for s, need in memory.needs(str(tiny_llama_path), memory.SETTINGS, 1, 64, "float32", False, 4)
    }
    assert found["full"].total > found["LoRA"].total > found["QLoRA"].total
    assert found["full"].weights == 2 * found["full, 16 bits"].weights == found["LoRA"].weights
