"""The options that both training passes share, as a plain dataclass; the table below is what Olive shows and checks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.base_model import BITSANDBYTES, DEPLOYED, QUANTIZATIONS
from passes.training.argument_check import argument_problems
from passes.training.continual import continual_options, continual_problems
from passes.training.early_stopping import EarlyStopping, early_stopping_problems
from passes.training.methods import METHODS, chosen_method, freeze_problems, method_problems
from passes.training.processes import launch_problems
from passes.training.schedule import CYCLICAL, CyclicalSchedule
from runtime.errors import nearest

if TYPE_CHECKING:
    from transformers import TrainingArguments

TRAINING_VERSION = 2  # part of every cache key: raise it when the code trains differently
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # two names of transformers for one thing
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
# Dynamic padding by length: batches of like lengths waste little on padding
DEFAULT_ARGUMENTS = {
    "per_device_train_batch_size": 16,
    "num_train_epochs": 3,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.0,
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "epoch",  # a killed training goes on from its last epoch
    "save_total_limit": 1,  # and the best one beside it, where that is wanted
    "include_num_input_tokens_seen": "non_padding",
    "logging_nan_inf_filter": False,  # a loss that is no number must show, not count as 0
}
FULL_LEARNING_RATE = 2e-5  # where the base's own weights are trained (Devlin et al. 2018: 2e-5 to 5e-5)


@dataclass(frozen=True)
class AdapterSettings:
    """What one adapter is trained with. Defaults: Hu et al. 2021 (LoRA), Dettmers et al. 2023 (QLoRA)."""

    adapter_name: str
    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | str = "all-linear"
    rslora: bool = False
    bottleneck_size: int = 64
    virtual_tokens: int = 20
    freeze: str | dict[str, int] | None = None
    quantization: str | None = None
    double_quantization: bool = False
    compute_dtype: str = "float32"
    cpu_offload: bool = False
    seed: int = 0
    processes: int = 1
    accelerate_config: str | None = None
    training_args: dict[str, Any] = field(default_factory=dict)
    early_stopping: dict[str, Any] | None = None
    deployed: dict[str, Any] | None = None  # of passes.training.deployed_base.deployed_options

    @property
    def base_dtype(self) -> str:
        """Of the base's weights in training: what is trained itself stays float32 (see `training_arguments`)."""
        return "float32" if self.method == "full" else self.compute_dtype

    @classmethod
    def from_config(cls, config: Any) -> AdapterSettings:
        """Reads the fields from a pass config object of Olive; `qlora` is on nf4 where nothing else is said."""
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(cls)}
        values["method"] = chosen_method(config.method, config.quantization)
        if values["method"] == "qlora" and config.quantization is None:
            values["quantization"] = "nf4"
        values["training_args"] = dict(values["training_args"] or {})
        return cls(**values)


def adapter_options() -> dict[str, Any]:
    """The shared options as Olive's PassConfigParam table."""
    from olive.data.config import DataConfig
    from olive.passes.pass_config import PassConfigParam

    defaults = {f.name: f.default for f in dataclasses.fields(AdapterSettings)}

    def option(type_: Any, name: str, description: str) -> PassConfigParam:
        return PassConfigParam(type_=type_, default_value=defaults[name], description=description)

    data = DataConfig | dict
    return {
        "adapter_name": PassConfigParam(type_=str, required=True, description="Unique name of the adapter."),
        "train_data_config": PassConfigParam(type_=data, required=True, description="Rows to learn."),
        "validation_data_config": PassConfigParam(
            type_=data, description="Held-out rows for loss and scores after each epoch."
        ),
        "method": PassConfigParam(
            type_=str,
            default_value=None,
            description=f"One of {', '.join(METHODS)}; null is lora, or qlora with a quantization.",
        ),
        "rank": option(int, "rank", "Rank r of the LoRA matrices."),
        "alpha": option(float, "alpha", "LoRA scale: the update is multiplied by alpha / rank."),
        "dropout": option(float, "dropout", "Dropout before the LoRA matrices, or in bottlenecks."),
        "target_modules": option(list[str] | str, "target_modules", "Linear layers to adapt, or 'all-linear'."),
        "rslora": option(bool, "rslora", "Scale by alpha / sqrt(rank) (Kalajdzievski 2023)."),
        "bottleneck_size": option(int, "bottleneck_size", "Width of the bottleneck adapters."),
        "virtual_tokens": option(int, "virtual_tokens", "Number of virtual tokens of prefix and prompt tuning."),
        "freeze": option(
            str | dict, "freeze", "What of the base is not trained: 'none', 'all' or all but {'last_n_blocks': N}."
        ),
        "quantization": option(str, "quantization", f"Base while training: {', '.join(QUANTIZATIONS)} or null."),
        "double_quantization": option(bool, "double_quantization", "Quantize the quantization constants too."),
        "compute_dtype": option(str, "compute_dtype", f"One of {', '.join(COMPUTE_DTYPES)}."),
        "cpu_offload": option(bool, "cpu_offload", "Keep what the GPU has no room for in main memory."),
        "seed": option(int, "seed", "Seed of initialization, shuffling and dropout."),
        "processes": option(int, "processes", "How many processes train together and share each batch."),
        "accelerate_config": option(
            str, "accelerate_config", "Configuration file of accelerate, for GPUs, FSDP and machines; or null."
        ),
        "training_args": PassConfigParam(
            type_=dict, default_value=None, description="Arguments of transformers' TrainingArguments."
        ),
        "early_stopping": option(
            dict, "early_stopping", "{'metric', 'patience', 'min_delta'}: stop, and take the best weights; or null."
        ),
        **continual_options(),
        "deployed": option(dict, "deployed", "Filled in by the workspace: how the export quantizes."),
        "fingerprint": PassConfigParam(
            type_=str, default_value="", description="Filled in by the workspace: sha256 of the base and the data."
        ),
        "version": PassConfigParam(
            type_=int, default_value=TRAINING_VERSION, description="Filled in by the workspace: version of its code."
        ),
    }


