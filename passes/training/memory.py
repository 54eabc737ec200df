"""How much memory a training needs, from the base's configuration and the settings alone.

All numbers are of the tensors alone: Python and its libraries take about 0.6 GB beside them, and allocators hold some
of what was freed. What is kept for the backward pass is asked of autograd (see `passes.training.kept`) where the shape
has it, and else counted over the layers, which is good for bases like Llama.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from passes.training.kept import Kept, Method

# bytes of a weight of bitsandbytes: 4 bits, and for each 64 a float32 scale, or with double quantization a byte, of
# which 256 share a float32 (Dettmers et al. 2023, QLoRA, section 3)
FOUR_BIT = 0.5 + 4 / 64
FOUR_BIT_DOUBLE = 0.5 + 1 / 64 + 4 / (64 * 256)
FLOAT = 4  # bytes; adapters, their gradients and moments, and the loss are float32 whatever the base computes in
MOMENTS = 2  # of AdamW for each trained number
LOSS_TENSORS = 3  # as large as the logits when the loss goes backward: log-probabilities and two gradients
GRADIENTS = 3  # of the widest layer's outputs, which live at once when a block goes backward, where nothing counts them
PIECE = (
    3 * 2**23
)  # bytes beside a layer of deployed integers: what passes/training/block_quantized.py dequantizes at once


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
    heads: int = 0  # of attention, in a layer
    tied: bool = False  # the embeddings are the head
    kept: Kept | None = None  # for the backward pass, as autograd says


@dataclass(frozen=True)
class Plan:
    """What of a training decides its memory."""

    batch: int  # rows computed at once
    length: int  # tokens of the longest row
    learned: int = 0  # tokens of a row whose logits are computed, at most; 0 for classification
    trained: int = 0  # parameters that are trained
    added: int = 0  # those of them that are not the base's own
    quantization: str | None = None
    double_quantization: bool = False
    held: float | None = None  # bytes of the base as it is loaded, where they are known
    dtype_bytes: int = 4  # of the activations and of weights that are not quantized
    checkpointing: bool = False
    dropout: bool = False  # inside LoRA: each layer keeps an input and a mask of its own
    moment_bytes: int = 4  # of a number of the optimizer
    trained_bytes: int = 4  # of a trained number and of its gradient
    accumulates: bool = False  # gradients stay for the next batches
    blocks: int | None = None  # that autograd passes on its way back; None: all
    resident: float | None = None  # with CPU offload: bytes of weights that stay on the GPU


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak, by what holds them then."""

    weights: float
    adapter: float
    optimizer: float
    gradients: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.adapter + self.optimizer + self.gradients + self.activations + self.logits


def estimate(shape: Shape, plan: Plan) -> Estimate:
    """Bytes at the peak of a training step, which is the largest of three moments.

    Always there are the weights, linear x (dtype or 4 bits) + other x dtype, what is added, and the optimizer's
    moments. Beside them
    - when the loss goes backward: what is kept for the backward pass, and batch x learned x vocabulary x 3 x float32;
    - when the last block goes backward: what is kept, what lives beside it, and a quantized layer dequantized;
    - when the first block goes backward: its own part of that, and the gradients of all other blocks;
    - when the backward pass ends: the gradients of all that is trained.
    Gradients that accumulate over batches are there at each of them.
    """
    full = plan.trained > plan.added
    rest, block, others, beside = _activations(shape, plan)
    beside += _dequantized(shape, plan)
    tokens = plan.batch * min(plan.learned, plan.length)
    head = shape.hidden * shape.vocabulary * plan.trained_bytes if full and plan.learned else 0
    gradients = plan.trained * plan.trained_bytes
    always = Estimate(
        weights=_weights(shape, plan),
        adapter=plan.added * plan.trained_bytes,
        optimizer=plan.trained * MOMENTS * plan.moment_bytes,
        gradients=gradients if plan.accumulates else 0,
        activations=rest + others,
        logits=0,
    )
    loss = replace(always, logits=tokens * shape.vocabulary * LOSS_TENSORS * FLOAT)
    if not plan.checkpointing:
        loss = replace(loss, activations=rest + others + block)
    last = replace(
        always, activations=rest + others + block + beside, gradients=max(always.gradients, min(head, gradients))
    )
    made = gradients * (1 - 1 / max(shape.layers, 1))
    first = replace(always, activations=rest + block + beside, gradients=max(always.gradients, made))
    # the gradient of the tied embedding is made as a whole before it is added to that of the head
    end = replace(always, activations=head if shape.tied else 0, gradients=gradients)
    return max(loss, last, first, end, key=lambda moment: moment.total)


