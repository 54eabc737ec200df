"""A written package in use, against transformers and PEFT."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.package import write_package
from runtime.errors import PackageError
from runtime.model import MultiAdapterModel
from runtime.session import pad_right
from tests.conftest import SENTENCES

LABELS = ["bad", "good", "none"]


class Package:
    """A float32 package with three adapters, and the PEFT folders that went into it."""

    def __init__(self, folder: Path, base: Path, make: Callable[..., Path]) -> None:
        self.folder, self.base = folder, base
        self.sources = {
            "mood": make(base, rank=4, labels=LABELS, settings={"template": "Text: {text}"}),
            "story": make(base, rank=8, seed=1, use_rslora=True),
            "chat": make(base, rank=2, seed=2, settings={"template": "chat"}),
        }
        target: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}
        write_package(folder, base_path=base, adapter_folders=self.sources, name="tiny", **target)


@pytest.fixture(scope="module")
def package(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Package:
    return Package(tmp_path_factory.mktemp("packages") / "tiny", tiny_llama_path, make_peft_adapter)


@pytest.fixture(scope="module")
def model(package: Package) -> MultiAdapterModel:
    return MultiAdapterModel.load(package.folder)


def torch_model(package: Package, adapter: str | None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = AutoModelForCausalLM.from_pretrained(package.base)
    return base.eval() if adapter is None else PeftModel.from_pretrained(base, package.sources[adapter]).eval()


def torch_class_logits(package: Package, texts: list[str]) -> np.ndarray:
    """One text at a time, so without padding: final hidden state of the last token @ score."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    reference = torch_model(package, "mood")
    score = load_file(package.sources["mood"] / "adapter_model.safetensors")["base_model.model.score.weight"]
    tokenizer = AutoTokenizer.from_pretrained(package.base)
    rows = []
    for text in texts:
        ids = tokenizer(f"Text: {text}", return_tensors="pt", truncation=True, max_length=64).input_ids
        with torch.no_grad():
            hidden = reference(ids, output_hidden_states=True).hidden_states[-1]
        rows.append((hidden[0, -1] @ score.T).numpy())
    return np.stack(rows)


def test_classify_gives_the_probabilities_of_torch(package: Package, model: MultiAdapterModel) -> None:
    texts = [*SENTENCES, "braces {x} stay", "a very long text that must be cut " * 12]
    wanted = torch_class_logits(package, texts)
    np.testing.assert_allclose(model.class_logits(texts, "mood", batch_size=4), wanted, atol=1e-4)
    softmax = np.exp(wanted) / np.exp(wanted).sum(axis=1, keepdims=True)
    for result, row in zip(model.classify(texts, "mood", batch_size=5), softmax, strict=True):
        assert result.label == LABELS[int(row.argmax())]
        assert result.probability == pytest.approx(row.max(), abs=1e-4)
        assert list(result.probabilities) == LABELS
        assert sum(result.probabilities.values()) == pytest.approx(1.0, abs=1e-12)


def test_a_row_does_not_depend_on_its_batch(model: MultiAdapterModel) -> None:
    together = model.class_logits(SENTENCES, "mood", batch_size=len(SENTENCES))
    alone = np.concatenate([model.class_logits([text], "mood") for text in SENTENCES])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    rows = [model.tokenizer.encode(text).ids for text in SENTENCES[:4]]
    ids, mask = pad_right(rows)
    batch = model.logits(ids, mask, adapter="story")
    for row, values in zip(rows, batch, strict=True):
        np.testing.assert_allclose(values[: len(row)], model.logits(np.array([row]), adapter="story")[0], atol=1e-4)
    by_ids = model.class_logits(rows, "mood")
    assert by_ids.shape == (4, 3)
    assert model.classify([], "mood") == []


