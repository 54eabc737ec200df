"""Several processes train what one does, say once what goes wrong, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evaluators.intermediate_values import VARIABLE, read_from
from passes.training.adapter_pass import ATTRIBUTE
from passes.training.launch import ERROR, KILLED, Job, _reason, train_in_processes
from passes.training.launched import say
from passes.training.out_of_memory import OutOfMemory, StoppedTraining
from passes.training.processes import launch_settings, number_of_processes
from passes.training.settings import AdapterSettings, settings_problems, training_arguments
from passes.training.shared_batches import own_share, share_sizes
from passes.training.train import train_adapter
from runtime.errors import OlivalError
from tests.passes.conftest import REPOSITORY, data_config, mood_data, pass_config, write_mood_csv
from tests.passes.several_trainings import cases, moods, options, train_all

CLOSE = 1e-4
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX systems")


def farthest(one: Path, other: Path) -> float:
    """Between the weights of two adapters."""
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def moved(folder: Path) -> float:
    """How far the B matrices went, which started at zero."""
    weights = load_file(folder / "adapter_model.safetensors")
    return max(float(value.abs().max()) for name, value in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 16])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_are_the_batch(rows: int, processes: int) -> None:
    batch = [{"input_ids": [0] * (9 - place % 3), "labels": [place] * (9 - place % 3)} for place in range(rows)]
    sizes = share_sizes(rows, processes)
    assert sum(sizes) == rows and max(sizes) - min(sizes) <= 1
    shares = [own_share(batch, rank, processes) for rank in range(processes)]
    assert [row for share, size in zip(shares, sizes, strict=True) for row in share[:size]] == batch
    for share, size in zip(shares, sizes, strict=True):
        assert len(share) == max(size, 1)  # who has no row computes one, of which nothing is learned
        assert size or share[0]["labels"] == [-100] * min(len(row["input_ids"]) for row in batch)


def written(folder: Path, name: str = "accelerate.yaml", **values: Any) -> str:
    """A configuration file of accelerate."""
    (folder / name).write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(folder / name)


BATCH = "training_args.per_device_train_batch_size"
WRONG: dict[str, tuple[dict[str, Any], dict[str, Any] | None, list[str]]] = {
    # name: (options, accelerate's file, beginnings of the lines)
    "nothing": ({}, None, []),
    "two": ({"processes": 2}, None, []),
    "none": ({"processes": 0}, None, ["processes: must be a whole number, 1 or more, but got 0"]),
    "a truth": ({"processes": True}, None, ["processes: must be a whole number"]),
    "file": ({}, {"num_processes": 2, "distributed_type": "MULTI_CPU"}, []),
    "both": ({"processes": 2}, {"num_processes": 2}, []),
    "contradiction": ({"processes": 3}, {"num_processes": 2}, ["processes: 3, but"]),
    "no number": ({}, {"distributed_type": "NO"}, ["accelerate_config: * num_processes must be a whole number"]),
    "kind": ({}, {"num_processes": 2, "distributed_type": "DEEPSPEED"}, ["accelerate_config: * distributed_type"]),
    "a cloud": (
        {}, {"num_processes": 2, "compute_environment": "AMAZON_SAGEMAKER"},
        ["accelerate_config: * compute_environment must be LOCAL_MACHINE"],
    ),
    "misspelled": (
        {}, {"num_processes": 2, "num_machine": 1},
        ["accelerate_config: * unknown key num_machine; did you mean 'num_machines'?"],
    ),
    "machines": (
        {}, {"num_processes": 3, "num_machines": 2}, ["accelerate_config: * num_processes 3 must be the same number"],
    ),
    "no machine": ({}, {"num_processes": 3, "num_machines": 0}, ["accelerate_config: * num_machines must be a whole"]),
    "no pieces": ({}, {"num_processes": 2, "distributed_type": "FSDP"}, ["accelerate_config: * fsdp_config must be"]),
    "precision": ({}, {"num_processes": 2, "mixed_precision": "bf16"}, ["accelerate_config: * mixed_precision 'bf16'"]),
    "small batch": (
        {"processes": 5, "training_args": {"per_device_train_batch_size": 4}}, None,
        [f"{BATCH}: the 5 processes share its 4 rows, so it must be 5 or more"],
    ),
    "too many": ({"processes": 17}, None, [f"{BATCH}: the 17 processes share its 16 rows"]),
    "one": ({"cpu_offload": True}, {"num_processes": 1}, []),
    "all at once": (
        {"processes": 0, "cpu_offload": True}, {"num_processes": 2, "mixed_precision": "fp16"},
        ["processes: must be", "accelerate_config: * mixed_precision", "cpu_offload: does not"],
    ),
    "arguments": (
        {"processes": 2, "cpu_offload": True, "training_args": {
            "auto_find_batch_size": True, "average_tokens_across_devices": False,
            "train_sampling_strategy": "batch_rebalance", "label_smoothing_factor": 0.1, "deepspeed": "zero.json"}},
        None,
        ["training_args.auto_find_batch_size: does not go", "training_args.deepspeed: does not go",
         "training_args.average_tokens_across_devices: must be true",
         "training_args.train_sampling_strategy: 'batch_rebalance'",
         "training_args.label_smoothing_factor: is of each process's rows alone", "cpu_offload: does not go"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_before_a_run(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given, values, lines = WRONG[name]
    file = {} if values is None else {"accelerate_config": written(tmp_path, **values)}
    found = settings_problems(pass_config(**given, **file), "classification")
    assert [problem.replace(str(tmp_path / "accelerate.yaml:"), "*")[: len(line)]
            for problem, line in zip(found, lines, strict=True)] == lines  # fmt: skip


def test_a_file_that_is_not_there_or_no_object(tmp_path: Path) -> None:
    right = written(tmp_path, num_processes=2)
    (problem,) = settings_problems(pass_config(accelerate_config=f"{right[:-6]}.yaml"), "generation")
    assert "there is no file" in problem and f"did you mean '{right}'?" in problem
    (tmp_path / "list.yaml").write_text("[1, 2", encoding="utf-8")
    (problem,) = settings_problems(pass_config(accelerate_config=str(tmp_path / "list.yaml")), "generation")
    assert "list.yaml: cannot be read" in problem


def fsdp(**values: Any) -> dict[str, Any]:
    options = {"fsdp_version": 2, "fsdp_state_dict_type": "FULL_STATE_DICT", "fsdp_cpu_ram_efficient_loading": False}
    return {"num_processes": 2, "distributed_type": "FSDP", "fsdp_config": {**options, **values}}


def test_sharded_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are for GPUs, of accelerate's second version, without 4 bits; the shipped file is right."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    def found(values: dict[str, Any], **others: Any) -> list[str]:
        from passes.training.processes import launch_problems

        return launch_problems(pass_config(accelerate_config=written(tmp_path, **values), **others), "generation")

    assert found(fsdp()) == []
    shipped = yaml.safe_load((REPOSITORY / "workflows" / "accelerate" / "fsdp.yaml").read_text(encoding="utf-8"))
    assert found(shipped) == []
    several = yaml.safe_load((REPOSITORY / "workflows" / "accelerate" / "machines.yaml").read_text(encoding="utf-8"))
    assert found(several) == []
    wrong = fsdp(fsdp_version=1, fsdp_state_dict_type="SHARDED_STATE_DICT", fsdp_cpu_ram_efficient_loading=True)
    assert [part in line for part, line in zip(
        ("fsdp_version", "fsdp_state_dict_type", "fsdp_cpu_ram", "quantization"),
        found(wrong, quantization="nf4"), strict=True)] == [True] * 4  # fmt: skip
    assert "this machine has 2 GPUs" in found({"num_processes": 3})[0]
    assert found({"num_processes": 3}, training_args={"ddp_backend": "gloo"}) == []
    assert found({"num_processes": 3, "use_cpu": True}) == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "FSDP is for GPUs" in found(fsdp())[0]


def test_launch_settings(tmp_path: Path) -> None:
    assert launch_settings(AdapterSettings("a")) is None and number_of_processes(AdapterSettings("a")) == 1
    two = launch_settings(AdapterSettings("a", processes=2))
    # MULTI_CPU would be one process, unless MPI starts others
    assert two is not None and (two["num_processes"], two["distributed_type"]) == (2, "MULTI_GPU")
    assert two["main_process_port"] == 0 and two["mixed_precision"] == "no"
    file = written(tmp_path, num_processes=4, distributed_type="MULTI_CPU", num_machines=2, main_process_port=2950)
    four = launch_settings(AdapterSettings("a", accelerate_config=file))
    assert four is not None and four["distributed_type"] == "MULTI_GPU" and four["main_process_port"] == 2950
    assert number_of_processes(AdapterSettings("a", accelerate_config=file)) == 4


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from accelerate.state import AcceleratorState

    for name, value in {"is_available": True, "device_count": 4, "set_device": None, "current_device": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    yield
    monkeypatch.undo()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_one_process_takes_one_gpu(tmp_path: Path, four_gpus: None) -> None:
    """transformers would have it train on all of them, with batches four times as large and no response logits."""
    from transformers import TrainingArguments

    chosen = AdapterSettings("test", training_args={"per_device_train_batch_size": 4})
    alone = TrainingArguments(str(tmp_path), per_device_train_batch_size=4)
    assert (alone.n_gpu, alone.train_batch_size) == (4, 16)
    arguments = training_arguments(chosen, tmp_path, evaluate=False)
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 4)


def test_the_first_own_words_count(tmp_path: Path) -> None:
    """Not those of a process that waited for the one that failed."""
    assert isinstance(_reason(tmp_path, "spam", 1), StoppedTraining)
    say(tmp_path, "0", "RuntimeError", "process 0 failed: RuntimeError: connection closed by peer")
    error = _reason(tmp_path, "spam", 1)
    assert type(error) is StoppedTraining
    assert str(error) == "adapter 'spam': process 0 failed: RuntimeError: connection closed by peer"
    say(tmp_path, "2", KILLED, "process 2 was killed by signal 9")
    assert str(_reason(tmp_path, "spam", 1)) == "adapter 'spam': process 2 was killed by signal 9"
    say(tmp_path, "1", "OutOfMemory", "no memory\n  - a smaller batch")
    error = _reason(tmp_path, "spam", 1)
    assert type(error) is OutOfMemory and str(error) == "no memory\n  - a smaller batch"
    (tmp_path / ERROR.format("1")).unlink()
    say(tmp_path, "1", "OlivalError", "it diverged")
    assert type(_reason(tmp_path, "spam", 1)) is OlivalError


def test_a_workflow_s_pass_in_two_processes(
    tmp_path: Path, tiny_llama_path: Path, run_pass: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one: a loss over all pairs of a batch, three rows for two processes, and five rows, so that one has none."""
    from olive.model import HfModelHandler

    mood = mood_data()
    data = data_config("mood", write_mood_csv(tmp_path / "mood.csv", mood.texts[:7], mood.labels[:7]))
    steps = {"per_device_train_batch_size": 3, "num_train_epochs": 1, "learning_rate": 0.01}
    given = {"adapter_name": "mood", "train_data_config": data, "validation_data_config": data, "rank": 4,
             "baselines": False, "loss": "contrastive", "training_args": steps}  # fmt: skip
    monkeypatch.setenv(VARIABLE, str(tmp_path / "values"))
    folders = []
    for processes in (2, 1):
        monkeypatch.setenv("OLIVE_CACHE_DIR", str(tmp_path / str(processes) / "cache"))
        output = run_pass("ClassificationHead", HfModelHandler(str(tiny_llama_path)), {**given, "processes": processes})
        folders.append(Path(output.model_attributes[ATTRIBUTE]["mood"]))
    two, one = folders
    assert two.name == one.name, "how many processes there are is no part of what is learned"
    assert farthest(two, one) < CLOSE and moved(one) > 100 * CLOSE
    assert sorted(p.name for p in two.iterdir()) == sorted(p.name for p in one.iterdir())
    records = [json.loads((folder / "training.json").read_text(encoding="utf-8")) for folder in folders]
    assert records[0]["processes"] == 2 and "processes" not in records[1]
    assert records[0]["history"][-1]["num_input_tokens_seen"] == records[1]["history"][-1]["num_input_tokens_seen"]
    lines, _ = read_from(tmp_path / "values", 0)  # a search reads them, and prunes
    first, second = ([line["values"] for line in lines if "values" in line][i] for i in range(2))
    assert len([line for line in lines if "values" in line]) == 2
    assert first == pytest.approx(second, abs=CLOSE)


