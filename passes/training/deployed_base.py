"""The base as the package will hold it: the exporter's own integers, dequantized in PyTorch.

Adapters that are trained on it meet the same values on the target, so that package and trained model differ by rounding
only. The base is quantized once for each way of quantizing, in a process of its own, and kept in the cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from passes.base_model import layers_below_head, local_folder, model_class
from passes.graph.builder import build_base
from passes.graph.checks import check_precision, engine_of
from passes.graph.head_padding import head_layout, mark_slots
from passes.graph.quantized_weights import HEAD, QuantizedGraph, QuantizedWeight, read_quantized
from passes.graph.torch_export import export_base
from passes.training.block_quantized import BlockQuantizedEmbedding, BlockQuantizedLinear, Blocks, joined
from passes.training.store import adapter_key
from runtime.atomic_folder import replace_folder
from runtime.conversion import slot_places
from runtime.errors import OlivalError
from runtime.head_sizes import narrow_heads, own_parts
from runtime.manifest import base_fingerprint


def quantized_base(base: Path, options: dict[str, Any], cache: Path) -> Path:
    """The folder of the exported base, from the cache or new: model.onnx, model.onnx.data and what belongs to them.

    Args:
        base: folder of the base.
        options: of `passes.deployed_check.deployed_options`.
        cache: the workspace's cache folder.

    Raises:
        OlivalError: the export failed; the end of what it said is quoted.
    """
    import onnxruntime
    import onnxruntime_genai

    # another release of them may round in another way
    exporters = {"onnxruntime": onnxruntime.__version__, "onnxruntime-genai": onnxruntime_genai.__version__}
    key = adapter_key({"base": base_fingerprint(base), "exporters": exporters, **options})
    folder = cache / "deployed" / key[:16]
    if folder.is_dir():
        return folder
    print(f"quantizing {base.name} as the export will, once: {options['quantization']}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        new = Path(work) / "base"
        new.mkdir()
        # the exporter holds the base in float; in this process that memory would come on top of the training's
        command = [sys.executable, "-m", "passes.training.deployed_base", str(base.resolve()), str(new.resolve())]
        done = subprocess.run([*command, json.dumps(options)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OlivalError(f"the base could not be quantized for the training: {done.stderr.strip()[-2000:]}")
        replace_folder(new, folder)
    return folder


def load_deployed(base: Path, quantized: Path, compute_dtype: str = "float32") -> Any:
    """The base of transformers with the integers of an exported graph in its linear layers; frozen, on the GPU if any.

    What the graph keeps in float (norms, biases, layers that are excluded) is read from `base`.

    Args:
        base: folder of the base.
        quantized: folder of `quantized_base`.
        compute_dtype: "float32", "bfloat16" or "float16", of activations and of what is not quantized.

    Raises:
        OlivalError: a quantized weight of the graph belongs to no layer of the model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    dtype = getattr(torch, compute_dtype)
    auto_class, options = model_class(base)
    with init_empty_weights(include_buffers=False):
        model = auto_class.from_config(AutoConfig.from_pretrained(base), dtype=dtype, **options)
    model.eval()
    model.requires_grad_(False)
    graph = read_quantized(quantized / "model.onnx", _modules(model, base))
    mark_slots(graph.slots, head_layout(json.loads((base / "config.json").read_text(encoding="utf-8"))))
    for name, module in layers_below_head(model).items():
        if (weight := _weight_of(name, graph)) is not None:
            bias = getattr(module, "bias", None)  # filled in below
            _replace(model, name, _layer(weight, bias, dtype))
    head = model.get_output_embeddings()
    if head is not None and HEAD in graph.weights:
        blocks = _blocks(graph.weights[HEAD])
        model.set_output_embeddings(BlockQuantizedLinear(blocks, head.bias))
        if graph.shares_embedding:
            model.set_input_embeddings(BlockQuantizedEmbedding(model.get_output_embeddings(), dtype))
        model.config.tie_word_embeddings = False  # transformers would tie what is left of the two
    _fill(model, base, dtype)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _modules(model: Any, base: Path) -> list[str]:
    """What `passes.graph.torch_export.export_base` returned for this base; [] for one of the builder."""
    return list(layers_below_head(model)) if engine_of(base) == "onnxruntime" else []