def test_windows_are_averaged(package: Package, make_peft_adapter: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from data.tokenizing import encode_windows

    settings = {"max_length": 12, "window_stride": 5}
    source = make_peft_adapter(package.base, labels=LABELS, settings=settings)
    write_package(
        tmp_path / "p",
        base_path=package.base,
        adapter_folders={"long": source},
        precision="fp32",
        execution_provider="cpu",
        name="p",
    )
    model = MultiAdapterModel.load(tmp_path / "p")
    tokenizer: Any = AutoTokenizer.from_pretrained(package.base)
    for text in [" ".join(SENTENCES[:2]), "Hi", SENTENCES[3]]:
        windows = encode_windows(tokenizer, text, 12, 5)
        wanted = model.class_logits(windows, "long").mean(axis=0)
        np.testing.assert_allclose(model.class_logits([text], "long")[0], wanted, atol=1e-5)
    assert len(encode_windows(tokenizer, SENTENCES[3], 12, 5)) > 1


@pytest.mark.parametrize("adapter", [None, "story", "chat"])
def test_generate_gives_the_greedy_text_of_transformers(
    package: Package, model: MultiAdapterModel, adapter: str | None
) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(package.base)
    reference = torch_model(package, adapter)
    for prompt in SENTENCES[:3]:
        if adapter == "chat":
            message = [{"role": "user", "content": prompt}]
            ids = tokenizer.apply_chat_template(
                message, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).input_ids
        else:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
        assert model.encode_prompt(prompt, adapter) == ids[0].tolist()
        with torch.no_grad():
            output = reference.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
            )
        wanted = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert model.generate(prompt, adapter, max_new_tokens=24) == wanted
        assert "".join(model.stream(prompt, adapter, max_new_tokens=24)) in (wanted, wanted.rstrip("\ufffd"))


def test_onnxruntime_genai_alone_gives_the_logits_of_peft(package: Package) -> None:
    """Stock tools load the adapter files: prompt and decode steps, two adapters on one loaded base."""
    import onnxruntime_genai as og
    import torch

    base = og.Model(str(package.folder))
    adapters = og.Adapters(base)
    for name in ("story", "mood"):
        adapters.load(str(package.folder / "adapters" / f"{name}.onnx_adapter"), name)
    ids = np.random.default_rng(3).integers(3, 290, (1, 12)).astype(np.int64)
    choices: tuple[str | None, ...] = ("story", "mood", None)
    for choice in choices:
        params = og.GeneratorParams(base)
        params.set_search_options(max_length=20)
        generator = og.Generator(base, params)
        if choice:
            generator.set_active_adapter(adapters, choice)
        with torch.no_grad():
            wanted = torch_model(package, choice)(torch.from_numpy(ids)).logits.numpy()
        generator.append_tokens(ids[:, :9].astype(np.int32))
        np.testing.assert_allclose(np.asarray(generator.get_output("logits"))[0], wanted[0, 8:9], atol=1e-4)
        for step in range(9, 12):
            generator.append_tokens(ids[:, step : step + 1].astype(np.int32))
            np.testing.assert_allclose(np.asarray(generator.get_output("logits"))[0, -1], wanted[0, step], atol=1e-4)
        classes = np.asarray(generator.get_output("class_logits"))
        assert classes.shape == (1, 3 if choice == "mood" else 0)


def test_sampling_is_seeded_and_length_is_kept(model: MultiAdapterModel) -> None:
    first, again, other = (model.generate("The", "story", 16, temperature=1.2, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    prompt = model.encode_prompt("The")
    assert len(list(model.tokens(prompt, None, 40, stop_at_eos=False))) == 40
    assert len(list(model.tokens(prompt, None, 1000, stop_at_eos=False))) == 128 - len(prompt)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.classify("x", "moood"), "did you mean 'mood'"),
        (lambda m: m.classify("x", "story"), "adapter 'story' is for generation, not for classification"),
        (lambda m: m.generate("x", "mood"), "adapter 'mood' is for classification, not for generation"),
        (lambda m: m.generate("x", "stori"), "did you mean 'story'"),
        (lambda m: m.generate("x", temperature=-1.0, top_p=0.0), "temperature is -1.0.*top_p is 0.0"),
        (lambda m: m.generate("word " * 200), "must have 1 to 127"),
        (lambda m: m.logits(np.array([[1]]), adapter="nothing"), "Valid: chat, mood, story"),
    ],
)
def test_wrong_use_is_named(model: MultiAdapterModel, call: Callable[[MultiAdapterModel], Any], message: str) -> None:
    with pytest.raises(PackageError, match=message):
        call(model)