def in_two(folder: Path, base: Path, names: list[str], **environment: str) -> subprocess.Popen[str]:
    """Trains the adapters of these cases one after the other, in two processes of torch's own launcher."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
               "tests.passes.several_trainings", str(folder), str(base), *names]  # fmt: skip
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_llama_path: Path) -> dict[int, Path]:
    """{processes: folder of the adapters of all cases}."""
    folders = {count: tmp_path_factory.mktemp(f"by-{count}") for count in (1, 2)}
    two = in_two(folders[2], tiny_llama_path, list(cases()))
    train_all(folders[1], tiny_llama_path, list(cases()))
    said, _ = two.communicate(timeout=600)
    assert two.returncode == 0, said
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", cases())
def test_two_processes_train_what_one_does(both: dict[int, Path], name: str) -> None:
    assert farthest(both[2] / name, both[1] / name) < CLOSE
    one, two = (json.loads((both[count] / name / "training.json").read_text(encoding="utf-8")) for count in (1, 2))
    measured = ("loss", "eval_loss", "eval_accuracy", "eval_f1_macro", "grad_norm", "num_input_tokens_seen", "step")
    assert len(one["history"]) == len(two["history"]) and one["steps"] == two["steps"]
    for first, second in zip(one["history"], two["history"], strict=True):
        wanted = {key: value for key, value in first.items() if key in measured}
        assert {key: second[key] for key in wanted} == pytest.approx(wanted, rel=1e-3)
    described = [json.loads((both[count] / name / "adapter.json").read_text(encoding="utf-8")) for count in (1, 2)]
    assert described[0].keys() == described[1].keys()
    assert described[1].get("thresholds") == pytest.approx(described[0].get("thresholds"), abs=CLOSE)


SHARDED = ("generation", "classification", "all weights", "bottlenecks", "several labels", "best weights")


@pytest.mark.slow
def test_a_model_in_pieces_trains_as_a_whole_one(both: dict[int, Path], tmp_path: Path, tiny_llama_path: Path) -> None:
    """FSDP, on the CPU, which accelerate does not offer: see `several_trainings.sharded_on_cpus`. Also from a
    checkpoint: the first case is stopped there, and goes on."""
    shipped = yaml.safe_load((REPOSITORY / "workflows" / "accelerate" / "fsdp.yaml").read_text(encoding="utf-8"))
    options = {
        key.upper().replace("_LAYER_CLS", "_CLS"): str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in shipped["fsdp_config"].items()
    }
    two = in_two(tmp_path, tiny_llama_path, list(SHARDED), ACCELERATE_USE_FSDP="true", **options)
    said, _ = two.communicate(timeout=600)
    assert two.returncode == 0, said
    for name in SHARDED:
        assert farthest(tmp_path / name, both[1] / name) < CLOSE, name
    record = json.loads((tmp_path / SHARDED[0] / "training.json").read_text(encoding="utf-8"))
    assert record["resumed_from_step"] == 3


def job(folder: Path, base: Path, settings: AdapterSettings) -> Job:
    work = folder / "work"
    work.mkdir()
    return Job(work, base, dataclasses.replace(settings, processes=2), moods(), moods(), None, folder / "checkpoints")


@pytest.mark.slow
def test_a_training_that_fails_says_why_in_one_line(
    tmp_path: Path, tiny_llama_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OlivalError) as error:
        train_in_processes(job(tmp_path, tiny_llama_path, options(training={"learning_rate": 1e30})))
    assert type(error.value) is OlivalError and "the training diverged" in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
    assert [p.name for p in (tmp_path / "work").iterdir() if p.name.startswith("launch-")] == []


START = """
import pickle, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and all it starts
from passes.training.launch import train_in_processes
train_in_processes(pickle.load(open(sys.argv[1], "rb")))
"""


def started(folder: Path, work: Job) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A process that trains in two others, and all that it has started, when there is a first checkpoint."""
    import pickle

    (folder / "job").write_bytes(pickle.dumps(work))
    process = subprocess.Popen([sys.executable, "-c", START, str(folder / "job")], cwd=REPOSITORY)
    wait_for(lambda: any(work.checkpoints.glob("checkpoint-*/trainer_state.json")), process)
    return process, psutil.Process(process.pid).children(recursive=True)


