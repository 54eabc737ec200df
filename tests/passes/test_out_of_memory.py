"""Estimates against measured memory, and what a training says that did not fit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmark.memory import paper
from passes.base_model import model_class_of
from passes.training import loading
from passes.training import train as training
from passes.training.kept import Curve, Kept, Method
from passes.training.memory import (
    FOUR_BIT,
    FOUR_BIT_DOUBLE,
    Plan,
    Shape,
    deployed_bytes,
    estimate,
    free_bytes,
    most,
    shape_of,
)
from passes.training.out_of_memory import OutOfMemory, Situation, explained, is_out_of_memory
from passes.training.settings import AdapterSettings
from passes.training.store import find_or_make
from passes.training.train import train_adapter
from passes.training.trainer import AdapterTrainer
from runtime.errors import OlivalError
from tests.conftest import save_tiny_model
from tests.passes.conftest import mood_data, story_data

ABSURD = 1 << 50  # bytes, more than any machine has
SHAPE = Shape(linear=1000, other=100, read=20, written=30, widest=8, largest=40, layers=5, hidden=4, vocabulary=50)

MEASURE = """
import json, sys
from pathlib import Path
import psutil, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from benchmark.peak_memory import peak_rss_bytes
from passes.training.response_logits import keep_response_logits
folder, batch, length, learned, checkpointing, dropout = json.loads(sys.argv[1])
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
if checkpointing:
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear", lora_dropout=dropout)
model = get_peft_model(model, lora).train()
assert keep_response_logits(model)
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
def step(batch, length):
    ids = torch.randint(3, 2000, (batch, length))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, : length - learned] = -100
    mask[0, -1] = 0  # as in every batch of different rows: attention gets a mask
    model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
