"""Finds everything that is wrong with a workflow before anything runs, and fingerprints what its passes read.

Olive's cache knows a pass by its options alone: it would hand out a stale model after a data file or the base has
changed. So the check writes the sha256 of both into each pass's `fingerprint` option, which is part of the cache key.
"""

from __future__ import annotations

import json
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from evaluators.metric_check import metric_adapter
from passes.continual_check import fill_continual
from passes.data_check import check_data
from passes.deployed_check import fill_deployed
from passes.registration import PASS_MODULES, task_of
from passes.searched_options import BETTER, candidates, search_problems
from runtime.atomic_folder import is_result
from runtime.errors import ConfigError, OlivalError, nearest

FILLED_IN = ("deployed", "fingerprint", "stages", "version")  # options of passes that are no user's
RESERVED_NAMES = ("base", "latency", "size_on_disk")  # the table's own rows and metrics


def check_workflow(run_config: Any, package_config: Any = None) -> list[str]:
    """Returns every problem of a parsed workflow (Olive's RunConfig), each naming key, value and what would be right.

    Fills in the `fingerprint` option of this workspace's passes, and the local folder of a base that is a repository of
    the Hugging Face hub. `package_config` is Olive's table of passes, None its own default.
    """
    ours = [
        (name, step)
        for name, steps in run_config.passes.items()
        for step in steps
        if step.type.rsplit(".", 1)[-1] in PASS_MODULES
    ]
    provider = _target_provider(run_config)
    problems = _check_types(run_config, package_config)
    if search := search_problems(ours, bool(run_config.engine.search_strategy)):
        return problems + search  # the other checks look at single values
    for name, step in ours:
        problems += _check_options(name, step, provider)
    problems += _check_names(ours)
    problems += fill_deployed(ours, _our_name(provider))
    problems += fill_continual(ours, run_config.data_configs or [])
    if ours:
        base, base_fingerprint = _check_base(run_config, ours, problems, provider)
        metric_problems = _check_metrics(run_config.engine, ours, base)
        evaluator = run_config.engine.evaluator if not metric_problems else None
        problems += check_data(ours, tasks_of(ours), evaluator, base, base_fingerprint)
        problems += metric_problems
    keep = {"the current folder": Path.cwd(), "the cache_dir": cache_dir(run_config.engine)}
    model_path = Path(str(run_config.input_model.config.get("model_path", "")))
    if model_path.is_dir():
        keep["the input model"] = model_path
    problems += _check_output(Path(run_config.engine.output_dir), keep)
    return problems


def cache_dir(engine: Any) -> Path:
    """Olive's cache folder, of an engine configuration."""
    return Path(engine.cache_dir if isinstance(engine.cache_dir, str | Path) else engine.cache_dir[0])


def _target_provider(run_config: Any) -> str:
    """The first execution provider of the workflow's target; Olive's default is the CPU's."""
    target = run_config.engine.target or run_config.engine.host
    accelerators = target.config.accelerators if target is not None else None
    providers = accelerators[0].get_ep_strs() if accelerators else None
    return str(providers[0]) if providers else "CPUExecutionProvider"


def _check_types(run_config: Any, package_config: Any) -> list[str]:
    """Olive itself finds an unknown pass only when its turn comes."""
    from olive.package_config import OlivePackageConfig

    table = package_config or OlivePackageConfig.load_default_config()
    ours = {key: path.rsplit(".", 1)[-1] for key, path in PASS_MODULES.items()}
    problems = []
    for name, steps in run_config.passes.items():
        for step in steps:
            try:
                table.get_pass_module_config(step.type)
            except ValueError:
                match = get_close_matches(step.type.lower(), [*ours, *table.passes], n=1, cutoff=0.5)
                hint = f"did you mean '{ours.get(match[0], match[0])}'? " if match else ""
                valid = ", ".join(ours.values())
                problems.append(
                    f"passes.{name}.type: there is no pass '{step.type}'; {hint}Valid: {valid} and Olive's own"
                )
    return problems


