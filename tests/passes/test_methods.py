"""The option `method`: which options go with which, and what is said of those that do not."""

from __future__ import annotations

from typing import Any

import pytest
from olive.hardware.accelerator import AcceleratorSpec
from olive.passes.pass_config import BasePassConfig

from passes.adapter_fine_tune import AdapterFineTune
from passes.training.methods import METHODS
from passes.training.settings import AdapterSettings, settings_problems


def config(**options: Any) -> BasePassConfig:
    """A pass config of Olive."""
    spec = AcceleratorSpec("cpu", "CPUExecutionProvider")
    given = {"adapter_name": "tone", "train_data_config": {"name": "rows"}, **options}
    return AdapterFineTune.generate_config(spec, given, disable_search=True)


def refused(option: str, method: str, takers: str) -> str:
    return f"{option}: is not for method '{method}', but for {takers}; leave it out or change the method"


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown": (
        {"method": "dorra"},
        [f"method: 'dorra' is unknown; did you mean 'dora'? Valid: {', '.join(sorted(METHODS))}"],
    ),
    "lora on a quantized base": (
        {"method": "lora", "quantization": "nf4"},
        [refused("quantization", "lora", "qlora, dora, bottleneck")],
    ),
    "several at once": (
        {"method": "lora", "double_quantization": True, "bottleneck_size": 8, "virtual_tokens": 4, "freeze": "none"},
        [
            refused("bottleneck_size", "lora", "bottleneck"),
            refused("virtual_tokens", "lora", "prefix, prompt"),
            refused("freeze", "lora", "full"),
            refused("double_quantization", "lora", "qlora, dora, bottleneck"),
        ],
    ),
    "dora": ({"method": "dora", "virtual_tokens": 4}, [refused("virtual_tokens", "dora", "prefix, prompt")]),
    "rank of a bottleneck": (
        {"method": "bottleneck", "rank": 4, "target_modules": ["q_proj"], "rslora": True, "dropout": 0.1},
        [refused(name, "bottleneck", "lora, qlora, dora") for name in ("rank", "target_modules", "rslora")],
    ),
    "an empty bottleneck": (
        {"method": "bottleneck", "bottleneck_size": 0},
        ["bottleneck_size: must be 1 or more, but got 0"],
    ),
    "full, of a generator, with a head alone": (
        {"method": "full", "freeze": "all"},
        ['freeze: \'all\' leaves nothing to train for generation; it must be one of "none", {"last_n_blocks": N}'],
    ),
    "full without blocks": (
        {"method": "full", "freeze": {"last_n_blocks": 0}},
        ["freeze: last_n_blocks must be 1 or more, but got 0"],
    ),
    "full with another freeze": (
        {"method": "full", "freeze": {"first_n_blocks": 3}},
        ['freeze: must be one of "none", {"last_n_blocks": N}, but got {\'first_n_blocks\': 3}'],
    ),
    "full with blocks that are no number": (
        {"method": "full", "freeze": {"last_n_blocks": "3"}},
        ["freeze: must be one of \"none\", {\"last_n_blocks\": N}, but got {'last_n_blocks': '3'}"],
    ),
    "full with what is of others": (
        {"method": "full", "rank": 4, "cpu_offload": True, "compute_dtype": "float16", "quantization": "nf4"},
        [
            refused("rank", "full", "lora, qlora, dora"),
            refused("cpu_offload", "full", "lora, qlora"),
            refused("quantization", "full", "qlora, dora, bottleneck"),
            "compute_dtype: 'float16' is not for method 'full', small gradients vanish in it; take bfloat16",
        ],
    ),
    "offload of what is not loaded by transformers": (
        {"method": "qlora", "quantization": "deployed", "cpu_offload": True},
        ["cpu_offload: goes with no quantization 'deployed', whose integers are dequantized in place"],
    ),
    "prompt": (
        {"method": "prompt", "virtual_tokens": 0, "dropout": 0.1},
        [refused("dropout", "prompt", "lora, qlora, dora, bottleneck"), "virtual_tokens: must be 1 or more, but got 0"],
    ),
    "prefix on a quantized base": (
        {"method": "prefix", "quantization": "nf4", "training_args": {"gradient_checkpointing": True}},
        [
            refused("quantization", "prefix", "qlora, dora, bottleneck"),
            "training_args.gradient_checkpointing: PEFT's prefix tuning cannot do without the cache that it leaves "
            "out; leave it out",
        ],
    ),
    "double quantization of integers that are given": (
        {"method": "qlora", "quantization": "deployed", "double_quantization": True},
        ["double_quantization: is for quantization nf4 and fp4, but that is deployed"],
    ),
    "rank of qlora": ({"method": "qlora", "rank": 0}, ["rank: must be 1 or more, but got 0"]),
}


@pytest.mark.parametrize(("options", "expected"), WRONG.values(), ids=WRONG)
def test_wrong_options_are_named(options: dict[str, Any], expected: list[str]) -> None:
    assert settings_problems(config(**options), "generation") == expected


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_right_with_its_defaults(method: str) -> None:
    assert settings_problems(config(method=method), "generation") == []


@pytest.mark.parametrize(
    ("options", "method", "quantization"),
    [
        ({}, "lora", None),
        ({"quantization": "fp4"}, "qlora", "fp4"),
        ({"method": "qlora"}, "qlora", "nf4"),
        ({"method": "dora", "quantization": "nf4"}, "dora", "nf4"),
        ({"method": "bottleneck"}, "bottleneck", None),
        ({"method": "bottleneck", "quantization": "fp4", "dropout": 0.1}, "bottleneck", "fp4"),
    ],
    ids=str,
)
def test_what_is_not_said_follows(options: dict[str, Any], method: str, quantization: str | None) -> None:
    settings = AdapterSettings.from_config(config(**options))
    assert (settings.method, settings.quantization) == (method, quantization)