def training_arguments(settings: AdapterSettings, checkpoints: Path, evaluate: bool) -> TrainingArguments:
    """What the Trainer gets: the defaults above, the user's training_args, and what the workspace decides.

    A "cyclical" schedule is a constant one here: `cyclical_schedule` is what the Trainer follows.

    Raises what transformers raises for a value that it does not take.
    """
    import torch
    from transformers import TrainingArguments

    values: dict[str, Any] = {
        **DEFAULT_ARGUMENTS,
        "eval_strategy": "epoch" if evaluate else "no",
        "logging_strategy": "epoch",
        "use_cpu": not torch.cuda.is_available(),
        "seed": settings.seed,
        # of several processes; see passes/training/trainer.py for what they need not send each other
        "ddp_find_unused_parameters": settings.method == "full",
        "save_on_each_node": True,
        **(_full_arguments(settings) if settings.method == "full" else {}),
        **settings.training_args,
        **(
            EarlyStopping(**settings.early_stopping).arguments(settings.training_args)
            if settings.early_stopping
            else {}
        ),
        **({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": None} if cyclical_schedule(settings) else {}),
        **dict.fromkeys(CHECKPOINTING, False),  # switched on at the base, see passes/training/train.py
        "output_dir": str(checkpoints),
        "report_to": "none",
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    arguments = TrainingArguments(**values)
    if arguments.n_gpu > 1:  # one process, which transformers would have train on all GPUs, with other batches
        arguments._n_gpu = 1
    return arguments


def _full_arguments(settings: AdapterSettings) -> dict[str, Any]:
    """Weights that are good already want small steps; bfloat16 is for computing, small steps vanish in its 8 bits."""
    rate = {} if settings.freeze == "all" else {"learning_rate": FULL_LEARNING_RATE}
    return {**rate, "bf16": settings.compute_dtype == "bfloat16"}


def cyclical_schedule(settings: AdapterSettings) -> CyclicalSchedule | None:
    """The schedule "cyclical", where it is chosen. Raises ValueError or TypeError for options that it does not take."""
    if settings.training_args.get("lr_scheduler_type") != CYCLICAL:
        return None
    return CyclicalSchedule(**(settings.training_args.get("lr_scheduler_kwargs") or {}))


def settings_problems(config: Any, task: str) -> list[str]:
    """What is wrong with the values of a pass config; each line starts with the option's name.

    `task` is "classification" or "generation".
    """
    problems = method_problems(config, {f.name: f.default for f in dataclasses.fields(AdapterSettings)})
    if config.rank < 1:
        problems.append(f"rank: must be 1 or more, but got {config.rank}")
    if config.alpha <= 0:
        problems.append(f"alpha: must be above 0, but got {config.alpha}")
    if config.bottleneck_size < 1:
        problems.append(f"bottleneck_size: must be 1 or more, but got {config.bottleneck_size}")
    if not 0 <= config.dropout < 1:
        problems.append(f"dropout: 0 <= dropout < 1 must hold, but got {config.dropout}")
    if config.virtual_tokens < 1:
        problems.append(f"virtual_tokens: must be 1 or more, but got {config.virtual_tokens}")
    if config.method == "prefix":
        problems += [
            f"training_args.{name}: PEFT's prefix tuning cannot do without the cache that it leaves out; leave it out"
            for name in CHECKPOINTING
            if (config.training_args or {}).get(name)
        ]
    effective = "nf4" if config.method == "qlora" and config.quantization is None else config.quantization
    if config.double_quantization and not problems and effective not in BITSANDBYTES:
        problems.append(
            f"double_quantization: is for quantization {' and '.join(BITSANDBYTES)}, but that is {effective or 'null'}"
        )
    for name, choices in (("quantization", QUANTIZATIONS), ("compute_dtype", COMPUTE_DTYPES)):
        value = getattr(config, name)
        if value is not None and value not in choices:
            problems.append(f"{name}: '{value}' is unknown; {nearest(value, choices)}")
    if config.cpu_offload and config.quantization == DEPLOYED:
        problems.append(f"cpu_offload: goes with no quantization '{DEPLOYED}', whose integers are dequantized in place")
    if chosen_method(config.method, config.quantization) == "full":
        problems += freeze_problems(config.freeze, task)
        if config.compute_dtype == "float16":
            problems.append(
                "compute_dtype: 'float16' is not for method 'full', small gradients vanish in it; take bfloat16"
            )
    problems += launch_problems(config, task)
    problems += continual_problems(config)
    validated, given = config.validation_data_config is not None, config.training_args or {}
    problems += early_stopping_problems(config.early_stopping, task, validated, given)
    problems += argument_problems(given)
    if not problems:
        try:
            training_arguments(AdapterSettings.from_config(config), Path(), validated)
        except (ImportError, TypeError, ValueError) as error:
            problems.append(f"training_args: {error}")
    return problems
