"""Olive pass: trains a named LoRA or QLoRA adapter for text generation on the frozen base."""

from __future__ import annotations

from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from data.examples import GenerationData
from passes.training.adapter_pass import run_adapter_pass
from passes.training.settings import adapter_options, settings_problems


class AdapterFineTune(Pass):
    """Learns the response only, where the data have prompts. Several chain; each sees the same frozen base."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return adapter_options()

    @classmethod
    def problems(cls, config: Any, provider: str) -> list[str]:
        """What is wrong with the options' values, a line each, for the check before a run."""
        return settings_problems(config, "generation")

    def _run_for_config(
        self, model: HfModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> HfModelHandler:
        return run_adapter_pass(model, config, GenerationData)
