"""The cyclical learning rate, which transformers does not have."""

from __future__ import annotations

CYCLICAL = "cyclical"  # among the names of training_args.lr_scheduler_type


class CyclicalSchedule:
    """A learning rate that rises and falls in straight lines, between the highest and `lowest` times that.

    Smith 2015, arXiv:1506.01186, "triangular". It begins low, so it needs no warm-up.
    """

    def __init__(self, cycles: int = 3, lowest: float = 0.1) -> None:
        """`cycles`: over the whole training, >= 1; `lowest`: share of the highest rate, in 0..1."""
        if not isinstance(cycles, int) or isinstance(cycles, bool) or cycles < 1:
            raise ValueError(f"lr_scheduler_kwargs.cycles: must be a whole number, 1 or more, but got {cycles!r}")
        if not isinstance(lowest, int | float) or not 0 <= lowest <= 1:
            raise ValueError(f"lr_scheduler_kwargs.lowest: must be in 0..1, but got {lowest!r}")
        self.cycles, self.lowest = cycles, lowest

    def factor(self, step: int, steps: int) -> float:
        """Of the learning rate at a step of so many."""
        place = step * self.cycles / max(steps, 1) % 1
        return self.lowest + (1 - self.lowest) * (1 - abs(2 * place - 1))
