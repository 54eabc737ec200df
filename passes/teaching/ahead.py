"""Has teachers answer before the first training begins: one that gives no answers then costs no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.examples import config_content, read_data
from data.teaching import Unanswered
from passes.continual_check import replayed_configs, stage_configs
from passes.teaching.asking import lessons


def ask_ahead(run_config: Any, cache: Path) -> None:
    """Asks for everything that the passes and metrics of a checked workflow (Olive's RunConfig) want of teachers.

    An adapter of the workflow, which is yet to be trained, is asked when its pupil's turn comes.

    Raises OlivalError as `passes.teaching.asking.lessons` does; DataError where no answer can be read.
    """
    steps = [step for steps in run_config.passes.values() for step in steps]
    configs = []
    for step in steps:
        options = step.config or {}
        configs += [value for option, value in options.items() if option.endswith("data_config")]
        configs += [*replayed_configs(options), *stage_configs(options)]
    evaluator = run_config.engine.evaluator
    configs += [metric.data_config for metric in evaluator.metrics] if evaluator is not None else []
    base = Path(str(run_config.input_model.config.get("model_path", "")))
    taught = [config_content(config) for config in configs if _has_teacher(config)]
    for content in {json.dumps(content, sort_keys=True, default=str): content for content in taught}.values():
        rows = read_data(content)
        if isinstance(rows, Unanswered) and rows.teacher.adapter is None:
            found = lessons(rows, base, {}, cache)
            if rows.truth is None:
                rows.answered(found)


def _has_teacher(config: Any) -> bool:
    """Whether a data config, an Olive DataConfig or the dict of one, names a teacher: others need not be read here."""
    if config is None or isinstance(config, str):
        return False
    step = config_content(config).get("pre_process_data_config") or {}
    return str(step.get("type", "")).startswith("taught_")
