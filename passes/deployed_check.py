"""Tells each training on `quantization: "deployed"` how the workflow's export quantizes, before anything runs."""

from __future__ import annotations

from typing import Any

from passes.base_model import DEPLOYED
from passes.graph.checks import check_precision
from passes.searched_options import choices_of
from runtime.errors import ConfigError

_DECIDING = ("precision", "quantization")


def deployed_options(precision: str, execution_provider: str, quantization: dict[str, Any] | None) -> dict[str, Any]:
    """What of an export's options decides its integers; {} where it has none.

    Raises ConfigError as `passes.graph.checks.check_precision` does.
    """
    options = check_precision(precision, execution_provider, quantization)
    options.pop("accuracy_level", None)  # how it computes, not with what
    return (
        {"precision": precision, "execution_provider": execution_provider, "quantization": options} if options else {}
    )


def fill_deployed(ours: list[tuple[str, Any]], execution_provider: str) -> list[str]:
    """Fills in the option `deployed` of trainings on deployed integers. Returns what keeps one from them.

    Args:
        ours: (name, Olive's pass configuration) of this workspace's passes.
        execution_provider: of the target: "cpu", "cuda" or "dml".
    """
    exports = [step.config or {} for _, step in ours if "export" in step.type]
    problems = []
    for name, step in ours:
        config = {key: value for key, value in (step.config or {}).items() if key != "deployed"}
        step.config = config
        if config.get("quantization") != DEPLOYED or "export" in step.type:
            continue
        where = f"passes.{name}.quantization: 'deployed' trains on the integers of the package, but"
        if config.get("method") == "dora":
            problems.append(f"{where} DoRA needs a base in float or of bitsandbytes; take nf4, or qlora")
        elif not exports:
            problems.append(f"{where} the workflow has no MultiAdapterExport; add one, or take nf4 or fp4")
        elif len(exports) > 1 or any(choices_of(exports[0].get(option)) is not None for option in _DECIDING):
            problems.append(f"{where} Olive's search would choose them after the training; `python -m search` does not")
        else:
            precision, quantization = exports[0].get("precision") or "int4", exports[0].get("quantization")
            if not isinstance(precision, str) or not isinstance(quantization, dict | None):
                continue  # said of the export
            try:
                options = deployed_options(precision, execution_provider, quantization)
            except ConfigError:
                continue  # said of the export
            if options:
                step.config = {**config, "deployed": options}
            else:
                problems.append(f"{where} the export's precision '{precision}' has none; leave it out")
    return problems
