"""Method "full": what is trained and saved, a plain loop of transformers as the reference, and packages of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from evaluators.torch_model import TorchModel
from passes.merge import merge_adapter
from passes.multi_adapter_export import export
from passes.package import write_package
from passes.training.full import FullAdapted
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from runtime.adapter_source import HEAD_KEY
from runtime.adapters import add_adapter, main
from runtime.errors import PackageError
from runtime.manifest import base_fingerprint, read_manifest
from runtime.model import MultiAdapterModel
from tests.conftest import SENTENCES, save_tiny_model
from tests.graph.torch_models import save_torch_model
from tests.passes.conftest import mood_data, story_data, workflow
from tests.passes.test_training_control import interrupt, stop_at, weights
from tests.passes.test_workflow_check import problems

FREEZE: list[Any] = ["none", {"last_n_blocks": 1}, "all"]
RATE = 0.002


def save_base(folder: Path, kind: str) -> Path:
    changes = {"tie_word_embeddings": True} if kind == "qwen2" else {}
    return save_tiny_model(folder, kind, **changes) if kind in ("llama", "qwen2") else save_torch_model(folder, kind)


def plain(base: Path, kind: str, **dropout: Any) -> Any:
    """By transformers alone: a causal language model, or an encoder."""
    from transformers import AutoModel, AutoModelForCausalLM

    if kind == "bert":
        return AutoModel.from_pretrained(base, add_pooling_layer=False, **dropout)
    return AutoModelForCausalLM.from_pretrained(base, **dropout)


def train(folder: Path, base: Path, data: Any, freeze: Any, validation: Any = None, **training: Any) -> dict[str, Any]:
    """Three steps of all rows unless `training` says otherwise; training.json."""
    folder.mkdir()
    arguments = {"max_steps": 3, "learning_rate": RATE, "logging_strategy": "steps", "logging_steps": 1, **training}
    settings = AdapterSettings("own", method="full", freeze=freeze, training_args=arguments)
    train_adapter(folder, base, settings, data, validation)
    record: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return record


def tuned(base: Path, kind: str, adapter: Path) -> tuple[Any, torch.Tensor | None]:
    """The base of transformers with an adapter's weights put in by hand, and the adapter's head."""
    model, trained = plain(base, kind), load_file(adapter / "adapter_model.safetensors")
    head = trained.pop(HEAD_KEY, None)
    found = model.load_state_dict(trained, strict=False)
    assert not found.unexpected_keys
    return model.eval(), head


def class_logits(model: Any, head: torch.Tensor | None, kind: str, ids: list[int]) -> np.ndarray:
    assert head is not None
    with torch.no_grad():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        return np.asarray(hidden[0 if kind == "bert" else -1] @ head.T)


# which weights of two blocks each setting may change; embeddings of classifiers that no text of them uses stay
LAST_BLOCK = {
    "llama": ("model.layers.1.", "model.norm."),
    "qwen2": ("model.layers.1.", "model.norm."),
    "gpt2": ("transformer.h.1.", "transformer.ln_f."),
    "bert": ("encoder.layer.1.",),
}


@pytest.mark.parametrize("kind", LAST_BLOCK)
@pytest.mark.parametrize("freeze", FREEZE, ids=str)
def test_what_is_trained(tmp_path: Path, kind: str, freeze: Any) -> None:
    """And nothing else: every weight of the base that is not in the adapter's file is as it was in memory."""
    base, seen = save_base(tmp_path / "base", kind), {}
    before, fingerprint = {n: p.clone() for n, p in plain(base, kind).named_parameters()}, base_fingerprint(base)
    original = FullAdapted.weights

    def watched(self: FullAdapted) -> dict[str, torch.Tensor]:
        seen.update({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FullAdapted, "weights", watched)
        record = train(tmp_path / "own", base, mood_data(), freeze)
    file = tmp_path / "own" / "adapter_model.safetensors"
    saved = load_file(file)
    assert saved.pop(HEAD_KEY).shape == (2, 64)
    assert {value.dtype for value in saved.values()} <= {torch.float32}
    changed = {name for name, value in seen.items() if not torch.equal(value, before[name])}
    allowed = {
        "none": {name for name in before if name != "lm_head.weight"},  # a head of its own, which classes do not read
        "all": set(),
        str({"last_n_blocks": 1}): {name for name in before if name.startswith(LAST_BLOCK[kind])},
    }[str(freeze)]
    assert set(saved) == allowed and changed <= allowed
    assert len(changed) >= 0.9 * len(allowed)  # a key's bias changes no softmax
    for name, value in saved.items():
        torch.testing.assert_close(value, seen[name], atol=0, rtol=0)
    assert record["trainable_parameters"] == sum(value.numel() for value in saved.values()) + 2 * 64
    assert base_fingerprint(base) == fingerprint
    config = json.loads((tmp_path / "own" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["freeze"]) == ("FULL", freeze)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("freeze", FREEZE[:2], ids=str)
def test_generation_equals_a_plain_loop(tmp_path: Path, kind: str, freeze: Any) -> None:
    """transformers and torch alone, from the same weights: the same losses and the same weights in the end."""
    from transformers import AutoTokenizer

    base = save_base(tmp_path / "base", kind)
    if kind == "gpt2":  # its dropout would draw other random numbers for padded batches
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
        config |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
        (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    record = train(tmp_path / "own", base, story_data(), freeze, lr_scheduler_type="constant")
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    data, rows = story_data(), []
    for prompt, response in zip(data.prompts, data.responses, strict=True):
        head = tokenizer(prompt)["input_ids"]
        tail = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((head + tail, len(head)))
    model = plain(base, kind).train()
    chosen = {n: p for n, p in model.named_parameters() if freeze == "none" or n.startswith(LAST_BLOCK[kind])}
    model.requires_grad_(False)
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    optimizer, losses = torch.optim.AdamW(chosen.values(), lr=RATE, weight_decay=0.0), []
    noise: dict[str, torch.Tensor] = {}  # gradients that are rounding alone: a key's bias changes no softmax
    for _ in range(3):
        total, count = torch.zeros(()), 0
        for ids, start in rows:
            logits = model(torch.tensor([ids])).logits[0]
            labels = torch.tensor(ids[start:])
            total = total + nn.functional.cross_entropy(logits[start - 1 : -1], labels, reduction="sum")
            count += len(ids) - start
        optimizer.zero_grad()
        (total / count).backward()
        for name, parameter in chosen.items():
            size = parameter.grad.abs() if parameter.grad is not None else torch.zeros(())
            noise[name] = noise.get(name, torch.tensor(False)) | ((size > 0) & (size < 1e-6))
        torch.nn.utils.clip_grad_norm_(chosen.values(), 1.0)
        optimizer.step()
        losses.append(float(total.detach()) / count)
    assert losses[0] > 1.03 * losses[2]
    assert [e["loss"] for e in record["history"] if "loss" in e] == pytest.approx(losses, rel=2e-5)
    saved = load_file(tmp_path / "own" / "adapter_model.safetensors")
    assert saved.keys() == chosen.keys()
    assert all(float(some.float().mean()) < 0.05 for name, some in noise.items() if "bias" not in name)
    for name, value in saved.items():
        # Adam's first steps are signs of gradients: those near zero may turn by rounding
        away = (value - chosen[name].detach()).abs().where(~noise[name], 0)
        assert float(away.mean()) < 0.01 * RATE and float((away > 0.1 * RATE).float().mean()) < 0.02, name


def run_export(base: Path, adapters: dict[str, Path], folder: Path, precision: str = "fp32", **others: Any) -> None:
    options = {"precision": precision, "quantization": None, "threads": 2, "name": "tiny", "parity": None, **others}
    config = SimpleNamespace(**{"adapter_precision": "float", **options})
    export(base, adapters, folder, execution_provider="cpu", config=config)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "bert"])
def test_a_classifiers_package(tmp_path: Path, kind: str) -> None:
    base = save_base(tmp_path / "base", kind)
    train(tmp_path / "own", base, mood_data(), "none", max_steps=12)
    run_export(base, {"own": tmp_path / "own"}, tmp_path / "package")
    model, reference = MultiAdapterModel.load(tmp_path / "package"), tuned(base, kind, tmp_path / "own")
    entry, manifest = model.adapters["own"], model.manifest
    assert (entry["rank"], entry["labels"]) == (0, ["bad", "good"])
    assert manifest["base"]["merged"] == {"adapter": "own", "base_fingerprint": base_fingerprint(base)}
    assert entry["parity"]["fp32"]["max_abs_difference"] < 1e-4
    untouched = plain(base, kind).eval()
    by_torch = TorchModel(base, {"own": tmp_path / "own"})
    for text in mood_data(1).texts:
        ids = model.tokenizer.encode(text).ids
        wanted = class_logits(*reference, kind, ids)
        np.testing.assert_allclose(model.class_logits([text], "own")[0], wanted, atol=1e-4)
        np.testing.assert_allclose(by_torch.class_logits([ids], "own")[0], wanted, atol=1e-5)
        assert np.abs(class_logits(untouched, reference[1], kind, ids) - wanted).max() > 0.05
    results = model.classify(mood_data(1).texts, "own")
    assert [result.label for result in results] == mood_data(1).labels


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("freeze", FREEZE[:2], ids=str)
def test_a_writers_package(tmp_path: Path, kind: str, freeze: Any) -> None:
    base = save_base(tmp_path / "base", kind)
    train(tmp_path / "own", base, story_data(template="Q: {prompt}", max_length=64), freeze, max_steps=8)
    run_export(base, {"own": tmp_path / "own"}, tmp_path / "package")
    model, (reference, head) = MultiAdapterModel.load(tmp_path / "package"), tuned(base, kind, tmp_path / "own")
    assert head is None and model.adapters["own"]["template"] == "Q: {prompt}"
    by_torch = TorchModel(base, {"own": tmp_path / "own"})
    ids = np.array([model.encode_prompt(SENTENCES[0], "own")])
    with torch.no_grad():
        wanted = reference(torch.from_numpy(ids)).logits.numpy()
        before = plain(base, kind).eval()(torch.from_numpy(ids)).logits.numpy()
        limits = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        written = reference.generate(input_ids=torch.from_numpy(ids), **limits)[0, ids.shape[1] :].tolist()
    for adapter in ("own", None):  # the adapter is the package's base
        np.testing.assert_allclose(model.logits(ids, adapter=adapter), wanted, atol=1e-4)
    mask = np.ones_like(ids)
    np.testing.assert_allclose(by_torch.logits(ids, mask, "own"), wanted, atol=1e-5)
    np.testing.assert_array_equal(by_torch.logits(ids, mask, None), before)  # and not in PyTorch
    assert np.abs(before - wanted).max() > 0.05
    assert list(model.tokens(ids[0].tolist(), "own", 8, stop_at_eos=False)) == written


def test_a_package_of_four_bits(tmp_path: Path, tiny_llama_path: Path) -> None:
    train(tmp_path / "own", tiny_llama_path, mood_data(), {"last_n_blocks": 2}, max_steps=12)
    run_export(tiny_llama_path, {"own": tmp_path / "own"}, tmp_path / "package", "int4", adapter_precision="int8")
    entry = read_manifest(tmp_path / "package")["adapters"]["own"]
    assert entry["parity"]["fp32"]["max_abs_difference"] < 1e-4 and entry["parity"]["int4"]["top1_agreement"] > 0.9


def test_a_head_alone_lives_beside_other_adapters(
    tmp_path: Path, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    """`freeze: all`: classes of the frozen base's states, also in a batch with rows of LoRA adapters."""
    train(tmp_path / "head", tiny_llama_path, mood_data(), "all")
    lora = make_peft_adapter(tiny_llama_path, labels=["x", "y", "z"], settings={"template": "{text}"})
    adapters = {"lora": lora, "head": tmp_path / "head"}
    for folder in adapters.values():
        (folder / "samples.json").write_text(json.dumps([[1, 40, 41], [1, 60, 61, 62]]), encoding="utf-8")
    run_export(tiny_llama_path, adapters, tmp_path / "package")
    model = MultiAdapterModel.load(tmp_path / "package")
    assert model.adapters["head"]["rank"] == 0 and "merged" not in model.manifest["base"]
    untouched, head = plain(tiny_llama_path, "llama").eval(), load_file(tmp_path / "head/adapter_model.safetensors")
    reference = TorchModel(tiny_llama_path, adapters)
    texts = SENTENCES[:4]
    mixed = model.classify_batch(list(zip(texts, ["head", "lora"] * 2, strict=True)), batch_size=4)
    for text, result in zip(texts[::2], mixed[::2], strict=True):
        ids = model.tokenizer.encode(text).ids
        wanted = class_logits(untouched, head[HEAD_KEY], "llama", ids)
        np.testing.assert_allclose(reference.class_logits([ids], "head")[0], wanted, atol=1e-5)
        np.testing.assert_allclose(model.class_logits([text], "head")[0], wanted, atol=1e-4)
        probabilities = np.exp(wanted - wanted.max()) / np.exp(wanted - wanted.max()).sum()
        assert list(result.probabilities.values()) == pytest.approx(probabilities.tolist(), abs=1e-4)
    ids = model.tokenizer.encode(texts[1]).ids
    assert list(mixed[1].probabilities) == ["x", "y", "z"]
    np.testing.assert_allclose(model.class_logits([texts[1]], "lora"), reference.class_logits([ids], "lora"), atol=1e-4)


def test_own_weights_have_no_place_beside_others(
    tmp_path: Path, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "own", tiny_llama_path, mood_data(), {"last_n_blocks": 1})
    lora = make_peft_adapter(tiny_llama_path, settings={})
    wanted = (
        "adapter 'own' is a full fine-tuning, whose weights take the place of the base's, so lora cannot live beside"
    )
    with pytest.raises(PackageError, match=wanted):
        run_export(tiny_llama_path, {"own": tmp_path / "own", "lora": lora}, tmp_path / "package")
    assert not (tmp_path / "package").exists()
    target: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}
    write_package(tmp_path / "package", base_path=tiny_llama_path, adapter_folders={}, name="tiny", **target)
    refusal = (
        r"peft_type is 'FULL': holds 10 weights of the base itself \(model.layers.1.input_layernorm.weight, for one\)"
    )
    with pytest.raises(PackageError, match=refusal) as error:
        add_adapter(tmp_path / "package", "own", tmp_path / "own", {})
    assert len(str(error.value).splitlines()) == 2 and read_manifest(tmp_path / "package")["adapters"] == {}
    with pytest.raises(PackageError, match=refusal):
        merge_adapter(tmp_path / "package", str(tmp_path / "own"), tiny_llama_path, tmp_path / "merged", "own")
    assert main(["inspect", str(tmp_path / "own")]) == 0
    assert ["kind", "full"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    wide = save_tiny_model(tmp_path / "wide", intermediate_size=128)
    with pytest.raises(PackageError, match=r"down_proj.weight has shape \[64, 96\], but the base takes \[64, 128\]"):
        TorchModel(wide, {"own": tmp_path / "own"})


@pytest.mark.parametrize("freeze", FREEZE, ids=str)
def test_a_stopped_training_ends_as_an_undisturbed_one(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: Any
) -> None:
    """Bit for bit; checkpoints hold what is trained and nothing else."""
    arguments = {"max_steps": 12, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 5}
    chosen = AdapterSettings("own", method="full", freeze=freeze, training_args={**arguments, "learning_rate": RATE})
    for name in ("undisturbed", "stopped"):
        (tmp_path / name).mkdir()
    train_adapter(tmp_path / "undisturbed", tiny_llama_path, chosen, mood_data(), None)
    kept = tmp_path / "checkpoints"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(8, interrupt, patch)
        train_adapter(tmp_path / "stopped", tiny_llama_path, chosen, mood_data(), None, None, kept)
    trained = load_file(tmp_path / "undisturbed" / "adapter_model.safetensors")
    names = {"score.weight" if name == HEAD_KEY else f"model.{name}" for name in trained}
    assert load_file(kept / "checkpoint-5" / "model.safetensors").keys() == names
    torch.manual_seed(1234)  # what another process would have
    train_adapter(tmp_path / "stopped", tiny_llama_path, chosen, mood_data(), None, None, kept)
    record = json.loads((tmp_path / "stopped" / "training.json").read_text(encoding="utf-8"))
    assert record["resumed_from_step"] == 5
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")


def test_the_best_weights_are_taken(tmp_path: Path, tiny_llama_path: Path) -> None:
    """A rate that is far too high at first, then a validation that gets worse: its first epoch is what is kept."""
    folder = tmp_path / "own"
    folder.mkdir()
    training = {"num_train_epochs": 4, "learning_rate": 0.05, "lr_scheduler_type": "constant"}
    chosen = AdapterSettings(
        "own", method="full", training_args=training, early_stopping={"metric": "loss", "patience": 4}
    )
    train_adapter(folder, tiny_llama_path, chosen, mood_data(), mood_data(1))
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    losses = {entry["step"]: entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry}
    best = min(losses, key=lambda step: losses[step])
    assert best != max(losses) and record["best"]["step"] == best
    model, data = TorchModel(tiny_llama_path, {"own": folder}), mood_data(1)
    logits = torch.from_numpy(model.class_logits([model.encode(text) for text in data.texts], "own"))
    labels = torch.tensor([data.label_names.index(label) for label in data.labels])
    assert float(nn.functional.cross_entropy(logits, labels)) == pytest.approx(losses[best], rel=1e-3)


def test_bfloat16_is_for_computing_alone(tmp_path: Path, tiny_llama_path: Path) -> None:
    """Weights are float32, so that steps too small for 8 bits of mantissa are not lost."""
    for name, dtype in (("exact", "float32"), ("rounded", "bfloat16")):
        (tmp_path / name).mkdir()
        training = {"max_steps": 2, "learning_rate": 1e-5, "lr_scheduler_type": "constant"}
        chosen = AdapterSettings("own", method="full", compute_dtype=dtype, training_args=training)
        train_adapter(tmp_path / name, tiny_llama_path, chosen, story_data(), None)
    exact, rounded = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("exact", "rounded"))
    before = dict(plain(tiny_llama_path, "llama").named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    steps, others = ((found[name] - before[name].detach()).abs() for found in (exact, rounded))
    assert 1e-5 < float(others.mean()) < 2.5e-5 and float(steps.mean()) == pytest.approx(float(others.mean()), rel=0.1)
    assert not torch.equal(exact[name], rounded[name])


def test_small_steps_are_the_default() -> None:
    from passes.training.settings import training_arguments

    def rate(**options: Any) -> float:
        return training_arguments(AdapterSettings("own", **options), Path(), False).learning_rate

    assert rate() == rate(method="full", freeze="all") == 2e-4
    assert rate(method="full") == rate(method="full", freeze={"last_n_blocks": 1}) == 2e-5
    assert rate(method="full", training_args={"learning_rate": 0.5}) == 0.5


FULL = {"method": "full", "rank": 8}  # the tiny workflow has a rank of 4, which is not of this method
WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "beside others": (
        FULL,
        [
            "passes.mood.method: 'full' changes the base, which the adapters of one package share, but there are also "
            "passes.story; make two workflows, or take method 'lora' here"
        ],
    ),
    "a head alone": ({**FULL, "freeze": "all"}, []),
    "too many blocks": (
        {**FULL, "freeze": {"last_n_blocks": 3}},
        [
            "passes.mood.freeze: last_n_blocks is 3, but the base has 2 blocks",
            "passes.mood.method: 'full' changes the base, which the adapters of one package share, but there are also "
            "passes.story; make two workflows, or take method 'lora' here",
        ],
    ),
}


@pytest.mark.parametrize("options", WRONG)
def test_workflows_are_checked(tmp_path: Path, tiny_llama_path: Path, options: str) -> None:
    content = workflow(tmp_path / "w", tiny_llama_path)
    given, expected = WRONG[options]
    content["passes"]["mood"] |= given
    found = problems(content)
    assert found == expected


def test_alone_it_is_right_on_every_kind_of_base(tmp_path: Path, tiny_llama_path: Path) -> None:
    from tests.passes.test_torch_bases import reading_workflow

    gpt2, bert = save_torch_model(tmp_path / "gpt2", "gpt2"), save_torch_model(tmp_path / "bert", "bert")
    for base in (tiny_llama_path, gpt2, bert):
        for blocks in (2, 3):
            content = reading_workflow(tmp_path / "w", base)
            content["passes"]["mood"] |= {**FULL, "freeze": {"last_n_blocks": blocks}}
            wrong = ["passes.mood.freeze: last_n_blocks is 3, but the base has 2 blocks"]
            assert problems(content) == (wrong if blocks == 3 else [])
