"""A classification head on the last real token of a causal language model, or on the first of an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from passes.base_model import pooling_of
from passes.training.losses import CrossEntropy

HEAD_INIT_STD = 0.02  # standard deviation of the head's initial weights, as in GPT-2


def last_real_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Index of the last 1 in each row of a mask (batch, seq); right for left and right padding. Returns (batch,).

    The mask decides, never the token ids: a tokenizer may pad with its end-of-text token.
    """
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * positions).argmax(dim=1)


def pooled_features(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Final hidden state of each row's last real token, or of an encoder's first token: (batch, hidden).

    `model` is a causal language model or an encoder of transformers, with or without PEFT around it.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if pooling_of(plain.config.model_type) == "first":
        return plain.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
    hidden = plain.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, last_real_positions(attention_mask).to(hidden.device)]


class PooledClassifier(nn.Module):
    """Language model, pooling, and a linear head without bias; the form that the exported graph has.

    forward: input_ids and attention_mask (batch, seq), labels (batch,) -> {"loss": scalar, "logits": (batch, classes)};
    index (batch,), which says what rows these are, comes back as it is.
    """

    def __init__(self, model: nn.Module, hidden_size: int, classes: int, loss: nn.Module | None = None) -> None:
        """`loss` takes logits, labels and features, see `passes.training.losses`; None is the cross-entropy."""
        super().__init__()
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
    ) -> dict[str, torch.Tensor]:
        features = pooled_features(self.model, input_ids, attention_mask)
        logits = self.score(features.to(self.score.weight.dtype))
        output = {"logits": logits} if index is None else {"logits": logits, "index": index}
        if labels is None:
            return output
        return {"loss": self.loss(logits, labels.to(logits.device), features), **output}
