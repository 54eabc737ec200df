"""Quantizes the MatMuls of a float graph to 4 or 8 bits with onnxruntime's own quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx


def quantize_graph(model: onnx.ModelProto, path: Path, precision: str, options: dict[str, Any]) -> None:
    """Writes a graph whose MatMuls with constant weights are MatMulNBits, its weights beside it in PATH.data.

    Args:
        model: the float graph with its weights in memory; changed.
        path: the new model.onnx.
        precision: "int8", or "int4": round to nearest, or half-quadratic quantization (HQQ, Badri and Shaji 2023).
        options: see `passes.graph.checks.check_precision`; algorithm is "default" or "hqq".
    """
    import onnx
    import onnx_ir
    from onnxruntime.quantization.matmul_nbits_quantizer import HQQWeightOnlyQuantConfig, MatMulNBitsQuantizer

    block, level = options["block_size"], options["accuracy_level"]
    quantizer = MatMulNBitsQuantizer(
        model,
        bits=8 if precision == "int8" else 4,
        block_size=block,
        is_symmetric=options["symmetric"],
        accuracy_level=level,
        nodes_to_exclude=options["nodes_to_exclude"],
        op_types_to_quantize=("MatMul",),
        algo_config=HQQWeightOnlyQuantConfig(block_size=block, op_types_to_quantize=("MatMul",))
        if options["algorithm"] == "hqq"
        else None,
    )
    quantizer.process()
    quantized = quantizer.model.model
    for node in quantized.graph.node:
        if node.op_type == "MatMulNBits" and not any(a.name == "accuracy_level" for a in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("accuracy_level", level))
    onnx_ir.save(onnx_ir.from_proto(quantized), path, external_data=f"{path.name}.data", size_threshold_bytes=0)
