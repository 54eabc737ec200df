"""Exports a base model to ONNX with onnxruntime-genai's model builder: KV cache, packed QKV, GroupQueryAttention, quantization."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from passes.base_model import local_folder
from runtime.errors import ConfigError, OlivalError, nearest

# Text decoders of the builder whose exported logits agree with transformers at float32 when the slots are in place.
ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "GemmaForCausalLM",
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)
# What each provider's attention kernels take: float32 on the CPU, float16 elsewhere; DirectML has no 8-bit MatMulNBits.
PRECISIONS = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp16", "int8", "int4"), "dml": ("fp16", "int4")}
ALGORITHMS = ("default", "hqq", "k_quant", "k_quant_last", "k_quant_mixed", "rtn", "rtn_last")
# With these a tied embedding reads the quantized lm_head; else it is a float table of its own. The builder gives the lm_head of
# k_quant a name that its embedding does not find.
SHARING_ALGORITHMS = ("k_quant_last", "k_quant_mixed", "rtn", "rtn_last")
BLOCK_SIZES = (16, 32, 64, 128, 256)  # of MatMulNBits
HEAD_SIZE_STEP = 16  # of GroupQueryAttention, which says so only when it runs
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
    config = json.loads((local_folder(str(model_path)) / "config.json").read_text(encoding="utf-8"))
    problems = []
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        problems.append(
            f"config.json: architectures is {architecture}, which cannot be exported; {nearest(architecture, ARCHITECTURES)}"
        )
    heads = config.get("num_attention_heads") or 1
    size = config.get("head_dim") or config.get("hidden_size", 0) // heads
    if size % HEAD_SIZE_STEP or size == 0:
        problems.append(
            f"config.json: head_dim is {size}; onnxruntime's GroupQueryAttention takes multiples of {HEAD_SIZE_STEP} "
            f"(hidden_size / num_attention_heads where head_dim is not given)"
        )
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
            f"quantization: {', '.join(given)} has no meaning at precision {precision}; leave it out, or take int4 or int8"
        )
    for key in sorted(set(given) - set(QUANTIZATION_DEFAULTS)):
        problems.append(f"quantization: unknown key '{key}'; {nearest(key, QUANTIZATION_DEFAULTS)}")
    options = {**QUANTIZATION_DEFAULTS, **given}
    if execution_provider != "cpu" and "accuracy_level" not in given:
        options["accuracy_level"] = 0  # the provider's own choice
    if options["algorithm"] not in ALGORITHMS:
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


def build_base(
    model_path: str | Path,
    out_folder: Path,
    precision: str,
    execution_provider: str,
    quantization: dict[str, Any] | None = None,
    threads: int | None = None,
    work_folder: Path | None = None,
) -> None:
    """Writes model.onnx, model.onnx.data, genai_config.json and the tokenizer's files; no adapter is involved.

    Args:
        model_path: model folder in the format of transformers, or the name of a Hugging Face repository.
        out_folder: made if it does not exist.
        precision, execution_provider: see PRECISIONS.
        quantization: see QUANTIZATION_DEFAULTS; for int4 and int8 only.
        threads: compute threads of generation on the target; None takes the CPUs that this process may use.
        work_folder: for temporary files, removed afterwards; None takes a folder inside `out_folder`.

    Raises:
        ConfigError: the base or an option is unfit (see `check_base`, `check_precision`).
        OlivalError: the builder failed; the end of what it printed is quoted.
    """
    folder = local_folder(str(model_path))
    check_base(folder)
    options = check_precision(precision, execution_provider, quantization)
    _check_blocks(folder, precision, options)
    work = (work_folder or out_folder) / "builder-work"
    work.mkdir(parents=True, exist_ok=True)
    out_folder.mkdir(parents=True, exist_ok=True)
    try:
        with _silence(f"exporting {folder.name} at {precision} for {execution_provider}"):
            if precision == "int8" or options.get("algorithm") == "hqq":
                _build_then_quantize(folder, out_folder, work, precision, execution_provider, options)
            else:
                _run_builder(folder, out_folder, work, precision, execution_provider, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _set_threads(out_folder / "genai_config.json", threads or usable_cpus())


def _check_blocks(folder: Path, precision: str, options: dict[str, Any]) -> None:
    """onnxruntime's k-quant, and RTN with zero points, fail when a 4-bit weight has an odd number of blocks per column."""
    algorithm = options.get("algorithm", "")
    if precision != "int4" or not (
        algorithm.startswith("k_quant") or (algorithm.startswith("rtn") and not options["symmetric"])
    ):
        return
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    block, problems = options["block_size"], []
    for key in ("hidden_size", "intermediate_size"):
        blocks = math.ceil(config[key] / block)
        if blocks % 2:
            problems.append(
                f"quantization: {algorithm} cannot store zero points for {blocks} blocks, an odd number (config.json: {key} is "
                f"{config[key]}, block_size is {block}); take another block_size, or algorithm 'default'"
            )
    if problems:
        raise ConfigError(problems)


