"""Training on the tiny model: what is written is what was trained, on the labels that were meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.examples import ClassificationData, GenerationData
from data.tokenizing import encode_example
from passes.training.adapter_pass import ATTRIBUTE
from passes.training.classifier import HEAD_INIT_STD, PooledClassifier
from passes.training.pooling import last_real_positions, pooled_features
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from passes.training.trainer import AdapterTrainer
from runtime.errors import DataError, OlivalError
from runtime.manifest import base_fingerprint
from tests.passes.conftest import data_config, mood_data, story_data, write_mood_csv, write_story_jsonl

IDS = torch.tensor([[1, 40, 41, 42, 43, 44, 45, 46, 47]])  # any nine tokens
LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


class Trained:
    """A written adapter folder, and what the model in memory computed when its training ended."""

    def __init__(
        self, folder: Path, settings: AdapterSettings, start: dict[str, torch.Tensor], logits: torch.Tensor
    ) -> None:
        self.folder, self.settings, self.start, self.logits = folder, settings, start, logits

    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))
        return content

    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.record()["history"] if "loss" in entry]


Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, tiny_llama_path: Path) -> Iterator[Train]:
    """``train(data, validation=None, steps=3, training={...}, **settings)`` -> Trained, on the tiny Llama."""
    with pytest.MonkeyPatch.context() as patch:

        def run(data: Any, validation: Any = None, steps: int = 3, training: Any = None, **settings: Any) -> Trained:
            seen: dict[str, Any] = {}

            class WatchedTrainer(AdapterTrainer):
                def train(self, *arguments: Any, **options: Any) -> Any:
                    seen["start"] = {k: v.detach().clone() for k, v in self.model.named_parameters() if v.requires_grad}
                    result = super().train(*arguments, **options)
                    self.model.eval()
                    with torch.no_grad():
                        out = self.model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
                    seen["logits"] = out["logits"].float()
                    return result

            patch.setattr("passes.training.train.AdapterTrainer", WatchedTrainer)
            arguments = {"max_steps": steps, "learning_rate": 0.01, "logging_strategy": "steps", "logging_steps": 1}
            chosen = AdapterSettings("test", **{"rank": 4, **settings}, training_args={**arguments, **(training or {})})
            folder = tmp_path_factory.mktemp("trained")
            train_adapter(folder, tiny_llama_path, chosen, data, validation)
            return Trained(folder, chosen, seen["start"], seen["logits"])

        yield run


@pytest.fixture(scope="module")
def classifier(train: Train) -> Trained:
    return train(mood_data(), mood_data(1), steps=16)


@pytest.fixture(scope="module")
def writer(train: Train) -> Trained:
    return train(story_data(), steps=16)


def reloaded(base: Path, folder: Path) -> Any:
    """By peft and transformers alone, without this workspace."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


def head_of(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"]


def test_a_generation_adapter_learns(writer: Trained) -> None:
    losses = writer.losses()
    assert len(losses) == 16 and losses[-1] < 0.6 * losses[0]
    description = json.loads((writer.folder / "adapter.json").read_text(encoding="utf-8"))
    assert description["task"] == "generation" and description["labels"] is None
    assert description["template"] == "{prompt}" and description["max_length"] == 256


def test_a_classification_adapter_learns(classifier: Trained, tiny_llama_path: Path) -> None:
    from evaluators.torch_model import TorchModel

    model, data = TorchModel(tiny_llama_path, {"test": classifier.folder}), mood_data(1)
    rows = [model.tokenizer(text)["input_ids"] for text in data.texts]
    chosen = model.class_logits(rows, "test").argmax(axis=1)
    assert [model.labels("test")[i] for i in chosen] == data.labels
    description = json.loads((classifier.folder / "adapter.json").read_text(encoding="utf-8"))
    assert description["task"] == "classification" and description["labels"] == ["bad", "good"]
    assert [e["eval_loss"] for e in classifier.record()["history"] if "eval_loss" in e][-1] < 0.2


def test_a_reloaded_generation_adapter_gives_the_trained_logits(writer: Trained, tiny_llama_path: Path) -> None:
    with torch.no_grad():
        logits = reloaded(tiny_llama_path, writer.folder)(IDS).logits
    torch.testing.assert_close(logits, writer.logits, atol=1e-5, rtol=0)


def test_a_reloaded_classification_adapter_gives_the_trained_logits(classifier: Trained, tiny_llama_path: Path) -> None:
    with torch.no_grad():
        hidden = reloaded(tiny_llama_path, classifier.folder)(IDS, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(hidden[:, -1] @ head_of(classifier.folder).T, classifier.logits, atol=1e-5, rtol=0)


def test_what_is_written(classifier: Trained, writer: Trained) -> None:
    from safetensors.torch import load_file

    for trained, rows in ((classifier, 16), (writer, 4)):
        config = json.loads((trained.folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["r"] == 4 and config["lora_alpha"] == 16
        assert {name.rsplit(".", 1)[-1] for name in config["target_modules"]} == LINEAR
        weights = load_file(trained.folder / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        record = trained.record()
        assert record["rows"] == rows
        assert record["trainable_parameters"] == sum(tensor.numel() for tensor in weights.values())
        samples = json.loads((trained.folder / "samples.json").read_text(encoding="utf-8"))
        assert samples and all(row[0] == 1 for row in samples)
    assert tuple(head_of(classifier.folder).shape) == (2, 64)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[1, 1, 1], [1, 1, 0], [1, 0, 0]], [2, 1, 0]),
        ([[1, 1, 1], [0, 1, 1], [0, 0, 1]], [2, 2, 2]),
        ([[0, 1, 0], [1, 1, 0]], [1, 1]),
    ],
)
def test_last_real_positions(mask: list[list[int]], expected: list[int]) -> None:
    assert last_real_positions(torch.tensor(mask)).tolist() == expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [0, 2])  # <pad>, and </s>: the end-of-text token
