"""Wrong workflows and the lines that say so: key, value, what would be right, all at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from passes.workflow_check import check_workflow
from tests.conftest import save_tiny_model
from tests.passes.conftest import data_config, write_mood_csv

Workflow = dict[str, Any]


def options_of_another_kind(workflow: Workflow) -> None:
    step(workflow, "mood", method="prompt", virtual_tokens="many")
    step(workflow, "story", quantization="deployed", target_modules=5)
    step(workflow, "export", quantization="rtn")


OPTIONS = (
    "Valid: accelerate_config, adapter_name, alpha, baselines, bottleneck_size, compute_dtype, continues, cpu_offload, "
    "double_quantization, dropout, early_stopping, freeze, head_dropout, loss, method, pooling, processes, "
    "quantization, rank, replay, rslora, seed, target_modules, train_data_config, training_args, "
    "validation_data_config, virtual_tokens"
)
NAMES = "right are letters, digits, '_' and '-', and none of base, latency, size_on_disk"


def problems(workflow: Workflow) -> list[str]:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register

    register()
    return check_workflow(RunConfig.parse_file_or_obj(workflow))


def step(workflow: Workflow, name: str, **options: Any) -> None:
    workflow["passes"][name].update(options)


def metric(workflow: Workflow, name: str) -> Any:
    return next(m for m in workflow["evaluators"]["all"]["metrics"] if m["name"] == name)


def sub_type(workflow: Workflow, metric_name: str, **changes: Any) -> None:
    metric(workflow, metric_name)["sub_types"][0].update(changes)


def data(workflow: Workflow, name: str, part: str) -> Any:
    return next(d for d in workflow["data_configs"] if d["name"] == name)[part]


def touched(file: Path) -> Path:
    file.touch()
    return file


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def test_a_right_workflow_has_no_problems_and_gets_fingerprints(tiny_workflow: Workflow) -> None:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register

    register()
    config = RunConfig.parse_file_or_obj(tiny_workflow)
    assert check_workflow(config) == []
    fingerprints = [config.passes[name][0].config["fingerprint"] for name in ("mood", "story", "export")]
    assert len(set(fingerprints)) == 3 and all(len(value) == 64 for value in fingerprints)


def test_fingerprints_follow_contents(tiny_workflow: Workflow, tiny_qwen2_path: Path) -> None:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register

    register()

    def fingerprints() -> dict[str, str]:
        config = RunConfig.parse_file_or_obj(json.loads(json.dumps(tiny_workflow)))
        assert check_workflow(config) == []
        return {name: steps[0].config["fingerprint"] for name, steps in config.passes.items()}

    first = fingerprints()
    assert fingerprints() == first
    file = Path(data(tiny_workflow, "mood_train", "load_dataset_config")["data_files"])
    file.write_text(file.read_text(encoding="utf-8").replace("Terrible", "Horrible"), encoding="utf-8")
    second = fingerprints()
    assert {name for name in first if first[name] != second[name]} == {"mood"}
    tiny_workflow["input_model"]["model_path"] = str(tiny_qwen2_path)
    third = fingerprints()
    assert all(third[name] != second[name] for name in second)


LAYERS = "Valid: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
# name -> (a change of the tiny workflow in its folder, the lines that the check must then give)
CASES: dict[str, tuple[Callable[[Workflow, Path], Any], list[str]]] = {
    "unknown option": (
        lambda w, _: step(w, "mood", rnk=4),
        [f"passes.mood.rnk: unknown option; did you mean 'rank'? {OPTIONS}"],
    ),
    "unknown option of the export": (
        lambda w, _: step(w, "export", presicion="fp32"),
        [
            "passes.export.presicion: unknown option; did you mean 'precision'? "
            "Valid: adapter_precision, name, parity, precision, quantization, threads"
        ],
    ),
    "unknown target modules": (
        lambda w, _: step(w, "story", target_modules=["q_prj", "v_proj", "mlp"]),
        [
            f"passes.story.target_modules: 'q_prj' is no linear layer of the base; did you mean 'q_proj'? {LAYERS}",
            f"passes.story.target_modules: 'mlp' is no linear layer of the base; {LAYERS}",
        ],
    ),
    "unknown pass": (
        lambda w, _: step(w, "mood", type="ClassificationHed"),
        [
            "passes.mood.type: there is no pass 'classificationhed'; did you mean 'ClassificationHead'? "
            "Valid: AdapterFineTune, ClassificationHead, MultiAdapterExport and Olive's own",
            "evaluator.metrics.mood: 'mood' is no adapter of this workflow; Valid: story",
        ],
    ),
    "values of a wrong kind": (
        lambda w, _: step(w, "mood", rank="four", alpha="x"),
        [
            "passes.mood.rank: Input should be a valid integer, unable to parse string as an integer, but got 'four'",
            "passes.mood.alpha: Input should be a valid number, unable to parse string as a number, but got 'x'",
        ],
    ),
    "values out of range": (
        lambda w, _: step(w, "mood", rank=0, alpha=-1, dropout=1, quantization="nf8", compute_dtype="float64"),
        [
            "passes.mood.rank: must be 1 or more, but got 0",
            "passes.mood.alpha: must be above 0, but got -1.0",
            "passes.mood.dropout: 0 <= dropout < 1 must hold, but got 1.0",
            "passes.mood.quantization: 'nf8' is unknown; did you mean 'nf4'? Valid: deployed, fp4, nf4",
            "passes.mood.compute_dtype: 'float64' is unknown; did you mean 'float16'? "
            "Valid: bfloat16, float16, float32",
        ],
    ),
    "options of another kind": (
        lambda w, _: options_of_another_kind(w),
        [
            "passes.mood.virtual_tokens: Input should be a valid integer, unable to parse string as an integer, "
            "but got 'many'",
            "passes.story.target_modules: Input should be a valid list, but got 5",
            "passes.export.quantization: Input should be a valid dictionary, but got 'rtn'",
        ],
    ),
    "texts longer than the context": (
        lambda w, _: data(w, "mood_validation", "pre_process_data_config").update(max_length=129),
        [
            "passes.mood.validation_data_config: max_length is 129, but the base's context is 128",
            "evaluator.metrics.mood.data_config: max_length is 129, but the base's context is 128",
        ],
    ),
    "a timed prompt longer than the context": (
        lambda w, _: w["evaluators"]["all"]["metric_options"]["latency"].update(prompt_tokens=100, new_tokens=29),
        [
            "evaluator.metrics.latency: prompt_tokens and new_tokens are 129 together, but the base's context is 128",
        ],
    ),
    "required option": (
        lambda w, _: w["passes"]["story"].pop("train_data_config"),
        ["passes.story.train_data_config: is required"],
    ),
    "missing data file": (
        lambda w, f: data(w, "mood_train", "load_dataset_config").update(data_files=str(f / "mod.csv")),
        ["data_configs.mood_train: {folder}/mod.csv: there is no such file; did you mean 'mood.csv'?"],
    ),
    "missing data file of a metric alone": (
        lambda w, f: (
            w["data_configs"].append(data_config("held_out", f / "later.csv"))
            or metric(w, "mood").update(data_config="held_out")
        ),
        [
            "data_configs.held_out: {folder}/later.csv: there is no such file; "
            "data files in that folder: mood.csv, story.jsonl"
        ],
    ),
    "missing column": (
        lambda w, _: data(w, "mood_train", "pre_process_data_config").update(text="txt"),
        ["data_configs.mood_train: mood.csv: there is no column 'txt'; did you mean 'text'? Valid: label, text"],
    ),
    "one class": (
        lambda w, f: write_mood_csv(f / "mood.csv", ["a", "b"], ["good", "good"]),
        [
            f"data_configs.{name}: mood.csv: column 'label' holds one class only, 'good', in 2 rows"
            for name in ("mood_train", "mood_validation")
        ],
    ),
    "data of the other kind": (
        lambda w, _: step(w, "mood", train_data_config="story_train"),
        [
            "passes.mood.train_data_config: 'story_train' has pre_process_data_config.type 'generation', "
            "but data for classification are needed"
        ],
    ),
    "a metric's data of the other kind": (
        lambda w, _: metric(w, "story").update(data_config="mood_validation"),
        [
            "evaluator.metrics.story.data_config: 'mood_validation' has pre_process_data_config.type 'classification', "
            "but data for generation are needed"
        ],
    ),
    "adapter name used twice": (
        lambda w, _: step(w, "story", adapter_name="mood"),
        [
            "passes.story.adapter_name: the adapter name 'mood' is taken by passes.mood; names are unique",
            "evaluator.metrics.story: 'story' is no adapter of this workflow; Valid: mood",
        ],
    ),
    "invalid adapter name": (
        lambda w, _: step(w, "story", adapter_name="my story"),
        [
            f"passes.story.adapter_name: 'my story' cannot be a name; {NAMES}",
            "evaluator.metrics.story: 'story' is no adapter of this workflow; did you mean 'my story'? "
            "Valid: mood, my story",
        ],
    ),
    "reserved adapter name": (
        lambda w, _: step(w, "story", adapter_name="latency"),
        [
            f"passes.story.adapter_name: 'latency' cannot be a name; {NAMES}",
            "evaluator.metrics.story: 'story' is no adapter of this workflow; Valid: latency, mood",
        ],
    ),
    "an export before the adapters": (
        lambda w, _: w.update(passes={name: w["passes"][name] for name in ("export", "mood", "story")}),
        ["passes.export: MultiAdapterExport stands once, after every adapter's pass"],
    ),
    "output_dir is a file": (
        lambda w, f: touched(f / "out"),
        ["output_dir: {folder}/out cannot be made: {folder}/out is a file, not a folder"],
    ),
    "output_dir is below a file": (
        lambda w, f: w.update(output_dir=str(touched(f / "file") / "a" / "b")),
        ["output_dir: {folder}/file/a/b cannot be made: {folder}/file is a file, not a folder"],
    ),
    "output_dir holds other things": (
        lambda w, f: w.update(output_dir=str(touched(made(f / "photos") / "package.json").parent)),
        [
            "output_dir: {folder}/photos holds files that no run wrote, and a run replaces the whole folder; choose "
            "another one, such as {folder}/photos/package"
        ],
    ),
    "output_dir holds the cache": (
        lambda w, f: w.update(output_dir=str(f)),
        [
            "output_dir: {folder} holds the cache_dir ({folder}/cache), and a run replaces the whole folder; choose "
            "another one"
        ],
    ),
    "head size 8 and partial rotation": (
        lambda w, f: w["input_model"].update(
            model_path=str(save_tiny_model(f / "model8", head_dim=8, partial_rotary_factor=0.5))
        ),
        [
            "input_model.model_path: config.json: head_dim is 8 (hidden_size / num_attention_heads where head_dim is "
            "not given); onnxruntime's GroupQueryAttention takes multiples of 16, and heads are widened to one only "
            "where their size is even, rope_type is default, linear, llama3 (here default) and partial_rotary_factor "
            "is 1 (here 0.5)"
        ],
    ),
    "no such base": (
        lambda w, f: w["input_model"].update(model_path=str(made(f / "models" / "tiny").with_name("tinny"))),
        [
            "input_model.model_path: '{folder}/models/tinny' is neither a model folder here (did you mean "
            "'{folder}/models/tiny'? Valid: {folder}/models/tiny) nor a repository that the Hugging Face hub gives "
            "out: HFValidationError (a gated model wants its license accepted on its page, and `hf auth login`)"
        ],
    ),
    "an input that is no HfModel": (
        lambda w, _: w.update(input_model={"type": "OnnxModel", "model_path": "model.onnx"}),
        ["input_model.type: 'onnxmodel' is no HfModel; this workspace's passes start from one"],
    ),
    "wrong precision": (
        lambda w, _: step(w, "export", precision="int3"),
        ["passes.export.precision is 'int3', which cpu cannot run; did you mean 'int8'? Valid: fp32, int4, int8"],
    ),
    "a precision of another provider": (
        lambda w, _: step(w, "export", precision="fp16"),
        ["passes.export.precision is 'fp16', which cpu cannot run; did you mean 'fp32'? Valid: fp32, int4, int8"],
    ),
    "unknown adapter precision": (
        lambda w, _: step(w, "export", adapter_precision="int4"),
        ["passes.export.adapter_precision is 'int4'; did you mean 'int8'? Valid: float, int8"],
    ),
    "adapters in 8 bits beside a base that is not quantized": (
        lambda w, _: step(w, "export", precision="fp32", adapter_precision="int8"),
        ["passes.export.adapter_precision is 'int8', but precision is 'fp32', which rounds nothing; take float"],
    ),
    "blocks that an algorithm cannot store": (
        lambda w, _: step(w, "export", precision="int4", quantization={"algorithm": "k_quant", "block_size": 64}),
        [
            "passes.export: quantization: k_quant cannot store zero points for 1 blocks, an odd number (config.json: "
            "hidden_size is 64, block_size is 64); take another block_size, or algorithm 'default'",
            "passes.export: quantization: k_quant cannot store zero points for 1 blocks, an odd number (config.json: "
            "num_attention_heads * head_dim is 64, block_size is 64); take another block_size, or algorithm 'default'",
        ],
    ),
    "unknown quantization key": (
        lambda w, _: step(w, "export", precision="int4", quantization={"blok_size": 32}),
        [
            "passes.export.quantization: unknown key 'blok_size'; did you mean 'block_size'? "
            "Valid: accuracy_level, algorithm, block_size, nodes_to_exclude, symmetric"
        ],
    ),
    "threads and parity": (
        lambda w, _: step(
            w,
            "export",
            threads=0,
            parity={"fp32_max_abs_difference": None, "top1_agreement": 99, "label_flip": 0, "samples": 0.5},
        ),
        [
            "passes.export.threads: must be 1 or more, but got 0",
            "passes.export.parity.label_flip: unknown key; did you mean 'label_flips'? Valid: "
            "fp32_max_abs_difference, kl_divergence, label_flips, max_abs_difference, mean_abs_difference, samples, "
            "top1_agreement",
            "passes.export.parity.fp32_max_abs_difference: must be a number above 0, but got None",
            "passes.export.parity.top1_agreement: must be a number from 0 to 1, but got 99",
            "passes.export.parity.samples: must be a whole number from 1, but got 0.5",
        ],
    ),
    "unknown training argument": (
        lambda w, _: w["passes"]["mood"]["training_args"].update(learning_rat=0.1),
        [
            "passes.mood.training_args.learning_rat: unknown argument of transformers' TrainingArguments; "
            "did you mean 'learning_rate'?"
        ],
    ),
    "a training argument of the workspace's": (
        lambda w, _: w["passes"]["mood"]["training_args"].update(output_dir="x"),
        ["passes.mood.training_args.output_dir: cannot be set, the workspace keeps adapters in its cache"],
    ),
    "a metric for an unknown adapter": (
        lambda w, _: metric(w, "mood").update(name="mod"),
        ["evaluator.metrics.mod: 'mod' is no adapter of this workflow; did you mean 'mood'? Valid: mood, story"],
    ),
    "metric options for an unknown adapter": (
        lambda w, _: w["evaluators"]["all"]["metric_options"].update(mood={"adapter": "mod"}),
        ["evaluator.metrics.mood: there is no adapter 'mod'; did you mean 'mood'? Valid: mood, story"],
    ),
    "wrong sub type of a classifier": (
        lambda w, _: sub_type(w, "mood", name="perplexity", higher_is_better=False),
        ["evaluator.metrics.mood.sub_types: 'perplexity' does not fit here; Valid: accuracy_score, f1_score"],
    ),
    "wrong sub type of a generator": (
        lambda w, _: sub_type(w, "story", name="accuracy_score", higher_is_better=True),
        ["evaluator.metrics.story.sub_types: 'accuracy_score' does not fit here; Valid: perplexity"],
    ),
    "wrong sub type of latency": (
        lambda w, _: sub_type(w, "latency", name="p99"),
        ["evaluator.metrics.latency.sub_types: 'p99' does not fit here; did you mean 'p90'? Valid: p50, p90"],
    ),
    "perplexity the wrong way round": (
        lambda w, _: metric(w, "story")["sub_types"][0].pop("higher_is_better"),
        ["evaluator.metrics.story.sub_types.perplexity.higher_is_better: must be false"],
    ),
    "too few repeats": (
        lambda w, _: sub_type(w, "latency", metric_config={"repeat_test_num": 3}),
        ["evaluator.metrics.latency.sub_types.metric_config.repeat_test_num: p90 needs 20 or more, but got 3"],
    ),
    "unknown phase": (
        lambda w, _: w["evaluators"]["all"]["metric_options"]["latency"].update(phase="frist_token"),
        [
            "evaluator.metrics.latency: phase 'frist_token' does not fit here; did you mean 'first_token'? "
            "Valid: first_token, output_token"
        ],
    ),
    "a phase that the adapter does not have": (
        lambda w, _: w["evaluators"]["all"]["metric_options"]["latency"].update(adapter="mood", phase="first_token"),
        ["evaluator.metrics.latency: phase 'first_token' does not fit here; Valid: classify"],
    ),
    "unknown metric option": (
        lambda w, _: w["evaluators"]["all"]["metric_options"].update(latency={"new_tokes": 4}, latncy={}),
        [
            "evaluator.metric_options: there is no metric 'latncy'; did you mean 'latency'? "
            "Valid: latency, mood, size_on_disk, story",
            "evaluator.metric_options.latency.new_tokes: unknown option; did you mean 'new_tokens'? "
            "Valid: adapter, new_tokens, phase, prompt_tokens",
        ],
    ),
    "too few tokens to time": (
        lambda w, _: w["evaluators"]["all"]["metric_options"]["latency"].update(new_tokens=1, prompt_tokens="8"),
        [
            "evaluator.metric_options.latency.prompt_tokens: must be 2 or more, but got '8'",
            "evaluator.metric_options.latency.new_tokens: must be 2 or more, but got 1",
        ],
    ),
    "a metric without data": (
        lambda w, _: metric(w, "mood").pop("data_config"),
        ["evaluator.metrics.mood.data_config: is required, it names the rows to score"],
    ),
    "a metric that is not measured": (
        lambda w, _: metric(w, "size_on_disk").update(type="throughput", sub_types=[{"name": "avg"}]),
        [
            "evaluator.metrics.size_on_disk.type: 'throughput' is not measured; Valid: accuracy, custom, latency, "
            "size_on_disk"
        ],
    ),
    "an evaluation of the bare base": (
        lambda w, _: w.pop("evaluate_input_model"),  # Olive's default is true
        ["evaluate_input_model: must be false, every table shows the base beside its adapters"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_named(tiny_workflow: Workflow, tmp_path: Path, name: str) -> None:
    change, expected = CASES[name]
    change(tiny_workflow, tmp_path)
    assert problems(tiny_workflow) == [line.replace("{folder}", str(tmp_path)) for line in expected]


def test_a_bad_value_of_a_training_argument(tiny_workflow: Workflow) -> None:
    tiny_workflow["passes"]["mood"]["training_args"]["lr_scheduler_type"] = "liner"
    (line,) = problems(tiny_workflow)
    assert line.startswith("passes.mood.training_args.lr_scheduler_type: 'liner' is unknown; did you mean 'linear'?")


def test_an_unknown_option_hides_no_wrong_value(tiny_workflow: Workflow) -> None:
    step(tiny_workflow, "mood", rnk=4, rank=0, dropout=1.5)
    assert [line.split(":")[0] for line in problems(tiny_workflow)] == [
        "passes.mood.rnk", "passes.mood.rank", "passes.mood.dropout",
    ]  # fmt: skip


def test_expected_answers_that_are_no_json(tiny_workflow: Workflow, tmp_path: Path) -> None:
    """Said before a run, where a score wants JSON; the file of the schema is checked with the metric."""
    metric = {
        "name": "json", "type": "custom", "data_config": "story_train", "sub_types": [{"name": "json_valid"}],
    }  # fmt: skip
    evaluator = tiny_workflow["evaluators"]["all"]
    evaluator["metrics"].append(metric)
    evaluator["metric_options"]["json"] = {"adapter": "story", "max_new_tokens": 4}
    found = problems(tiny_workflow)
    assert found and all(
        line.startswith("evaluator.metrics.json.data_config: story.jsonl: expected[") and "no JSON" in line
        for line in found
    )


def test_replayed_data_are_names(tiny_workflow: Workflow) -> None:
    again = {**tiny_workflow["passes"]["mood"], "adapter_name": "again", "continues": "mood"}
    passes = tiny_workflow["passes"]
    tiny_workflow["passes"] = {
        "mood": passes["mood"],
        "again": again,
        "story": passes["story"],
        "export": passes["export"],
    }
    again["replay"] = {"data_configs": [{}, 5, "mood_trian", "mood_validation", "mood_train"]}
    where = "passes.again.replay.data_configs"
    assert problems(tiny_workflow) == [
        f"{where}: must be names from data_configs, but one is {{}}",
        f"{where}: must be names from data_configs, but one is 5",
        f"{where}: there is no data config 'mood_trian'; did you mean 'mood_train'? "
        "Valid: mood_train, mood_validation, story_train",
        f"{where}: 'mood_validation' is what an earlier adapter is scored on; name its training data",
        f"{where}: 'mood_train' is what this pass learns anyway; name earlier training data",
    ]


def test_all_mistakes_come_at_once(tiny_workflow: Workflow, tmp_path: Path) -> None:
    """From every part of a workflow: options, names, data, metrics, output."""
    step(tiny_workflow, "mood", rnk=4)
    step(tiny_workflow, "story", adapter_name="base")
    step(tiny_workflow, "export", precision="int3")
    data(tiny_workflow, "mood_validation", "load_dataset_config").update(data_files=str(tmp_path / "none.csv"))
    metric(tiny_workflow, "story").update(name="stroy")
    (tmp_path / "out").touch()
    found = problems(tiny_workflow)
    assert [line.split(":")[0].split(" ")[0] for line in found] == [
        "passes.mood.rnk",
        "passes.export.precision",
        "passes.story.adapter_name",
        "data_configs.mood_validation",
        "evaluator.metrics.stroy",
        "output_dir",
    ]


def test_rows_in_both_parts_are_warned_of_once(tiny_workflow: Workflow, caplog: pytest.LogCaptureFixture) -> None:
    step(tiny_workflow, "mood", validation_data_config="mood_train")
    with caplog.at_level("WARNING", logger="passes.data_check"):
        assert problems(tiny_workflow) == []
    (line,) = [m for m in caplog.messages if m.startswith("passes.mood.")]
    assert "16 of 16 rows also stand in the training data (training row 1 and held-out row 1" in line
    # the metric has the training rows of the other adapter
    (line,) = [m for m in caplog.messages if m.startswith("evaluator.metrics.story.data_config: ")]
    assert " rows also stand in the training data" in line