def _weight_of(name: str, graph: QuantizedGraph) -> Blocks | torch.Tensor | None:
    """The weight of one of the base's layers: blocks, or float32 (out, in) where the graph has widened its heads.

    None where the graph keeps it in float. Parts of one layer that have other bits come as float32.

    Raises OlivalError where the graph keeps only some of a layer's parts in float.
    """
    places = slot_places(name, graph.slots)
    floats = [slot for slot, _ in places if slot not in graph.weights]
    if len(floats) == len(places):
        return None
    if floats:
        raise OlivalError(
            f"{name}: the graph keeps {', '.join(floats)} in float and the rest of this layer as integers"
        )
    slots = graph.slots
    if any("heads" in slots[slot] for slot, _ in places):
        return torch.cat([_narrow(graph, slot, part) for slot, part in places])
    parts = []
    for slot, part in places:
        start = 0
        for other, size in slots[slot]["parts"].items():
            if part in (None, other):
                parts.append(_blocks(graph.weights[slot]).rows(start, start + size))
            start += size
    if len({(part.bits, part.zeros is None) for part in parts}) > 1:
        return torch.cat([part.dequantized() for part in parts])
    return joined(parts)


def _narrow(graph: QuantizedGraph, slot: str, part: str | None) -> torch.Tensor:
    """float32 (out, in) of a projection with the base's own heads."""
    entry = graph.slots[slot]
    weight = _blocks(graph.weights[slot]).dequantized().numpy().T  # (in, out)
    if "o_proj" in entry["parts"]:
        narrow = narrow_heads((weight, np.zeros((0, 0), np.float32)), entry)[0]
    else:
        narrow = narrow_heads((np.zeros((0, 0), np.float32), weight), entry)[1]
    start, own = 0, own_parts(slot, graph.slots)
    for other, size in own.items():
        if part == other:
            narrow = narrow[:, start : start + size]
        start += size
    return torch.from_numpy(np.ascontiguousarray(narrow.T))


def _blocks(weight: QuantizedWeight) -> Blocks:
    zeros = None if weight.zeros is None else torch.from_numpy(weight.zeros)
    return Blocks(torch.from_numpy(weight.codes), torch.from_numpy(weight.scales), zeros, weight.bits, weight.size_in)


def _layer(weight: Blocks | torch.Tensor, bias: Any, dtype: torch.dtype) -> nn.Linear:
    if isinstance(weight, Blocks):
        return BlockQuantizedLinear(weight, bias)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    layer.bias = bias
    return layer


def _replace(model: Any, name: str, part: nn.Module | nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, part)


def _fill(model: Any, base: Path, dtype: torch.dtype) -> None:
    """Reads the parameters that no graph has given from the base's files; one at a time, for they may be large."""
    missing = {name for name, value in model.named_parameters() if value.is_meta}
    prefix = f"{model.base_model_prefix}."
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118, for it is no dict
                for name in {key, f"{prefix}{key}", key.removeprefix(prefix)} & missing:
                    value = tensors.get_tensor(key).to(dtype)
                    _replace(model, name, nn.Parameter(value, requires_grad=False))
                    missing.discard(name)
    tied = model.get_output_embeddings()
    if tied is not None and "lm_head.weight" in missing:  # a float head that is the embedding
        tied.weight = model.get_input_embeddings().weight
        missing.discard("lm_head.weight")
    if missing:
        raise OlivalError(f"{base}: its weights lack {', '.join(sorted(missing)[:5])}, which the graph does not hold")


def main(arguments: list[str]) -> int:
    """Writes the exported base: folder of the base, output folder, options as JSON."""
    base, out, options = local_folder(arguments[0]), Path(arguments[1]), json.loads(arguments[2])
    if engine_of(base) == "onnxruntime":
        checked = check_precision(**options)
        export_base(base, out, options["precision"], checked)
    else:
        build_base(base, out, **options)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
