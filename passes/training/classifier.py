"""A classification head on the pooled final states of a causal language model or an encoder."""

from __future__ import annotations

import torch
from torch import nn

from passes.training.losses import CrossEntropy
from passes.training.pooling import pooled_features
from passes.training.shared_batches import all_rows

HEAD_INIT_STD = 0.02  # standard deviation of the head's initial weights, as in GPT-2


class PooledClassifier(nn.Module):
    """Language model, pooling, dropout, and a linear head without bias; but for dropout the form of the exported graph.

    forward: input_ids and attention_mask (batch, seq), labels (batch,) -> {"loss": scalar, "logits": (batch, classes)};
    index (batch,), which says what rows these are, comes back as it is; teacher (batch, classes) is for a distillation.

    Where several processes share a batch, batch_rows (scalar) says how many rows the whole has: loss, logits and index
    are then of all of them, see `passes.training.shared_batches`.
    """

    def __init__(
        self,
        model: nn.Module,
        hidden_size: int,
        classes: int,
        loss: nn.Module | None = None,
        pooling: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        """
        Args:
            loss: takes logits, labels and features, see `passes.training.losses`; None is the cross-entropy.
            pooling: see `pooled_features`.
            dropout: of the features before the head, in 0..1; the loss sees them before it.
        """
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.model = model
        self.loss = loss or CrossEntropy()
        self.score = nn.Linear(hidden_size, classes, bias=False)
        nn.init.normal_(self.score.weight, std=HEAD_INIT_STD)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None = None,
        index: torch.Tensor | None = None,
        teacher: torch.Tensor | None = None,
        batch_rows: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        features = pooled_features(self.model, input_ids, attention_mask, self.pooling)
        logits = self.score(self.dropout(features.to(self.score.weight.dtype)))
        if batch_rows is not None:
            rows = int(batch_rows)
            features, logits = all_rows(features, rows), all_rows(logits, rows)
            labels, index, teacher = (
                None if given is None else all_rows(given, rows) for given in (labels, index, teacher)
            )
        output = {"logits": logits} if index is None else {"logits": logits, "index": index}
        if labels is None:
            return output
        others = () if teacher is None else (teacher.to(logits.device),)
        return {"loss": self.loss(logits, labels.to(logits.device), features, *others), **output}
