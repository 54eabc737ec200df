"""What training on the deployed integers is worth: three ways to train, one int4 package each, measured on the package.

`python -m benchmark.deployed_training --work DIR --out X.json --markdown X.md models/tiny ../shared/models/stories260K`
runs quickstart's tasks `spam` (accuracy) and `blurbs` (perplexity) with `olive run` on each base and seed: LoRA on the
float base, QLoRA on nf4, QLoRA on the deployed integers. The three differ in nothing else. `gap` is the mean difference
between the logits of the model as it was trained and of the package, on held-out blurbs. A killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.fresh_process import run_fresh
from benchmark.results import machine, versions, write_json
from runtime.atomic_file import write_text

WORKFLOW = Path("workflows/quickstart.json")
WAYS = {"LoRA on float32": None, "QLoRA on nf4": "nf4", "QLoRA on deployed": "deployed"}
TASKS = {"spam": "accuracy", "blurbs": "perplexity"}
QUANTIZATION = {"algorithm": "rtn_last"}


def make_workflow(base: Path, quantization: str | None, seed: int, folder: Path, cache: Path) -> dict[str, Any]:
    """quickstart's, with two of its tasks, whose trainings start from `seed`."""
    workflow: dict[str, Any] = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    workflow["input_model"]["model_path"] = str(base)
    workflow["passes"] = {name: workflow["passes"][name] for name in (*TASKS, "export")}
    for task in TASKS:
        workflow["passes"][task] |= {"quantization": quantization, "seed": seed}
    workflow["passes"]["spam"]["baselines"] = False
    workflow["passes"]["export"]["quantization"] = QUANTIZATION
    workflow["data_configs"] = [d for d in workflow["data_configs"] if d["name"].partition("_")[0] in TASKS]
    evaluator = workflow["evaluators"][workflow["evaluator"]]
    evaluator["metrics"] = [m for m in evaluator["metrics"] if m["name"] in TASKS]
    for priority, metric in enumerate(evaluator["metrics"], 1):
        metric["sub_types"] = [
            {**{key: s[key] for key in s if key != "goal"}, "priority": priority} for s in metric["sub_types"]
        ]
    return {**workflow, "cache_dir": str(cache), "output_dir": str(folder)}


def measure(base: Path, way: str, seed: int, work: Path) -> dict[str, Any]:
    """Trains, exports and evaluates; {"spam": accuracy, "blurbs": perplexity, "gap": see above} of the package."""
    name = f"{base.name}-{WAYS[way] or 'float'}-{seed}"
    folder, file, record = work / name, work / f"{name}.json", work / f"{name}-result.json"
    if not record.exists():
        write_json(file, make_workflow(base, WAYS[way], seed, folder, work / "cache"))
        run_fresh(["olive", "run", "--config", str(file)])
        quality = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["quality"]
        values = {q["adapter"]: q["package"] for q in quality if TASKS[q["adapter"]] == q["metric"]}
        write_json(record, {**values, "gap": gap(base, WAYS[way], folder, work / "cache")})
    result: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    return result


def gap(base: Path, quantization: str | None, package: Path, cache: Path) -> float:
    """Mean absolute difference between the logits of the trained model in PyTorch and of the package, on blurbs."""
    import torch
    from peft import PeftModel

    from evaluators.package_model import PackageModel
    from passes.base_model import load_base
    from passes.deployed_check import deployed_options
    from passes.training.deployed_base import load_deployed, quantized_base

    (adapter,) = (Path(f) for f in _adapters(package) if Path(f).name.startswith("blurbs-"))
    if quantization == "deployed":
        model = load_deployed(base, quantized_base(base, deployed_options("int4", "cpu", QUANTIZATION), cache))
    else:
        model = load_base(base, quantization)
    trained: Any = PeftModel.from_pretrained(model, adapter).eval()
    exported = PackageModel(package)
    differences = []
    for row in json.loads((adapter / "samples.json").read_text(encoding="utf-8")):
        ids = np.array([row])
        with torch.no_grad():
            wanted = trained(torch.from_numpy(ids)).logits.float().numpy()
        differences.append(np.abs(exported.logits(ids, np.ones_like(ids), "blurbs") - wanted).mean())
    return float(np.mean(differences))


def _adapters(package: Path) -> list[str]:
    """Folders of the trained adapters, which Olive notes beside the package."""
    handler = json.loads((package / "model_config.json").read_text(encoding="utf-8"))
    return list(handler["config"]["model_attributes"]["workspace_adapters"].values())


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation over the seeds, a line for each base and way."""
    lines = [
        "| base | trained as | spam: accuracy | blurbs: perplexity | gap of logits |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for base, way in dict.fromkeys((r["base"], r["way"]) for r in results):
        runs = [r for r in results if (r["base"], r["way"]) == (base, way)]
        cells = [_cell([run[key] for run in runs], digits) for key, digits in (("spam", 3), ("blurbs", 2), ("gap", 4))]
        lines.append(f"| {base} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], digits: int) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.{digits}f} ± {spread:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.deployed_training", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("bases", type=Path, nargs="+", help="folders of base models")
    parser.add_argument("--work", type=Path, required=True, help="folder for workflows, packages and the cache")
    parser.add_argument("--out", type=Path, required=True, help="results as JSON")
    parser.add_argument("--markdown", type=Path, required=True, help="the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for base in options.bases:
        for seed in options.seeds:
            for way in WAYS:
                results.append({"base": base.name, "way": way, "seed": seed, **measure(base, way, seed, options.work)})
                write_json(options.out, {"machine": machine(), "versions": versions(), "results": results})
                write_text(options.markdown, markdown(results))
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