def wait_for(happens: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.05)


def lives(process: psutil.Process) -> bool:
    """A zombie does not: it has ended, and nobody asked how."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


ORPHAN = """
import sys, time
from pathlib import Path
from passes.training import launched
launched._train = lambda *_: time.sleep(20)
launched.main(Path(sys.argv[1]), int(sys.argv[2]))
"""


def test_a_process_ends_whose_parent_was_gone_before_it_could_look(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(60)
    command = [sys.executable, "-c", ORPHAN, str(tmp_path), str(gone.pid)]
    surroundings = {**os.environ, "RANK": "0", "LOCAL_RANK": "0"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=surroundings, timeout=60, capture_output=True)
    assert ended.returncode == 1 and not ended.stderr and not list(tmp_path.iterdir())


LONG = {"num_train_epochs": 500, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_the_processes_end_with_the_one_that_started_them(
    tmp_path: Path, tiny_llama_path: Path, number: signal.Signals
) -> None:
    process, others = started(tmp_path, job(tmp_path, tiny_llama_path, options(training=LONG)))
    assert len(others) >= 3  # the launcher and its two
    process.send_signal(number)
    process.wait(60)
    wait_for(lambda: not any(lives(other) for other in others), seconds=60)


@POSIX
@pytest.mark.slow
def test_a_killed_process_ends_the_training_and_one_process_goes_on(tmp_path: Path, tiny_llama_path: Path) -> None:
    """From the checkpoint that two have left; to the weights that it would have had alone."""
    from concurrent.futures import ThreadPoolExecutor

    chosen = options(training={"num_train_epochs": 12, "save_strategy": "steps", "save_steps": 3})
    work = job(tmp_path, tiny_llama_path, chosen)

    def kill() -> None:
        wait_for(lambda: any(work.checkpoints.glob("checkpoint-*/trainer_state.json")))
        last = max(psutil.Process().children(recursive=True), key=lambda p: p.create_time())
        last.kill()

    with ThreadPoolExecutor() as pool, pytest.raises(StoppedTraining, match="was killed by signal 9"):
        killer = pool.submit(kill)
        train_in_processes(work)
    killer.result()
    train_adapter(work.folder, tiny_llama_path, chosen, moods(), moods(), None, work.checkpoints)
    record = json.loads((work.folder / "training.json").read_text(encoding="utf-8"))
    assert record["resumed_from_step"] >= 3
    alone = tmp_path / "alone"
    alone.mkdir()
    train_adapter(alone, tiny_llama_path, chosen, moods(), moods(), None, tmp_path / "others")
    assert farthest(work.folder, alone) < CLOSE


@pytest.mark.slow
def test_dropout_leaves_the_order_of_rows_alike(tmp_path: Path, tiny_llama_path: Path) -> None:
    """It draws other numbers in each process; a training of two epochs and a checkpoint in their midst goes on."""
    work = job(tmp_path, tiny_llama_path, options(dropout=0.3, training={"save_strategy": "steps", "save_steps": 3}))
    train_in_processes(work)
    record = json.loads((work.folder / "training.json").read_text(encoding="utf-8"))
    tokens = [entry["num_input_tokens_seen"] for entry in record["history"] if "loss" in entry]
    assert tokens == [record["tokens_per_epoch"], 2 * record["tokens_per_epoch"]]  # no row twice, none left out


@pytest.mark.slow
def test_each_of_two_machines_gets_the_adapter(tmp_path: Path, tiny_llama_path: Path) -> None:
    """As several of them are started: a launch on each, here both on this machine."""
    import socket
    from concurrent.futures import ThreadPoolExecutor

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"num_machines": 2, "num_processes": 2, "main_process_ip": "127.0.0.1", "main_process_port": port}
    works = []
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        file = written(tmp_path, f"{rank}.yaml", machine_rank=rank, rdzv_backend="static", **shared)
        work = job(tmp_path / str(rank), tiny_llama_path, options())
        settings = dataclasses.replace(work.settings, processes=1, accelerate_config=file)
        assert settings_problems(pass_config(accelerate_config=file), "classification") == []
        works.append(dataclasses.replace(work, settings=settings))
    with ThreadPoolExecutor() as pool:
        list(pool.map(train_in_processes, works))
    alone = tmp_path / "alone"
    alone.mkdir()
    train_adapter(alone, tiny_llama_path, options(), moods(), moods(), None, tmp_path / "others")
    for work in works:
        assert farthest(work.folder, alone) < CLOSE
        assert {p.name for p in work.folder.iterdir()} == {p.name for p in alone.iterdir()}
