"""One vector of a text from its tokens' final states: what a classification head reads, in PyTorch.

`passes.graph.head` computes the same in an exported graph. The mask decides what is real, never the token ids: a
tokenizer may pad with its end-of-text token. A text's vector never depends on its neighbours in the batch, whichever
side they are padded on.
"""

from __future__ import annotations

from typing import Any

import torch

from passes.base_model import pooling_of


def last_real_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Index of the last 1 in each row of a mask (batch, seq); right for left and right padding. Returns (batch,)."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * positions).argmax(dim=1)


def pooled_features(
    model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, pooling: str | None = None
) -> torch.Tensor:
    """One vector for each row: (batch, hidden).

    Args:
        model: a causal language model or an encoder of transformers, with or without PEFT around it.
        input_ids, attention_mask: int64 (batch, seq), padded on either side.
        pooling: see `pool`; None is what the model's kind is known for, see `passes.base_model.pooling_of`.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(model, "active_peft_config") and model.active_peft_config.is_prompt_learning:
        hidden = _behind_virtual_tokens(model, input_ids, attention_mask)
        return pool(hidden, attention_mask.to(hidden.device), pooling or pooling_of(plain.config.model_type))
    kind = plain.config.model_type
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if pooling_of(kind) != "first":
        inputs["use_cache"] = False
    if not bool(attention_mask[:, 0].all()):  # learned positions would count the padding on the left
        start = plain.config.pad_token_id + 1 if kind in ("roberta", "xlm-roberta") else 0
        inputs["position_ids"] = start + (attention_mask.cumsum(dim=1) - 1).clamp_min(0)
    hidden = plain.base_model(**inputs).last_hidden_state
    return pool(hidden, attention_mask.to(hidden.device), pooling or pooling_of(kind))


def _behind_virtual_tokens(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Final states (batch, seq, hidden) of a text's own tokens under PEFT's prompt or prefix tuning.

    As PeftModelForCausalLM computes them, without logits. Positions count no padding, so that a text's distance from
    its virtual tokens is the same on whichever side rows are padded.
    """
    plain, virtual = model.get_base_model(), model.active_peft_config.num_virtual_tokens
    learned = model.get_prompt(len(input_ids), max_cache_len=virtual + input_ids.shape[1])
    seen = torch.cat([attention_mask.new_ones(len(input_ids), virtual), attention_mask], dim=1)
    positions = (seen.cumsum(dim=1) - 1).clamp_min(0)
    if model.active_peft_config.peft_type == "PREFIX_TUNING":
        inputs: dict[str, Any] = {"input_ids": input_ids, "past_key_values": learned}
        positions = positions[:, virtual:]
    else:
        embedded = model.word_embeddings(input_ids)
        inputs = {"inputs_embeds": torch.cat([learned.to(embedded.dtype), embedded], dim=1)}
    hidden = plain.base_model(**inputs, attention_mask=seen, position_ids=positions, use_cache=False).last_hidden_state
    own: torch.Tensor = hidden[:, -input_ids.shape[1] :]
    return own


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """(batch, hidden) of hidden (batch, seq, hidden) float and mask (batch, seq) of 0 and 1.

    "first" and "last" take the state of a row's first or last real token; "mean" and "max" the mean or the largest
    value of each feature over its real tokens, 0 where a row has none.
    """
    if pooling in ("first", "last"):
        position = mask.argmax(dim=1) if pooling == "first" else last_real_positions(mask)
        return hidden[torch.arange(len(hidden), device=hidden.device), position]
    real = mask.unsqueeze(-1).bool()
    if pooling == "mean":
        shares = mask.float() / mask.sum(dim=1, keepdim=True).clamp_min(1)
        return (shares.unsqueeze(1).to(hidden.dtype) @ hidden.masked_fill(~real, 0)).squeeze(1)
    largest = hidden.masked_fill(~real, torch.finfo(hidden.dtype).min).amax(dim=1)
    return largest.where(real.any(dim=1), 0)
