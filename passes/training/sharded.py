"""Weights that lie in pieces in several processes: fully sharded data parallel (FSDP, Zhao et al. 2023, 2304.11277)."""

from __future__ import annotations

import torch


def gather_none(model: torch.nn.Module) -> None:
    """Gives up the whole weights that the last forward pass of a sharded model has left: changes would be lost."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(weight: torch.Tensor) -> torch.Tensor:
    """The weight of one process as it is, of a sharded one all of it. Every process must call it in the same order."""
    from torch.distributed.tensor import DTensor

    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def fill(weight: torch.Tensor, values: torch.Tensor) -> None:
    """Copies values (of the whole weight) into it; of a sharded one, each process takes its piece."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        if isinstance(weight, DTensor):
            values = distribute_tensor(values.to(weight.device), weight.device_mesh, weight.placements)
        weight.copy_(values)
