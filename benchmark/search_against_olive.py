"""Olive's own search and `python -m search` on the same space: `python -m benchmark.search_against_olive`.

The space is what quickstart's export can choose on the CPU: the precision, and at int4 the algorithm and the block
size. Wanted is the package whose `blurbs` adapter has the lowest perplexity among those of at most `--most-bytes`. The
adapter is trained once before; both sides get it from the cache, and each exports and measures every candidate itself,
with this workspace's passes and evaluator. Olive keeps no bound on a size, so its best one within the bound is read
from what it measured, and beside it stands the package that it delivers.

Reported: whether the same best one is found, how many candidates are tried and measured until then and in all, and the
same over many seeds with the samplers alone (benchmark/search_replay.py). Times are for information: both sides run in
turn, in random order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.olive_search import (
    PERPLEXITY,
    SIZE,
    Attempt,
    Options,
    Space,
    alternatives,
    combinations,
    flat,
    read_attempts,
)  # fmt: skip
from benchmark.search_replay import evaluations_to, olive_orders, our_orders, random_orders
from runtime.atomic_file import write_text
from runtime.errors import OlivalError

WORKFLOW = Path("workflows/quickstart.json")
SPACE = Space(("default", "rtn_last", "k_quant_last", "k_quant_mixed"), (16, 32, 64, 128), ("int8", "fp32"))
MOST_BYTES = 4_800_000  # of the package; int8, fp32 and the algorithms that keep a float embedding are larger
SEEDS = 3  # of our TPE; a workflow cannot set that of Olive's
OUR_TPE = {"type": "tpe"}


def main() -> None:
    """Runs every side and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder of cache, packages and logs; a side that is done there is not run again",
    )
    parser.add_argument("--out", type=Path, required=True, help="results, as JSON")
    parser.add_argument("--markdown", type=Path, help="also write the table of the document here")
    parser.add_argument("--most-bytes", type=int, default=MOST_BYTES, help="bound of the package's size")
    parser.add_argument("--replays", type=int, default=50, help="seeds of the samplers alone")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of our TPE that search, from 0")
    args = parser.parse_args()
    try:
        results = run(args.work, args.most_bytes, args.replays, range(args.seeds))
    except OlivalError as error:
        sys.exit(f"error: {error}")
    text = markdown(results)
    print(text)
    write_text(args.out, json.dumps(results, indent=2) + "\n")
    if args.markdown:
        write_text(args.markdown, text)


def run(work: Path, most_bytes: int, replays: int, seeds: Sequence[int]) -> dict[str, Any]:
    """Trains, searches on every side in random order, and compares."""
    work.mkdir(parents=True, exist_ok=True)
    plain = work / "plain.json"
    write_text(plain, json.dumps(quickstart(work, "plain"), indent=2))
    _tell("training the adapter, which both sides take from the cache")
    _olive(plain, work / "plain.log")
    sides = {"Olive, sequential": "sequential", "Olive, TPE": "tpe", "search, grid": "grid"}
    sides |= {f"search, TPE, seed {seed}": f"ours-{seed}" for seed in seeds}
    found: dict[str, dict[str, Any]] = {}
    for name in random.Random(0).sample(list(sides), len(sides)):
        kept = work / f"{sides[name]}.found.json"
        if kept.exists():
            _tell(f"{name}: done before, see {kept}")
            found[name] = _read_found(kept)
            continue
        _tell(name)
        start = time.perf_counter()
        if name.startswith("Olive"):
            attempts, tried, delivered = _search_with_olive(work, sides[name])
        else:
            attempts, tried, delivered = _search_with_ours(work, sides[name], most_bytes)
        found[name] = {"attempts": attempts, "tried": tried, "delivered": delivered}
        found[name]["seconds"] = time.perf_counter() - start
        write_text(kept, json.dumps(found[name], indent=2))
    return compare({name: found[name] for name in sides}, most_bytes, work, replays)


