"""docs/workflows.md names every option of the passes, of the data components and of the evaluator."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[1] / "docs" / "workflows.md").read_text(encoding="utf-8")
FILLED_IN = {"fingerprint", "stages", "version"}  # by the workspace itself


@pytest.mark.parametrize("name", ["adapter_fine_tune.AdapterFineTune", "classification_head.ClassificationHead",
                                  "multi_adapter_export.MultiAdapterExport"])  # fmt: skip
def test_pass_options(name: str) -> None:
    from importlib import import_module

    from olive.hardware import DEFAULT_CPU_ACCELERATOR

    module, class_name = name.split(".")
    options = getattr(import_module(f"passes.{module}"), class_name).default_config(DEFAULT_CPU_ACCELERATOR)
    assert options and [o for o in options if o not in FILLED_IN and f"`{o}`" not in TEXT] == []


def test_data_options() -> None:
    import data.olive_components as components

    for component in (components.rows, components.classification, components.generation, components.structured):
        parameters = [p for p in inspect.signature(component).parameters if p not in ("dataset", "others")]
        assert parameters
        assert [p for p in parameters if f"`{p}" not in TEXT and p != "trust_remote_code"] == []


def test_quantization_parity_and_metric_options() -> None:
    from evaluators.metric_check import LATENCY_OPTIONS
    from evaluators.parity import OPTIONS
    from passes.graph.checks import QUANTIZATION_DEFAULTS

    assert [o for o in OPTIONS if f"`{o}`" not in TEXT] == []
    assert [o for o in QUANTIZATION_DEFAULTS if f"`{o}`" not in TEXT] == []
    assert [o for o in LATENCY_OPTIONS if f'"{o}"' not in TEXT] == []
