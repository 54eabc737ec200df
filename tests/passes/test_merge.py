"""Merged packages against PEFT's own merge_and_unload, and what merging refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.merged_base import Change, changes_from_slots, write_merged_base
from passes.package import write_package
from runtime.adapters import main
from runtime.conversion import slot_tensors
from runtime.manifest import read_manifest
from runtime.model import MultiAdapterModel
from tests.conftest import SENTENCES, save_tiny_model
from tests.runtime.test_conversion import SLOTS, lora, write_folder

PATTERNS = {"alpha_pattern": {"q_proj": 20}, "rank_pattern": {"v_proj": 3}}


class Package:
    def __init__(self, folder: Path, base: Path, make: Callable[..., Path]) -> None:
        self.folder, self.base = folder, base
        settings = {"template": "Text: {text}"}
        self.sources = {
            "mood": make(base, labels=["bad", "good", "none"], settings=settings, **PATTERNS),
            "story": make(base, rank=8, seed=1, use_rslora=True, settings={"template": "Story: {prompt}"}),
        }
        target: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}
        write_package(folder, base_path=base, adapter_folders=self.sources, name="tiny", **target)


@pytest.fixture(scope="module")
def package(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Package:
    return Package(tmp_path_factory.mktemp("packages") / "tiny", tiny_llama_path, make_peft_adapter)


def merged_by_peft(base: Path, source: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), source).merge_and_unload().eval()


def contents(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_merged_classifier_gives_the_class_logits_of_peft(package: Package, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    before = contents(package.folder)
    out = tmp_path / "merged"
    assert main(["merge", str(package.folder), "mood", str(out), "--base", str(package.base)]) == 0
    assert contents(package.folder) == before
    assert [p.name for p in tmp_path.iterdir() if p.name != "olive-cache"] == ["merged"]
    model = MultiAdapterModel.load(out)
    entry = model.adapters["mood"]
    assert (entry["rank"], entry["labels"], entry["template"]) == (0, ["bad", "good", "none"], "Text: {text}")
    assert model.manifest["base"]["merged"]["adapter"] == "mood"
    reference = merged_by_peft(package.base, package.sources["mood"])
    score = load_file(package.sources["mood"] / "adapter_model.safetensors")["base_model.model.score.weight"]
    for text in SENTENCES[:4]:
        ids = torch.tensor([model.tokenizer.encode(f"Text: {text}").ids])
        with torch.no_grad():
            hidden = reference(ids, output_hidden_states=True).hidden_states[-1]
        wanted = (hidden[0, -1] @ score.T).numpy()
        np.testing.assert_allclose(model.class_logits([text], "mood")[0], wanted, atol=1e-4)
        assert model.classify(text, "mood")[0].label == entry["labels"][int(wanted.argmax())]


def test_merged_generator_continues_as_peft_does(package: Package, tmp_path: Path) -> None:
    import torch

    out = tmp_path / "merged"
    assert main(["merge", str(package.folder), "story", str(out), "--base", str(package.base)]) == 0
    model = MultiAdapterModel.load(out)
    reference = merged_by_peft(package.base, package.sources["story"])
    ids = torch.tensor([model.tokenizer.encode(f"Story: {SENTENCES[0]}").ids])
    with torch.no_grad():
        logits = reference(ids).logits.numpy()
        output = reference.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
    for adapter in ("story", None):  # the adapter is the base now
        np.testing.assert_allclose(model.logits(ids.numpy(), adapter=adapter), logits, atol=1e-4)
    wanted = model.tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
    assert model.generate(SENTENCES[0], "story", 12) == wanted


@pytest.mark.parametrize("half", [False, True])
def test_dora_folder_is_merged_exactly(
    package: Package, make_peft_adapter: Callable[..., Path], tmp_path: Path, half: bool
) -> None:
    """Weights that decide the model: every projection of PEFT's merged model, bfloat16 matrices included."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from passes.merged_base import changes_from_peft
    from runtime.adapter_source import read_source

    source = make_peft_adapter(package.base, seed=3, use_dora=True, use_rslora=True, **PATTERNS)
    path = source / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, value in tensors.items():
        if "magnitude" in key:
            tensors[key] = value * (1 + 0.3 * torch.rand_like(value))
        elif half:
            tensors[key] = value.bfloat16()
    save_file(tensors, path)
    changes, head = changes_from_peft(read_source(source), 64)
    assert head is None and len(changes) == 14
    write_merged_base(package.base, tmp_path / "base", changes)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(package.base), source)
    wanted = model.float().merge_and_unload().state_dict()
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        np.testing.assert_allclose(found[key].numpy(), value.numpy(), atol=1e-5, err_msg=key)
    if not half:
        out = tmp_path / "merged"
        places = [str(package.folder), str(source), str(out)]
        arguments = ["merge", *places, "--base", str(package.base), "--name", "dora", "--template", "Say {prompt}"]
        assert main(arguments) == 0
        package_model = MultiAdapterModel.load(out)
        assert package_model.adapters["dora"]["template"] == "Say {prompt}"
        ids = np.random.default_rng(0).integers(3, 290, (1, 9)).astype(np.int64)
        with torch.no_grad():
            logits = model.base_model.model(torch.from_numpy(ids)).logits.numpy()
        np.testing.assert_allclose(package_model.logits(ids, adapter="dora"), logits, atol=1e-4)


