"""How much memory a training needs, from the base's configuration and the settings alone.

What is kept for the backward pass follows Korthikanti et al. 2022, "Reducing Activation Recomputation in Large
Transformer Models" (2205.05198), counted by layers rather than for one architecture. All numbers are of the tensors
alone. Python and its libraries take about 0.6 GB beside them, and on Linux the allocator holds up to as much again for
tensors below 32 MB. Measured on Llama and Qwen2: within 20 %. A base with dropout of its own (GPT-2) needs up to twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOUR_BIT = 0.5 + 4 / 64  # bytes of a weight of bitsandbytes: 4 bits, and a float32 scale for each 64
FLOAT = 4  # bytes; adapters, their gradients and moments, and the loss are float32 whatever the base computes in
MOMENTS = 2  # of AdamW for each trained number
LOSS_TENSORS = 3  # as large as the logits when the loss goes backward: log-probabilities and two gradients
GRADIENTS = 3  # of the widest layer's outputs, which live at once when a block goes backward


@dataclass(frozen=True)
class Shape:
    """Sizes of a base, counted over its layers; see `shape_of`."""

    linear: int  # parameters of the linear layers below the head: what a 4-bit base holds in 4 bits
    other: int  # all other parameters: embeddings, norms, the head where it is not tied
    read: int  # numbers that those linear layers read for one token
    written: int  # and that they write
    widest: int  # numbers for one token at the widest of them
    largest: int  # parameters of the largest of them
    layers: int
    hidden: int
    vocabulary: int


@dataclass(frozen=True)
class Plan:
    """What of a training decides its memory."""

    batch: int  # rows computed at once
    length: int  # tokens of the longest row
    learned: int = 0  # tokens of a row whose logits are computed, at most; 0 for classification
    trained: int = 0  # parameters that are trained
    added: int = 0  # those of them that are not the base's own
    quantization: str | None = None
    dtype_bytes: int = 4  # of the activations and of weights that are not quantized
    checkpointing: bool = False
    dropout: bool = False  # inside LoRA: each layer keeps an input and a mask of its own
    moment_bytes: int = 4  # of a number of the optimizer


@dataclass(frozen=True)
class Estimate:
    """Bytes, by what holds them."""

    weights: float
    adapter: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.activations + self.logits


def estimate(shape: Shape, plan: Plan) -> Estimate:
    """Bytes at the peak of a training step.

    weights     linear x (dtype or 4 bits) + other x dtype + in 4 bits the largest layer once more, dequantized
    adapter     trained x (gradient + moments) + added x float32
    activations tokens x dtype x (kept + 3 x widest) + the attention mask, batch x length^2 x float32;
                kept = what the linear layers read and write (with dropout: read twice, and a byte each), or with
                checkpointing: layers x hidden, and of one layer what would be kept
    logits      batch x learned x vocabulary x (3 x float32, and the logits themselves in a half precision)
    """
    quantized = plan.quantization is not None
    in_4_bits = FOUR_BIT * shape.linear + plan.dtype_bytes * shape.largest
    linear = in_4_bits if quantized else plan.dtype_bytes * shape.linear
    kept = shape.read + shape.written + (shape.read * (1 + 1 / plan.dtype_bytes) if plan.dropout else 0)
    if plan.checkpointing:
        kept = shape.layers * shape.hidden + kept / shape.layers
    tokens = plan.batch * plan.length
    number = LOSS_TENSORS * FLOAT + (0 if plan.dtype_bytes == FLOAT else 2 * plan.dtype_bytes)
    return Estimate(
        weights=linear + plan.dtype_bytes * shape.other,
        adapter=plan.trained * (FLOAT + MOMENTS * plan.moment_bytes) + plan.added * FLOAT,
        activations=tokens * plan.dtype_bytes * (kept + GRADIENTS * shape.widest) + tokens * plan.length * FLOAT,
        logits=plan.batch * min(plan.learned, plan.length) * shape.vocabulary * number,
    )


def shape_of(folder: Path) -> Shape:
    """Counts a base's layers; reads config.json alone and holds no weights."""
    from transformers.pytorch_utils import Conv1D

    from passes.base_model import layers_below_head, model_without_weights

    model: Any = model_without_weights(folder)
    layers = list(layers_below_head(model).values())
    # (inputs, outputs); Conv1D of GPT-2 holds its weight the other way round
    sizes = [tuple(m.weight.shape) if isinstance(m, Conv1D) else tuple(m.weight.shape)[::-1] for m in layers]
    linear = sum(int(m.weight.numel()) for m in layers)
    config = model.config.get_text_config()
    return Shape(
        linear=linear,
        other=sum(p.numel() for p in model.parameters()) - linear,
        read=sum(given for given, _ in sizes),
        written=sum(made for _, made in sizes),
        widest=max((max(size) for size in sizes), default=0),
        largest=max((int(m.weight.numel()) for m in layers), default=0),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
    )


def free_bytes() -> tuple[float, float]:
    """(free, of all) bytes where a training computes: on the GPU if there is one, else what this process may take."""
    import psutil
    import torch

    if torch.cuda.is_available():
        free, whole = torch.cuda.mem_get_info()
        return float(free), float(whole)
    memory = psutil.virtual_memory()
    available, total = float(memory.available), float(memory.total)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():  # of a container
        total = min(total, float(text))
        available = min(available, float(text) - float(used.read_text()))
    return max(available, 0.0), total
