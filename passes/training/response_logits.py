"""Logits of the learned tokens alone: a prompt's and the padding's would be computed for nothing.

A loss reads the logits of the positions whose next token has a label. The output layer is the widest of a small model
(vocabulary x hidden), and its logits and their gradients are the largest tensors of a batch. Two hooks hand it the
states of those positions alone. What a model does to its logits afterwards (the softcapping of Gemma, the scaling of
Granite) works on each number by itself, so it stays as it is; so does the model's own loss. Whether this holds for a
model is tried, not guessed: both ways are compared on a few tokens before the training.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.functional import pad

from data.tokenizing import IGNORE

# By which share of the largest logit the two ways may differ: rounding by the order of sums, in the logits' precision
_ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def learned_positions(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which states predict a token that is learned, and those tokens.

    Args:
        labels: (batch, seq) int64, -100 where nothing is learned; a token's label stands at its own place.

    Returns:
        (batch, seq) bool: True before each label, as a state predicts the next token; (1, learned) int64.
    """
    following = pad(labels, (0, 1), value=IGNORE)[:, 1:]
    learned = following != IGNORE
    return learned, following[learned].unsqueeze(0)


class ResponseLogits:
    """While it is on, a forward call of `model` with labels gives logits (1, learned, vocab) and the same loss."""

    def __init__(self, model: Any) -> None:
        """`model`: a causal language model of transformers, with or without PEFT around it."""
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._learned: torch.Tensor | None = None
        self._hooks = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            plain.get_output_embeddings().register_forward_pre_hook(self._select),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        """Computes all logits again."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if kwargs.get("labels") is None:
            return None
        self._learned, tokens = learned_positions(kwargs["labels"])
        return args, {**kwargs, "shift_labels": tokens}

    def _select(self, module: Any, args: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        if self._learned is None:
            return None
        (states,) = args
        return (states[self._learned.to(states.device)].unsqueeze(0),)

    def _after(self, module: Any, args: Any, output: Any) -> None:
        self._learned = None


def keep_response_logits(model: Any) -> ResponseLogits | None:
    """Switches it on, where the model's loss and logits stay what they are; None, and nothing changes, elsewhere.

    It costs two forward calls on a few tokens and draws no random numbers.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    takes = inspect.signature(plain.forward).parameters.values()
    if plain.get_output_embeddings() is None or not any(p.kind == inspect.Parameter.VAR_KEYWORD for p in takes):
        return None
    device = plain.get_input_embeddings().weight.device
    if device.type == "meta":  # offloaded: accelerate moves what the model is given
        device = torch.device("cpu")
    ids = torch.arange(14, device=device).reshape(2, 7) % plain.config.get_text_config().vocab_size
    labels = ids.clone()
    labels[0, :3] = labels[1, 5:] = IGNORE
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    mode = model.training
    model.eval()
    hooks = None
    try:
        with torch.no_grad():
            whole = model(**batch)
            hooks = ResponseLogits(model)
            few = model(**batch)
        fits = _same(whole, few, learned_positions(labels)[0])
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        if hooks is None or isinstance(error, torch.OutOfMemoryError):
            raise  # the model itself fails
        fits = False  # its loss cannot be told which tokens are meant, or its states are others than the tokens'
    finally:
        model.train(mode)
    if not fits and hooks is not None:
        hooks.remove()
    return hooks if fits else None


def _same(whole: Any, few: Any, learned: torch.Tensor) -> bool:
    expected, found = whole.logits[learned.to(whole.logits.device)], few.logits
    if found.shape != (1, *expected.shape):
        return False
    share = _ROUNDING.get(expected.dtype, 0.0)
    close = (found[0] - expected).abs().max() <= share * expected.abs().max()
    return bool(close and torch.isclose(few.loss.float(), whole.loss.float(), rtol=share))