def _pass_class(step: Any) -> Any:
    import importlib

    module, name = PASS_MODULES[step.type.rsplit(".", 1)[-1]].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def _check_options(name: str, step: Any, provider: str) -> list[str]:
    """Nothing where at least one candidate of a search is right: Olive leaves the others out when their turn comes."""
    step.config = dict(step.config or {})
    wrong = []
    for options in candidates(step.config):
        problems = _option_problems(name, _pass_class(step), options, provider)
        if not problems:
            return []
        wrong.append(problems)
    return wrong[0]


def _option_problems(name: str, pass_class: Any, options: dict[str, Any], provider: str) -> list[str]:
    from olive.hardware import DEFAULT_CPU_ACCELERATOR
    from pydantic import ValidationError

    known = pass_class.default_config(DEFAULT_CPU_ACCELERATOR)
    visible = [option for option in known if option not in FILLED_IN]
    problems = [
        f"passes.{name}.{option}: unknown option; {nearest(option, visible)}"
        for option in options
        if option not in known
    ]
    options = {option: value for option, value in options.items() if option in known}
    try:
        config = pass_class.generate_config(DEFAULT_CPU_ACCELERATOR, options, {}, True)
    except ValidationError as error:
        for problem in error.errors():
            option = ".".join(str(part) for part in problem["loc"][:1])
            line = f"passes.{name}.{option}: {problem['msg']}, but got {problem.get('input')!r}"
            if isinstance(problem.get("input"), list):
                line += f"; {BETTER}"
            if not any(p.startswith(f"passes.{name}.{option}:") for p in problems):
                problems.append(line if problem["type"] != "missing" else f"passes.{name}.{option}: is required")
        return problems
    return problems + [f"passes.{name}.{problem}" for problem in pass_class.problems(config, provider)]


def _check_names(ours: list[tuple[str, Any]]) -> list[str]:
    problems = []
    taken: dict[str, str] = {}
    for name, step in ours:
        adapter = step.config.get("adapter_name")
        if not isinstance(adapter, str):
            continue
        where = f"passes.{name}.adapter_name"
        if not re.fullmatch(r"[A-Za-z0-9_-]+", adapter) or adapter in RESERVED_NAMES:
            problems.append(
                f"{where}: '{adapter}' cannot be a name; right are letters, digits, '_' and '-', and none of "
                f"{', '.join(RESERVED_NAMES)}"
            )
        if adapter in taken:
            problems.append(
                f"{where}: the adapter name '{adapter}' is taken by passes.{taken[adapter]}; names are unique"
            )
        taken.setdefault(adapter, name)
    exports = [index for index, (_, step) in enumerate(ours) if "export" in step.type]
    if exports and (len({ours[index][0] for index in exports}) > 1 or exports[0] != len(ours) - len(exports)):
        problems.append(f"passes.{ours[exports[0]][0]}: MultiAdapterExport stands once, after every adapter's pass")
    return problems


def _check_base(
    run_config: Any, ours: list[tuple[str, Any]], problems: list[str], provider: str
) -> tuple[Path | None, str]:
    from passes.base_model import context_length, is_encoder, linear_layers, local_folder
    from passes.graph.builder import check_base
    from passes.training.virtual_check import virtual_problems
    from runtime.manifest import base_fingerprint

    model = run_config.input_model
    if model.type.lower() != "hfmodel":
        problems.append(f"input_model.type: '{model.type}' is no HfModel; this workspace's passes start from one")
        return None, ""
    try:
        folder = local_folder(str(model.config["model_path"]))
        model.config["model_path"] = str(folder)  # Olive would ask the hub about a repository, also when offline
        if any("export" in step.type for _, step in ours):
            check_base(folder)
            problems += _check_export(ours, provider, folder)
        if is_encoder(folder):
            problems += _encoder_problems(run_config.engine.evaluator, ours, folder)
        problems += _check_targets(ours, linear_layers(folder))
        problems += _check_bottlenecks(ours, folder)
        problems += _check_poolings(ours, folder)
        problems += _check_full(ours, folder)
        problems += virtual_problems(ours, folder, context_length(folder))
        return folder, base_fingerprint(folder)
    except OlivalError as error:
        problems += [f"input_model.model_path: {p}" for p in _lines(error)]
        return None, ""


