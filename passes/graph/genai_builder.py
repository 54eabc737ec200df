"""Calls the model builder of onnxruntime-genai in the way that the installed release wants to be called."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from runtime.errors import OlivalError


def run_genai_builder(
    folder: Path, out: Path, precision: str, provider: str, cache: Path, options: dict[str, Any]
) -> None:
    """Writes a float or quantized graph, genai_config.json and the tokenizer's files to `out`.

    Args:
        folder: model folder in the format of transformers; nothing is downloaded and none of its code is run.
        precision, provider: of the builder, such as "int4" and "cpu".
        cache: folder for what the builder writes on its way.
        options: quantization options without a prefix: algo_config, block_size, is_symmetric, accuracy_level,
            nodes_to_exclude, and shared_embeddings. Releases up to 0.14 call all but the last int4_*.

    Raises:
        OlivalError: the installed release is called in neither of the two known ways.
    """
    from onnxruntime_genai.models import builder

    extra: dict[str, Any] = {"hf_remote": False, "hf_token": "false", **options}
    check = inspect.signature(builder.check_extra_options).parameters
    if list(check) == ["kv_pairs", "execution_provider"]:  # up to 0.14
        extra = {f"int4_{k}" if k in _QUANTIZING else k: v for k, v in extra.items()}
    elif "input_path" in check:  # newer: create_model takes what the check has read from the folder
        extra["windowed_kv_cache"] = False  # one cache layout for all layers, as every release of onnxruntime runs it
        extra["enable_dml_graph"] = False  # a captured graph has fixed shapes, and an adapter's rank is free
        builder.check_extra_options("", str(folder), str(out), precision, provider, str(cache), extra)
        _state_what_is_read(extra["hf_details"]["hf_config"])
    else:
        from onnxruntime_genai import __version__

        raise OlivalError(f"onnxruntime-genai {__version__} has a model builder that this workspace cannot call")
    builder.create_model("", str(folder), str(out), precision, provider, str(cache), **extra)
    _state_head_size(out)


def _state_what_is_read(config: Any) -> None:
    """Says in other words what 0.18 overlooks in a configuration.

    It looks for the layers with a sliding window in layer_types alone, which Mistral and Phi-3 do not have, and for
    linear scaling of rotary positions in every class but Llama's; Mistral's differs from it in nothing else.
    """
    config.rope_parameters.setdefault("type", config.rope_parameters["rope_type"])  # the name before transformers 5
    if getattr(config, "sliding_window", None) and getattr(config, "layer_types", None) is None:
        config.layer_types = ["sliding_attention"] * config.num_hidden_layers
    if config.architectures[0] == "LlamaForCausalLM" and config.rope_parameters["rope_type"] == "linear":
        config.architectures = ["MistralForCausalLM"]


def _state_head_size(out: Path) -> None:
    """Writes the head size into the shapes of the cache, for which newer releases have a name alone."""
    import onnx

    config = json.loads((out / "genai_config.json").read_text(encoding="utf-8"))
    model = onnx.load(out / "model.onnx", load_external_data=False)
    for value in [*model.graph.input, *model.graph.output]:
        if value.name.startswith(("past_key_values.", "present.")):
            value.type.tensor_type.shape.dim[3].dim_value = config["model"]["decoder"]["head_size"]
    onnx.save(model, out / "model.onnx")


_QUANTIZING = ("accuracy_level", "algo_config", "block_size", "is_symmetric", "nodes_to_exclude")
