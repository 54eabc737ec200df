"""One task of a workflow, trained by each method: the workflows that `benchmark.methods` compares.

The method of the workflow's own pass keeps all its options. The others take from it what belongs to them too (the rank
is LoRA's and DoRA's, epochs and seed are everybody's), and a learning rate of their own: what is usual for the method,
times what the workflow's rate is to the usual one of its method, for a base that wants larger steps wants them of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import ConfigError, nearest

TRAINING = {"adapterfinetune": "perplexity", "classificationhead": "accuracy_score"}  # passes, and a metric of Olive's
# Learning rates where nothing else is known: of LoRA and of full fine-tuning the workspace's own defaults, of the
# others from the ranges that docs/finetuning.md names with their papers.
RATES = {
    "lora": 2e-4,
    "qlora": 2e-4,
    "dora": 2e-4,
    "bottleneck": 5e-4,
    "prefix": 3e-3,
    "prompt": 1e-2,
    "full": 2e-5,
}
ONE_PROCESS = ("processes", "accelerate_config")  # options that no method gets: its own process is what is measured
_OWN_KEYS = ("cache_dir", "output_dir", "evaluators", "evaluator", "search_strategy", "passes", "data_configs")


class Task(NamedTuple):
    """What is compared: a training pass of a workflow, and the rows that its adapter is measured on."""

    workflow: Mapping[str, Any]
    name: str  # of the pass
    step: Mapping[str, Any]
    held_out: Any  # a data config or its name
    others: Sequence[str]  # names of the other training passes


def read_task(workflow: Any, name: str | None, source: str) -> Task:
    """The training pass `name` of a workflow's content, None: its first one.

    Raises ConfigError where it has none, none of this name, no rows to measure on, or where it needs an adapter that
    another pass trains.
    """
    passes = workflow.get("passes") if isinstance(workflow, dict) else None
    if not isinstance(passes, dict) or not passes:
        raise ConfigError([f"{source}: is no workflow with passes"])
    found = {key: step for key, step in passes.items() if isinstance(step, dict) and _kind(step) in TRAINING}
    if not found:
        raise ConfigError([f"{source}: passes: has no training pass; ClassificationHead and AdapterFineTune are some"])
    if name is not None and name not in found:
        raise ConfigError([f"{source}: passes: there is no training pass '{name}'; {nearest(name, found)}"])
    chosen = name or next(iter(found))
    held_out = _held_out(workflow, found[chosen])
    task = Task(workflow, chosen, found[chosen], held_out, [key for key in found if key != chosen])
    problems = _needed_adapters(task)
    if held_out is None:
        problems.append(
            f"passes.{chosen}.validation_data_config: is needed, or a metric of type accuracy for its adapter; the "
            "methods are compared on rows that none has learned"
        )
    if problems:
        raise ConfigError([f"{source}: {problem}" for problem in problems])
    return task


def method_steps(
    task: Task, methods: Sequence[str], given: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The training pass of each method, without the options of `ONE_PROCESS`.

    Args:
        methods: names.
        given: options by method that take the place of these; `training_args` are taken one by one.
    """
    from passes.training.methods import OPTIONS, chosen_method
    from passes.training.settings import CHECKPOINTING

    own = chosen_method(task.step.get("method"), task.step.get("quantization"))
    rate = (task.step.get("training_args") or {}).get("learning_rate")
    factor = rate / RATES[own] if isinstance(rate, int | float) and own in RATES else 1.0
    steps = {}
    for method in methods:
        step = {key: value for key, value in task.step.items() if method in OPTIONS.get(key, (method,))}
        arguments = dict(step.get("training_args") or {})
        if method != own:
            step.pop("quantization", None)  # of a base that the workflow's own method is trained on
            step.pop("double_quantization", None)
            arguments["learning_rate"] = float(f"{RATES[method] * factor:.3g}")
        if method == "qlora":
            step["quantization"] = step.get("quantization") or "nf4"
            if step["quantization"] == "deployed":  # needs an export beside it
                step["quantization"] = "nf4"
        if method == "prefix":
            arguments = {key: value for key, value in arguments.items() if key not in CHECKPOINTING}
        others = given.get(method, {})
        arguments |= others.get("training_args") or {}
        step |= {"method": method, **others, "training_args": arguments}
        steps[method] = {key: value for key, value in step.items() if key not in ONE_PROCESS}
    return steps


