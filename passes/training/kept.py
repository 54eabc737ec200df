"""What a training step keeps in memory for each token, asked of autograd itself: it runs on tensors without values.

A few blocks of a base, with what a method puts beside its layers, go forward and backward as torch's FakeTensors, which
have sizes and no memory. Counted are the tensors that are kept for the backward pass, which is what Korthikanti et al.
2022, "Reducing Activation Recomputation in Large Transformer Models" (2205.05198), count by hand for one architecture,
and what lives beside them at the peak. A base's blocks are alike, and each number is a polynomial of second degree of
a row's length (attention keeps masks and, in some bases, probabilities): three blocks and three lengths tell all.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import dropout, gelu, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.pytorch_utils import Conv1D

from passes.base_model import layers_below_head, model_class_of
from passes.block_outputs import is_block_output

_LENGTHS = (16, 32, 64)  # tokens; every base takes that many
_BLOCKS = 3  # what the first one keeps for all of them, and what the last one leaves to the head, is not the second's
_SHARE = 0.1  # of dropout; how much it is does not matter
_ADAPTER = "_adapter"  # attribute of a layer: what is trained beside it
_counted: dict[tuple[str, Method], Kept] = {}


@dataclass(frozen=True)
class Method:
    """What decides which tensors autograd keeps.

    Attributes:
        kind: "low_rank", "dora", "bottleneck", "virtual" (prefix and prompt tuning), or "full".
        size: rank, or width of the bottleneck.
        dropout: whether there is some inside the adapter.
        dtype: of the base's activations: "float32", "bfloat16" or "float16".
        cast: of "full": its weights are float32 and cast to `dtype` where they compute, as by the Trainer's bf16; else
            they are of that dtype themselves.
    """

    kind: str = "low_rank"
    size: int = 8
    dropout: bool = False
    dtype: str = "float32"
    cast: bool = True


@dataclass(frozen=True)
class Curve:
    """Bytes of one row as a function of its tokens."""

    constant: float
    linear: float
    square: float = 0.0

    def __call__(self, tokens: float) -> float:
        return self.constant + self.linear * tokens + self.square * tokens * tokens


@dataclass(frozen=True)
class Kept:
    """Bytes of one row.

    Attributes:
        block: kept by one block.
        rest: kept before and behind the blocks, and what they share.
        state: what goes from block to block, which is all that checkpointing keeps of one.
        beside: what else lives at the peak, while a block goes forward or backward.
    """

    block: Curve
    rest: Curve
    state: Curve
    beside: Curve


def kept_for_backward(config: Any, method: Method) -> Kept:
    """Counts for the base of a configuration of transformers; its number of blocks plays no part.

    Raises what torch or the base raises where it cannot be run without values.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    key = (config.to_json_string(use_diff=False), method)
    if key not in _counted:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
            model = _model(config, method)
            numbers = [_run(model, length, method) for length in _LENGTHS]
        block, rest, state, beside = (_through(values) for values in zip(*numbers, strict=True))
        if method.kind == "full":  # weights' gradients are counted by themselves; the others are those of an adapter
            beside = kept_for_backward(config, Method(size=1, dtype=method.dtype)).beside
        _counted[key] = Kept(block, rest, state, beside)
    return _counted[key]


def _through(values: tuple[float, ...]) -> Curve:
    """The polynomial of second degree through the values at `_LENGTHS`."""
    import numpy as np

    square, linear, constant = np.polyfit(_LENGTHS, values, 2)
    return Curve(*(round(float(value), 3) for value in (constant, linear, square)))


def _model(config: Any, method: Method) -> Any:
    """The first blocks of the base with what the method trains beside the layers, as PEFT computes it."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = _BLOCKS
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:_BLOCKS]
    auto_class, options = model_class_of(config.model_type)
    dtype = torch.float32 if _casts(method) else getattr(torch, method.dtype)
    model = auto_class.from_config(short, dtype=dtype, **options).train()
    model.requires_grad_(method.kind == "full")
    if method.kind == "full":
        return model
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    for name, layer in layers_below_head(model).items():
        given, made = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
        if method.kind == "bottleneck" and is_block_output(name):
            parts = _trained((method.size, made), (made, method.size))
            layer.register_forward_hook(_bottleneck(parts, method))
        elif method.kind in ("low_rank", "dora"):
            parts = _trained((method.size, given), (made, method.size), (made,))
            layer.register_forward_hook(_low_rank(parts, method))
        else:
            continue
        layer.__dict__[_ADAPTER] = parts
    return model


def _casts(method: Method) -> bool:
    return method.kind == "full" and method.cast and method.dtype != "float32"


def _low_rank(parts: list[torch.Tensor], method: Method) -> Callable[..., torch.Tensor]:
    a, b, magnitude = parts

    def add(module: Any, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        x = args[0].to(a.dtype)
        update = linear(linear(dropout(x, _SHARE) if method.dropout else x, a), b)
        if method.kind == "dora":
            return output + ((magnitude - 1) * output + magnitude * update).to(output.dtype)
        return output + update.to(output.dtype)

    return add


def _bottleneck(parts: list[torch.Tensor], method: Method) -> Callable[..., torch.Tensor]:
    down, up = parts

    def add(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        between = gelu(linear(output.to(down.dtype), down))
        return output + linear(dropout(between, _SHARE) if method.dropout else between, up).to(output.dtype)

    return add


def _trained(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Parameters of an adapter, whose gradients are counted elsewhere."""
    tensors = [torch.zeros(shape, requires_grad=True) for shape in shapes]
    for tensor in tensors:
        tensor.register_post_accumulate_grad_hook(lambda own: setattr(own, "grad", None))
    return tensors


def _run(model: Any, length: int, method: Method) -> tuple[float, float, float, float]:
    """Bytes for one row of so many tokens, in the order of `Kept`."""
    from passes.training.full import block_stack

    adapters = [tensor for module in model.modules() for tensor in module.__dict__.get(_ADAPTER, ())]
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *adapters)}
    kept: dict[int, Any] = {}  # by storage; while it holds them, no number is used twice
    begun: list[int] = []  # bytes kept when each block began
    states: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    def total() -> int:
        return sum(storage.nbytes() for storage in kept.values())

    def before(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        begun.append(total())
        states.append((args[0] if args else options["hidden_states"]).untyped_storage().nbytes())

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in block_stack(model)[1]]
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=_casts(method))
    try:
        with _Living() as living:
            ids = torch.ones(1, length, dtype=torch.int64)
            mask = torch.ones_like(ids)
            mask[0, -1] = 0  # as in a batch of different rows: attention gets a mask
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
                output = model.base_model(input_ids=ids, attention_mask=mask)[0]
            everything = total()
            kept.clear()
            if method.kind != "full":
                output.sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    block = begun[2] - begun[1]
    return block, everything - _BLOCKS * block, states[-1], max(living.peak - everything, 0)


class _Living(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside of it and still there, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage(), given)
        self.peak = max(self.peak, self.now)
        return made

    def _see(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place = storage._cdata
        if place in given or place in self._known:  # a view, or changed in place
            return
        self._known[place] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._forget, place)

    def _forget(self, place: int) -> None:
        self.now -= self._known.pop(place)
