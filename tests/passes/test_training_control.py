"""A stopped training goes on as if nothing had been; schedules, early stopping, and what a training leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from data.examples import GenerationData
from passes.training.argument_check import argument_problems
from passes.training.early_stopping import METRICS, OF_DATA, early_stopping_problems, metric_problems
from passes.training.monitoring import overfitting, plot_curves
from passes.training.progress import ProgressBar
from passes.training.schedule import CyclicalSchedule
from passes.training.settings import AdapterSettings, settings_problems
from passes.training.store import find_or_make
from passes.training.thresholds import SCORES as SEVERAL_SCORES
from passes.training.train import train_adapter
from passes.training.trainer import AdapterTrainer
from passes.training.validation import SCORES, ReportValidation
from search.olive_run import PRELOADED
from tests.passes.conftest import mood_data, pass_config, story_data

DATA: dict[str, Callable[[], Any]] = {"classification": lambda: mood_data(2), "generation": lambda: stories()}
# dropout, an optimizer with a state and a schedule: all of them must go on where they were
TRAINING: dict[str, Any] = {
    "num_train_epochs": 3, "per_device_train_batch_size": 2, "learning_rate": 0.01, "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
}  # fmt: skip


def stories() -> GenerationData:
    """Three times the few that there are."""
    data = story_data()
    return dataclasses.replace(data, prompts=3 * data.prompts, responses=3 * data.responses)


def settings(**training: Any) -> AdapterSettings:
    return AdapterSettings("test", rank=4, dropout=0.2, training_args={**TRAINING, **training})


def run(
    folder: Path, base: Path, task: str, chosen: AdapterSettings, checkpoints: Path | None = None
) -> dict[str, Any]:
    """Trains and returns training.json."""
    folder.mkdir(exist_ok=True)
    train_adapter(folder, base, chosen, DATA[task](), DATA[task](), None, checkpoints)
    record: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return record


def weights(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def stop_at(step: int, end: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    before = ProgressBar.on_step_end

    def on_step_end(self: Any, args: Any, state: Any, control: Any, **others: Any) -> None:
        before(self, args, state, control, **others)
        if state.global_step == step:
            end()

    monkeypatch.setattr(ProgressBar, "on_step_end", on_step_end)


def interrupt() -> None:
    raise KeyboardInterrupt


SAVING: dict[str, tuple[dict[str, Any], int | None]] = {
    "epochs": ({"save_strategy": "epoch"}, None),
    "steps": ({"save_strategy": "steps", "save_steps": 5}, 5),
    "random order": ({"save_strategy": "steps", "save_steps": 5, "train_sampling_strategy": "random"}, 5),
    # an epoch's end for one
    "accumulation": ({"save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}, 4),
    "8 bits": ({"save_strategy": "epoch", "optim": "paged_adamw_8bit", "bf16": True}, None),
}
EVERY_DAY = {"classification": ("epochs",), "generation": ("steps", "accumulation")}


@pytest.mark.parametrize(
    ("task", "saving", "last"),
    [
        pytest.param(task, *case, id=f"{name}-{task}", marks=[] if name in EVERY_DAY[task] else pytest.mark.slow)
        for task in DATA
        for name, case in SAVING.items()
    ],
)
def test_a_stopped_training_ends_as_an_undisturbed_one(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, saving: dict[str, Any], last: int
) -> None:
    """Bit for bit, on the CPU; also a second stop, in the epoch in which the first one was."""
    chosen = settings(**saving)
    undisturbed = run(tmp_path / "undisturbed", tiny_llama_path, task, chosen)
    assert undisturbed["resumed_from_step"] is None
    kept = tmp_path / "checkpoints"
    stop = last + 1 if last else undisturbed["steps"] // 3 + 1
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(stop, interrupt, patch)
        run(tmp_path / "stopped", tiny_llama_path, task, chosen, kept)
    torch.manual_seed(1234)  # what another process would have
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(stop + 1, interrupt, patch)
        run(tmp_path / "stopped", tiny_llama_path, task, chosen, kept)
    resumed = run(tmp_path / "stopped", tiny_llama_path, task, chosen, kept)
    assert 0 < resumed["resumed_from_step"] <= stop
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")

    def curve(record: dict[str, Any]) -> list[tuple[float, float]]:
        return [(entry["step"], entry["eval_loss"]) for entry in record["history"] if "eval_loss" in entry]

    assert curve(resumed) == curve(undisturbed)


@pytest.mark.parametrize("optimizer", ["paged_adamw_8bit", pytest.param("paged_adamw_32bit", marks=pytest.mark.slow)])
def test_paged_optimizers_run_without_a_gpu(
    tmp_path: Path, tiny_llama_path: Path, capsys: pytest.CaptureFixture[str], optimizer: str
) -> None:
    """And say that they page nothing. The same weights as AdamW: small tensors have 32-bit states."""
    plain = run(tmp_path / "plain", tiny_llama_path, "classification", settings())
    said = f"train test: '{optimizer}' pages between GPU and main memory; without a GPU it computes the same"
    assert said not in capsys.readouterr().err
    paged = run(tmp_path / "paged", tiny_llama_path, "classification", settings(optim=optimizer))
    assert paged["training_loss"] == pytest.approx(plain["training_loss"], rel=1e-3)
    assert torch.cuda.is_available() or said in capsys.readouterr().err


def _killed(store: Path, base: Path) -> None:
    """In a process of its own, which ends by kill -9 after five steps."""
    stop_at(5, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
    _make(store, base)


def _make(store: Path, base: Path) -> Path:
    chosen = settings(save_strategy="steps", save_steps=2)

    def make(folder: Path, checkpoints: Path) -> None:
        train_adapter(folder, base, chosen, mood_data(2), None, None, checkpoints)

    return find_or_make(store, "test", "a" * 64, make)[0]


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="kill -9 is of POSIX systems")
def test_a_killed_training_goes_on(tmp_path: Path, tiny_llama_path: Path) -> None:
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_killed, args=(tmp_path / "store", tiny_llama_path))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    folder = _make(tmp_path / "store", tiny_llama_path)
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    assert record["resumed_from_step"] == 4
    assert weights(folder) == weights(_make(tmp_path / "undisturbed", tiny_llama_path))
    assert [entry.name for entry in (tmp_path / "store").iterdir()] == [folder.name]
    assert not list(folder.rglob("checkpoint*"))


@pytest.mark.parametrize(
    "left", [pytest.param("", marks=pytest.mark.slow), '{"epoch": 1.'], ids=["nothing", "half a file"]
)
def test_a_half_written_checkpoint_is_passed_over(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    chosen, kept = settings(save_strategy="steps", save_steps=2, save_total_limit=2), tmp_path / "kept"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(7, interrupt, patch)
        run(tmp_path / "stopped", tiny_llama_path, "classification", chosen, kept)
    state = kept / "checkpoint-6" / "trainer_state.json"
    state.unlink()
    if left:
        state.write_text(left, encoding="utf-8")
    record = run(tmp_path / "stopped", tiny_llama_path, "classification", chosen, kept)
    assert record["resumed_from_step"] == 4
    run(tmp_path / "undisturbed", tiny_llama_path, "classification", chosen)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")


def test_checkpoints_hold_what_is_trained_alone(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.numpy import load_file

    with pytest.raises(KeyboardInterrupt):
        stop_at(5, interrupt, monkeypatch)
        chosen = settings(save_strategy="steps", save_steps=4)
        run(tmp_path / "stopped", tiny_llama_path, "classification", chosen, tmp_path / "kept")
    names = load_file(tmp_path / "kept" / "checkpoint-4" / "model.safetensors")
    assert "score.weight" in names and all("lora_" in name or name == "score.weight" for name in names)


def test_the_best_weights_are_taken(tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses are told, so the second one of five is the best; the adapter is that of two epochs."""
    told = iter([0.5, 0.3, 0.29999, 0.4, 0.6])
    before = ReportValidation.on_evaluate

    def on_evaluate(self: Any, args: Any, state: Any, control: Any, metrics: Any, **others: Any) -> None:
        before(self, args, state, control, metrics, **others)
        metrics["eval_loss"] = next(told)

    constant = {**TRAINING, "lr_scheduler_type": "constant", "warmup_steps": 0}
    stopping = {"metric": "loss", "patience": 2, "min_delta": 0.01}
    chosen = AdapterSettings("test", rank=4, training_args={**constant, "num_train_epochs": 9}, early_stopping=stopping)
    with monkeypatch.context() as patch:
        patch.setattr(ReportValidation, "on_evaluate", on_evaluate)
        record = run(tmp_path / "stopped", tiny_llama_path, "classification", chosen)
    epochs = len([entry for entry in record["history"] if "eval_loss" in entry])
    assert epochs == 4 and record["best"]["value"] == 0.29999
    three = AdapterSettings("test", rank=4, training_args={**constant, "num_train_epochs": 3})
    run(tmp_path / "three", tiny_llama_path, "classification", three)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "three")