def test_packed_weights_of_the_base(tmp_path: Path) -> None:
    """Phi-3 keeps q, k and v in one weight, and gate and up: a slot's change reaches its own rows only."""
    weights = {**lora("self_attn.q_proj", 8, 8), **lora("self_attn.v_proj", 8, 4, 3), **lora("mlp.up_proj", 8, 12)}
    tensors, _ = slot_tensors(write_folder(tmp_path, weights), SLOTS, 8)
    layer = "model.layers.0"
    packed = {f"{layer}.self_attn.qkv_proj.weight", f"{layer}.mlp.gate_up_proj.weight"}
    changes = changes_from_slots(tensors, SLOTS, packed)
    assert {f"{module}.weight" for module in changes} == packed
    (qa, qb), (va, vb), (ua, ub) = (tuple(weights.values())[i : i + 2] for i in (0, 2, 4))
    qkv = changes[f"{layer}.self_attn.qkv_proj"].apply(np.zeros((16, 8), np.float32))
    np.testing.assert_allclose(qkv, np.concatenate([qb @ qa * 3, np.zeros((4, 8)), vb @ va * 2]), atol=1e-5)
    both = changes[f"{layer}.mlp.gate_up_proj"].apply(np.zeros((24, 8), np.float32))
    np.testing.assert_allclose(both, np.concatenate([np.zeros((12, 8)), ub @ ua * 3]), atol=1e-5)


def test_half_precision_base_is_merged_in_float32(package: Package, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    half = AutoModelForCausalLM.from_pretrained(package.base, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    rng = np.random.default_rng(0)
    change = Change(*(rng.normal(size=shape).astype(np.float32) * 0.01 for shape in ((64, 2), (2, 64))))
    write_merged_base(tmp_path / "half", tmp_path / "merged", {"model.layers.1.self_attn.o_proj": change})
    found = load_file(tmp_path / "merged" / "model.safetensors")
    key = "model.layers.1.self_attn.o_proj.weight"
    wanted = half.state_dict()[key].float().numpy() + change.b.T @ change.a.T
    np.testing.assert_allclose(found[key].numpy(), wanted, atol=1e-6)
    assert found["model.layers.0.self_attn.o_proj.weight"].dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["P", "moood", "OUT", "--base", "BASE"], "did you mean 'mood'"),
        (["P", "mood", "OUT", "--base", "OTHER"], "is not the base of package 'tiny': fingerprint"),
        (["P", "mood", "NOTES", "--base", "BASE"], "holds something that is no package"),
        (["P", "mood", "P", "--base", "BASE"], "is the package that is merged"),
        (["P", "SOURCE", "OUT", "--base", "BASE"], "--name says what the adapter is called"),
        (["P", "SOURCE", "OUT", "--base", "BASE", "--name", "a/b"], "only letters, digits, _ and -"),
        (
            ["P", "WIDE", "OUT", "--base", "BASE", "--name", "a"],
            "q_proj.weight has shape [64, 64], but",
        ),
        (["nowhere", "mood", "OUT", "--base", "BASE"], "is no package"),
    ],
)
def test_what_cannot_be_merged_is_named_and_nothing_is_written(
    package: Package,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make_peft_adapter: Callable[..., Path],
    arguments: list[str],
    message: str,
) -> None:
    places = {"P": package.folder, "BASE": package.base, "OUT": tmp_path / "out", "NOTES": tmp_path / "notes"}
    places["SOURCE"] = package.sources["story"]
    places["NOTES"].mkdir()
    (places["NOTES"] / "a.txt").write_text("mine")
    if {"OTHER", "WIDE"} & set(arguments):
        places["OTHER"] = save_tiny_model(tmp_path / "other", hidden_size=128, num_attention_heads=8)
        places["WIDE"] = make_peft_adapter(places["OTHER"], target_modules=["q_proj"])
    before = contents(tmp_path), contents(package.folder)
    assert main(["merge", *(str(places.get(a, a)) for a in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert (contents(tmp_path), contents(package.folder)) == before


def test_an_older_package_is_replaced_only_by_a_finished_one(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "package.json").write_text(json.dumps({"format_version": 1, "slots": {}, "name": "older"}))

    def fail(*_: object, **__: object) -> None:
        from runtime.errors import OlivalError

        raise OlivalError("the disk is full")

    arguments = ["merge", str(package.folder), "story", str(out), "--base", str(package.base)]
    assert main(arguments) == 1 and "--replace puts the new one in its place" in capsys.readouterr().err
    arguments.append("--replace")
    with monkeypatch.context() as patch:
        patch.setattr("passes.merge.install_adapter", fail)
        assert main(arguments) == 1
    assert json.loads((out / "package.json").read_text())["name"] == "older"
    assert main(arguments) == 0
    assert read_manifest(out)["name"] == "tiny-story"