def _our_name(provider: str) -> str:
    from passes.multi_adapter_export import OUR_NAMES

    return OUR_NAMES.get(provider, provider)


def _check_export(ours: list[tuple[str, Any]], provider: str, base: Path) -> list[str]:
    """What the export of this base cannot do, beside what `MultiAdapterExport.problems` says of every base."""
    problems = []
    for name, step in ours:
        if "export" in step.type:
            target = _our_name(provider)
            wrong = [_export_problems(name, options, target, base) for options in candidates(step.config or {})]
            problems += [] if any(not w for w in wrong) else wrong[0]
    return problems


def _export_problems(name: str, options: dict[str, Any], target: str, base: Path) -> list[str]:
    from passes.graph.checks import check_blocks, check_engine, check_precision, engine_of

    precision, quantization = options.get("precision") or "int4", options.get("quantization")
    if not isinstance(precision, str) or not isinstance(quantization, dict | None):
        return []  # `problems` has said it
    try:
        checked = check_precision(precision, target, quantization)
    except ConfigError:  # `problems` has said it
        checked = None
    try:
        check_engine(base, precision, target, quantization)
        if checked is not None and engine_of(base) == "onnxruntime-genai":
            check_blocks(base, precision, checked)
    except ConfigError as error:
        return [f"passes.{name}: {p}" for p in error.problems]
    return []


def _encoder_problems(evaluator: Any, ours: list[tuple[str, Any]], base: Path) -> list[str]:
    """What a base that writes no text is asked for."""
    kind = json.loads((base / "config.json").read_text(encoding="utf-8"))["model_type"]
    problems = [
        f"passes.{name}: the base is an encoder ({kind}), which writes no text; it takes ClassificationHead alone"
        for name, step in ours
        if step.type.rsplit(".", 1)[-1] == "adapterfinetune"
    ]
    tasks, options = tasks_of(ours), (evaluator.type_args or {}).get("metric_options") or {} if evaluator else {}
    for metric in evaluator.metrics if evaluator is not None else []:
        if metric.type == "latency" and metric_adapter(metric, tasks, options) is None:
            problems.append(
                f"evaluator.metrics.{metric.name}: measures the base, which is an encoder ({kind}) and writes no text; "
                f"name an adapter in metric_options.{metric.name}.adapter; {nearest('', tasks)}"
            )
    return problems


def _check_targets(ours: list[tuple[str, Any]], layers: list[str]) -> list[str]:
    problems = []
    for name, step in ours:
        targets = step.config.get("target_modules") or "all-linear"
        if not isinstance(targets, str | list):
            continue  # its own line says what is wrong with it
        for target in [targets] if isinstance(targets, str) else targets:
            if target not in (*layers, "all-linear"):
                where = f"passes.{name}.target_modules"
                problems.append(f"{where}: '{target}' is no linear layer of the base; {nearest(target, layers)}")
    return problems


def _check_bottlenecks(ours: list[tuple[str, Any]], base: Path) -> list[str]:
    from passes.base_model import linear_modules
    from passes.block_outputs import is_block_output

    names = [name for name, step in ours if step.config.get("method") == "bottleneck"]
    if not names or any(map(is_block_output, linear_modules(base))):
        return []
    kind = json.loads((base / "config.json").read_text(encoding="utf-8")).get("model_type")
    return [
        f"passes.{name}.method: 'bottleneck' goes behind the last projections of attention and MLP, and those of this "
        f"base ({kind}) are not known; take lora"
        for name in names
    ]