@pytest.mark.parametrize(
    ("where", "rhythm"),
    [
        ("before its end", {"eval_strategy": "steps", "eval_steps": 3}),
        pytest.param("before its end", {}, marks=pytest.mark.slow),
        pytest.param("in the epoch before", {"eval_strategy": "steps", "eval_steps": 3}, marks=pytest.mark.slow),
        ("in the epoch before", {}),
    ],
)
def test_a_killed_training_stops_early_where_it_would_have(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, rhythm: dict[str, Any]
) -> None:
    """No validation improves by 10, so it is over after the third; a kill changes neither that nor the weights."""
    option = {"metric": "loss", "patience": 2, "min_delta": 10}
    chosen = dataclasses.replace(settings(num_train_epochs=9, **rhythm), early_stopping=option)
    undisturbed = run(tmp_path / "undisturbed", tiny_llama_path, "classification", chosen)
    validations = [entry["step"] for entry in undisturbed["history"] if "eval_loss" in entry]
    assert len(validations) == 3 and undisturbed["steps"] == validations[-1]
    kept = tmp_path / "kept"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if where == "before its end":
            patch.setattr(AdapterTrainer, "_finalize_training", lambda *_: interrupt())
        else:
            stop_at(validations[1] + 1, interrupt, patch)
        run(tmp_path / "stopped", tiny_llama_path, "classification", chosen, kept)
    resumed = run(tmp_path / "stopped", tiny_llama_path, "classification", chosen, kept)
    assert resumed["resumed_from_step"] == validations[-1 if where == "before its end" else 1]
    assert [entry["step"] for entry in resumed["history"] if "eval_loss" in entry] == validations
    assert resumed["steps"] == undisturbed["steps"] and resumed["best"] == undisturbed["best"]
    assert weights(tmp_path / "stopped") == weights(tmp_path / "undisturbed")