def test_pooling_takes_the_last_real_token(tiny_llama_path: Path, side: str, padding: int) -> None:
    """Rows of a padded batch give the features that each has alone, also where the text itself ends with the pad id."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    rows = [[1, 40, 41, 42, 43, 44], [1, 50, 51], [1, 60, 2], [1, 2, 2, 2]]
    ids, mask = torch.full((4, 6), padding), torch.zeros((4, 6), dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(6 - len(row), 6)
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    with torch.no_grad():
        features = pooled_features(model, ids, mask)
        for number, row in enumerate(rows):
            alone = model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1]
            torch.testing.assert_close(features[number], alone, atol=1e-5, rtol=1e-5)


def test_the_head_starts_small_and_its_loss_is_cross_entropy(tiny_llama_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = PooledClassifier(AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval(), 64, 50)
    assert model.score.bias is None
    assert float(model.score.weight.detach().std()) == pytest.approx(HEAD_INIT_STD, rel=0.05)
    labels = torch.tensor([7])
    with torch.no_grad():
        out = model(IDS, torch.ones_like(IDS), labels)
    assert float(out["loss"]) == pytest.approx(-float(out["logits"].log_softmax(-1)[0, 7]), rel=1e-5)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 1), (2, 2)])
def test_training_on_responses_equals_a_hand_written_loop(
    train: Train, tiny_llama_path: Path, batch: int, accumulation: int
) -> None:
    """Three steps of AdamW with linear decay over all four rows: mean loss over response tokens and EOS only."""
    from transformers import AutoTokenizer

    training = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trained = train(story_data(), training=training)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_path)
    data, rows = story_data(), []
    for prompt, response in zip(data.prompts, data.responses, strict=True):
        head = tokenizer(prompt)["input_ids"]
        tail = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((head + tail, len(head)))
    model = lora_at(tiny_llama_path, trained)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.01, weight_decay=0.0)
    losses = []
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 3)
        total, count = torch.zeros(()), 0
        for ids, start in rows:
            logits = model(torch.tensor([ids])).logits[0]
            total = total + nn.functional.cross_entropy(
                logits[start - 1 : -1], torch.tensor(ids[start:]), reduction="sum"
            )
            count += len(ids) - start
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.05 * losses[2]
    assert trained.losses() == pytest.approx(losses, rel=2e-5)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, trained.logits, atol=2e-3, rtol=0)


def lora_at(base: Path, trained: Trained) -> Any:
    """transformers and peft, with the weights from which the training started."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=16, target_modules=sorted(LINEAR), task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    parameters = dict(model.named_parameters())
    assert {name for name, p in parameters.items() if p.requires_grad} == set(trained.start)
    with torch.no_grad():
        for name, value in trained.start.items():
            parameters[name].copy_(value)
    return model


