"""Olive pass: trains a named LoRA or QLoRA adapter together with a classification head on the last real token."""

from __future__ import annotations

from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from data.examples import ClassificationData
from passes.training.adapter_pass import run_adapter_pass
from passes.training.head_settings import HeadSettings, head_options, head_problems
from passes.training.settings import adapter_options, settings_problems


class ClassificationHead(Pass):
    """Keeps the label names of its data to the package. Chains with AdapterFineTune on the same frozen base."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        baselines = "Measure a head on the frozen base and TF-IDF on the validation rows."
        return {
            **adapter_options(),
            **head_options(),
            "baselines": PassConfigParam(type_=bool, default_value=True, description=baselines),
        }

    @classmethod
    def problems(cls, config: Any, provider: str) -> list[str]:
        """What is wrong with the options' values, a line each, for the check before a run."""
        return [*settings_problems(config, "classification"), *head_problems(config)]

    def _run_for_config(
        self, model: HfModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> HfModelHandler:
        return run_adapter_pass(model, config, ClassificationData, HeadSettings.from_config(config), config.baselines)
