"""The options `processes` and `accelerate_config`: how many train together, and what does not go with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import nearest

if TYPE_CHECKING:
    from passes.training.settings import AdapterSettings

FSDP = "FSDP"
# distributed_type of a config file of accelerate; the first two say one process, or one for each that MPI starts
KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", FSDP)
FSDP_STATE = "FULL_STATE_DICT"
# training_args that several processes do not take
_ALONE = {
    "accelerator_config": "the workspace shares batches among the processes",
    "auto_find_batch_size": "each process would find another size",
    "deepspeed": "DeepSpeed is not supported",
    "fsdp": "write it into accelerate_config",
    "fsdp_config": "write it into accelerate_config",
    "parallelism_config": "processes share batches, not models; a sharded model is FSDP in accelerate_config",
}


def launch_settings(settings: AdapterSettings | Any) -> dict[str, Any] | None:
    """The configuration of accelerate that a training is launched with; None where it runs in this process.

    `settings` may be Olive's pass configuration; its values have no `launch_problems`.
    """
    if settings.accelerate_config is not None:
        given = _read(Path(settings.accelerate_config))
    elif settings.processes > 1:
        given = {"num_processes": settings.processes}
    else:
        return None
    values = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "machine_rank": 0, "mixed_precision": "no"}
    values |= given
    if values.get("distributed_type") != FSDP:
        # MULTI_GPU is what makes accelerate start processes by torch; without GPUs they compute on the CPU
        values["distributed_type"] = "MULTI_GPU"
    if values["num_machines"] == 1:
        values.setdefault("main_process_port", 0)  # any that is free
    return values


def number_of_processes(settings: AdapterSettings | Any) -> int:
    """Of all machines together."""
    launch = launch_settings(settings)
    return int(launch["num_processes"]) if launch else 1


def launch_problems(config: Any, task: str) -> list[str]:
    """What is wrong with the two options, and with others beside them; each line starts with an option's name.

    Args:
        config: pass config object.
        task: "classification" or "generation".
    """
    problems = []
    if isinstance(config.processes, bool) or not isinstance(config.processes, int) or config.processes < 1:
        problems.append(f"processes: must be a whole number, 1 or more, but got {config.processes!r}")
    if config.accelerate_config is not None:
        problems += _file_problems(config)
    launch = None if problems else launch_settings(config)
    if not problems and (launch is None or launch["num_processes"] == 1):
        return []
    problems += _other_problems(config, task)
    return problems + (_share_problems(config, launch) if launch else [])


def _other_problems(config: Any, task: str) -> list[str]:
    """Of other options, which several processes do not take."""
    given = config.training_args or {}
    problems = [
        f"training_args.{name}: does not go with several processes: {why}"
        for name, why in _ALONE.items()
        if given.get(name)
    ]
    if given.get("average_tokens_across_devices") is False:
        problems.append("training_args.average_tokens_across_devices: must be true with several processes")
    if given.get("train_sampling_strategy") == "batch_rebalance":
        problems.append(
            "training_args.train_sampling_strategy: 'batch_rebalance' gives the processes other batches than one has; "
            "Valid: group_by_length, random, sequential"
        )
    if given.get("label_smoothing_factor") and task == "classification":
        problems.append(
            "training_args.label_smoothing_factor: is of each process's rows alone; take "
            "loss: {'type': 'cross_entropy', 'label_smoothing': ...}"
        )
    if config.cpu_offload:
        problems.append("cpu_offload: does not go with several processes, each of which would take the same memory")
    return problems


def _share_problems(config: Any, launch: Mapping[str, Any]) -> list[str]:
    """Each process needs a row of a batch, and where there are GPUs, one of them: NCCL takes no two on one."""
    import torch

    from passes.training.settings import DEFAULT_ARGUMENTS

    given = {**DEFAULT_ARGUMENTS, **(config.training_args or {})}
    processes, batch = int(launch["num_processes"]), given["per_device_train_batch_size"]
    problems = []
    if isinstance(batch, int) and batch < processes:
        problems.append(
            f"training_args.per_device_train_batch_size: the {processes} processes share its {batch} rows, so it must "
            f"be {processes} or more"
        )
    here = processes // int(launch["num_machines"])
    on_gpus = torch.cuda.is_available() and not launch.get("use_cpu") and given.get("ddp_backend") != "gloo"
    if on_gpus and here > (count := torch.cuda.device_count()):
        problems.append(
            f"processes: {here}, but this machine has {count} GPU{'s' * (count != 1)}, and each process needs one; "
            f"take {count}, or training_args.ddp_backend 'gloo', which is slow"
        )
    return problems


def _file_problems(config: Any) -> list[str]:
    """Of a configuration file of accelerate: what is wrong in it, and what this workspace does not take."""
    from accelerate.commands.config.config_args import ClusterConfig

    file = Path(config.accelerate_config)
    if not file.is_file():
        siblings = [str(p) for p in file.parent.glob("*.*")] if file.parent.is_dir() else []
        return [f"accelerate_config: there is no file '{file}' (from {Path.cwd()}); {nearest(str(file), siblings)}"]
    where = f"accelerate_config: {file}"
    try:
        values = _read(file)
    except (OSError, ValueError) as error:
        return [f"{where}: cannot be read: {str(error).splitlines()[0]}"]
    known = [field.name for field in dataclasses.fields(ClusterConfig)]
    problems = [f"{where}: unknown key {key}; {nearest(key, known)}" for key in values if key not in known]
    if values.get("compute_environment", "LOCAL_MACHINE") != "LOCAL_MACHINE":
        problems.append(f"{where}: compute_environment must be LOCAL_MACHINE, but is {values['compute_environment']!r}")
    kind = values.get("distributed_type", "NO")
    if kind not in KINDS:
        problems.append(f"{where}: distributed_type {kind!r} is not supported; {nearest(kind, KINDS)}")
    number = values.get("num_processes")
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        problems.append(f"{where}: num_processes must be a whole number, 1 or more, but is {number!r}")
    elif isinstance(config.processes, int) and config.processes > 1 and config.processes != number:
        problems.append(
            f"processes: {config.processes}, but {file} says num_processes {number}; leave processes out, or let the "
            "two agree"
        )
    machines = values.get("num_machines", 1)
    if isinstance(machines, bool) or not isinstance(machines, int) or machines < 1:
        problems.append(f"{where}: num_machines must be a whole number, 1 or more, but is {machines!r}")
    elif isinstance(number, int) and number % machines:
        problems.append(f"{where}: num_processes {number} must be the same number on each of {machines} machines")
    if str(values.get("mixed_precision") or "no") != "no":
        problems.append(
            f"{where}: mixed_precision {values['mixed_precision']!r} would change what is trained; leave it out and "
            "take compute_dtype"
        )
    if kind == FSDP:
        problems += [f"{where}: {problem}" for problem in _fsdp_problems(values)]
        if config.quantization is not None or config.method == "qlora":
            problems.append("quantization: does not go with FSDP, which shards weights of one dtype")
    return problems


def _fsdp_problems(values: Mapping[str, Any]) -> list[str]:
    import torch

    options = values.get("fsdp_config")
    if not isinstance(options, dict):
        return [f"fsdp_config must be an object with fsdp_version 2, but is {options!r}"]
    problems = []
    if str(options.get("fsdp_version", 1)) != "2":
        problems.append("fsdp_config.fsdp_version must be 2, whose weights can have gradients one by one")
    if options.get("fsdp_state_dict_type", FSDP_STATE) != FSDP_STATE:
        problems.append(f"fsdp_config.fsdp_state_dict_type must be {FSDP_STATE}")
    if options.get("fsdp_cpu_ram_efficient_loading"):
        problems.append("fsdp_config.fsdp_cpu_ram_efficient_loading must be false: every process loads the base")
    if values.get("use_cpu") or not torch.cuda.is_available():
        problems.append("FSDP is for GPUs: on CPUs accelerate would leave the model whole; take distributed_type NO")
    return problems


def _read(file: Path) -> dict[str, Any]:
    """Raises OSError, and ValueError where it is no object in YAML (of which JSON is a part)."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(values, dict):
        raise ValueError(f"must hold an object, but holds {type(values).__name__}")
    return values