def _weights(shape: Shape, plan: Plan) -> float:
    if plan.held is not None:
        return plan.held
    four_bit = FOUR_BIT_DOUBLE if plan.double_quantization else FOUR_BIT
    each = plan.dtype_bytes if plan.quantization is None else four_bit
    weights = each * shape.linear + plan.dtype_bytes * shape.other
    if plan.resident is None or weights <= plan.resident or not plan.checkpointing:
        return weights  # autograd keeps the copies that have visited the GPU until the backward pass is through
    return plan.resident + plan.dtype_bytes * shape.linear / shape.layers


def deployed_bytes(shape: Shape, deployed: Mapping[str, Any], dtype_bytes: int = 4) -> float:
    """Bytes of a base that is held as the integers of its export, from `passes.deployed_check.deployed_options`.

    Each block of weights has a float32 scale, and a zero point where it is not symmetric. The head is among the
    integers, in 8 bits with the algorithms that say so, and an embedding that is tied to it is then too. Bases whose
    heads the export widens need more: their attention is held in float32.
    """
    options = deployed["quantization"]
    beside = (4 if options["symmetric"] else 5) / options["block_size"]
    linear = (1 if deployed["precision"] == "int8" else 0.5) + beside
    head = 1 + beside if options["algorithm"].endswith(("_last", "_mixed")) else linear
    in_head = shape.hidden * shape.vocabulary if shape.other > shape.hidden * shape.vocabulary else 0
    return linear * shape.linear + head * in_head + dtype_bytes * (shape.other - in_head)


def _dequantized(shape: Shape, plan: Plan) -> float:
    if plan.quantization is None:
        return 0
    return PIECE if plan.held is not None else plan.dtype_bytes * shape.largest


def _activations(shape: Shape, plan: Plan) -> tuple[float, float, float, float]:
    """Bytes kept for the backward pass around the blocks, in one of them, in the others; and those beside a block."""
    blocks = shape.layers if plan.blocks is None else plan.blocks
    if shape.kept is not None:
        parts = (shape.kept.block, shape.kept.rest, shape.kept.state, shape.kept.beside)
        block, rest, state, beside = (plan.batch * max(curve(plan.length), 0.0) for curve in parts)
    else:
        tokens = plan.batch * plan.length
        numbers = shape.read + shape.written + (shape.read * (1 + 1 / plan.dtype_bytes) if plan.dropout else 0)
        block = tokens * plan.dtype_bytes * numbers / shape.layers
        rest, state = tokens * plan.length * FLOAT, tokens * plan.dtype_bytes * shape.hidden
        beside = tokens * plan.dtype_bytes * GRADIENTS * shape.widest
    if blocks == 0:  # nothing goes backward: a block keeps what it has not handed on yet
        return rest, 0, 0, beside
    others = blocks * state if plan.checkpointing else (blocks - 1) * block
    return rest, block, others, beside


def most(shape: Shape, plan: Plan) -> float:
    """More bytes than a training can need, without asking autograd.

    A block of GPT-2 keeps twice what its layers read and write, and three tensors of probabilities in each head.
    """
    need = estimate(replace(shape, kept=None), plan)
    probabilities = 3 * plan.batch * shape.heads * plan.length**2 * FLOAT * shape.layers
    return need.total + 3 * need.activations + probabilities + plan.trained * FLOAT


def shape_of(base: Path | Any, method: Method | None = None) -> Shape:
    """Counts a base's layers, and with a `method` what autograd keeps of them; holds no weights.

    Args:
        base: its folder, of which config.json alone is read, or its configuration of transformers.
        method: see `passes.training.kept`. Where a base cannot be run without values, nothing is counted.
    """
    from transformers import AutoConfig
    from transformers.pytorch_utils import Conv1D

    from passes.base_model import empty_model, layers_below_head
    from passes.training.kept import kept_for_backward

    given = AutoConfig.from_pretrained(base) if isinstance(base, Path) else base
    model: Any = empty_model(given)
    layers = list(layers_below_head(model).values())
    # (inputs, outputs); Conv1D of GPT-2 holds its weight the other way round
    sizes = [tuple(m.weight.shape) if isinstance(m, Conv1D) else tuple(m.weight.shape)[::-1] for m in layers]
    linear = sum(int(m.weight.numel()) for m in layers)
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    kept = None
    if method is not None:
        try:
            kept = kept_for_backward(given, method)
        except (RuntimeError, TypeError, ValueError, AssertionError):  # a base that looks at its values
            kept = None
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
        heads=config.num_attention_heads,
        tied=head is not None and head.weight is model.get_input_embeddings().weight,
        kept=kept,
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
