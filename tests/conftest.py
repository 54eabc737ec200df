"""Tiny models, tokenizers and adapters, built in code once per session; no network, no cache shared between tests."""

from __future__ import annotations

import os

# before anything imports these libraries: no network, no telemetry
os.environ.update(HF_HUB_OFFLINE="1", OLIVE_DISABLE_TELEMETRY="1", ORT_DISABLE_TELEMETRY="1")
os.environ.setdefault("OMP_NUM_THREADS", "2")  # tiny models gain nothing from more
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the cores are shared with other tests

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SENTENCES = [
    "The kettle sings before the water boils.",
    "A short letter came from the coast this morning.",
    "Nobody in the village had seen the blue boat again.",
    "She counts the stairs in the dark: seven, eight, nine.",
    "Please answer by Friday, or call the office on Monday.",
    "He painted the door green and the window frames white.",
    "Our train was late, so we walked along the river instead.",
    "The soup was cold, the bread was hard, the waiter was kind.",
    "What a wonderful little film, I laughed the whole evening!",
    "Terrible sound and a dull story; I left after an hour.",
    "You have won a prize! Send your number to claim it now.",
    "Two plus two is four, and four plus four is eight.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(autouse=True)
def own_olive_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has an Olive cache of its own: Olive's cache key ignores the code of a pass."""
    monkeypatch.setenv("OLIVE_CACHE_DIR", str(tmp_path / "olive-cache"))


def save_tokenizer(folder: Path) -> int:
    """Trains a byte-level BPE tokenizer on SENTENCES and saves it in the format of transformers. Returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return len(fast)


def save_tiny_model(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Saves a random two-layer model (hidden 64, 4 query and 2 key-value heads of 16, intermediate 96), with tokenizer.

    Args:
        folder: made if it does not exist.
        kind: model type of transformers, such as "llama" or "qwen2".
        changes: other values of the configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = save_tokenizer(folder)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        "initializer_range": 0.2,  # ten times the usual: the logits of random models differ clearly between inputs
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.2)
            elif "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama with safetensors and a byte-level BPE tokenizer (pad 0, bos 1, eos 2, chat template)."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny_llama")


@pytest.fixture(scope="session")
def tiny_qwen2_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Qwen2: its q, k and v projections have a bias, its embeddings are tied."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny_qwen2", "qwen2", tie_word_embeddings=True)


LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="session")
def make_peft_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory of PEFT LoRA folders with random weights: ``make_peft_adapter(base, rank=4, labels=["a", "b"])``.

    Keyword arguments: rank, seed, labels (adds a head and makes it a classification adapter), settings (for
    adapter.json, which is written only with labels or settings), and any argument of LoraConfig, such as
    target_modules, use_rslora, rank_pattern and alpha_pattern.
    """

    def make(
        base: Path,
        rank: int = 4,
        seed: int = 0,
        labels: list[str] | None = None,
        settings: dict[str, Any] | None = None,
        **lora: Any,
    ) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base)
        config: dict[str, Any] = {
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": LINEAR,
            "task_type": "CAUSAL_LM",
            **lora,
        }
        peft_model = get_peft_model(model, LoraConfig(**config))
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0.0, 0.1)
        folder = tmp_path_factory.mktemp("adapter")
        peft_model.save_pretrained(folder)
        if labels is not None:
            path = folder / "adapter_model.safetensors"
            head = torch.randn(len(labels), model.config.hidden_size) * 0.3
            save_file({**load_file(path), "base_model.model.score.weight": head}, path)
        if labels is not None or settings is not None:
            task = "classification" if labels is not None else "generation"
            ours: dict[str, Any] = {
                "name": "test",
                "task": task,
                "labels": labels,
                "template": "{text}",
                "max_length": 64,
            }
            ours |= {"pooling": "last", "window_stride": None, "metrics": {}, **(settings or {})}
            (folder / "adapter.json").write_text(json.dumps(ours), encoding="utf-8")
        return folder

    return make
