"""Olive pass: one ONNX package of the quantized base and every trained adapter, with a proof that they agree."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from passes.base_model import local_folder
from passes.training.adapter_pass import ATTRIBUTE, BASE_ATTRIBUTE
from runtime.errors import ConfigError, OlivalError, nearest

PROVIDERS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda", "DmlExecutionProvider": "dml"}
EXPORT_VERSION = 2  # part of every cache key: raise it when the code exports differently


class MultiAdapterExport(Pass):
    """Builds the base without adapters, adds slots by graph surgery, and measures each adapter against PyTorch."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "precision": PassConfigParam(type_=str, default_value="int4", description="int4, int8, fp16 or fp32."),
            "quantization": PassConfigParam(
                type_=dict, default_value=None, description="algorithm, block_size, symmetric, accuracy_level, ..."
            ),
            "threads": PassConfigParam(
                type_=int, default_value=None, description="Compute threads of the target; null takes all its cores."
            ),
            "adapter_precision": PassConfigParam(
                type_=str, default_value="float", description="float, or int8: faster on the CPU at high ranks."
            ),
            "parity_tolerance": PassConfigParam(
                type_=float,
                default_value=1e-3,
                description="Largest difference of logits between the float32 graph and PyTorch that a run accepts.",
            ),
            "name": PassConfigParam(type_=str, default_value="package", description="Name of the package."),
            "fingerprint": PassConfigParam(
                type_=str, default_value="", description="Filled in by the workspace: sha256 of the base."
            ),
            "version": PassConfigParam(
                type_=int, default_value=EXPORT_VERSION, description="Filled in by the workspace: version of its code."
            ),
        }

    @classmethod
    def problems(cls, config: Any, provider: str) -> list[str]:
        """What is wrong with the options' values, a line each, for the check before a run."""
        from passes.graph.builder import check_precision
        from passes.graph.slots import ADAPTER_PRECISIONS

        problems = []
        if config.threads is not None and config.threads < 1:
            problems.append(f"threads: must be 1 or more, but got {config.threads}")
        if not config.parity_tolerance > 0:
            problems.append(f"parity_tolerance: must be above 0, but got {config.parity_tolerance}")
        if config.adapter_precision not in ADAPTER_PRECISIONS:
            problems.append(
                f"adapter_precision is '{config.adapter_precision}'; "
                f"{nearest(config.adapter_precision, ADAPTER_PRECISIONS)}"
            )
        elif config.adapter_precision == "int8" and PROVIDERS.get(provider, provider) != "cpu":
            problems.append(
                f"adapter_precision is 'int8', which {PROVIDERS.get(provider, provider)} cannot run; take float"
            )
        try:
            check_precision(config.precision, PROVIDERS.get(provider, provider), config.quantization)
        except ConfigError as error:
            problems += error.problems
        return problems

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """The package is made for its target."""
        return False

    def _run_for_config(
        self, model: HfModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        base = local_folder(model.model_name_or_path)
        adapters = {n: Path(f) for n, f in (model.model_attributes or {}).get(ATTRIBUTE, {}).items()}
        if missing := [name for name, folder in adapters.items() if not folder.is_dir()]:
            raise OlivalError(
                f"the trained adapters {', '.join(missing)} are no longer in the cache; run once with clean_cache: true"
            )
        folder = Path(output_model_path)
        export(
            base,
            adapters,
            folder,
            execution_provider=PROVIDERS[str(self.accelerator_spec.execution_provider)],
            config=config,
            workflow=_resolved_workflow(),
        )
        attributes = {ATTRIBUTE: {n: str(f) for n, f in adapters.items()}, BASE_ATTRIBUTE: str(base.resolve())}
        return ONNXModelHandler(model_path=str(folder), onnx_file_name="model.onnx", model_attributes=attributes)


def export(
    base: Path,
    adapters: dict[str, Path],
    folder: Path,
    *,
    execution_provider: str,
    config: Any,
    workflow: dict[str, Any] | None = None,
) -> None:
    """Writes the package to `folder` and its parity into the manifest.

    Raises OlivalError, and leaves `folder` as it was, when the float32 graph is further than
    config.parity_tolerance from the PyTorch model for any adapter.
    """
    from passes.package import write_package
    from runtime.manifest import read_manifest, write_manifest

    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.parent.glob("export-*"), *folder.parent.glob(f"{folder.name}-new-*")]:  # of a killed run
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="export-") as work:
        print(f"export {config.name}: checking the float32 graph of {len(adapters)} adapters", file=sys.stderr)
        exact = Path(work) / "exact"
        write_package(
            exact,
            base_path=base,
            adapter_folders=adapters,
            precision="fp32",
            execution_provider="cpu",
            name=config.name,
        )
        certificates = {name: {"fp32": scores} for name, scores in measure_parity(base, adapters, exact).items()}
        if wrong := [
            f"adapter '{name}': the float32 graph differs from PyTorch by {scores['fp32']['max_abs_difference']:.2g} "
            f"in logits, more than parity_tolerance {config.parity_tolerance:g}"
            for name, scores in certificates.items()
            if not scores["fp32"]["max_abs_difference"] <= config.parity_tolerance
        ]:
            raise OlivalError("; ".join(wrong))
        print(f"export {config.name}: building {config.precision} for {execution_provider}", file=sys.stderr)
        write_package(
            folder,
            base_path=base,
            adapter_folders=adapters,
            precision=config.precision,
            execution_provider=execution_provider,
            quantization=config.quantization,
            threads=config.threads,
            adapter_precision=config.adapter_precision,
            workflow=workflow,
            name=config.name,
        )
        for name, scores in measure_parity(base, adapters, folder).items():
            certificates[name][config.precision] = scores
        manifest = read_manifest(folder, verify=False)
        for name, certificate in certificates.items():
            manifest["adapters"][name]["parity"] = certificate
        write_manifest(folder, manifest)


def measure_parity(base: Path, adapters: dict[str, Path], package: Path) -> dict[str, dict[str, Any]]:
    """Parity of each adapter in a package with the float32 PyTorch model, on the samples kept at its training."""
    from evaluators.package_model import PackageModel
    from evaluators.parity import adapter_logits, parity_scores
    from evaluators.torch_model import TorchModel

    if not adapters:
        return {}
    reference, measured = TorchModel(base, adapters), PackageModel(package)
    results = {}
    for name, folder in adapters.items():
        samples: list[list[int]] = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        task = reference.info[name]["task"]
        scores = parity_scores(*(adapter_logits(m, samples, name, task) for m in (reference, measured)))
        results[name] = {**scores, "samples": len(samples)}
    return results


def _resolved_workflow() -> dict[str, Any] | None:
    """The workflow as Olive resolved it, which Olive keeps in its cache folder while it runs."""
    file = Path(os.environ.get("OLIVE_CACHE_DIR", "")) / "olive_config.json"
    if not file.is_file():
        return None
    workflow: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return workflow
