"""Says before anything is built what cannot be exported: bases, precisions, and ways to quantize."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from passes.base_model import local_folder
from passes.graph.head_padding import HEAD_SIZE_STEP, head_layout, head_size
from runtime.errors import ConfigError, nearest

# Text decoders of the builder whose exported logits agree with transformers at float32 when the slots are in place.
ARCHITECTURES = (
    "Ernie4_5ForCausalLM",
    "Gemma2ForCausalLM",
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "HunYuanDenseV1ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
# What passes/graph/torch_export.py takes: causal language models, and encoders, whose checkpoints name one of many
# heads. tests/graph/test_torch_export.py compares one of each family with transformers.
TORCH_ARCHITECTURES = (
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "OPTForCausalLM",
    *(
        f"{name}{head}"
        for name in ("Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta")
        for head in ("ForMaskedLM", "ForSequenceClassification", "Model")
    ),
    "BertForPreTraining",
    "ElectraForPreTraining",
)
TORCH_ALGORITHMS = ("default", "hqq")  # of onnxruntime's quantizer; the others belong to the builder
# The builder computes other kinds in another way than transformers, or leaves them out.
ROPE_TYPES = ("default", "linear", "llama3")
FIXED_ROPE = "HunYuanDenseV1ForCausalLM"  # release 0.14 of the builder forgets its rotary base
DEFAULT_ROPE_THETA = 10000.0
LONG_ROPE = "Phi3ForCausalLM"  # the one architecture whose longrope the builder knows
# What each provider's attention kernels take: float32 on the CPU, float16 elsewhere; DirectML has no 8-bit MatMulNBits.
PRECISIONS = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp16", "int8", "int4"), "dml": ("fp16", "int4")}
ALGORITHMS = ("default", "hqq", "k_quant", "k_quant_last", "k_quant_mixed", "rtn", "rtn_last")
BLOCK_SIZES = (16, 32, 64, 128, 256)  # of MatMulNBits
QUANTIZATION_DEFAULTS: dict[str, Any] = {
    "algorithm": "default",
    "block_size": 32,
    "symmetric": True,
    "accuracy_level": 4,  # int8 arithmetic; 1 computes in float32 and is exact up to rounding
    "nodes_to_exclude": [],
}


def check_base(model_path: str | Path) -> None:
    """Checks that a base can be exported, so that a workflow fails before its training and not after.

    Raises:
        ConfigError: every reason why not, each naming the key of config.json and its value.
    """
    path = local_folder(str(model_path)) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([f"{path}: is no JSON: {error}"]) from error
    problems = []
    if config.get("quantization_config"):
        problems.append("config.json: quantization_config is set; take the base before its quantization")
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in (*ARCHITECTURES, *TORCH_ARCHITECTURES):
        problems.append(
            f"config.json: architectures is {architecture}, which has no tested export; "
            f"{nearest(architecture, (*ARCHITECTURES, *TORCH_ARCHITECTURES))}"
        )
    if architecture in TORCH_ARCHITECTURES:
        problems += _torch_problems(config)
        if problems:
            raise ConfigError(problems)
        return
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ROPE_TYPES and (kind, architecture) != ("longrope", LONG_ROPE):
        problems.append(f"config.json: rope_type is {kind}, which has no tested export; {nearest(kind, ROPE_TYPES)}")
    theta = rope.get("rope_theta", config.get("rope_theta", DEFAULT_ROPE_THETA))
    if architecture == FIXED_ROPE and theta != DEFAULT_ROPE_THETA:
        problems.append(f"config.json: rope_theta is {theta:g}, but the builder exports {architecture} with 10000 only")
    size, partial = head_size(config), rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1
    if (
        size == 0
        or size % 2
        or (size % HEAD_SIZE_STEP and (partial != 1 or kind not in ROPE_TYPES or architecture == FIXED_ROPE))
    ):
        problems.append(
            f"config.json: head_dim is {size} (hidden_size / num_attention_heads where head_dim is not given); "
            f"onnxruntime's GroupQueryAttention takes multiples of {HEAD_SIZE_STEP}, and heads are widened to one only "
            f"where their size is even, rope_type is {', '.join(ROPE_TYPES)} (here {kind}) and partial_rotary_factor "
            f"is 1 (here {partial})" + (f"; {architecture} is never widened" if architecture == FIXED_ROPE else "")
        )
    if problems:
        raise ConfigError(problems)


def _torch_problems(config: dict[str, Any]) -> list[str]:
    problems = []
    if config.get("is_decoder"):
        problems.append("config.json: is_decoder is true; an encoder that writes has no tested export")
    if config.get("word_embed_proj_dim", config.get("hidden_size")) != config.get("hidden_size"):  # OPT 350M
        problems.append(
            f"config.json: word_embed_proj_dim is {config['word_embed_proj_dim']} and hidden_size "
            f"{config['hidden_size']}; a head needs a base where the two are equal"
        )
    return problems


def engine_of(folder: Path) -> str:
    """What runs a base's package: "onnxruntime-genai" for those of its builder, "onnxruntime" for torch's exporter."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "onnxruntime" if (config.get("architectures") or [""])[0] in TORCH_ARCHITECTURES else "onnxruntime-genai"


