"""Finds and loads the base model: frozen, in the precision that training or comparison needs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import OlivalError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BITSANDBYTES = ("nf4", "fp4")
DEPLOYED = "deployed"  # the integers of the package; see passes/training/deployed_base.py
QUANTIZATIONS = (*BITSANDBYTES, DEPLOYED)  # None keeps the base as it is
WEIGHTS_SHARE = 0.7  # of a GPU's free memory, with CPU offload; the rest is for activations and optimizer
# Model types of transformers that read a text in both directions: they classify by its first token, and write none.
ENCODERS = ("bert", "distilbert", "electra", "roberta", "xlm-roberta")


def quieten_transformers() -> None:
    """Leaves the terminal to the workspace's own progress and to warnings that a user can act on."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def local_folder(model_path: str) -> Path:
    """The folder of a base model: `model_path` itself, or the local copy of a Hugging Face repository.

    Raises OlivalError when there is no such folder and no such repository can be had.
    """
    folder = Path(model_path)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise OlivalError(f"{folder}: is no model folder, it has no config.json")
        return folder
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
        return Path(snapshot_download(model_path, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many kinds; each means that the model is not to be had
        siblings = [str(p.parent / p.name) for p in folder.parent.glob("*/")] if folder.parent.is_dir() else []
        hint = f" ({nearest(model_path, siblings)})" if siblings else ""
        raise OlivalError(
            f"'{model_path}' is neither a model folder here{hint} nor a repository that the Hugging Face hub gives "
            f"out: {type(error).__name__} (a gated model wants its license accepted on its page, and `hf auth login`)"
        ) from error


def base_name(folder: Path) -> str:
    """The name of a base: of its repository where `folder` is the hub client's copy of one, else of the folder."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/")
    return folder.name


def is_encoder(folder: Path) -> bool:
    """Whether a base only reads, so that it takes classification adapters alone."""
    return _model_type(folder) in ENCODERS


def _model_type(folder: Path) -> str | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config.get("model_type")


def pooling_of(model_type: str) -> str:
    """Which token's final state a classification head reads: "first" for encoders, "last" for the others."""
    return "first" if model_type in ENCODERS else "last"


def context_length(folder: Path) -> int | None:
    """Most tokens that a base takes, or None where its configuration has no such limit."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder)
    length = getattr(config, "max_position_embeddings", None)
    if not isinstance(length, int):
        return None
    if config.model_type in ("roberta", "xlm-roberta"):  # their positions begin behind the padding id
        return length - config.pad_token_id - 1
    return length


def number_of_blocks(folder: Path) -> int:
    """How many blocks (layers of attention and MLP) a base has; config.json alone says it."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder)
    return int(config.num_hidden_layers)


def model_class(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The auto class for a base, and what it is to be given: encoders come without heads and pooler."""
    return model_class_of(_model_type(folder))


def model_class_of(model_type: str | None) -> tuple[Any, dict[str, Any]]:
    """`model_class` of a configuration's model type."""
    from transformers import AutoModel, AutoModelForCausalLM

    if model_type not in ENCODERS:
        return AutoModelForCausalLM, {}
    has_pooler = model_type in ("bert", "roberta", "xlm-roberta")
    return AutoModel, {"add_pooling_layer": False} if has_pooler else {}


def linear_layers(folder: Path) -> list[str]:
    """Names that target_modules can take, such as q_proj: the linear layers below the head. Reads config.json alone."""
    return sorted({name.rpartition(".")[2] for name in linear_modules(folder)})


def linear_modules(folder: Path) -> list[str]:
    """Whole names of the linear layers below the head. Reads config.json alone."""
    return list(layers_below_head(model_without_weights(folder)))


def model_without_weights(folder: Path) -> Any:
    """A base on the device "meta": its modules and shapes. Reads config.json alone."""
    from transformers import AutoConfig

    return empty_model(AutoConfig.from_pretrained(folder))


def empty_model(config: Any) -> Any:
    """The base of a configuration of transformers on the device "meta"."""
    import torch

    auto_class, options = model_class_of(config.model_type)
    with torch.device("meta"):
        return auto_class.from_config(config, **options)


def layers_below_head(model: Any) -> dict[str, Any]:
    """The linear layers of a base by name, Conv1D of GPT-2 among them, without the language-model head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head, linear = model.get_output_embeddings(), (torch.nn.Linear, Conv1D)
    return {name: m for name, m in model.named_modules() if isinstance(m, linear) and m is not head}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _placement(cpu_offload: bool) -> dict[str, Any]:
    """Where weights are put, as arguments of from_pretrained."""
    import psutil
    import torch

    if not torch.cuda.is_available():
        return {"device_map": {"": "cpu"}}
    if not cpu_offload:
        return {"device_map": {"": "cuda"}}
    free, _ = torch.cuda.mem_get_info()
    memory = {0: int(free * WEIGHTS_SHARE), "cpu": psutil.virtual_memory().available}
    return {"device_map": "auto", "max_memory": memory}


def load_base(
    folder: Path,
    quantization: str | None = None,
    compute_dtype: str = "float32",
    double_quantization: bool = False,
    cpu_offload: bool = False,
) -> PreTrainedModel:
    """Loads a causal language model, or an encoder without its head, all weights frozen; on the GPU if there is one.

    Args:
        folder: model folder in the format of transformers.
        quantization: None, or "nf4" / "fp4" of bitsandbytes (Dettmers et al. 2023, QLoRA).
        compute_dtype: "float32", "bfloat16" or "float16": the dtype of activations and of unquantized weights.
        double_quantization: quantize the block scales as well.
        cpu_offload: with a GPU, weights that do not fit there stay in main memory and visit it for each forward pass
            (accelerate's big model inference); those of a quantized base are not quantized there.
    """
    import torch
    from transformers import BitsAndBytesConfig

    auto_class, class_options = model_class(folder)
    dtype = getattr(torch, compute_dtype)
    options: dict[str, Any] = {"dtype": dtype, **_placement(cpu_offload), **class_options}
    if quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=double_quantization,
            llm_int8_enable_fp32_cpu_offload=cpu_offload,  # its name is old: it holds for 4 bits too
        )
    model = auto_class.from_pretrained(folder, **options)
    model.requires_grad_(False)
    model.eval()
    return model
