"""Pooling against numpy, in PyTorch and in packages; a text's logits never depend on its neighbours in a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evaluators.package_model import PackageModel
from evaluators.torch_model import TorchModel
from passes.merge import merge_adapter
from passes.package import write_package
from passes.training.classifier import PooledClassifier
from passes.training.head_settings import HeadSettings
from passes.training.pooling import pool
from runtime.adapters import add_adapter
from runtime.errors import PackageError
from tests.conftest import save_tiny_model
from tests.graph.torch_models import save_adapter, save_torch_model, torch_outputs
from tests.passes.conftest import mood_data, workflow
from tests.passes.test_workflow_check import problems

LABELS = ["a", "b", "c"]
# a text that ends with the padding's id, one of the beginning's token alone, and one that has that id everywhere
ROWS = [[1, 40, 41, 42, 43, 44, 45], [1, 60, 2], [1], [1, 2, 2, 2, 2], [1, 50, 51, 52]]


def save_base(folder: Path, kind: str) -> Path:
    return save_tiny_model(folder, kind) if kind in ("llama", "qwen2") else save_torch_model(folder, kind)


def padded(rows: list[list[int]], side: str, padding: int, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), width), padding), torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[number, place], mask[number, place] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def by_hand(hidden: np.ndarray, pooling: str) -> np.ndarray:
    """The vector of one text from the states (tokens, hidden) of its real tokens."""
    return {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(axis=0), "max": hidden.max(axis=0)}[pooling]


@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_pool_reads_real_tokens_alone(pooling: str) -> None:
    """For every mask of four places, with states below 0 and padding that is far off."""
    random = np.random.default_rng(0)
    masks = np.array([[i >> b & 1 for b in range(4)] for i in range(1, 16)])
    hidden = random.normal(-3, 1, (15, 4, 6)).astype(np.float32)
    hidden[masks == 0] = 1e4
    found = pool(torch.from_numpy(hidden), torch.from_numpy(masks), pooling).numpy()
    wanted = [by_hand(states[mask == 1], pooling) for states, mask in zip(hidden, masks, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    if pooling in ("mean", "max"):
        assert not pool(torch.full((1, 2, 3), 7.0), torch.zeros((1, 2), dtype=torch.long), pooling).any()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "bert"])
def test_logits_never_depend_on_neighbours(tmp_path: Path, kind: str) -> None:
    """Each text alone, in batches padded on either side with pad or end-of-text, and beside a row of no tokens."""
    from passes.base_model import load_base

    base = load_base(save_base(tmp_path / kind, kind))
    for pooling in ("last", "mean", "max", *(["first"] if kind == "bert" else [])):
        torch.manual_seed(0)
        model = PooledClassifier(base, 64, 3, pooling=pooling).eval()
        nn.init.normal_(model.score.weight)
        with torch.no_grad():
            alone = [model(torch.tensor([row]), torch.ones((1, len(row)), dtype=torch.long)) for row in ROWS]
            hidden = [base.base_model(input_ids=torch.tensor([row])).last_hidden_state[0].numpy() for row in ROWS]
            for row, states in zip(alone, hidden, strict=True):
                wanted = by_hand(states, pooling) @ model.score.weight.numpy().T
                np.testing.assert_allclose(row["logits"][0].numpy(), wanted, atol=2e-5)
            for side in ("right", "left"):
                for padding in (0, 2):
                    for rows in (ROWS, [*ROWS[::-1], []], [ROWS[2], ROWS[0]], [ROWS[1]]):
                        found = model(*padded(rows, side, padding, extra=2))["logits"]
                        assert torch.isfinite(found).all()
                        for row, logits in zip(rows, found, strict=True):
                            if row:
                                expected = alone[ROWS.index(row)]["logits"][0]
                                torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize(
    ("mask", "sequence", "real"),
    [
        ([1, 1, 1, 1], 4, [0, 1, 2, 3]),
        ([1, 1, 0, 0], 4, [0, 1]),
        ([0, 0, 1, 1], 4, [2, 3]),
        ([0, 1, 1, 0], 4, [1, 2]),
        ([0, 1, 1, 1], 2, [0, 1]),  # two tokens are cached
        ([1, 1, 1, 0], 2, [0]),
    ],
)
def test_the_graphs_pooling(mask: list[int], sequence: int, real: list[int], precision: str, pooling: str) -> None:
    """A graph of nothing but head and language-model head, beside a row of no tokens."""
    import onnx
    import onnxruntime

    from passes.graph.head import add_class_head

    kind = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}[precision]
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("MatMul", ["final_norm", "w"], ["logits"], "/lm_head/MatMul")
    weight = onnx.numpy_helper.from_array(np.zeros((4, 2), precision), "w")
    inputs = [value("final_norm", kind, ["b", "s", 4]), value("attention_mask", onnx.TensorProto.INT64, ["b", "t"])]
    graph = onnx.helper.make_graph([node], "g", inputs, [value("logits", kind, ["b", "s", 2])], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    add_class_head(model, pooling)
    onnx.checker.check_model(model, full_check=True)
    states = np.random.default_rng(0).normal(-300, 1, (3, sequence, 4)).astype(precision)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    masks = np.array([mask, [1] * len(mask), [0] * len(mask)])
    head = np.eye(4, dtype=precision)[None]
    feed = {"final_norm": states, "attention_mask": masks, "class_head.weight": head}
    found = session.run(["class_logits"], feed)[0]
    tolerance = 1e-6 if precision == "float32" else 2e-3
    for row, states_of_row in ((found[0], states[0, real]), (found[1], states[1])):
        np.testing.assert_allclose(row, by_hand(states_of_row.astype(np.float64), pooling), rtol=tolerance)
    assert not found[2].any()


@pytest.mark.parametrize(("kind", "pooling"), [("llama", "mean"), ("llama", "max"), ("gpt2", "mean"), ("bert", "max")])
def test_packages_pool_as_pytorch_does(
    tmp_path: Path, make_peft_adapter: Callable[..., Path], kind: str, pooling: str
) -> None:
    """A package by onnxruntime-genai's builder and by torch's exporter, in batches with padding; and by hand."""
    from safetensors.numpy import load_file

    base = save_base(tmp_path / "base", kind)
    settings = {"task": "classification", "labels": LABELS, "max_length": 64, "pooling": pooling}
    if kind == "llama":
        adapters = {"mood": make_peft_adapter(base, labels=LABELS, settings={"pooling": pooling})}
        adapters["story"] = make_peft_adapter(base, seed=1, settings={"template": "{prompt}"})  # its pooling is "last"
    else:
        adapters = {"mood": save_adapter(tmp_path / "mood", base, kind)}
        (adapters["mood"] / "adapter.json").write_text(json.dumps(settings), encoding="utf-8")
    target: dict[str, Any] = {"precision": "fp32", "execution_provider": "cpu", "threads": 2}
    write_package(tmp_path / "package", base_path=base, adapter_folders=adapters, name="tiny", **target)
    package, reference = PackageModel(tmp_path / "package"), TorchModel(base, adapters)
    assert package.runtime.manifest["base"]["pooling"] == package.runtime.adapters["mood"]["pooling"] == pooling
    found = package.class_logits(ROWS, "mood", batch_size=5)
    np.testing.assert_allclose(found, reference.class_logits(ROWS, "mood", batch_size=5), atol=1e-4)
    head = load_file(adapters["mood"] / "adapter_model.safetensors")["base_model.model.score.weight"]
    for row, logits in zip(ROWS, found, strict=True):
        ids = np.array([row])
        if kind == "llama":
            reference_states = llama_states(base, adapters["mood"], ids)
        else:
            reference_states = torch_outputs(base, kind, ids, np.ones_like(ids), adapters["mood"])["hidden"]
        np.testing.assert_allclose(logits, by_hand(reference_states[0], pooling) @ head.T, atol=1e-4)
    if (kind, pooling) == ("llama", "max"):  # one merged into its base still pools so
        merge_adapter(tmp_path / "package", "mood", base, tmp_path / "merged")
        merged = PackageModel(tmp_path / "merged").class_logits(ROWS, "mood", batch_size=5)
        np.testing.assert_allclose(merged, found, atol=1e-3)
    if (kind, pooling) == ("llama", "mean"):
        ids, mask = np.array([ROWS[0]]), np.ones((1, len(ROWS[0])), np.int64)
        np.testing.assert_allclose(
            package.logits(ids, mask, "story"), reference.logits(ids, mask, "story"), atol=1e-3
        )  # generation still reads the last token
        other = make_peft_adapter(base, labels=LABELS, settings={"pooling": "max"})
        wanted = "adapter 'other': pooling is 'max', but the package's graph pools in one way; valid: mean"
        with pytest.raises(PackageError, match=wanted):
            add_adapter(tmp_path / "package", "other", other, {})
        with pytest.raises(
            PackageError, match="pool in one way, but these adapters do not: 'mood' by mean, 'x' by max"
        ):
            write_package(
                tmp_path / "two", base_path=base, adapter_folders={**adapters, "x": other}, name="two", **target
            )


def llama_states(base: Path, adapter: Path, ids: np.ndarray) -> np.ndarray:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ids), output_hidden_states=True).hidden_states[-1].numpy())


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_training_with_pooling_and_dropout(tmp_path: Path, kind: str) -> None:
    """What is written is what was trained: the reloaded adapter classifies, and dropout is gone."""
    from passes.training.settings import AdapterSettings
    from passes.training.train import train_adapter

    base, folder = save_base(tmp_path / "base", kind), tmp_path / "adapter"
    folder.mkdir()
    training = {"max_steps": 16, "learning_rate": 0.01, "per_device_train_batch_size": 8}
    settings = AdapterSettings("mood", rank=4, training_args=training)
    head = HeadSettings(pooling="mean", head_dropout=0.2)
    train_adapter(folder, base, settings, mood_data(), mood_data(1), head)
    assert json.loads((folder / "adapter.json").read_text(encoding="utf-8"))["pooling"] == "mean"
    model, data = TorchModel(base, {"mood": folder}), mood_data(1)
    rows = [model.encode(text) for text in data.texts]
    chosen = model.class_logits(rows, "mood").argmax(axis=1)
    assert [model.labels("mood")[i] for i in chosen] == data.labels
    assert head.key() == {"pooling": "mean", "head_dropout": 0.2}


def test_dropout_is_before_the_head_and_in_training_alone(tiny_llama_path: Path) -> None:
    from passes.base_model import load_base

    model = PooledClassifier(load_base(tiny_llama_path), 64, 3, dropout=0.5)
    nn.init.ones_(model.score.weight)
    ids, seen = torch.tensor([ROWS[0]]), []
    model.score.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.train()
    torch.manual_seed(0)
    model(ids, torch.ones_like(ids))
    model.eval()
    model(ids, torch.ones_like(ids))
    dropped, whole = seen
    zero = dropped == 0
    assert 10 < int(zero.sum()) < 54
    torch.testing.assert_close(dropped[~zero], 2 * whole[~zero])


def test_workflows_are_checked(tmp_path: Path, tiny_llama_path: Path) -> None:
    def found(base: Path, *passes: dict[str, Any]) -> list[str]:
        content = workflow(tmp_path / "w", base)
        mood, story, export = (content["passes"][name] for name in ("mood", "story", "export"))
        heads = {f"head{i}": {**mood, "adapter_name": f"head{i}", **options} for i, options in enumerate(passes)}
        content["passes"] = {"mood": mood, **heads, "story": story, "export": export}
        return problems(content)

    assert found(tiny_llama_path, {"pooling": "last", "head_dropout": 0.1}) == []
    assert found(tiny_llama_path, {"pooling": "men", "head_dropout": 1}) == [
        "passes.head0.pooling: 'men' is unknown; did you mean 'mean'? Valid: first, last, max, mean",
        "passes.head0.head_dropout: 0 <= head_dropout < 1 must hold, but got 1.0",
    ]
    first, mixed = found(tiny_llama_path, {"pooling": "first"})
    assert first.startswith("passes.head0.pooling: 'first' is for encoders; this base reads from left to right")
    assert mixed == (
        "pooling: passes.mood has 'last', passes.head0 has 'first'; all heads of one package pool in one way: "
        "choose one, or two workflows"
    )