def test_plain_text_is_learned_from_its_first_token(tiny_llama_path: Path, train: Train) -> None:
    """Without a prompt the labels are the whole text, and the first loss is that of the untouched base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "The kettle sings before the water boils."
    trained = train(GenerationData([""], [text]), steps=1)
    ids, labels = encode_example(AutoTokenizer.from_pretrained(tiny_llama_path), "", text, 64)
    assert labels == [-100, *ids[1:]] and ids[-1] == 2
    with torch.no_grad():
        base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
        loss = base(torch.tensor([ids]), labels=torch.tensor([labels])).loss
    assert trained.losses() == pytest.approx([float(loss)], rel=1e-5)


def test_the_seed_decides(train: Train) -> None:
    first, again, other = (train(story_data(), steps=2, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.logits, again.logits)
    assert not torch.allclose(first.logits, other.logits, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "nf4"},
        {"quantization": "nf4", "double_quantization": True, "compute_dtype": "bfloat16"},
        {"quantization": "fp4", "training": {"gradient_checkpointing": True}},
    ],
    ids=["nf4", "nf4-double-bf16", "fp4-checkpointing"],
)
def test_a_quantized_base_trains(train: Train, tiny_llama_path: Path, settings: dict[str, Any]) -> None:
    trained = train(story_data(), steps=10, **settings)
    losses = trained.losses()
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        plain = reloaded(tiny_llama_path, trained.folder)(IDS).logits
    assert torch.isfinite(plain).all()
    # the same adapter on the exact base: other logits than on the rounded one, but near them
    difference = (plain - trained.logits).abs().mean() / plain.std()
    assert 1e-4 < float(difference) < 0.5


def test_windows_of_long_texts_are_rows(train: Train) -> None:
    data = ClassificationData(
        [text * 6 for text in mood_data(1).texts], mood_data(1).labels, ["bad", "good"], max_length=32, window_stride=16
    )
    record = train(data, steps=1).record()
    assert record["rows"] == 8 and record["tokens_per_epoch"] > 8 * 2 * 16


@pytest.mark.parametrize("data", [mood_data(), story_data()], ids=["classification", "generation"])
def test_checkpointing_changes_memory_and_not_the_result(train: Train, data: Any) -> None:
    plain = train(data, steps=3, training={})
    saving = train(data, steps=3, training={"gradient_checkpointing": True})
    torch.testing.assert_close(saving.logits, plain.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_diverged_training_is_an_error(train: Train, hidden: bool) -> None:
    """Also when the Trainer is told to hide a loss that is no number."""
    message = (
        r"adapter 'test': the training diverged, its loss is .*; a lower training_args.learning_rate than 1e\+30 may"
    )
    training = {"learning_rate": 1e30, "max_grad_norm": 0.0, "logging_nan_inf_filter": hidden}
    with pytest.raises(OlivalError, match=message):
        train(story_data(), steps=3, training=training)


def test_chained_adapters_leave_the_base_as_it_is(
    tmp_path: Path, tiny_llama_path: Path, run_pass: Callable[..., Any]
) -> None:
    from olive.model import HfModelHandler
    from transformers import AutoModelForCausalLM

    from evaluators.torch_model import TorchModel

    before = base_fingerprint(tiny_llama_path)
    mood, story = write_mood_csv(tmp_path / "mood.csv"), write_story_jsonl(tmp_path / "story.jsonl")
    options = {"rank": 4, "training_args": {"max_steps": 2, "learning_rate": 0.01}}
    start = HfModelHandler(str(tiny_llama_path))
    first = run_pass(
        "ClassificationHead", start, {**options, "adapter_name": "mood", "train_data_config": data_config("mood", mood)}
    )
    second = run_pass(
        "AdapterFineTune",
        first,
        {**options, "adapter_name": "story", "train_data_config": data_config("story", story, "generation")},
    )
    assert ATTRIBUTE not in (start.model_attributes or {})
    assert list(first.model_attributes[ATTRIBUTE]) == ["mood"]
    assert list(second.model_attributes[ATTRIBUTE]) == ["mood", "story"]
    assert base_fingerprint(tiny_llama_path) == before
    folders = {name: Path(folder) for name, folder in second.model_attributes[ATTRIBUTE].items()}
    both = TorchModel(tiny_llama_path, folders)
    ids, mask = IDS.numpy(), np.ones_like(IDS.numpy())
    plain: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    with torch.no_grad():
        np.testing.assert_array_equal(both.logits(ids, mask, None), plain(IDS).logits.numpy())
    alone = TorchModel(tiny_llama_path, {"story": folders["story"]})
    np.testing.assert_allclose(both.logits(ids, mask, "story"), alone.logits(ids, mask, "story"), atol=1e-6)
    assert np.abs(both.logits(ids, mask, "story") - both.logits(ids, mask, None)).max() > 1e-3


def test_data_of_the_other_kind_is_refused(tmp_path: Path, tiny_llama_path: Path, run_pass: Callable[..., Any]) -> None:
    from olive.model import HfModelHandler

    config = data_config("rows", write_story_jsonl(tmp_path / "story.jsonl"), "generation")
    with pytest.raises(DataError) as error:
        run_pass(
            "ClassificationHead",
            HfModelHandler(str(tiny_llama_path)),
            {"adapter_name": "mood", "train_data_config": config},
        )
    wanted = "this pass takes data with pre_process_data_config.type 'classification', but got GenerationData"
    assert str(error.value) == f"data_configs.rows: {wanted}"
