"""Each recipe for a real model runs from end to end, by `olive run`, on stand-ins for what a hub would give.

The model is a tiny random one of the recipe's architecture and the data set a few rows of the same columns; both lie
in the caches of the Hugging Face libraries under the names that the recipe uses, so that its own loading code runs.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from tests.conftest import SENTENCES, save_tiny_model

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = {"max_position_embeddings": 2048}  # recipes have texts of up to 1,024 tokens
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 1024,
}
LONGROPE = {
    "original_max_position_embeddings": 1024,
    "rope_parameters": {
        "rope_type": "longrope",
        "type": "longrope",  # as in the published configuration
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": 1024,
    },
}
# model -> (kind, configuration) that makes it what it is
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "meta-llama/Meta-Llama-3-8B": ("llama", {}),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", {"tie_word_embeddings": True}),
    "microsoft/Phi-3.5-mini-instruct": ("phi3", LONGROPE),
    "openai-community/gpt2": ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 1024}),
}
# data set -> (its splits, columns of row i); slices such as train[4096:4224] need that many rows
DATA_SETS: dict[str, tuple[dict[str, int], Any]] = {
    "Abirate/english_quotes": ({"train": 40}, lambda i: {"quote": _text(i), "author": "Nobody", "tags": ["boat"]}),
    "databricks/databricks-dolly-15k": (
        {"train": 4112},
        lambda i: {"instruction": _text(i), "context": "", "response": _text(i + 1), "category": "open_qa"},
    ),
    "fancyzhx/ag_news": ({"train": 40, "test": 16}, lambda i: {"text": _text(i), "label": i % 4}),
    "maritaca-ai/sst2_pt": ({"train": 40, "validation": 16}, lambda i: {"text": _text(i), "label": i % 2}),
    "nampdn-ai/tiny-codes": (
        {"train": 4112},
        lambda i: {"prompt": _text(i), "programming_language": "C", "response": _text(i + 1), "idx": i},
    ),
    "ucirvine/sms_spam": ({"train": 40}, lambda i: {"sms": _text(i), "label": i % 2}),
    "xxyyzzz/phrase_classification": ({"train": 40}, lambda i: {"phrase": _text(i), "tone": ["joy", "anger"][i % 2]}),
}
RECIPES = sorted(f for f in (REPOSITORY / "workflows").glob("*/*.json") if f.stem in ("cpu", "cuda", "directml"))
RUNS = [pytest.param(file, id=f"{file.parent.name}-{file.stem}") for file in RECIPES]


def _text(number: int) -> str:
    return f"{SENTENCES[number % len(SENTENCES)]} {number}"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HF_HOME folder with every model and data set of the recipes in its caches."""
    from datasets import Dataset, load_dataset_builder

    home = tmp_path_factory.mktemp("hf")
    for name, (kind, changes) in MODELS.items():
        cache = home / "hub" / f"models--{name.replace('/', '--')}"
        save_tiny_model(cache / "snapshots" / "0", kind, **SHARED, **changes)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("0", encoding="utf-8")
    for name, (splits, row) in DATA_SETS.items():
        owner, _, title = name.partition("/")
        source = tmp_path_factory.mktemp("rows") / title
        source.mkdir()
        start = 0
        for split, count in splits.items():
            Dataset.from_list([row(i) for i in range(start, start + count)]).to_parquet(source / f"{split}.parquet")
            start += count
        builder = load_dataset_builder(str(source), cache_dir=str(home / "prepared"))
        builder.download_and_prepare()
        target = home / "datasets" / f"{owner}___{title}" / "default" / "0.0.0" / "0"
        target.parent.mkdir(parents=True)
        Path(builder.cache_dir).rename(target)
    return home


def run(recipe: Path, hub: Path, folder: Path) -> dict[str, Any]:
    """Runs a recipe with two training steps for each adapter; its manifest."""
    content = json.loads(recipe.read_text(encoding="utf-8"))
    content |= {"cache_dir": str(folder / "cache"), "output_dir": str(folder / "out")}
    for step in content["passes"].values():
        if "training_args" in step:
            step["training_args"]["max_steps"] = 2
    for data in content["data_configs"]:
        data["user_script"] = str(REPOSITORY / "register.py")
    for evaluator in content["evaluators"].values():  # two steps on random weights need not keep what they learned
        for metric in evaluator["metrics"]:
            for sub_type in metric["sub_types"]:
                sub_type.pop("goal", None)
    file = folder / f"{recipe.parent.name}.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "COLUMNS": "160", "OMP_NUM_THREADS": "2"}
    for name in ("OLIVE_CACHE_DIR", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    process = subprocess.run(
        ["olive", "run", "--config", str(file)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    manifest: dict[str, Any] = json.loads((folder / "out" / "package.json").read_text(encoding="utf-8"))
    return manifest


def test_every_recipe_is_here() -> None:
    assert {file.parent.name for file in RECIPES} == {
        *("ag_news", "instructions", "sentiment_pt", "sms_spam", "tiny_codes", "tone_and_quotes")
    }
    used = {json.loads(file.read_text(encoding="utf-8"))["input_model"]["model_path"] for file in RECIPES}
    assert used == set(MODELS)


@pytest.mark.slow  # each takes ten seconds or more
@pytest.mark.parametrize("recipe", RUNS)
def test_recipe_runs(recipe: Path, hub: Path, tmp_path: Path) -> None:
    manifest = run(recipe, hub, tmp_path)
    content = json.loads(recipe.read_text(encoding="utf-8"))
    adapters = {s["adapter_name"]: s for s in content["passes"].values() if "adapter_name" in s}
    assert set(manifest["adapters"]) == set(adapters)
    assert manifest["base"]["name"] == content["input_model"]["model_path"]
    (provider,) = content["systems"]["target"]["accelerators"][0]["execution_providers"]
    assert ("not_executed" in manifest["target"]) == (provider not in onnxruntime.get_available_providers())
    assert manifest["precision"] == content["passes"]["export"]["precision"]
    for name, entry in manifest["adapters"].items():
        assert entry["rank"] == adapters[name]["rank"]
        assert entry["parity"]["fp32"]["max_abs_difference"] < 1e-3
