"""What workers of a search cost: throughput of N workers on trials of fixed length, against one worker.

`python -m benchmark.search_workers --workers 4 --trials 40 --seconds 2 [--storage URL]` runs both in turn, some rounds
of each, with trials that only sleep; N workers run `--trials` trials and one worker runs its N-th share, so that both
take the same time where workers cost each other nothing. The ratio over N is one worker's time by N workers' time.
Without `--storage` a SQLite file is the database. `--growth 300` adds a study of so many trials of no length, and tells
what its first and its last trials cost.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark.results import write_json
from search.olive_run import POLL_SECONDS, Exit
from search.records import TrialRecord
from search.space_file import read_space
from search.study_record import read_study
from search.worker import work

WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "quickstart.json"
PARAMETERS = {
    "passes.spam.training_args.learning_rate": {"type": "float", "low": 1e-5, "high": 3e-2, "log": True},
    "passes.spam.rank": {"type": "int", "low": 2, "high": 32},
    "passes.spam.alpha": {"type": "float", "low": 4, "high": 64, "log": True},
    "passes.export.precision": {"type": "categorical", "choices": ["int4", "int8", "fp32"]},
}
_PER_MEAN = 30  # trials at each end of the long study


def sleeping_run(seconds: float, workflow: Path, log: Path, values: Path, stop: Callable[[], str | None]) -> Exit:
    """In place of `olive run`: sleeps, asks `stop` as often, and measures something."""
    del log, values
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, POLL_SECONDS))
        stop()
    content = json.loads(workflow.read_text(encoding="utf-8"))
    package = Path(content["output_dir"])
    package.mkdir(parents=True)
    rate = content["passes"]["spam"]["training_args"]["learning_rate"]
    row = {"adapter": "spam", "metric": "accuracy", "pytorch": rate, "package": rate, "low": 0.0, "high": 1.0}
    write_json(package / "evaluation.json", {"quality": [row], "latency": [], "sizes": []})
    return Exit(0, None, 0)


def run_study(
    folder: Path, workers: int, trials: int, seconds: float, storage: str | None, sampler: str
) -> list[TrialRecord]:
    """The trials of a new study that so many processes, which begin together, have run; by start."""
    folder.mkdir(parents=True)
    space = {
        "name": f"workers-{uuid.uuid4().hex[:12]}", "workflow": str(WORKFLOW), "parameters": PARAMETERS,
        "objectives": [{"metric": "spam-accuracy"}], "trials": trials, "sampler": {"type": sampler},
        "output_dir": str(folder / "results"), **({"storage": storage} if storage else {}),
    }  # fmt: skip
    write_json(folder / "space.json", space)
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(workers)
    processes = [context.Process(target=_worker, args=(folder, seconds, together)) for _ in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, f"a worker ended with exit code {process.exitcode}"
    found = read_study(read_space(folder / "space.json")).trials
    assert [t.state for t in found] == ["complete"] * trials, [t.reason for t in found]
    return sorted(found, key=lambda t: str(t.started))


def _worker(folder: Path, seconds: float, together: Any) -> None:
    log = (folder / f"worker-{multiprocessing.current_process().pid}.txt").open("w", encoding="utf-8")
    sys.stdout = sys.stderr = log
    space = read_space(folder / "space.json")
    together.wait()
    work(space, run=functools.partial(sleeping_run, seconds))


def wall_seconds(trials: Sequence[TrialRecord]) -> float:
    """From the first begin to the last end."""
    starts = [t.started for t in trials if t.started]
    ends = [t.finished for t in trials if t.finished]
    return (max(ends) - min(starts)).total_seconds()


def compare(
    folder: Path, workers: int, trials: int, seconds: float, rounds: int, storage: str | None, sampler: str
) -> dict[str, Any]:
    """Rounds of one worker and of N workers, in turn and in an order that changes."""
    walls: dict[int, list[float]] = {1: [], workers: []}
    share = -(-trials // workers)
    for number in range(rounds):
        for count in (1, workers) if number % 2 == 0 else (workers, 1):
            place = folder / f"round-{number}-{count}"
            ran = run_study(place, count, share if count == 1 else share * workers, seconds, storage, sampler)
            walls[count].append(wall_seconds(ran))
            print(f"round {number + 1}: {count} worker{'s' * (count > 1)} took {walls[count][-1]:.2f} s "
                  f"for {len(ran)} trials of {seconds:g} s", flush=True)  # fmt: skip
    ratios = [one / several for one, several in zip(walls[1], walls[workers], strict=True)]
    return {
        "workers": workers, "trials": share * workers, "seconds": seconds, "sampler": sampler, "ratios": ratios,
        "ratio": statistics.median(ratios),
        "cost_seconds": {str(count): statistics.median(walls[count]) / share - seconds for count in walls},
    }  # fmt: skip


def growth(folder: Path, trials: int, storage: str | None, sampler: str) -> tuple[float, float]:
    """Seconds from one trial's begin to the next one's: (of the first trials, of the last), medians."""
    starts = [t.started for t in run_study(folder, 1, trials, 0.0, storage, sampler) if t.started]
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(starts)]
    count = min(_PER_MEAN, len(gaps) // 2)
    return statistics.median(gaps[:count]), statistics.median(gaps[-count:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.search_workers", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--trials", type=int, default=40, help="of N workers together")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a trial")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--storage", help="SQLAlchemy URL; default: a SQLite file")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--growth", type=int, metavar="TRIALS", help="how the cost grows in a study of so many trials")
    parser.add_argument("--out", type=Path, help="JSON with every number")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="search-workers-") as folder:
        found = compare(
            Path(folder), options.workers, options.trials, options.seconds, options.rounds, options.storage,
            options.sampler,
        )  # fmt: skip
        several = str(options.workers)
        print(f"{several} workers: {found['ratio']:.3f} of {several} times one worker's throughput "
              f"({min(found['ratios']):.3f} to {max(found['ratios']):.3f} in {options.rounds} rounds; target 0.9)\n"
              f"a trial costs {found['cost_seconds']['1'] * 1e3:.0f} ms beside its length with one worker, "
              f"{found['cost_seconds'][several] * 1e3:.0f} ms with {several}", flush=True)  # fmt: skip
        if options.growth:
            first, last = growth(Path(folder) / "growth", options.growth, options.storage, options.sampler)
            found["growth_seconds"] = {"trials": options.growth, "first": first, "last": last}
            print(f"in a study of {options.growth} trials of no length one takes {first * 1e3:.0f} ms at the beginning "
                  f"and {last * 1e3:.0f} ms at the end")  # fmt: skip
        if options.out:
            write_json(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