step(2, 64)
Path("/proc/self/clear_refs").write_text("5")
before = psutil.Process().memory_info().rss
step(batch, length)
trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
print(json.dumps([peak_rss_bytes() - before, trained]))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux to measure a peak")
@pytest.mark.parametrize(
    ("kind", "batch", "length", "learned", "checkpointing", "dropout"),
    [
        pytest.param("llama", 16, 256, 40, False, 0.0, marks=pytest.mark.slow),
        ("gpt2", 8, 256, 256, False, 0.1),
        pytest.param("llama", 16, 256, 40, True, 0.0, marks=pytest.mark.slow),
        pytest.param("llama", 8, 256, 256, False, 0.1, marks=pytest.mark.slow),
        pytest.param("qwen2", 4, 512, 512, False, 0.0, marks=pytest.mark.slow),
    ],
)
def test_the_estimate_is_near_what_is_measured(
    tmp_path: Path, kind: str, batch: int, length: int, learned: int, checkpointing: bool, dropout: float
) -> None:
    """Within 15 %, above the weights. Without the allocator's own store of freed memory, which the estimate has not."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "head_dim": 64}
    base = save_tiny_model(tmp_path / "base", kind, **sizes, vocab_size=2000, max_position_embeddings=1024)
    given = json.dumps([str(base), batch, length, learned, checkpointing, dropout])
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEASURE, given]
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    measured, trained = json.loads(output.splitlines()[-1])
    plan = Plan(batch, length, learned, trained, trained, checkpointing=checkpointing, dropout=dropout > 0)
    shape = shape_of(base, Method(dropout=dropout > 0))
    found = estimate(shape, plan)
    assert measured > 50e6
    assert found.total - found.weights - found.adapter - found.optimizer == pytest.approx(measured, rel=0.15)
    assert found.total <= most(shape, plan)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("gpt2", {"lora_dropout": 0.1}), ("bert", {"use_dora": True})],
    ids=["llama", "gpt2-dropout", "bert-dora"],
)
def test_what_autograd_keeps_is_what_peft_makes_it_keep(kind: str, options: dict[str, Any]) -> None:
    """Counted on real tensors of PEFT's own layers, each storage once, for all blocks and rows of another length."""
    from peft import LoraConfig, get_peft_model

    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 64}
    config = AutoConfig.for_model(kind, **small, intermediate_size=48, use_cache=False)
    auto_class, others = model_class_of(kind)
    model = auto_class.from_config(config, **others)
    lora = LoraConfig(r=4, target_modules="all-linear", **options)
    if kind == "bert":
        lora.target_modules = ["query", "key", "value", "dense"]
    adapted = get_peft_model(model, lora).train()
    rows, length = 2, 80
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    own = {t.untyped_storage().data_ptr() for t in (*adapted.parameters(), *adapted.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        derived = not {length, rows * length} & set(tensor.shape)  # what DoRA makes of its weights
        if storage.data_ptr() not in own and not derived:
            kept[storage.data_ptr()] = storage
        return tensor

    mask = torch.ones(rows, length, dtype=torch.int64)
    mask[0, -1] = 0
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(input_ids=torch.ones_like(mask), attention_mask=mask)  # noqa: F841, it holds them
    method = Method("dora" if "use_dora" in options else "low_rank", 4, "lora_dropout" in options)
    shape = shape_of(config, method)
    assert shape.kept is not None
    counted = rows * (4 * shape.kept.block(length) + shape.kept.rest(length))
    assert counted == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.06)


# Dettmers et al. 2023: > 780 GB, 5,048 MB, and Guanaco's 5, 10, 21 and 41 GB; see `benchmark.memory.paper`
def test_figures_of_the_qlora_paper() -> None:
    found = paper()
    assert [row.paper for row in found] == [780, 5.048, 5, 10, 21, 41, 48]
    for row in found:
        assert row.estimate == pytest.approx(row.paper, rel=0.15), row
    assert found[0].estimate > 780 and found[-1].estimate < 48


def test_bytes_of_deployed_integers() -> None:
    """Of SHAPE, with a head or embedding of 4 x 50 among `other`, if it is large enough."""
    shape = dataclasses.replace(SHAPE, other=300)
    options = {"algorithm": "rtn_last", "block_size": 32, "symmetric": True}
    found = deployed_bytes(shape, {"precision": "int4", "quantization": options})
    assert found == 1000 * (0.5 + 4 / 32) + 200 * (1 + 4 / 32) + 4 * 100
    int8 = {"precision": "int8", "quantization": {**options, "algorithm": "default", "symmetric": False}}
    assert deployed_bytes(shape, int8) == 1200 * (1 + 5 / 32) + 4 * 100


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_shape_counts_what_the_model_has(tmp_path: Path, kind: str) -> None:
    base = save_tiny_model(tmp_path / "base", kind)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    shape = shape_of(base)
    assert shape.linear + shape.other == sum(p.numel() for p in model.parameters())
    hidden, inner = (64, 256) if kind == "gpt2" else (64, 96)
    wide = 3 * 64 if kind == "gpt2" else 64 + 2 * 32  # q, k and v
    up = 1 if kind == "gpt2" else 2  # layers that write the inner states
    per_layer = hidden * wide + hidden * 64 + up * hidden * inner + inner * hidden
    assert abs(shape.linear - 2 * per_layer) < 0.02 * shape.linear  # but for biases
    assert (shape.layers, shape.hidden, shape.widest) == (2, 64, max(inner, wide if kind == "gpt2" else 0))
    assert shape.written == 2 * (wide + 64 + up * inner + 64)


def test_the_formula_by_hand() -> None:
    plan = Plan(batch=2, length=10, learned=3, trained=7, added=7)
    found = estimate(SHAPE, plan)
    assert found.weights == 4 * 1100
    assert found.adapter == 7 * 4 and found.optimizer == 7 * 8 and found.gradients == 0
    assert found.activations == 20 * 4 * 50 + 2 * 10 * 10 * 4  # while the loss goes backward
    assert found.logits == 2 * 3 * 50 * 12
    assert found.total == 4 * 1100 + 7 * 12 + 4800 + 3600
    unread = estimate(SHAPE, dataclasses.replace(plan, learned=0))
    assert unread.activations == 4800 + 20 * 4 * 3 * 8 and unread.logits == 0  # while the last block does
    half = estimate(SHAPE, dataclasses.replace(plan, dtype_bytes=2, quantization="nf4", checkpointing=True))
    assert half.weights == FOUR_BIT * 1000 + 2 * 100
    assert half.activations + half.logits == max(
        800 + 20 * 2 * 5 * 4 + 3600, 800 + 20 * 2 * (5 * 4 + 50 / 5 + 3 * 8) + 2 * 40
    )
    double = estimate(SHAPE, dataclasses.replace(plan, quantization="nf4", double_quantization=True))
    assert double.weights == FOUR_BIT_DOUBLE * 1000 + 4 * 100
    full = estimate(SHAPE, Plan(1, 1, learned=1, trained=1100, moment_bytes=1))  # gradients at the end are the most
    assert (full.gradients, full.optimizer, full.adapter) == (1100 * 4, 1100 * 2, 0)
    tied = estimate(dataclasses.replace(SHAPE, tied=True), Plan(1, 1, learned=1, trained=1100))
    assert tied.activations == 4 * 50 * 4
    more = estimate(SHAPE, dataclasses.replace(plan, accumulates=True))
    assert more.total == found.total + 7 * 4


def test_what_autograd_keeps_is_taken_from_the_shape() -> None:
    block, none = Curve(0, 100, 2), Curve(0, 0)
    shape = dataclasses.replace(SHAPE, kept=Kept(block, Curve(0, 10), Curve(0, 4), none))
    plan = Plan(batch=3, length=10)
    assert estimate(shape, plan).activations == 3 * (5 * (1000 + 200) + 100)
    assert estimate(shape, dataclasses.replace(plan, checkpointing=True)).activations == 3 * (1200 + 100 + 5 * 40)
    assert estimate(shape, dataclasses.replace(plan, blocks=2)).activations == 3 * (2 * 1200 + 100)


def test_offloaded_weights_count_on_the_gpu_until_the_backward_pass_is_through() -> None:
    plan = Plan(batch=1, length=1, resident=2000.0)
    assert estimate(SHAPE, plan).weights == 4400
    assert estimate(SHAPE, dataclasses.replace(plan, checkpointing=True)).weights == 2000 + 4 * 1000 / 5
    assert estimate(SHAPE, dataclasses.replace(plan, checkpointing=True, resident=1e6)).weights == 4400


def test_free_memory_is_no_more_than_the_machine_has() -> None:
    free, whole = free_bytes()
    assert 0 <= free <= whole
    if not torch.cuda.is_available():
        assert whole <= psutil.virtual_memory().total


LARGE = Shape(10**9, 10**8, 10**5, 10**5, 10**4, 10**7, layers=20, hidden=2000, vocabulary=30_000)


def situation(free: float, **plan: Any) -> Situation:
    chosen = {"batch": 16, "length": 512, "learned": 100, "trained": 10**7, "added": 10**7, **plan}
    return Situation("spam", LARGE, Plan(**chosen), 1, free, 2 * free)


def test_options_fit_and_are_fewer_changes_first(tmp_path: Path) -> None:
    now = situation(9e9)
    need = estimate(LARGE, now.plan).total
    said = str(now.error(tmp_path))
    assert f"per_device_train_batch_size 16 on rows of up to 512 tokens: it needs about {need / 1e9:.1f} GB" in said
    assert "9.00 GB of 18.0 GB were free" in said and "no checkpoint yet" in said
    options = [line for line in said.splitlines() if line.startswith("  - ")]
    assert len(options) == 3
    assert "per_device_train_batch_size 4 with gradient_accumulation_steps 4 (the same result)" in options[0]
    assert "gradient_checkpointing true" in options[1]
    for option in options:
        assert float(option.rpartition(": ")[2].removesuffix(" GB")) <= 0.9 * 9


def test_the_named_number_is_that_of_the_option(tmp_path: Path) -> None:
    (first, *_) = [line for line in str(situation(9e9).error(tmp_path)).splitlines() if line.startswith("  - ")]
    alone = estimate(LARGE, dataclasses.replace(situation(9e9).plan, batch=4)).total
    assert first.endswith(f"{alone / 1e9:.2f} GB")
    larger = estimate(LARGE, dataclasses.replace(situation(9e9).plan, batch=8)).total
    assert larger > 0.9 * 9e9  # the largest that fits is named


def test_a_trained_base_is_not_quantized(tmp_path: Path) -> None:
    assert "  - quantization nf4" in str(situation(4e9).error(tmp_path))
    full = dataclasses.replace(situation(4e9), nf4=None)
    assert "nf4" not in str(full.error(tmp_path))


def test_nothing_fits(tmp_path: Path) -> None:
    assert "No option makes it fit here: take a smaller base or more memory" in str(situation(1e8).error(tmp_path))


def test_the_warning_before() -> None:
    assert situation(1e12).warning() is None
    said = situation(9e9).warning()
    assert said is not None and said.startswith("warning: adapter 'spam' may run out of memory") and "  - " in said


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: ..."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_what_is_out_of_memory(error: BaseException, expected: bool, tmp_path: Path) -> None:
    assert is_out_of_memory(error) == expected
    with pytest.raises(OutOfMemory if expected else type(error)), explained(situation(1e12), tmp_path):
        raise error


def greedy_trainer(after: int) -> Any:
    """A Trainer whose forward asks torch for an absurd tensor at the step after so many."""

    class Greedy(AdapterTrainer):
        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            if self.state.global_step >= after:
                torch.empty(ABSURD, dtype=torch.uint8)
            return super().compute_loss(*arguments, **options)

    return Greedy


@pytest.mark.parametrize("data", [mood_data(), story_data()], ids=["classification", "generation"])
def test_a_failed_allocation_is_explained_and_nothing_is_lost(
    tmp_path: Path, tiny_llama_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of torch itself; the checkpoints of two epochs stay, and the next run goes on from them."""
    steps = {"per_device_train_batch_size": 4, "num_train_epochs": 3}
    settings = AdapterSettings("mood", rank=4, training_args=steps)

    def make(folder: Path, checkpoints: Path) -> None:
        train_adapter(folder, tiny_llama_path, settings, data, None, checkpoints=checkpoints)

    per_epoch = -(-len(data.texts if hasattr(data, "texts") else data.responses) // 4)
    monkeypatch.setattr(training, "AdapterTrainer", greedy_trainer(after=2 * per_epoch))
    with pytest.raises(OutOfMemory) as caught:
        find_or_make(tmp_path, "mood", "a" * 64, make)
    said = str(caught.value)
    assert isinstance(caught.value, OlivalError) and isinstance(caught.value.__cause__, RuntimeError)
    assert "adapter 'mood': out of memory while training with per_device_train_batch_size 4" in said
    assert f"goes on from step {2 * per_epoch}" in said and "the estimate is rough" in said
    assert sum(line.startswith("  - ") for line in said.splitlines()) >= 1
    monkeypatch.setattr(training, "AdapterTrainer", AdapterTrainer)
    folder, reused = find_or_make(tmp_path, "mood", "a" * 64, make)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert not reused and record["resumed_from_step"] == 2 * per_epoch and record["steps"] == 3 * per_epoch


def test_a_base_that_does_not_fit_is_explained(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*arguments: Any) -> Any:
        return torch.empty(ABSURD, dtype=torch.uint8)

    monkeypatch.setattr(loading, "load_base", greedy)
    with pytest.raises(OutOfMemory) as caught:
        train_adapter(tmp_path / "mood", tiny_llama_path, AdapterSettings("mood"), mood_data(), None)
    said = str(caught.value)
    size = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_llama_path).parameters()) * 4 / 1e9
    assert f"out of memory while loading the base as float32: its weights need about {size:.2f} GB, and" in said
    assert "  - method qlora with quantization nf4: " in said and "finished adapters are kept" in said


LOAD = """
import resource, sys
from pathlib import Path
import torch
from passes.training.loading import load_for_training
from passes.training.memory import free_bytes
from passes.training.settings import AdapterSettings
import transformers.models.llama.modeling_llama
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[2]),) * 2)
load_for_training(Path(sys.argv[1]), AdapterSettings("mood"), (1e9, 2e9), Path("none"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux to limit a process")
def test_a_limit_while_a_base_is_loaded_is_explained(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", vocab_size=200_000, hidden_size=128)
    command = [sys.executable, "-c", LOAD, str(base), str(60 * 2**20)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "OutOfMemory: adapter 'mood': out of memory while loading the base" in done.stderr


def test_a_workflow_pass_ends_with_the_error(
    tmp_path: Path, tiny_llama_path: Path, run_pass: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same adapter with checkpointing switched on goes on from where it ran out; Olive fails on a ValueError."""
    from olive.model import HfModelHandler

    from passes.training.adapter_pass import ATTRIBUTE
    from tests.passes.conftest import data_config, write_mood_csv

    steps = {"per_device_train_batch_size": 8, "num_train_epochs": 2}
    rows = data_config("mood_train", write_mood_csv(tmp_path / "mood.csv"))
    options = {"adapter_name": "mood", "train_data_config": rows, "rank": 4, "training_args": steps}
    handler = HfModelHandler(str(tiny_llama_path))
    monkeypatch.setattr(training, "AdapterTrainer", greedy_trainer(after=2))
    with pytest.raises(ValueError, match=r"(?s)out of memory.*goes on from step 2"):
        run_pass("ClassificationHead", handler, options)
    monkeypatch.setattr(training, "AdapterTrainer", AdapterTrainer)
    slower = {**options, "training_args": {**steps, "gradient_checkpointing": True}}
    folder = run_pass("ClassificationHead", handler, slower).model_attributes[ATTRIBUTE]["mood"]
    assert json.loads((Path(folder) / "training.json").read_text(encoding="utf-8"))["resumed_from_step"] == 2