@pytest.mark.parametrize("metric", ["perplexity", pytest.param("loss", marks=pytest.mark.slow)])
def test_lower_is_better_for_losses(tmp_path: Path, tiny_llama_path: Path, metric: str) -> None:
    chosen = AdapterSettings("test", rank=4, training_args=TRAINING, early_stopping={"metric": metric, "patience": 1})
    record = run(tmp_path / "adapter", tiny_llama_path, "generation", chosen)
    found = [entry[f"eval_{metric}"] for entry in record["history"] if "eval_loss" in entry]
    assert record["best"] == {"metric": metric, "value": min(found), "step": record["best"]["step"]}


WRONG = [
    (3, "early_stopping: must be an object"),
    ({"patence": 3}, "early_stopping.patence: unknown; did you mean 'patience'?"),
    ({"metric": "acuracy"}, "early_stopping.metric: 'acuracy' is unknown; did you mean 'accuracy'?"),
    ({"metric": "perplexity"}, "early_stopping.metric: 'perplexity' is unknown"),
    ({"patience": 0}, "early_stopping.patience: must be 1 or more, but got 0"),
    ({"patience": 1.5}, "early_stopping.patience: must be a whole number, but got 1.5"),
    ({"patience": True}, "early_stopping.patience: must be a whole number, but got True"),
    ({"min_delta": -1}, "early_stopping.min_delta: must be 0 or more, but got -1"),
]


@pytest.mark.parametrize(("option", "message"), WRONG)
def test_wrong_options_of_early_stopping(option: Any, message: str) -> None:
    (problem,) = early_stopping_problems(option, "classification", True, {})
    assert problem.startswith(message)


def test_early_stopping_wants_validations() -> None:
    given = {"eval_strategy": "no", "save_strategy": "epoch", "eval_steps": 3}
    found = early_stopping_problems({}, "generation", False, given)
    assert [problem.split(":")[0] for problem in found] == [
        "early_stopping",
        "early_stopping",
        "training_args.save_strategy",
    ]


def test_the_metrics_of_the_data_are_what_their_validation_measures() -> None:
    assert {several: set(names) for several, names in OF_DATA.items()} == {
        False: {"loss", *SCORES},
        True: {"loss", *SEVERAL_SCORES},
    }
    assert {name for names in OF_DATA.values() for name in names} == set(METRICS["classification"])


