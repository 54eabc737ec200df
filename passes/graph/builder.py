"""Exports a base to ONNX with onnxruntime-genai's builder: KV cache, packed QKV, fused attention, quantization."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from passes.base_model import local_folder
from passes.graph.checks import check_base as check_base
from passes.graph.checks import check_blocks
from passes.graph.checks import check_precision as check_precision
from passes.graph.genai_builder import run_genai_builder
from passes.graph.head_padding import head_layout, save_padded
from passes.graph.quantize import quantize_graph
from passes.graph.silence import silence

# With these a tied embedding reads the quantized lm_head; with the others it is a float table of its own, because the
# builder gives their lm_head a name that its embedding does not find.
SHARING_ALGORITHMS = ("k_quant_last", "k_quant_mixed", "rtn", "rtn_last")


def build_base(
    model_path: str | Path,
    out_folder: Path,
    precision: str,
    execution_provider: str,
    quantization: dict[str, Any] | None = None,
    threads: int | None = None,
) -> None:
    """Writes model.onnx, model.onnx.data, genai_config.json and the tokenizer's files; no adapter is involved.

    Args:
        model_path: model folder in the format of transformers, or the name of a Hugging Face repository.
        out_folder: made if it does not exist.
        precision, execution_provider: see `passes.graph.checks.PRECISIONS`.
        quantization: see `passes.graph.checks.QUANTIZATION_DEFAULTS`; for int4 and int8 only.
        threads: compute threads of generation on the target; None takes the CPUs that this process may use.

    Raises:
        ConfigError: the base or an option is unfit (see `check_base`, `check_precision`).
        OlivalError: the builder failed; the end of what it printed is quoted.
    """
    folder = local_folder(str(model_path))
    check_base(folder)
    options = check_precision(precision, execution_provider, quantization)
    check_blocks(folder, precision, options)
    work = out_folder / "builder-work"
    work.mkdir(parents=True, exist_ok=True)
    out_folder.mkdir(parents=True, exist_ok=True)
    layout = head_layout(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    try:
        with silence(f"exporting {folder.name} at {precision} for {execution_provider}"):
            if layout is not None:
                save_padded(folder, layout, work / "padded")
                folder = work / "padded"
            if precision == "int8" or options.get("algorithm") == "hqq":
                _build_then_quantize(folder, out_folder, work, precision, execution_provider, options)
            else:
                _run_builder(folder, out_folder, work, precision, execution_provider, options)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _set_threads(out_folder / "genai_config.json", threads or usable_cpus())


def usable_cpus() -> int:
    """Logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_builder(folder: Path, out: Path, work: Path, precision: str, provider: str, options: dict[str, Any]) -> None:
    extra: dict[str, Any] = {}
    if precision == "int4":
        extra = {
            "algo_config": options["algorithm"],
            "block_size": options["block_size"],
            "is_symmetric": options["symmetric"],
            "accuracy_level": options["accuracy_level"],
            "nodes_to_exclude": options["nodes_to_exclude"],
        }
        if options["algorithm"] not in SHARING_ALGORITHMS or any(
            "lm_head" in name for name in options["nodes_to_exclude"]
        ):
            extra["shared_embeddings"] = False
    run_genai_builder(folder, out, precision, provider, work / "cache", extra)


def _build_then_quantize(
    folder: Path, out: Path, work: Path, precision: str, provider: str, options: dict[str, Any]
) -> None:
    """For what the builder cannot quantize: 8 bits, and half-quadratic quantization."""
    import onnx

    full = work / "full"
    # a shared embedding would read the float weight of lm_head, which then stays beside the quantized one
    float_precision = "fp32" if provider == "cpu" else "fp16"
    run_genai_builder(folder, full, float_precision, provider, work / "cache", {"shared_embeddings": False})
    quantize_graph(onnx.load(full / "model.onnx"), out / "model.onnx", precision, options)
    for file in full.iterdir():
        if not file.name.startswith("model.onnx"):
            shutil.copyfile(file, out / file.name)


def _set_threads(path: Path, threads: int) -> None:
    """onnxruntime-genai computes with one thread unless its configuration says otherwise; errors only are logged, for
    onnxruntime warns of every input that has a default."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": threads, "log_severity_level": 3}
    path.write_text(json.dumps(config, indent=4), encoding="utf-8")
