"""Our training against stock Olive's LoRA pass on the CPU: `python -m benchmark.training_speed`.

Both sides train on the same rows and base, with the same rank, epochs and batch size, by `olive run`'s own function in
a fresh process each, one after the other and in random order, so that a ratio compares neighbours in time. Everything
else is at each side's defaults. Olive's (0.13) are: rows joined into sequences of 1,024 tokens, bfloat16, gradient
checkpointing, the attention's q and v adapted; `--stock-dtype float32` takes float32 in place of bfloat16, which
processors without bfloat16 arithmetic compute slowly. Ours are rows of like length padded to the longest of their
batch, float32 or what the workflow says (quickstart: an nf4 base), all linear layers adapted. Olive's LoRA pass knows
no classification heads, so it learns the label as text behind the row's text. Neither side gets validation rows.

Cases: the three trainings of quickstart, and one epoch of sms_spam_train.csv on stories260K where it is given. A stock
training is stopped when its steps have taken `--stop-at` times the processor time of ours; it would have gone on, so
the ratio is then a lower bound, and so is a median over such rounds. On a machine that others use too, processor time
is the one to read: it counts all threads, and what others take does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmark.fresh_process import run_fresh
from benchmark.results import commit, machine, read_json, versions, write_json
from runtime.errors import DataError, OlivalError

QUICKSTART = Path("workflows/quickstart.json")
STORIES = Path("workflows/sms_spam/stories260k_cpu.json")
TARGET = 3.0  # times as fast as stock Olive
STOP_AT = 6.0  # twice the target: enough to say that it is reached, however the machine's speed changes meanwhile
PACKAGES = ("torch", "transformers", "peft", "olive-ai", "bitsandbytes")  # that train, beside those of every result
# Rows as text for Olive: what our template makes of a row, and the answer behind it
AS_TEXT = {"spam": "{text}\n{label}", "intent": "{text}\nAssunto: {label}", "blurbs": "{prompt}\n\n{response}"}


class Case(NamedTuple):
    """One training: the workflow's own pass, and the rows as text for Olive's."""

    name: str
    workflow: dict[str, Any]  # with this pass alone
    template: str


def main() -> None:
    """Measures, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", default="spam,intent,blurbs", help="of quickstart, comma-separated; '' for none")
    parser.add_argument("--stories", type=Path, metavar="DIR", help="folder of stories260K: one more case")
    parser.add_argument("--sms", type=Path, metavar="CSV", help="its sms_spam_train.csv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stop-at", type=float, default=STOP_AT, help=f"times our processor time ({STOP_AT:g})")
    parser.add_argument("--stock-dtype", help="torch_dtype of Olive's pass; its default is bfloat16")
    parser.add_argument("--out", type=Path, required=True, help="results, as JSON")
    args = parser.parse_args()
    try:
        if (args.stories is None) != (args.sms is None):
            raise DataError("--stories and --sms belong together: the model's folder and the file of its rows")
        cases = [quickstart_case(name.strip()) for name in args.cases.split(",") if name.strip()]
        if args.stories:
            cases.append(stories_case(args.stories, args.sms))
        for results in measure(cases, args.rounds, args.stop_at, args.stock_dtype):
            write_json(args.out, results)
    except OlivalError as error:
        sys.exit(f"error: {error}")
    print(markdown(results))


def quickstart_case(name: str) -> Case:
    """A training of quickstart by its pass: spam, intent or blurbs. Raises DataError for another name."""
    if name not in AS_TEXT:
        raise DataError(f"case '{name}' is unknown. Valid: {', '.join(AS_TEXT)}")
    return Case(name, _alone(read_json(QUICKSTART), name), AS_TEXT[name])


def stories_case(base: Path, rows: Path) -> Case:
    """One epoch of the workflow for stories260K on an fp32 base: a LoRA training, as Olive's is."""
    workflow = _alone(read_json(STORIES), "spam")
    workflow["input_model"]["model_path"] = str(base)
    (data,) = workflow["data_configs"]
    data["load_dataset_config"]["data_files"] = str(rows)
    (step,) = workflow["passes"].values()
    step.pop("quantization")
    step["training_args"]["num_train_epochs"] = 1
    return Case("stories260K", workflow, AS_TEXT["spam"])


