"""DoRA adapters from training to use: their package against PEFT, and what adding one to a package takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from passes.dora import main as write_scales
from passes.multi_adapter_export import export
from passes.package import write_package
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from runtime.adapter_file import read_adapter
from runtime.adapters import main
from runtime.manifest import read_manifest
from runtime.model import MultiAdapterModel
from runtime.stacking import stack
from tests.conftest import SENTENCES, save_tiny_model
from tests.graph.test_dora_slots import with_trained_magnitudes
from tests.passes.conftest import mood_data, story_data

Make = Callable[..., Path]
LABELS = ["bad", "good", "none"]
IDS = np.random.default_rng(0).integers(3, 290, (1, 9)).astype(np.int64)


class Package:
    """A base with a bias on q, k and v; a generator and a classifier by DoRA, another generator by LoRA."""

    def __init__(self, folder: Path, base: Path, make: Make) -> None:
        self.folder, self.base = folder, base
        self.sources = {
            "tone": with_trained_magnitudes(make(base, use_dora=True, settings={"template": "Say {prompt}"})),
            "mood": with_trained_magnitudes(
                make(base, seed=1, labels=LABELS, use_dora=True, target_modules=["v_proj"])
            ),
            "story": make(base, rank=8, seed=2, settings={"template": "Story: {prompt}"}),
        }
        build(folder, base, self.sources)


def build(folder: Path, base: Path, sources: dict[str, Path]) -> Path:
    target: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}
    write_package(folder, base_path=base, adapter_folders=sources, name="tiny", **target)
    return folder


@pytest.fixture(scope="module")
def package(tiny_qwen2_path: Path, make_peft_adapter: Make, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return Package(tmp_path_factory.mktemp("packages") / "tiny", tiny_qwen2_path, make_peft_adapter)


@pytest.fixture(scope="module")
def model(package: Package) -> MultiAdapterModel:
    return MultiAdapterModel.load(package.folder)


def peft_model(base: Path, source: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), source).eval()


def peft_logits(base: Path, source: Path) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(peft_model(base, source)(torch.from_numpy(IDS)).logits.numpy())


def test_generation_is_that_of_transformers(package: Package, model: MultiAdapterModel) -> None:
    """Greedy tokens, alone and in a batch with LoRA and the base."""
    import torch

    np.testing.assert_allclose(
        model.logits(IDS, adapter="tone"), peft_logits(package.base, package.sources["tone"]), atol=1e-4
    )
    alone = {}
    for name, template in (("tone", "Say {}"), ("story", "Story: {}")):
        ids = torch.tensor([model.encode_prompt(template.format(SENTENCES[0]))])
        with torch.no_grad():
            output = peft_model(package.base, package.sources[name]).generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
            )
        alone[name] = model.tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=True)
        assert model.generate(SENTENCES[0], name, max_new_tokens=12) == alone[name]
    base = model.generate(SENTENCES[0], None, max_new_tokens=12)
    requests: list[Any] = [(SENTENCES[0], "tone"), (SENTENCES[0], "story"), (SENTENCES[0], None)]
    assert model.generate_batch(requests, max_new_tokens=12) == [alone["tone"], alone["story"], base]


def test_class_logits_are_those_of_peft(package: Package, model: MultiAdapterModel) -> None:
    import torch
    from safetensors.torch import load_file

    source = package.sources["mood"]
    head = load_file(source / "adapter_model.safetensors")["base_model.model.score.weight"]
    with torch.no_grad():
        states = peft_model(package.base, source)(torch.from_numpy(IDS), output_hidden_states=True).hidden_states[-1]
    found = model.class_logits([IDS[0].tolist()], "mood")
    np.testing.assert_allclose(found[0], (states[0, -1] @ head.T).numpy(), atol=1e-4)


def test_a_package_says_what_it_holds(package: Package, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(package.folder)
    assert manifest["extra_slots"] == ["dora"]
    assert [entry.get("dora") for entry in manifest["adapters"].values()] == [True, True, None]
    assert main(["list", str(package.folder)]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "4 DoRA" in rows["tone"] and "DoRA" not in rows["story"]
    assert main(["inspect", str(package.sources["tone"])]) == 0
    told = capsys.readouterr().out
    assert "DoRA" in told and "dora_scale.safetensors is not there" in told


def test_rows_without_a_scale_get_ones(package: Package) -> None:
    files = {n: read_adapter(package.folder / f"adapters/{n}.onnx_adapter") for n in ("mood", "story")}
    name = "model.layers.0.attn.qkv_proj.lora_magnitude.weight"
    scale = stack([files["story"], files["mood"], {}])[name]
    assert scale.shape == (3, 1, 128) and (scale[[0, 2]] == 1).all()
    assert (scale[1, 0, :96] == 1).all() and (scale[1, 0, 96:] != 1).all()  # of q, k and v only v has DoRA


def test_an_adapter_of_the_package_is_merged(package: Package, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    assert main(["merge", str(package.folder), "tone", str(out), "--base", str(package.base)]) == 0
    assert "extra_slots" not in read_manifest(out)
    found = MultiAdapterModel.load(out).logits(IDS, adapter="tone")
    np.testing.assert_allclose(found, peft_logits(package.base, package.sources["tone"]), atol=1e-4)


def test_adding_one_takes_its_scales(
    package: Package, make_peft_adapter: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, source = tmp_path / "package", tmp_path / "late"
    shutil.copytree(package.folder, folder)
    shutil.copytree(with_trained_magnitudes(make_peft_adapter(package.base, seed=5, use_dora=True)), source)

    def add(path: Path, name: str, into: Path = folder) -> str:
        code = main(["add", str(into), name, str(path), "--template", "{prompt}"])
        told = capsys.readouterr()
        return "" if code == 0 else told.err

    assert f"`python -m passes.dora {source} --base BASE` writes it" in add(source, "late")
    assert write_scales([str(source), "--base", str(package.base)]) == 0
    assert add(source, "late") == ""
    wanted = peft_logits(package.base, source)
    np.testing.assert_allclose(MultiAdapterModel.load(folder).logits(IDS, adapter="late"), wanted, atol=1e-4)

    file = tmp_path / "late.onnx_adapter"  # the same in slot form
    assert main(["convert", str(source), str(file), "--for", str(folder)]) == 0
    assert add(file, "again") == ""
    late, again = (read_adapter(folder / f"adapters/{name}.onnx_adapter") for name in ("late", "again"))
    assert set(late) == set(again) and all(np.array_equal(late[name], again[name]) for name in late)

    plain = build(tmp_path / "plain", package.base, {})
    assert "extra_slots" not in read_manifest(plain)
    assert "this package has no slots for DoRA, which an export makes only where" in add(source, "late", plain)
    assert "lora_magnitude.weight: this package has no slots for DoRA" in add(file, "late", plain)

    with_trained_magnitudes(source, seed=1)
    assert "dora_scale.safetensors was made from other weights than those of adapter_model" in add(source, "new")
    other = save_tiny_model(tmp_path / "other", "qwen2", tie_word_embeddings=True, rms_norm_eps=1e-5)
    assert write_scales([str(source), "--base", str(other)]) == 0
    assert "dora_scale.safetensors was made with another base" in add(source, "new")
    assert write_scales([str(package.sources["story"]), "--base", str(package.base)]) == 1
    assert "is no DoRA adapter" in capsys.readouterr().err


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_trained_adapters_keep_their_parity(tiny_llama_path: Path, tmp_path: Path, quantization: str | None) -> None:
    """Trained on a float or an nf4 base, both kinds of adapter in one int4 package; the reference is float32 PEFT."""
    training = {"max_steps": 3, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    adapters = {"mood": tmp_path / "mood", "story": tmp_path / "story"}
    rows: list[Any] = [mood_data(max_length=64), story_data(max_length=64)]
    for (name, folder), data in zip(adapters.items(), rows, strict=True):
        folder.mkdir()
        settings = AdapterSettings(name, method="dora", quantization=quantization, rank=4, training_args=training)
        train_adapter(folder, tiny_llama_path, settings, data, None)
        assert json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["use_dora"] is True
    options = {"precision": "int4", "quantization": {"accuracy_level": 1}, "adapter_precision": "float"}
    config = SimpleNamespace(**options, threads=2, name="tiny", parity={"samples": 4})
    export(tiny_llama_path, adapters, tmp_path / "package", execution_provider="cpu", config=config)
    for entry in read_manifest(tmp_path / "package")["adapters"].values():
        assert entry["dora"] is True and entry["parity"]["fp32"]["max_abs_difference"] < 1e-4
