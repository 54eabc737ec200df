"""Estimates of memory against the peak of real trainings: the table, and one training of a published shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmark.estimate_accuracy import main, markdown, measure


def test_the_table() -> None:
    run: dict[str, Any] = {"shape": "tiny", "method": "lora", "batch": 2, "length": 64, "estimate": {"total": 90e6}}
    plain = {**run, "checkpointing": False, "tensors": 100e6, "with_store": 180e6}
    slower = {**run, "checkpointing": True, "tensors": 50e6, "with_store": None}
    assert markdown([plain, slower]).splitlines()[2:] == [
        "| tiny | lora | 2 x 64 | 90 | 100 | 0.90 | 180 | 0.50 |",
        "| tiny | lora, checkpointing | 2 x 64 | 90 | 50 | 1.80 | - | - |",
    ]


def test_a_damaged_file_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    assert main(["--work", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 1
    assert f"error: {tmp_path / 'x.json'}: is no JSON" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the allocator's setting is that of Linux")
def test_a_real_training_is_within_15_percent(tmp_path: Path) -> None:
    found = measure(tmp_path, "llama-160m", "lora", batch=1, length=128, checkpointing=False, store=False)
    assert found["estimate"]["total"] == pytest.approx(found["tensors"], rel=0.15)