def stock_workflow(case: Case, dtype: str | None = None) -> dict[str, Any]:
    """Olive's own training of the same rows: its defaults, but for rank, epochs and batch size."""
    from passes.training.settings import DEFAULT_ARGUMENTS, AdapterSettings

    (step,), (data,) = case.workflow["passes"].values(), case.workflow["data_configs"]
    given = {**DEFAULT_ARGUMENTS, **step["training_args"]}
    same = {name: given[name] for name in ("per_device_train_batch_size", "num_train_epochs")}
    file = str(data["load_dataset_config"]["data_files"])
    rows = {
        "name": "train",
        "type": "HuggingfaceContainer",
        "load_dataset_config": {
            "data_name": "csv" if file.endswith(".csv") else "json",
            "data_files": file,
            "split": "train",
        },
        "pre_process_data_config": {"text_template": case.template},
    }
    options = {"torch_dtype": dtype} if dtype else {}
    rank = step.get("rank", AdapterSettings.rank)
    lora = {"type": "LoRA", "r": rank, "train_data_config": "train", "training_args": same, **options}
    return {**case.workflow, "workflow_id": f"stock-{case.name}", "data_configs": [rows], "passes": {"finetune": lora}}


def measure(cases: Sequence[Case], rounds: int, stop_at: float, dtype: str | None = None) -> Iterator[dict[str, Any]]:
    """Runs every case so often; yields the results so far after each pair.

    Raises OlivalError when a training fails, with its reason.
    """
    head, changed = commit()
    about = {"commit": head, "changed": changed, "machine": machine(), "versions": {**versions(), **_packages()}}
    order = random.Random(0)
    found: dict[str, list[dict[str, Any]]] = {case.name: [] for case in cases}
    for number in range(1, rounds + 1):
        for case in order.sample(list(cases), len(cases)):
            _tell(f"round {number} of {rounds}: {case.name}, ours")
            ours = _train(case.workflow, None)
            _tell(f"round {number} of {rounds}: {case.name}, stock Olive")
            stock = _train(stock_workflow(case, dtype), stop_at * ours["cpu_seconds"])
            found[case.name].append({"ours": ours, "stock": stock})
            yield {
                **about,
                "target": TARGET,
                "stop_at": stop_at,
                "stock_dtype": dtype or "bfloat16",
                "cases": {name: {"rounds": pairs, **summary(pairs)} for name, pairs in found.items() if pairs},
            }


def summary(pairs: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Ratios stock / ours of one case's rounds: median, lowest and highest, of wall clock and of processor time.

    `stopped`: a stock training was stopped, so the ratios are lower bounds.
    """
    found: dict[str, Any] = {"stopped": any(pair["stock"]["done"] < pair["stock"]["steps"] for pair in pairs)}
    for clock in ("seconds", "cpu_seconds"):
        ratios = [pair["stock"][clock] / pair["ours"][clock] for pair in pairs]
        found[clock] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """The results as the document shows them."""
    lines = [
        "| training | ours, seconds | steps | stock Olive, seconds | its steps | times as fast | in processor time |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, case in results["cases"].items():
        cells = [name]
        for side in ("ours", "stock"):
            runs = [pair[side] for pair in case["rounds"]]
            done = sorted({run["done"] for run in runs})
            steps = f"{done[0]}" if len(done) == 1 else f"{done[0]} to {done[-1]}"
            of = f" of {runs[0]['steps']}" if done[0] < runs[0]["steps"] else ""
            cells += [f"{statistics.median(run['seconds'] for run in runs):.1f}", steps + of]
        for clock in ("seconds", "cpu_seconds"):
            ratio, least = case[clock], "> " if case["stopped"] else ""
            cells.append(f"{least}{ratio['median']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _alone(workflow: dict[str, Any], name: str) -> dict[str, Any]:
    """A workflow with this training alone, which sees no validation rows."""
    step = dict(workflow["passes"][name])
    step.pop("validation_data_config", None)
    data = [config for config in workflow["data_configs"] if config["name"] == step["train_data_config"]]
    alone = {key: value for key, value in workflow.items() if key not in ("evaluators", "evaluator")}
    return {**alone, "data_configs": data, "passes": {name: step}, "log_severity_level": 3}


def _train(workflow: Mapping[str, Any], stop_at: float | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="training-speed-") as work:
        folders = {"cache_dir": str(Path(work) / "cache"), "output_dir": str(Path(work) / "output")}
        config, output = Path(work) / "workflow.json", Path(work) / "result.json"
        config.write_text(json.dumps({**workflow, **folders}), encoding="utf-8")
        stop = ["--stop-at", str(stop_at)] if stop_at else []
        run_fresh([sys.executable, "-m", "benchmark.training_worker", str(config), str(output), *stop])
        result: dict[str, Any] = read_json(output)
    return result


def _packages() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in PACKAGES}


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