def _read_found(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    found["attempts"] = [Attempt((o[0], o[1], o[2]), metrics) for o, metrics in found["attempts"]]
    return found


def quickstart(work: Path, name: str) -> dict[str, Any]:
    """Quickstart's workflow with the passes `blurbs` and `export` and the two metrics of the search, without goals.

    `name` gives it a cache of its own for exports and an output; trained adapters are shared.
    """
    content: dict[str, Any] = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    content["workflow_id"] = f"search-{name}"
    content["passes"] = {key: content["passes"][key] for key in ("blurbs", "export")}
    content["passes"]["export"]["quantization"] = {"algorithm": "rtn_last", "block_size": 32}
    (evaluator,) = content["evaluators"].values()
    evaluator["metrics"] = [m for m in evaluator["metrics"] if m["name"] in ("blurbs", "size_on_disk")]
    for metric in evaluator["metrics"]:
        for sub in metric["sub_types"]:
            sub.pop("goal", None)
            sub["priority"] = 1 if metric["name"] == "blurbs" else -1  # Olive: an objective; measured only
    content |= {"cache_dir": str(work / "cache"), "output_dir": str(work / "packages" / name)}
    return content


def space_file(work: Path, name: str, sampler: Mapping[str, Any], seed: int, most_bytes: int) -> dict[str, Any]:
    """The same space for `python -m search`."""
    int4 = {"when": {"precision": ["int4"]}, "inactive": "remove", "type": "categorical"}
    quantization = "passes.export.quantization"
    return {
        "name": name,
        "workflow": str(work / f"{name}-workflow.json"),
        "parameters": {
            "precision": {
                "path": "passes.export.precision",
                "type": "categorical",
                "choices": ["int4", *SPACE.others],
            },
            "algorithm": {"path": f"{quantization}.algorithm", "choices": list(SPACE.algorithms), **int4},
            "block_size": {"path": f"{quantization}.block_size", "choices": list(SPACE.block_sizes), **int4},
        },
        "objectives": [{"metric": PERPLEXITY, "direction": "minimize"}],
        "constraints": [f"{SIZE} <= {most_bytes}"],
        "sampler": dict(sampler),
        "trials": len(combinations(SPACE)),
        "seed": seed,
        "output_dir": str(work / "studies" / name),
    }


def compare(
    found: Mapping[str, Mapping[str, Any]], most_bytes: int, work: Path | None = None, replays: int = 0
) -> dict[str, Any]:
    """The best candidate within the bound, and how each side came to it; see `run` for `found`."""
    table = {a.options: a.metrics for side in found.values() for a in side["attempts"] if a.metrics is not None}
    within = {options: metrics for options, metrics in table.items() if metrics[SIZE] <= most_bytes}
    if not within:
        raise OlivalError(f"no candidate has {most_bytes:,} bytes or less; the smallest is "
                          f"{min((m[SIZE] for m in table.values()), default=0):,.0f}")  # fmt: skip
    best = min(within, key=lambda options: within[options][PERPLEXITY])
    rows = []
    for name, side in found.items():
        attempts: Sequence[Attempt] = side["attempts"]
        measured = [a for a in attempts if a.metrics is not None and a.metrics[SIZE] <= most_bytes]
        own = min(measured, key=lambda a: a.metrics[PERPLEXITY] if a.metrics else 0).options if measured else None
        rows.append(
            {
                "side": name,
                "best": own,
                "same_best": own == best,
                "to_best": evaluations_to(best, [a.options for a in attempts], table),
                "measured": len({a.options for a in attempts if a.metrics is not None}),
                "tried": side["tried"],
                "delivered": side["delivered"],
                "delivered_within": side["delivered"] is not None and side["delivered"][SIZE] <= most_bytes,
                "seconds": side["seconds"],
            }
        )
    results: dict[str, Any] = {
        "most_bytes": most_bytes,
        "best": {"options": best, **within[best]},
        "combinations": len(combinations(SPACE)),
        "rows": rows,
        "table": [{"options": options, **metrics} for options, metrics in sorted(table.items(), key=str)],
        "replays": [],
    }
    if work is not None and replays:
        results["replays"] = _replay(work, table, best, replays)
    return results


def _replay(work: Path, table: dict[Options, Any], best: Options, replays: int) -> list[dict[str, Any]]:
    import numpy as np

    seeds = range(replays)
    _tell(f"the samplers alone, {replays} seeds")
    orders = {
        "Olive, random (flat)": olive_orders("random", SPACE, table, seeds, best),
        "Olive, TPE (flat)": olive_orders("tpe", SPACE, table, seeds, best),
        "Olive, alternatives in any order": random_orders(SPACE, seeds),
        "search, grid": our_orders(work / "grid.json", table, seeds, best),
        "search, TPE": our_orders(work / "ours-0.json", table, seeds, best),
    }
    rows = []
    for name, runs in orders.items():
        counts = [evaluations_to(best, order, table) for order in runs]
        reached = [count for count in counts if count is not None]
        middle, high = np.percentile(reached, [50, 90]) if reached else (None, None)
        rows.append({"side": name, "median": middle, "p90": high, "found": len(reached), "seeds": len(runs)})
    return rows


def markdown(results: Mapping[str, Any]) -> str:
    """The results as the document shows them."""
    best = results["best"]
    lines = [
        f"Best package of at most {results['most_bytes'] / 1e6:.1f} MB: {_words(best['options'])}, perplexity "
        f"{best[PERPLEXITY]:.3f}, {best[SIZE] / 1e6:.2f} MB; {results['combinations']} combinations.",
        "",
        "| search | same best | measured until then | measured | tried | package delivered | seconds |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    for row in results["rows"]:
        delivered = "none"
        if row["delivered"] is not None:
            bound = "" if row["delivered_within"] else ", over the bound"
            delivered = f"{row['delivered'][PERPLEXITY]:.3f}, {row['delivered'][SIZE] / 1e6:.2f} MB{bound}"
        cells = ["yes" if row["same_best"] else "no", row["to_best"] or "-", row["measured"], row["tried"], delivered]
        lines.append(f"| {row['side']} | {' | '.join(map(str, cells))} | {row['seconds']:.0f} |")
    if results["replays"]:
        lines += [
            "",
            "| sampler alone | median measured until the best | 90 % of seeds | found |",
            "|---|---:|---:|---:|",
        ]
    for row in results["replays"]:
        numbers = [f"{row[key]:.1f}" if row[key] is not None else "-" for key in ("median", "p90")]
        lines.append(f"| {row['side']} | {numbers[0]} | {numbers[1]} | {row['found']} of {row['seeds']} |")
    return "\n".join(lines) + "\n"


def _search_with_olive(work: Path, sampler: str) -> tuple[list[Attempt], int, Any]:
    content = quickstart(work, sampler)
    step = content["passes"]["export"]
    content["passes"]["export"] = flat(step, SPACE) if sampler == "tpe" else alternatives(step, SPACE)
    content["search_strategy"] = {"execution_order": "joint", "sampler": sampler}
    content["log_severity_level"] = 1  # its log counts the candidates
    file, log = work / f"{sampler}.json", work / f"{sampler}.log"
    write_text(file, json.dumps(content, indent=2))
    shutil.rmtree(work / "cache" / content["workflow_id"], ignore_errors=True)  # of an earlier run of the benchmark
    _olive(file, log)
    output = Path(content["output_dir"])
    attempts, tried = read_attempts(output, log.read_text(encoding="utf-8"))
    return attempts, tried, _delivered(output)


def _search_with_ours(work: Path, name: str, most_bytes: int) -> tuple[list[Attempt], int, Any]:
    from search.space_file import read_space
    from search.study_record import read_study

    sampler, seed = ({"type": "grid"}, 0) if name == "grid" else (OUR_TPE, int(name.removeprefix("ours-")))
    space, file = space_file(work, name, sampler, seed, most_bytes), work / f"{name}.json"
    shutil.rmtree(space["output_dir"], ignore_errors=True)
    workflow = quickstart(work, name)
    shutil.rmtree(work / "cache" / workflow["workflow_id"], ignore_errors=True)
    write_text(Path(space["workflow"]), json.dumps(workflow, indent=2))
    write_text(file, json.dumps(space, indent=2))
    _call([sys.executable, "-m", "search", "run", str(file)], work / f"{name}.log")
    study = read_study(read_space(file))
    attempts = []
    for trial in study.trials:
        parameters = trial.parameters
        options = (parameters["precision"], parameters.get("algorithm"), parameters.get("block_size"))
        metrics = next(iter(trial.metrics.values())) if trial.state == "complete" else None
        attempts.append(Attempt(options, metrics))
    feasible = study.complete()
    best = min(feasible, key=lambda t: next(iter(t.metrics.values()))[PERPLEXITY]) if feasible else None
    return attempts, len(attempts), dict(next(iter(best.metrics.values()))) if best is not None else None


def _delivered(output: Path) -> dict[str, float]:
    from search.metric_names import measured

    values, _ = measured(json.loads((output / "evaluation.json").read_text(encoding="utf-8")))
    return {PERPLEXITY: values[PERPLEXITY], SIZE: values[SIZE]}


def _olive(workflow: Path, log: Path) -> None:
    _call(["olive", "run", "--config", str(workflow)], log)


def _call(command: list[str], log: Path) -> None:
    """Runs a command; its output goes to `log`. Raises OlivalError with the log's end when it fails."""
    quiet = {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **quiet}
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment).returncode
    if code != 0:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise OlivalError(f"{' '.join(command)} ended with code {code}; {log} ends:\n{end}")


def _words(options: Sequence[Any]) -> str:
    return ", ".join(str(value) for value in options if value is not None)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