def dropped_options(task: Task, given: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The options of `ONE_PROCESS` that ask for more than one process, in the pass or by method."""
    asked = (task.step, *given.values())
    return [key for key in ONE_PROCESS if any(options.get(key) not in (None, 1) for options in asked)]


def method_workflow(task: Task, step: Mapping[str, Any], cache: str, output: str) -> dict[str, Any]:
    """A workflow of this training alone, whose adapter is measured in PyTorch on the held-out rows."""
    metric = TRAINING[_kind(step)]
    names = {name for name in _named(task, step) if isinstance(name, str)}
    sub_type = {"name": metric, "priority": 1, "higher_is_better": metric != "perplexity"}
    measured = {"name": step.get("adapter_name"), "type": "accuracy", "data_config": task.held_out}
    evaluator = {"type": "OlivalEvaluator", "metrics": [{**measured, "sub_types": [sub_type]}]}
    quiet = {"baselines": False} if _kind(step) == "classificationhead" else {}
    return {
        **{key: value for key, value in task.workflow.items() if key not in _OWN_KEYS},
        "workflow_id": f"{task.workflow.get('workflow_id', 'workflow')}_{step['method']}",
        "data_configs": [
            data
            for data in task.workflow.get("data_configs") or []
            if isinstance(data, dict) and data.get("name") in names
        ],
        "passes": {task.name: {**step, **quiet}},
        "evaluators": {"held_out": evaluator},
        "evaluator": "held_out",
        "evaluate_input_model": False,
        "log_severity_level": 3,
        "cache_dir": cache,
        "output_dir": output,
    }


def used_data(task: Task, step: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The data configs of a training and of its measurement, those of `data_configs` and those in the pass itself."""
    named = _named(task, step)
    configs = [*(task.workflow.get("data_configs") or []), *named]
    return [data for data in configs if isinstance(data, dict) and (data in named or data.get("name") in named)]


def used_files(task: Task, step: Mapping[str, Any]) -> list[Path]:
    """The local files of these data, rows and schemas; those that are not there are left out."""
    files: list[Any] = []
    for data in used_data(task, step):
        rows = data_options(data, "load_dataset_config").get("data_files")
        files += rows if isinstance(rows, list) else [rows]
        files.append(data_options(data, "pre_process_data_config").get("schema"))
    return [Path(file) for file in files if isinstance(file, str) and Path(file).is_file()]


def data_options(data: Mapping[str, Any], component: str) -> dict[str, Any]:
    """Options of a data config's `component`, such as "load_dataset_config"; Olive takes them in `params` too."""
    given = data.get(component)
    if not isinstance(given, dict):
        return {}
    inner = given.get("params")
    return {**given, **(inner if isinstance(inner, dict) else {})}


def teacher_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The option `teacher` of a data config, {} where there is none."""
    teacher = data_options(data, "pre_process_data_config").get("teacher")
    return teacher if isinstance(teacher, dict) else {}


def _needed_adapters(task: Task) -> list[str]:
    """What a training takes from another pass, which the workflow of a method does not have."""
    problems = []
    why = "but a method is trained alone, without the passes before it"
    if (continues := task.step.get("continues")) is not None:
        problems.append(
            f"passes.{task.name}.continues: goes on from '{continues}', {why}; leave out continues and replay"
        )
    for data in used_data(task, task.step):
        if (adapter := teacher_of(data).get("adapter")) is not None:
            where = f"data_configs.{data.get('name')}.pre_process_data_config.teacher.adapter"
            right = "give teacher.url or teacher.model_path, or rows with answers"
            problems.append(f"{where}: asks '{adapter}', {why}; {right}")
    return problems


def _named(task: Task, step: Mapping[str, Any]) -> list[Any]:
    return [step.get("train_data_config"), step.get("validation_data_config"), task.held_out]


def _kind(step: Mapping[str, Any]) -> str:
    return str(step.get("type", "")).rsplit(".", 1)[-1].lower()


def _held_out(workflow: Mapping[str, Any], step: Mapping[str, Any]) -> Any:
    """The rows of the workflow's own quality metric for this adapter, else the validation rows."""
    evaluators = workflow.get("evaluators")
    evaluator = evaluators.get(workflow.get("evaluator")) if isinstance(evaluators, dict) else None
    metrics = evaluator.get("metrics") if isinstance(evaluator, dict) else None
    for metric in metrics or []:
        if metric.get("type") == "accuracy" and metric.get("name") == step.get("adapter_name"):
            return metric.get("data_config") or step.get("validation_data_config")
    return step.get("validation_data_config")
