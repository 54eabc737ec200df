"""Linear layers and embeddings that hold the integers of an exported graph and compute with their dequantized values.

The layout is that of onnxruntime's MatMulNBits: a weight (out, in) is cut along its inputs into blocks, and a value is
(code - zero point) * scale of its block. A weight is dequantized in pieces as it is needed, forward and backward, so a
base takes the memory of its integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_PIECE = 2**22  # values that are dequantized at a time: 16 MiB in float32


@dataclass
class Blocks:
    """A quantized weight (out, in).

    Attributes:
        codes: uint8 (out, blocks, block size * bits / 8); of 4 bits the lower half of a byte comes first.
        scales: float (out, blocks).
        zeros: (out, blocks), uint8 or (of half-quadratic quantization) float; None: 2 ** (bits - 1) everywhere.
        bits: 4 or 8.
        size_in: in; the last block may reach beyond it.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    size_in: int

    def rows(self, start: int, end: int) -> Blocks:
        """The part for some of the outputs."""
        zeros = None if self.zeros is None else self.zeros[start:end]
        return Blocks(self.codes[start:end], self.scales[start:end], zeros, self.bits, self.size_in)

    def dequantized(self) -> torch.Tensor:
        """float32 (out, in)."""
        if self.bits == 4:
            codes = torch.empty((*self.codes.shape, 2), dtype=torch.uint8, device=self.codes.device)
            torch.bitwise_and(self.codes, 15, out=codes[..., 0])
            torch.bitwise_right_shift(self.codes, 4, out=codes[..., 1])
            signed = codes.view(*self.scales.shape, -1).view(torch.int8)
        else:
            signed = self.codes.to(torch.int16)
        if self.zeros is None:
            signed -= 2 ** (self.bits - 1)
        elif self.zeros.is_floating_point():
            signed = signed - self.zeros[..., None]
        else:
            signed -= self.zeros.to(signed.dtype)[..., None]
        values = torch.mul(signed, self.scales.float()[..., None])
        return values.view(len(values), -1)[:, : self.size_in]

    def pieces(self) -> list[tuple[int, Blocks]]:
        """(first output, part) of parts that are dequantized at a time."""
        step = max(1, _PIECE // self.size_in)
        return [(start, self.rows(start, start + step)) for start in range(0, len(self.codes), step)]


def joined(parts: list[Blocks]) -> Blocks:
    """One weight with the outputs of several, which are quantized in the same way."""
    if len(parts) == 1:
        return parts[0]
    zeros = None if parts[0].zeros is None else torch.cat([part.zeros for part in parts if part.zeros is not None])
    codes, scales = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scales"))
    return Blocks(codes, scales, zeros, parts[0].bits, parts[0].size_in)


class BlockQuantizedLinear(nn.Linear):
    """A frozen linear layer; PEFT puts adapters beside it as beside any nn.Linear.

    forward: float (..., in) -> (..., out) of the same dtype.
    """

    def __init__(self, blocks: Blocks, bias: torch.Tensor | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = blocks.size_in, len(blocks.codes)
        self.bits = blocks.bits
        self.register_buffer("weight", blocks.codes)  # PEFT looks for the device here
        self.register_buffer("scales", blocks.scales)
        self.register_buffer("zeros", blocks.zeros)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    def blocks(self) -> Blocks:
        """The weight, on the layer's device."""
        return Blocks(self.weight, self.scales, self.zeros, self.bits, self.in_features)  # type: ignore[arg-type]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = _Product.apply(input, self)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class BlockQuantizedEmbedding(nn.Module):
    """Rows of a quantized weight (vocabulary, hidden): int64 ids (...) -> (..., hidden) of `dtype`."""

    def __init__(self, layer: BlockQuantizedLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = [layer]  # in a list, so that a head that shares it is not counted twice
        self.dtype = dtype

    @property
    def weight(self) -> torch.Tensor:
        """The codes; transformers and PEFT ask an embedding for its device."""
        return self.layer[0].weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        blocks, ids = self.layer[0].blocks(), input.flatten()
        zeros = None if blocks.zeros is None else blocks.zeros[ids]
        rows = Blocks(blocks.codes[ids], blocks.scales[ids], zeros, blocks.bits, blocks.size_in).dequantized()
        return rows.view(*input.shape, -1).to(self.dtype)


class _Product(torch.autograd.Function):
    """x @ W.T; keeps the layer and not its dequantized weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: BlockQuantizedLinear) -> torch.Tensor:
        ctx.layer = layer
        output = x.new_empty((*x.shape[:-1], layer.out_features))
        for start, part in layer.blocks().pieces():
            output[..., start : start + len(part.codes)] = x @ part.dequantized().T.to(x.dtype)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        result: torch.Tensor | None = None
        for start, part in ctx.layer.blocks().pieces():
            share = gradient[..., start : start + len(part.codes)] @ part.dequantized().to(gradient.dtype)
            result = share if result is None else result.add_(share)
        assert result is not None
        return result, None