def test_provider_that_is_absent_is_named(package: Package) -> None:
    model = MultiAdapterModel.load(package.folder, execution_provider="dml")
    with pytest.raises(PackageError, match=r"has no DmlExecutionProvider.*available: cpu"):
        model.classify("x", "mood")


def test_wheels_that_clash_and_wheels_that_are_absent(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("runtime.session._installed", lambda name: name in ("onnxruntime", "onnxruntime-gpu"))
        with pytest.raises(PackageError, match="onnxruntime and onnxruntime-gpu are both installed"):
            MultiAdapterModel.load(package.folder)
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)
    model = MultiAdapterModel.load(package.folder)
    with pytest.raises(PackageError, match="generation needs onnxruntime-genai"):
        model.generate("The", max_new_tokens=2)
    assert model.classify("The", "mood")[0].label in LABELS


def test_runtime_needs_none_of_the_training_packages(package: Package) -> None:
    """A deployment has no torch, transformers, olive or peft: importing one of them fails in this process."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "olive", "peft", "onnx", "datasets", "sklearn"):
            raise ImportError(name + " must not be imported")
sys.meta_path.insert(0, Refuse())
import runtime.adapters
from runtime.model import MultiAdapterModel
model = MultiAdapterModel.load({str(package.folder)!r})
assert model.generate("The", "story", 3) is not None
print(model.classify("The kettle", "mood")[0].label)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in LABELS


def test_failed_build_leaves_the_former_package(
    package: Package, tmp_path: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    folder = tmp_path / "p"
    shutil.copytree(package.folder, folder)
    before = (folder / "package.json").read_bytes()
    biased = make_peft_adapter(package.base, bias="lora_only")
    with pytest.raises(PackageError, match=r"(?s)adapter 'biased'.*bias is 'lora_only'"):
        write_package(
            folder,
            base_path=package.base,
            adapter_folders={"biased": biased},
            precision="fp32",
            execution_provider="cpu",
            name="p",
        )
    assert (folder / "package.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name != "olive-cache"] == ["p"]
    new = write_package(
        folder, base_path=package.base, adapter_folders={}, precision="fp32", execution_provider="cpu", name="q"
    )
    assert MultiAdapterModel.load(folder).manifest == new
    assert [p.name for p in tmp_path.iterdir() if p.name != "olive-cache"] == ["p"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(PackageError, match="holds something that is no package"):
        write_package(
            tmp_path / "notes",
            base_path=package.base,
            adapter_folders={},
            precision="fp32",
            execution_provider="cpu",
            name="q",
        )
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_int4_package_answers_like_its_own_weights(package: Package, tmp_path: Path) -> None:
    """The whole way at int4: head and LoRA on the quantized base, against torch on the dequantized weights."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from tests.graph.reference import load_dequantized

    source = package.sources["mood"]
    target: dict[str, Any] = {"precision": "int4", "execution_provider": "cpu", "quantization": {"accuracy_level": 1}}
    write_package(tmp_path / "p", base_path=package.base, adapter_folders={"mood": source}, name="p", **target)
    model = MultiAdapterModel.load(tmp_path / "p")
    reference: Any = AutoModelForCausalLM.from_pretrained(package.base)
    load_dequantized(reference, tmp_path / "p" / "model.onnx", tied=False)
    reference = PeftModel.from_pretrained(reference, source).eval()
    score = load_file(source / "adapter_model.safetensors")["base_model.model.score.weight"]
    ids = model.tokenizer.encode(f"Text: {SENTENCES[0]}").ids
    with torch.no_grad():
        hidden = reference(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    np.testing.assert_allclose(
        model.class_logits([SENTENCES[0]], "mood")[0], (hidden[0, -1] @ score.T).numpy(), atol=1e-4
    )
