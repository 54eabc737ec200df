"""How several processes train as one: each computes its share of a batch, and the loss is that of the whole batch.

Li et al. 2020, "PyTorch Distributed" (arXiv:2006.15704): DistributedDataParallel averages the gradients of all
processes. That is the gradient of one process only where every process weighs the same. So the batches are those of one
process, in its order; each process takes a slice of each, also of the last, which may be short; and losses are of all
rows. What remains is the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import distributed
from transformers.trainer_pt_utils import LengthGroupedSampler

from data.tokenizing import IGNORE


def share_sizes(rows: int, processes: int) -> list[int]:
    """How many of a batch's rows each process takes, in their order; they differ by one at most."""
    return [rows * (rank + 1) // processes - rows * rank // processes for rank in range(processes)]


def own_share(batch: Sequence[dict[str, Any]], rank: int, processes: int) -> list[dict[str, Any]]:
    """The rows of a batch that process `rank` computes.

    Where there are fewer rows than processes some have none; they compute a stand-in, as every process must take part
    in each step: the shortest row. In generated text it has nothing to learn, and `all_rows` leaves it out.
    """
    start, end = len(batch) * rank // processes, len(batch) * (rank + 1) // processes
    if start < end:
        return list(batch[start:end])
    row = min(batch, key=lambda row: len(row["input_ids"]))
    return [row if "document" in row else {**row, "labels": [IGNORE] * len(row["labels"])}]


def stands_in(inputs: Mapping[str, torch.Tensor], rank: int, processes: int) -> bool:
    """Whether a collated batch is the stand-in of `own_share`."""
    if "batch_rows" in inputs:
        return share_sizes(int(inputs["batch_rows"]), processes)[rank] == 0
    return not bool((inputs["labels"] != IGNORE).any())


def all_rows(own: torch.Tensor, rows: int) -> torch.Tensor:
    """The rows of all processes, in the batch's order; a loss of them has the gradient of one process.

    Each process computes the same loss from all rows, and each row's gradient flows back in the process that computed
    it, multiplied by their number because DistributedDataParallel takes the mean.

    Args:
        own: (share or more, ...); what is above the share is a stand-in.
        rows: of the whole batch.

    Returns:
        (rows, ...)
    """
    sizes = share_sizes(rows, distributed.get_world_size())
    return cast(torch.Tensor, _AllRows.apply(own, sizes, distributed.get_rank()))


class _AllRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, sizes: list[int], rank: int) -> torch.Tensor:
        ctx.sizes, ctx.rank, ctx.given = sizes, rank, len(own)
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: sizes[rank]] = own[: sizes[rank]]
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = gradients
        start, size = sum(ctx.sizes[: ctx.rank]), ctx.sizes[ctx.rank]
        own = gradient.new_zeros(ctx.given, *gradient.shape[1:])
        own[:size] = gradient[start : start + size] * len(ctx.sizes)
        return own, None, None


class SharedOrder(LengthGroupedSampler):
    """Rows grouped by length in the same order in every process: that which the first one draws.

    Dropout draws random numbers too, and other ones in each process, so they part within an epoch.
    """

    def __iter__(self) -> Iterator[int]:
        if self.generator is None:
            state = [torch.get_rng_state()]
            distributed.broadcast_object_list(state, src=0)
            torch.set_rng_state(state[0])
        return cast(Iterator[int], super().__iter__())
