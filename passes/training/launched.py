"""One of the processes that train an adapter together: `python -m passes.training.launched FOLDER PARENT`.

PARENT is the process that starts it, which it ends with: by the time that this one could look, it may be gone.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from pathlib import Path

import psutil

from evaluators.intermediate_values import VARIABLE
from passes.training.launch import ERROR, JOB
from passes.training.out_of_memory import OutOfMemory
from runtime.atomic_file import write_text
from runtime.errors import OlivalError

WATCH_SECONDS = 1.0


def main(folder: Path, parent: int) -> int:
    """Trains what the job in the folder says; returns 0, or 1 after it has written why there is no adapter."""
    end_with(parent)
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    if local_rank:
        _be_silent()
    if rank:
        os.environ.pop(VARIABLE, None)
    try:
        _train(folder, local_rank)
    except OlivalError as error:
        say(folder, str(rank), "OutOfMemory" if isinstance(error, OutOfMemory) else "OlivalError", str(error))
    except Exception as error:  # anything that a library raises; the process that started the training tells it
        words = (str(error).strip() or "no words").splitlines()[0]
        say(folder, str(rank), type(error).__name__, f"process {rank} failed: {type(error).__name__}: {words}")
    else:
        return 0
    return 1


def _train(folder: Path, local_rank: int) -> None:
    import torch
    from torch import distributed

    from passes.base_model import quieten_transformers
    from passes.training.train import train_adapter

    quieten_transformers()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    with open(folder / JOB, "rb") as stream:
        job = pickle.load(stream)
    rows = (job.train_data, job.validation_data)
    train_adapter(job.folder, job.base, job.settings, *rows, job.head, job.checkpoints, job.start)
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def say(folder: Path, who: str, kind: str, message: str) -> None:
    """Leaves the reason of a failure to the process that started the training."""
    write_text(folder / ERROR.format(who), json.dumps({"kind": kind, "message": message}))


def end_with(process: int) -> None:
    """Ends this process when another one has ended, however that was: processes of a training are in other sessions,
    where no Ctrl-C and no signal to a group finds them."""

    def watch() -> None:
        try:
            other = psutil.Process(process)
            while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
                wait.wait(WATCH_SECONDS)
        except psutil.NoSuchProcess:
            pass
        os._exit(1)

    wait = threading.Event()
    threading.Thread(target=watch, daemon=True).start()


def _be_silent() -> None:
    """One process of a machine talks; what all of them say is the same."""
    sys.stdout.flush()
    sys.stderr.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


if __name__ == "__main__":
    if main(Path(sys.argv[1]), int(sys.argv[2])):
        os._exit(1)  # at once: the others may wait for this one, and what is left of torch for them
