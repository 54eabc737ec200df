"""The methods of fine-tuning: which options belong to which, and what each puts into a frozen base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.errors import nearest

if TYPE_CHECKING:
    import torch

    from passes.training.settings import AdapterSettings

LOW_RANK = ("lora", "qlora", "dora")
VIRTUAL = ("prefix", "prompt")
METHODS = (*LOW_RANK, "bottleneck", *VIRTUAL, "full")
_FROZEN_4_BIT = ("qlora", "dora", "bottleneck")
# which methods take an option; those that are not here belong to all
OPTIONS: dict[str, tuple[str, ...]] = {
    "rank": LOW_RANK,
    "alpha": LOW_RANK,
    "dropout": (*LOW_RANK, "bottleneck"),
    "target_modules": LOW_RANK,
    "rslora": LOW_RANK,
    "bottleneck_size": ("bottleneck",),
    "virtual_tokens": VIRTUAL,
    "freeze": ("full",),
    "cpu_offload": ("lora", "qlora"),  # DoRA starts from the norms of weights that are elsewhere
    "quantization": _FROZEN_4_BIT,
    "double_quantization": _FROZEN_4_BIT,
}


class Adapted(Protocol):
    """A base with what is trained."""

    model: Any  # takes what the base takes; parameters that are trained have requires_grad

    def weights(self) -> dict[str, torch.Tensor]:
        """What was trained, float32 on the CPU, by its names in adapter_model.safetensors."""
        ...

    def save_config(self, folder: Path, base: Path) -> None:
        """Writes adapter_config.json, and what else is needed to load the adapter, to a folder that exists."""
        ...


def adapt(model: Any, settings: AdapterSettings, base: Path, classifies: bool = False) -> Adapted:
    """Puts what the method trains into `model`, a frozen base of `passes.base_model.load_base` from folder `base`.

    `classifies` says that a classification head will read its final states.
    """
    if settings.method == "bottleneck":
        from passes.training.bottleneck import BottleneckAdapted

        return BottleneckAdapted(model, settings)
    if settings.method == "full":
        from passes.training.full import FullAdapted

        return FullAdapted(model, settings, classifies)
    from passes.training.peft_methods import PeftAdapted

    return PeftAdapted(model, settings, base)


def chosen_method(method: str | None, quantization: str | None) -> str:
    """The method of a config; where none is named it is lora, on a quantized base qlora."""
    return method or ("qlora" if quantization else "lora")


def method_problems(config: Any, defaults: dict[str, Any]) -> list[str]:
    """An unknown method, and options that do not belong to the chosen one.

    Args:
        config: pass config object.
        defaults: of its options; an option that has its default counts as not given.
    """
    method = chosen_method(config.method, config.quantization)
    if method not in METHODS:
        return [f"method: '{method}' is unknown; {nearest(method, METHODS)}"]
    return [
        f"{option}: is not for method '{method}', but for {', '.join(takers)}; leave it out or change the method"
        for option, takers in OPTIONS.items()
        if method not in takers and getattr(config, option) != defaults[option]
    ]


def freeze_problems(freeze: Any, task: str) -> list[str]:
    """What is wrong with the option `freeze` of method "full"; `task` is "classification" or "generation"."""
    valid = 'one of "none", {"last_n_blocks": N}' + (', "all"' if task == "classification" else "")
    if freeze == "all" and task == "generation":
        return [f"freeze: 'all' leaves nothing to train for generation; it must be {valid}"]
    if freeze in (None, "none", "all"):
        return []
    if isinstance(freeze, dict) and list(freeze) == ["last_n_blocks"] and type(freeze["last_n_blocks"]) is int:
        blocks = freeze["last_n_blocks"]
        return [] if blocks >= 1 else [f"freeze: last_n_blocks must be 1 or more, but got {blocks}"]
    return [f"freeze: must be {valid}, but got {freeze!r}"]


def changes_base(options: dict[str, Any]) -> bool:
    """Whether a pass with these options trains weights of the base itself, which no other adapter can share."""
    return options.get("method") == "full" and options.get("freeze") != "all"
