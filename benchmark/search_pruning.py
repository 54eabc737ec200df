"""What pruning and the cache save: a search with both against random search with neither, on quickstart's `spam`.

`python -m benchmark.search_pruning --work DIR --out X.json` runs both sides in turn, in one process and for several
seeds, and tells when the pruned search reaches the best validation accuracy of the whole random search, as a share of
the random search's time. Trials train the adapter and score it on the held-out rows; nothing is exported, as nothing of
the export is searched. A side's time is the sum of its trials' wall times. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.results import machine, versions, write_json
from search.space import Space
from search.space_file import read_space
from search.study_record import read_study
from search.worker import work

WORKFLOW = Path("workflows/quickstart.json")
EPOCHS, VALIDATION_STEPS = 2, 10  # of 60 steps
MOST = 4  # times the random search's trials that the pruned search may have, if they fit into its time
PARAMETERS = {
    "passes.spam.training_args.learning_rate": {
        "type": "categorical", "choices": [1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 3e-2],
    },
    "passes.spam.rank": {"type": "categorical", "choices": [4, 8, 16, 32]},
    "precision": {"path": "passes.export.precision", "type": "categorical", "choices": ["int4", "int8"]},
    "passes.export.quantization": {
        "type": "categorical",
        "choices": [
            {"algorithm": "rtn_last"}, {"algorithm": "k_quant_last"}, {"algorithm": "k_quant_mixed"},
            {"algorithm": "rtn_last", "block_size": 16}, {"algorithm": "k_quant_last", "block_size": 64},
        ],
        "when": {"precision": "int4"},
        "inactive": "remove",
    },
}  # fmt: skip
SIDES: dict[str, dict[str, Any]] = {
    "random": {"sampler": {"type": "random"}},
    "pruned": {
        "sampler": {"type": "tpe", "n_startup_trials": 6},
        "pruner": [
            {"type": "percentile", "percentile": 75.0, "metric": "loss", "n_startup_trials": 2},
            {"type": "wilcoxon", "p_threshold": 0.1},
        ],
    },
}


def make_space(folder: Path, side: str, seed: int, trials: int) -> Space:
    """Writes one side's workflow and space file into `folder` and reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    workflow["passes"] = {name: workflow["passes"][name] for name in ("spam", "export")}
    workflow["passes"]["spam"]["training_args"] |= {
        "num_train_epochs": EPOCHS, "eval_strategy": "steps",
        "eval_steps": VALIDATION_STEPS,
    }  # fmt: skip
    workflow["data_configs"] = [d for d in workflow["data_configs"] if d["name"].startswith("spam")]
    evaluator = workflow["evaluators"][workflow["evaluator"]]
    evaluator["metrics"] = [m for m in evaluator["metrics"] if m["name"] == "spam"]
    workflow["cache_dir"] = str(folder / "cache")
    write_json(folder / "workflow.json", workflow)
    space = {
        "name": f"{side}_{seed}", "workflow": str(folder / "workflow.json"), "parameters": PARAMETERS,
        "objectives": [{"metric": "spam-accuracy"}], "trials": trials, "seed": seed,
        "output_dir": str(folder / "results"), **SIDES[side],
    }  # fmt: skip
    write_json(folder / "space.json", space)
    return read_space(folder / "space.json")


def run_seed(folder: Path, seed: int, trials: int) -> dict[str, Any]:
    """Both sides of one seed; see `compared` for what it returns.

    After each random trial the pruned search runs on while it is behind: what it does once it is level tells nothing.
    Then it has as many trials as fit into the random search's time.
    """
    random = make_space(folder / f"random-{seed}", "random", seed, trials)
    pruned = make_space(folder / f"pruned-{seed}", "pruned", seed, MOST * trials)
    complete = False
    while not complete:
        complete = work(random, most=1)
        shutil.rmtree(folder / f"random-{seed}" / "cache", ignore_errors=True)
        if _best(history(pruned)) < _best(history(random)):
            work(pruned, most=1)
    while _best(history(pruned)) < _best(history(random)) and _seconds(history(pruned)) < _seconds(history(random)):
        if work(pruned, most=1):
            break
    return {"seed": seed, **compared({"random": history(random), "pruned": history(pruned)})}


def _seconds(trials: Sequence[dict[str, Any]]) -> float:
    return float(sum(t["seconds"] for t in trials))


def _best(trials: Sequence[dict[str, Any]]) -> float:
    return max((t["accuracy"] for t in trials if t["accuracy"] is not None), default=-math.inf)


def history(space: Space) -> list[dict[str, Any]]:
    """Each trial's state, seconds and accuracy (None where it was pruned), in the order in which they ran."""
    if not (space.output / "study.db").exists():
        return []
    ended = sorted(
        (t for t in read_study(space).trials if t.finished is not None and t.state != "lost"),
        key=lambda t: str(t.started),
    )
    return [{"state": t.state, "seconds": t.seconds, "accuracy": t.value(space.objectives[0])} for t in ended]


def compared(trials: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The share of the random search's time after which the pruned one has its best accuracy; None if it never has."""
    best, total = _best(trials["random"]), _seconds(trials["random"])
    reached, random_reached = _reached(trials["pruned"], best), _reached(trials["random"], best)
    return {
        "random_best": best, "random_seconds": total, "random_reached": random_reached,
        "pruned_best": _best(trials["pruned"]), "pruned_stopped": sum(t["state"] == "pruned" for t in trials["pruned"]),
        "reached": reached, "ratio": reached["seconds"] / total if reached else None, "trials": trials,
    }  # fmt: skip


def _reached(trials: Sequence[dict[str, Any]], best: float) -> dict[str, Any] | None:
    """After how many trials and seconds a search had an accuracy of `best`."""
    spent = 0.0
    for number, trial in enumerate(trials, 1):
        spent += trial["seconds"]
        if trial["accuracy"] is not None and trial["accuracy"] >= best:
            return {"trials": number, "seconds": spent}
    return None


def markdown(seeds: Sequence[dict[str, Any]]) -> str:
    """The table for docs/search.md."""
    lines = [
        "| seed | random search: best | trials, time | had it after | pruned search has it after | stopped | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for s in seeds:
        had, reached = s["random_reached"], s["reached"]
        after = f"{reached['trials']} trials, {reached['seconds']:.0f} s" if reached else "not in that time"
        lines.append(
            f"| {s['seed']} | {s['random_best']:.4f} | {len(s['trials']['random'])}, {s['random_seconds']:.0f} s | "
            f"{had['trials']}, {had['seconds']:.0f} s | {after} | {s['pruned_stopped']} | "
            f"{'-' if s['ratio'] is None else format(s['ratio'], '.3f')} |"
        )
    ratios = sorted(math.inf if s["ratio"] is None else s["ratio"] for s in seeds)
    median, worst = ratios[len(ratios) // 2], ratios[-1]
    return "\n".join([*lines, "", f"Median of the ratios {median:.3f}, worst {worst:.3f} (target: at most 0.33)."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.search_pruning", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for studies and caches")
    parser.add_argument("--out", type=Path, required=True, help="results as JSON")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    seeds = []
    for seed in options.seeds:
        seeds.append(run_seed(options.work, seed, options.trials))
        write_json(options.out, {"machine": machine(), "versions": versions(), "seeds": seeds})
        print(markdown(seeds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
