"""The process that starts the processes of a training: `accelerate launch`, quiet where it fails.

`python -m passes.training.launcher FOLDER THREADS PARENT`: the folder of `passes.training.launch`, the threads of each
process, and the process that this one ends with.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

from passes.training.launch import CONFIG, KILLED
from passes.training.launched import end_with, say


def main(folder: Path, threads: str, parent: int) -> int:
    """Returns 0 when all processes have ended well."""
    end_with(parent)
    logging.disable(logging.ERROR)  # torch tells at length of a process that failed, which has told why itself
    warnings.simplefilter("ignore")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    options = ["--config_file", str(folder / CONFIG), "--num_cpu_threads_per_process", threads, "--module"]
    launched = ["passes.training.launched", str(folder), str(os.getpid())]
    command = launch_command_parser().parse_args([*options, *launched])
    try:
        launch_command(command)
    except SignalException:
        return 1
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            if failure.exitcode < 0:  # killed, so that it has said nothing; the others may have failed for that
                more = ", as a system does when memory runs out" if failure.exitcode == -9 else ""
                say(folder, str(rank), KILLED, f"process {rank} was killed by signal {-failure.exitcode}{more}")
        return 1
    except Exception as error:  # what accelerate says to a configuration: it raises anything
        say(folder, "launch", "OlivalError", f"accelerate could not start the processes: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