@pytest.mark.parametrize(
    ("option", "several", "right"),
    [
        (None, True, True),
        ({}, True, True),
        ({"metric": "loss"}, True, True),
        ({"metric": "f1_micro"}, True, True),
        ({"metric": "accuracy"}, True, False),
        ({"metric": "accuracy"}, False, True),
        ({"metric": "f1_micro"}, False, False),
        ({"metric": "acuracy"}, False, True),  # said elsewhere
        (3, False, True),
    ],
)
def test_the_metric_must_be_one_of_the_data(option: Any, several: bool, right: bool) -> None:
    found = metric_problems(option, several)
    assert [problem.split(":")[0] for problem in found] == ([] if right else ["early_stopping.metric"])


@pytest.mark.parametrize(
    ("training", "wrong"),
    [
        ({"lr_scheduler_type": "cyclical", "warmup_steps": 3}, ["training_args.warmup_steps"]),
        ({"lr_scheduler_type": "cyclical", "warmup_steps": 0}, []),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 3}, []),
    ],
)
def test_cycles_have_no_other_warm_up(training: dict[str, Any], wrong: list[str]) -> None:
    config = pass_config(training_args=training)
    assert [problem.split(":")[0] for problem in settings_problems(config, "classification")] == wrong


NUMBER = "training_args.learning_rate: must be a number, but got '0,001'"
UNKNOWN = "training_args.lr_scheduler_type: 'cosin' is unknown; did you mean 'cosine'? Valid: constant, "


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rate": "0,001"}, [NUMBER]),
        ({"learning_rate": 0}, ["training_args.learning_rate: must be above 0, but got 0"]),
        ({"learning_rate": math.nan}, ["training_args.learning_rate: must be a number, but got nan"]),
        ({"num_train_epochs": 0}, ["training_args.num_train_epochs: must be above 0, but got 0"]),
        ({"num_train_epochs": 0, "max_steps": 3}, []),
        ({"num_train_epochs": 0.5, "max_steps": -1, "warmup_steps": 0.1, "eval_steps": None}, []),
        ({"max_steps": 0}, ["training_args.max_steps: must be 1 or more, or -1 for num_train_epochs, but got 0"]),
        ({"gradient_accumulation_steps": True}, [
            "training_args.gradient_accumulation_steps: must be a whole number, but got True"]),
        ({"per_device_train_batch_size": 0, "bf16": "yes"}, [
            "training_args.per_device_train_batch_size: must be 1 or more, but got 0",
            "training_args.bf16: must be true or false, but got 'yes'"]),
        ({"adam_beta1": 1}, ["training_args.adam_beta1: must be from 0 and below 1, but got 1"]),
        ({"weight_decay": -1}, ["training_args.weight_decay: must be 0 or more, but got -1"]),
        ({"lr_scheduler_type": "cosin"}, [UNKNOWN]),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2}}, []),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"powr": 2}}, [
            "training_args.lr_scheduler_kwargs: 'polynomial' does not take {'powr': 2}: "]),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": 3}, [
            "training_args.lr_scheduler_kwargs: must be an object, but got 3"]),
    ],
)  # fmt: skip
def test_values_of_training_args_are_checked_before_a_run(given: dict[str, Any], said: list[str]) -> None:
    found = argument_problems(given)
    assert len(found) == len(said) and all(map(str.startswith, found, said))


def test_the_line_of_a_training_that_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """It says of which step the weights are, with that validation's numbers and not the last one's."""
    args: Any = SimpleNamespace(load_best_model_at_end=True, metric_for_best_model="f1_macro")
    state: Any = SimpleNamespace(global_step=0, max_steps=90, best_global_step=None, log_history=[])
    bar = ProgressBar("spam")
    bar.on_train_begin(args, state, None)
    validations = [{"step": s, "eval_loss": s / 100, "eval_accuracy": a, "eval_f1_macro": a - 0.1}
                   for s, a in ((10, 0.5), (20, 0.75), (30, 0.25))]  # fmt: skip
    for metrics in validations:
        bar.on_evaluate(args, state, None, metrics)
    vars(state).update(global_step=30, best_global_step=20, log_history=validations)
    bar.on_train_end(args, state, None)
    assert capsys.readouterr().err == (
        "train spam: stopped after 30 of 90 steps, weights of step 20, validation loss 0.200, accuracy 0.750, "
        "f1_macro 0.650\n"
    )
    bar.on_train_begin(args, state, None)
    assert capsys.readouterr().err == "train spam: goes on from step 30\n"