def _check_full(ours: list[tuple[str, Any]], base: Path) -> list[str]:
    """What method "full" cannot do with this base, and with the other passes of the workflow."""
    from passes.base_model import number_of_blocks
    from passes.training.methods import changes_base

    problems = []
    for name, step in ours:
        freeze = step.config.get("freeze")
        wanted = freeze.get("last_n_blocks") if isinstance(freeze, dict) else None
        if type(wanted) is int and wanted > (blocks := number_of_blocks(base)):
            problems.append(f"passes.{name}.freeze: last_n_blocks is {wanted}, but the base has {blocks} blocks")
    training = [name for name, step in ours if "export" not in step.type]
    changing = [name for name, step in ours if changes_base(step.config)]
    if changing and len(training) > 1 and len(training) < len(ours):
        others = ", ".join(f"passes.{name}" for name in training if name != changing[0])
        problems.append(
            f"passes.{changing[0]}.method: 'full' changes the base, which the adapters of one package share, but there "
            f"are also {others}; make two workflows, or take method 'lora' here"
        )
    return problems


def _check_poolings(ours: list[tuple[str, Any]], base: Path) -> list[str]:
    from passes.training.head_settings import POOLINGS, pooling_problems

    heads = {name: step.config.get("pooling") for name, step in ours if task_of(step) == "classification"}
    if any(pooling not in (None, *POOLINGS) for pooling in heads.values()):
        return []  # `problems` has said it
    return pooling_problems(heads, base, any("export" in step.type for _, step in ours))


def tasks_of(ours: list[tuple[str, Any]]) -> dict[str, str]:
    """{adapter name: task}; of two passes with one name the first counts."""
    named = [step for _, step in ours if isinstance(step.config.get("adapter_name"), str)]
    return {step.config["adapter_name"]: task_of(step) for step in reversed(named)}


def _check_metrics(engine: Any, ours: list[tuple[str, Any]], base: Path | None) -> list[str]:
    evaluator = engine.evaluator
    if evaluator is None or base is None:
        return []
    from evaluators.metric_check import LATENCY_OPTIONS, check_metrics
    from evaluators.workspace_evaluator import EVALUATOR_TYPE
    from passes.base_model import context_length, is_encoder

    if evaluator.type != EVALUATOR_TYPE:
        return []
    problems = check_metrics(evaluator, tasks_of(ours))
    context = context_length(base)
    for metric in evaluator.metrics if context and not problems else []:
        options = LATENCY_OPTIONS | (evaluator.type_args.get("metric_options") or {}).get(metric.name, {})
        tokens = options["prompt_tokens"] + (0 if is_encoder(base) else options["new_tokens"])
        if metric.type == "latency" and tokens > context:
            problems.append(
                f"evaluator.metrics.{metric.name}: prompt_tokens and new_tokens are {tokens} together, but the base's "
                f"context is {context}"
            )
    if engine.evaluate_input_model:
        problems.append("evaluate_input_model: must be false, every table shows the base beside its adapters")
    return problems


def _check_output(output: Path, keep: dict[str, Path]) -> list[str]:
    """`keep` names what must not be replaced: {"the cache_dir": path, ...}."""
    for name, path in keep.items():
        if path.resolve().is_relative_to(output):
            return [
                f"output_dir: {output} holds {name} ({path}), and a run replaces the whole folder; choose another one"
            ]
    folder = output
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        return [f"output_dir: {output} cannot be made: {folder} is a file, not a folder"]
    if folder == output and any(folder.iterdir()) and not is_result(folder):
        return [
            f"output_dir: {output} holds files that no run wrote, and a run replaces the whole folder; choose another "
            f"one, such as {output / 'package'}"
        ]
    parent = folder if folder != output else output.parent
    for candidate in {folder, parent}:
        if not os.access(candidate, os.W_OK):
            return [f"output_dir: {output} is not writable: no permission to write to {candidate}"]
    return []


def _lines(error: OlivalError) -> list[str]:
    return error.problems if isinstance(error, ConfigError) else [str(error)]
