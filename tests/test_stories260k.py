"""The whole chain on a really trained model and real messages, where the development data are at hand."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
WORKFLOW = REPOSITORY / "workflows" / "sms_spam" / "stories260k_cpu.json"
SHARED = REPOSITORY.parent / "shared"


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "models" / "stories260K").is_dir(), reason=f"{SHARED} has no models/stories260K")
def test_spam_adapter_on_stories260k(tmp_path: Path) -> None:
    """Intermediate size 172 is no multiple of the int4 block: it must not cost the package its quality."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    workflow |= {"cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "package")}
    workflow["passes"]["spam"]["training_args"]["num_train_epochs"] = 1  # of two, for time
    file = tmp_path / "workflow.json"
    file.write_text(json.dumps(workflow), encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}
    environment.pop("OLIVE_CACHE_DIR", None)
    run = subprocess.run(
        ["olive", "run", "--config", str(file)], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    print(run.stdout)
    manifest = json.loads((tmp_path / "package" / "package.json").read_text(encoding="utf-8"))
    spam = manifest["adapters"]["spam"]
    assert spam["parity"]["fp32"]["max_abs_difference"] <= 1e-3
    assert spam["parity"]["fp32"]["samples"] == 256
    assert 0 <= spam["parity"]["int4"]["kl_divergence"] < 0.1
    assert len(spam["parity"]["int4"]["flipped_rows"]) == spam["parity"]["int4"]["label_flips"] <= 5
    assert spam["metrics"]["accuracy"]["package"] > 0.94  # always answering ham gives 0.87
