"""A base with heads of 8 dimensions as a package: adapters are widened with it, and nothing of that is seen outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from passes.package import write_package
from runtime.adapters import add_adapter
from runtime.errors import PackageError
from runtime.model import MultiAdapterModel
from tests.conftest import save_tiny_model


def test_package_generates_and_classifies_as_peft(tmp_path: Path, make_peft_adapter: Callable[..., Path]) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "base", "qwen2", head_dim=8, tie_word_embeddings=True)
    writer, judge = make_peft_adapter(base, seed=1), make_peft_adapter(base, seed=2, labels=["a", "b"])
    write_package(
        tmp_path / "package",
        base_path=base,
        adapter_folders={"writer": writer},
        precision="fp32",
        execution_provider="cpu",
        threads=2,
        name="wide",
    )
    add_adapter(tmp_path / "package", "judge", judge, {})
    model = MultiAdapterModel.load(tmp_path / "package")
    prompt = model.encode_prompt("The kettle sings")
    torch_model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), writer).eval()
    ids = torch.tensor([prompt])
    with torch.no_grad():
        text = torch_model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
    assert list(model.tokens(prompt, "writer", max_new_tokens=8)) == text
    hidden = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), judge).eval().base_model.model.model
    head = load_file(judge / "adapter_model.safetensors")["base_model.model.score.weight"]
    with torch.no_grad():
        wanted = hidden(torch.tensor([prompt])).last_hidden_state[:, -1] @ head.T
    found = model.class_logits([prompt], "judge")
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_adapter_of_another_head_size_is_refused(tmp_path: Path, make_peft_adapter: Callable[..., Path]) -> None:
    base, other = save_tiny_model(tmp_path / "base", head_dim=8), save_tiny_model(tmp_path / "other", head_dim=16)
    with pytest.raises(PackageError, match=r"but the base takes \[64, r\] and \[r, 32\]"):
        write_package(
            tmp_path / "package",
            base_path=base,
            adapter_folders={"foreign": make_peft_adapter(other, target_modules=["q_proj"])},
            precision="fp32",
            execution_provider="cpu",
            name="wide",
        )