def check_engine(folder: Path, precision: str, execution_provider: str, quantization: dict[str, Any] | None) -> None:
    """Raises ConfigError for what `check_precision` takes, but the exporter of this base does not."""
    if engine_of(folder) == "onnxruntime-genai":
        return
    problems = []
    if execution_provider != "cpu":
        problems.append(
            f"execution_provider is '{execution_provider}'; a base that onnxruntime-genai's builder does not know is "
            "exported for the cpu only"
        )
    algorithm = (quantization or {}).get("algorithm", "default")
    if precision == "int4" and algorithm not in TORCH_ALGORITHMS:
        choices = nearest(algorithm, TORCH_ALGORITHMS)
        problems.append(f"quantization: algorithm is '{algorithm}', which is the builder's; for this base: {choices}")
    if problems:
        raise ConfigError(problems)


def check_precision(precision: str, execution_provider: str, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """Checks precision, provider and quantization together.

    Returns:
        The quantization with its defaults filled in; {} for fp16 and fp32.

    Raises:
        ConfigError: everything that is wrong, each naming the key, the value and what is valid.
    """
    problems = []
    if execution_provider not in PRECISIONS:
        problems.append(f"execution_provider is '{execution_provider}'; {nearest(execution_provider, PRECISIONS)}")
    elif precision not in PRECISIONS[execution_provider]:
        choices = nearest(precision, PRECISIONS[execution_provider])
        problems.append(f"precision is '{precision}', which {execution_provider} cannot run; {choices}")
    given = quantization or {}
    if given and precision in ("fp16", "fp32"):
        problems.append(
            f"quantization: {', '.join(given)} has no meaning at precision {precision}; "
            "leave it out, or take int4 or int8"
        )
    for key in sorted(set(given) - set(QUANTIZATION_DEFAULTS)):
        problems.append(f"quantization: unknown key '{key}'; {nearest(key, QUANTIZATION_DEFAULTS)}")
    options = {**QUANTIZATION_DEFAULTS, **given}
    if execution_provider != "cpu" and "accuracy_level" not in given:
        options["accuracy_level"] = 0  # the provider's own choice
    if options["algorithm"] == "gptq":
        problems.append(
            "quantization: algorithm is 'gptq', whose form in onnxruntime measured worse than rounding to the nearest "
            "(docs/workflows.md); take k_quant or hqq"
        )
    elif options["algorithm"] not in ALGORITHMS:
        problems.append(
            f"quantization: algorithm is '{options['algorithm']}'; {nearest(options['algorithm'], ALGORITHMS)}"
        )
    elif precision == "int8" and options["algorithm"] != "default":
        problems.append(f"quantization: algorithm is '{options['algorithm']}', but int8 has only 'default'")
    elif options["algorithm"].startswith("k_quant") or options["algorithm"] == "hqq":
        if given.get("symmetric"):
            problems.append(
                f"quantization: symmetric is true, but {options['algorithm']} always stores zero points; leave it out"
            )
        options["symmetric"] = False
    if options["block_size"] not in BLOCK_SIZES:
        problems.append(
            f"quantization: block_size is {options['block_size']}; valid: {', '.join(map(str, BLOCK_SIZES))}"
        )
    if options["accuracy_level"] not in range(5):
        problems.append(f"quantization: accuracy_level is {options['accuracy_level']}; valid: 0, 1, 2, 3, 4")
    if not isinstance(options["symmetric"], bool):
        problems.append(f"quantization: symmetric is {options['symmetric']!r}; valid: true, false")
    if not isinstance(options["nodes_to_exclude"], list):
        problems.append("quantization: nodes_to_exclude must be a list of node names such as /lm_head/MatMul")
    if problems:
        raise ConfigError(problems)
    return options if precision in ("int4", "int8") else {}


def check_blocks(folder: Path, precision: str, options: dict[str, Any]) -> None:
    """Raises ConfigError where onnxruntime's k-quant, and its RTN with zero points, would fail inside the quantizer:
    they cannot store the zero points of a 4-bit weight with an odd number of blocks."""
    algorithm = options.get("algorithm", "")
    if precision != "int4" or not (
        algorithm.startswith("k_quant") or (algorithm.startswith("rtn") and not options["symmetric"])
    ):
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    block, problems = options["block_size"], []
    layout = head_layout(config)
    attention = config["num_attention_heads"] * (layout["padded_size"] if layout else head_size(config))
    sizes = {key: config[key] for key in ("hidden_size", "intermediate_size")}
    for key, size in {**sizes, "num_attention_heads * head_dim": attention}.items():
        blocks = math.ceil(size / block)
        if blocks % 2:
            problems.append(
                f"quantization: {algorithm} cannot store zero points for {blocks} blocks, an odd number (config.json: "
                f"{key} is {size}, block_size is {block}); take another block_size, or algorithm 'default'"
            )
    if problems:
        raise ConfigError(problems)
