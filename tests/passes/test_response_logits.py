"""The loss and gradients of the learned tokens alone are those that transformers computes with all logits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from passes.training.response_logits import ResponseLogits, keep_response_logits, learned_positions

# Gemma 2 caps its logits, Granite divides them, Cohere multiplies them, GPT-2 has positions and a layer type of its own
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 8},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
    "gpt2": {},
    "phi3": {},
}
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}


def adapted(kind: str) -> Any:
    """A random model with LoRA matrices that are no zeros."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]}))
    model.requires_grad_(False)
    peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return peft.eval()  # GPT-2 has dropout of its own


def rows(learned: list[list[int]], length: int = 11) -> dict[str, torch.Tensor]:
    """A padded batch; `learned` says which places of each row have a label."""
    torch.manual_seed(1)
    ids = torch.randint(3, 96, (len(learned), length))
    labels = torch.full_like(ids, -100)
    mask = torch.ones_like(ids)
    for row, places in enumerate(learned):
        labels[row, places] = ids[row, places]
        if places and row:
            mask[row, max(places) + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


BATCHES = {
    "responses": rows([[6, 7, 8, 9, 10], [4, 5, 6]]),
    "plain text": rows([list(range(11)), list(range(7))]),
    "a row without a response": rows([[], [3, 4], []]),
    "one token": rows([[10], []]),
}


def loss_and_gradients(model: Any, batches: list[dict[str, torch.Tensor]], **options: Any) -> Any:
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch, **options).loss
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1].keys() == expected[1].keys() != set()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= 1e-6 * max(gradient.abs().max(), 1), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_has_the_same_loss_and_gradients(kind: str) -> None:
    model, plain = adapted(kind), adapted(kind)
    assert keep_response_logits(model) is not None
    for batch in BATCHES.values():
        assert_same(loss_and_gradients(model, [batch]), loss_and_gradients(plain, [batch]))
    batch = BATCHES["responses"]
    assert model(**batch).logits.shape == (1, 8, 96)
    unlabelled = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**unlabelled).logits, plain(**unlabelled).logits, rtol=0, atol=0)


def test_accumulated_batches_share_one_count() -> None:
    """As the Trainer does it; a batch without any label adds nothing."""
    model, plain = adapted("llama"), adapted("llama")
    assert keep_response_logits(model) is not None
    batches = [*BATCHES.values(), rows([[], []]), rows([[0], []])]
    count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    counted = {"num_items_in_batch": torch.tensor(count)}
    found = loss_and_gradients(model, batches, **counted)
    assert_same(found, loss_and_gradients(plain, batches, **counted))
    assert found[0] > 1


def test_checkpointing() -> None:
    model, plain = adapted("llama"), adapted("llama")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    assert keep_response_logits(model) is not None and model.training
    assert_same(*(loss_and_gradients(m, [BATCHES["responses"]]) for m in (model, plain)))


def test_the_widest_tensors_become_smaller() -> None:
    """The output layer sees three positions of 22 and makes so many rows of logits."""
    model, seen = adapted("llama"), []
    keep_response_logits(model)
    model.get_base_model().lm_head.register_forward_hook(lambda module, given, output: seen.append(output.shape))
    model(**rows([[10], [4, 5]]))
    assert seen == [(1, 3, 96)]


def test_a_failed_call_leaves_nothing_behind() -> None:
    model, plain = adapted("llama"), adapted("llama")
    assert keep_response_logits(model) is not None
    layer = model.get_base_model().model.layers[1]
    breaks = layer.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**BATCHES["responses"])
    breaks.remove()
    unlabelled = {name: BATCHES["responses"][name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(model(**unlabelled).logits, plain(**unlabelled).logits)


def _mixes_positions(model: Any) -> None:
    """A model whose logits are no function of one state: each is shifted by the row's mean."""

    def mean_free(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
        return output - output.mean(dim=1, keepdim=True)

    model.get_base_model().lm_head.register_forward_hook(mean_free)


def _own_loss(model: Any) -> None:
    """A model whose loss knows its labels alone."""
    base = model.get_base_model()
    base.loss_function = lambda logits, labels, vocab_size, **others: torch.nn.functional.cross_entropy(
        logits.reshape(-1, vocab_size), labels.reshape(-1)
    )


@pytest.mark.parametrize("change", [_mixes_positions, _own_loss])
def test_other_models_keep_all_logits(change: Any) -> None:
    model, plain = adapted("llama"), adapted("llama")
    change(model)
    change(plain)
    assert keep_response_logits(model) is None
    batch = BATCHES["responses"]
    assert model(**batch).logits.shape == (2, 11, 96)
    assert_same(loss_and_gradients(model, [batch]), loss_and_gradients(plain, [batch]))


@pytest.mark.parametrize(("config", "kept"), [(PromptTuningConfig, False), (PrefixTuningConfig, True)])
def test_virtual_tokens(config: Any, kept: bool) -> None:
    """Those of prompt tuning stand among the states, so that all logits are computed; those of a prefix do not."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES)).requires_grad_(False)
        models.append(get_peft_model(base, config(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval())
    assert (keep_response_logits(models[0]) is not None) == kept
    for batch in BATCHES.values():
        assert_same(*(loss_and_gradients(model, [batch]) for model in models))


def test_it_can_be_switched_off() -> None:
    model = adapted("llama")
    hooks = ResponseLogits(model)
    hooks.remove()
    assert model(**BATCHES["responses"]).logits.shape == (2, 11, 96)


def test_learned_positions() -> None:
    labels = torch.tensor([[-100, 5, -100, 7], [4, -100, -100, -100]])
    learned, tokens = learned_positions(labels)
    assert learned.tolist() == [[True, False, True, False], [False] * 4]
    assert tokens.tolist() == [[5, 7]]


def test_a_quantized_base(tiny_llama_path: Path) -> None:
    from passes.base_model import load_base

    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    plain = get_peft_model(load_base(tiny_llama_path, "nf4"), config)
    model = copy.deepcopy(plain)
    assert keep_response_logits(model) is not None
    assert_same(*(loss_and_gradients(m, [BATCHES["responses"]]) for m in (model, plain)))