def test_a_cyclical_rate_is_that_of_torch(tmp_path: Path, tiny_llama_path: Path) -> None:
    training = {
        "lr_scheduler_type": "cyclical", "lr_scheduler_kwargs": {"cycles": 2, "lowest": 0.2},
        "logging_strategy": "steps", "logging_steps": 1, "max_steps": 12, "warmup_steps": 0,
    }  # fmt: skip
    record = run(tmp_path / "adapter", tiny_llama_path, "classification", settings(**training))
    rates = [entry["learning_rate"] for entry in record["history"] if "learning_rate" in entry]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    expected = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.002, 0.01, step_size_up=3, cycle_momentum=False)
    for rate in rates:
        assert rate == pytest.approx(expected.get_last_lr()[0])
        optimizer.step()
        expected.step()
    assert len(rates) == 12


@pytest.mark.parametrize("options", [{"cycles": 0}, {"cycles": 1.5}, {"lowest": 2}, {"lowest": "x"}])
def test_wrong_options_of_a_cyclical_rate(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"lr_scheduler_kwargs.{next(iter(options))}: must be"):
        CyclicalSchedule(**options)


def history(validation: list[float], training: list[float]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for epoch, (held_out, loss) in enumerate(zip(validation, training, strict=True), 1):
        found += [{"epoch": epoch, "loss": loss}, {"epoch": epoch, "eval_loss": held_out}]
    return found


@pytest.mark.parametrize(
    ("validation", "training", "overfits"),
    [
        ([0.5, 0.3, 0.35, 0.4], [0.6, 0.4, 0.2, 0.1], True),
        ([0.5, 0.4, 0.3, 0.31], [0.6, 0.4, 0.2, 0.1], False),  # the last one alone may be noise
        ([0.5, 0.3, 0.305, 0.31], [0.6, 0.4, 0.2, 0.1], False),  # hardly worse
        ([0.5, 0.3, 0.35, 0.4], [0.6, 0.4, 0.5, 0.6], False),  # it diverges
        ([0.5, 0.4, 0.3], [0.6, 0.4, 0.2], False),
        ([0.5, math.nan, 0.9], [0.6, 0.4, 0.2], False),
        ([], [], False),
    ],
)
def test_overfitting_is_told_with_its_evidence(validation: list[float], training: list[float], overfits: bool) -> None:
    found = overfitting(history(validation, training))
    expected = (
        "validation loss rose from 0.300 (epoch 2) to 0.400 (epoch 4), while training loss fell from 0.400 to 0.100"
    )
    assert found == (expected if overfits else None)


def test_a_training_leaves_what_can_be_looked_at(
    tmp_path: Path, tiny_llama_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "adapter"
    record = run(folder, tiny_llama_path, "classification", settings(num_train_epochs=4))
    assert record["tokens_per_second"] > 0 and record["peak_rss_bytes"] > 10**8
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > picture.height > 200
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 20
    (events,) = (folder / "tensorboard").iterdir()
    scalars = {(tag, step): value for tag, step, value in read_events(events)}
    for entry in record["history"]:
        for name, tag in (("eval_accuracy", "eval/accuracy"), ("eval_loss", "eval/loss"), ("loss", "train/loss")):
            if name in entry:
                assert scalars[tag, entry["step"]] == pytest.approx(entry[name])
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "adapter.json", "adapter_config.json", "adapter_model.safetensors", "curves.png", "samples.json", "tensorboard",
        "training.json",
    ]  # fmt: skip
    assert "Traceback" not in capsys.readouterr().err


def test_tokens_are_counted_without_padding(
    tmp_path: Path, tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)

    def perf_counter() -> float:
        clock.now += 0.5
        return clock.now

    monkeypatch.setattr("passes.training.monitoring.time", SimpleNamespace(perf_counter=perf_counter))
    record = run(tmp_path / "adapter", tiny_llama_path, "classification", settings(num_train_epochs=2))
    assert record["tokens_per_second"] == round(2 * record["tokens_per_epoch"] / (record["steps"] * 0.5), 1)


def test_nothing_measured_is_no_picture(tmp_path: Path) -> None:
    plot_curves([{"epoch": 1.0, "train_runtime": 3.0}], "spam", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def read_events(file: Path) -> list[tuple[str, int, float]]:
    """TFRecord: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    content, place, found = file.read_bytes(), 0, []
    while place < len(content):
        length = int.from_bytes(content[place : place + 8], "little")
        event = Event.FromString(content[place + 12 : place + 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        place += 16 + length
    return found