def usable_cpus() -> int:
    """Logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_builder(folder: Path, out: Path, work: Path, precision: str, provider: str, options: dict[str, Any]) -> None:
    from onnxruntime_genai.models.builder import create_model

    extra: dict[str, Any] = {"hf_remote": False, "hf_token": "false"}
    if precision == "int4":
        extra |= {
            "int4_algo_config": options["algorithm"],
            "int4_block_size": options["block_size"],
            "int4_is_symmetric": options["symmetric"],
            "int4_accuracy_level": options["accuracy_level"],
            "int4_nodes_to_exclude": options["nodes_to_exclude"],
        }
        if options["algorithm"] not in SHARING_ALGORITHMS or any(
            "lm_head" in name for name in options["nodes_to_exclude"]
        ):
            extra["shared_embeddings"] = False
    create_model("", str(folder), str(out), precision, provider, str(work / "cache"), **extra)


def _build_then_quantize(
    folder: Path, out: Path, work: Path, precision: str, provider: str, options: dict[str, Any]
) -> None:
    """For what the builder cannot quantize itself: 8 bits, and HQQ (Badri and Shaji 2023, half-quadratic quantization)."""
    import onnx
    import onnx_ir
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, MatMulNBitsQuantizer

    from onnxruntime_genai.models.builder import create_model

    full = work / "full"
    # the embedding gets a table of its own: shared, the float weight would stay beside the quantized one, to be transposed
    create_model(
        "",
        str(folder),
        str(full),
        "fp32" if provider == "cpu" else "fp16",
        provider,
        str(work / "cache"),
        hf_remote=False,
        hf_token="false",
        shared_embeddings=False,
    )
    block, level = options["block_size"], options["accuracy_level"]
    quantizer = MatMulNBitsQuantizer(
        onnx.load(full / "model.onnx"),
        bits=8 if precision == "int8" else 4,
        block_size=block,
        is_symmetric=options["symmetric"],
        accuracy_level=level,
        nodes_to_exclude=options["nodes_to_exclude"],
        op_types_to_quantize=("MatMul",),
        algo_config=HQQWeightOnlyQuantConfig(block_size=block, op_types_to_quantize=("MatMul",))
        if precision == "int4"
        else None,
    )
    quantizer.process()
    model = quantizer.model.model
    for node in model.graph.node:
        if node.op_type == "MatMulNBits" and not any(a.name == "accuracy_level" for a in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("accuracy_level", level))
    onnx_ir.save(onnx_ir.from_proto(model), out / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    for file in full.iterdir():
        if not file.name.startswith("model.onnx"):
            shutil.copyfile(file, out / file.name)


def _set_threads(path: Path, threads: int) -> None:
    """onnxruntime-genai computes with one thread unless its configuration says otherwise; errors only are logged, for
    onnxruntime warns of every input that has a default."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": threads, "log_severity_level": 3}
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")


@contextlib.contextmanager
def _silence(what: str) -> Iterator[None]:
    """Keeps what the builder prints and logs; the end of it is shown when it fails."""
    printed = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            yield
    except Exception as error:  # whatever the builder, transformers or onnx raise
        raise OlivalError(f"{what} failed: {type(error).__name__}: {error}\n{printed.getvalue()[-2000:]}") from error
    finally:
        logging.disable(disabled)
