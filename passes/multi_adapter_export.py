"""Olive pass: one ONNX package of the quantized base and every trained adapter, with a proof that they agree."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from evaluators import parity
from passes.base_model import local_folder
from passes.training.adapter_pass import ATTRIBUTE, BASE_ATTRIBUTE
from runtime.atomic_folder import replace_folder
from runtime.errors import ConfigError, OlivalError, ProviderError, nearest
from runtime.manifest import read_manifest, write_manifest
from runtime.session import PROVIDERS

if TYPE_CHECKING:
    from evaluators.package_model import PackageModel

OUR_NAMES = {theirs: ours for ours, theirs in PROVIDERS.items()}  # onnxruntime's name of a provider -> "cpu" and so on
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
            "parity": PassConfigParam(
                type_=dict,
                default_value=None,
                description="Bounds of each adapter's parity with PyTorch; see evaluators.parity.OPTIONS.",
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
        if config.adapter_precision not in ADAPTER_PRECISIONS:
            problems.append(
                f"adapter_precision is '{config.adapter_precision}'; "
                f"{nearest(config.adapter_precision, ADAPTER_PRECISIONS)}"
            )
        elif config.adapter_precision == "int8" and OUR_NAMES.get(provider, provider) != "cpu":
            problems.append(
                f"adapter_precision is 'int8', which {OUR_NAMES.get(provider, provider)} cannot run; take float"
            )
        elif config.adapter_precision == "int8" and config.precision == "fp32":  # its graph is the proof of parity
            problems.append("adapter_precision is 'int8', but precision is 'fp32', which rounds nothing; take float")
        problems += parity.check_options(config.parity or {})
        try:
            check_precision(config.precision, OUR_NAMES.get(provider, provider), config.quantization)
        except ConfigError as error:
            problems += error.problems
        return problems

    @classmethod
    def validate_config(cls, config: Any, accelerator_spec: AcceleratorSpec) -> bool:
        """Olive's question before it runs a candidate of a search: those that cannot be exported are left out."""
        problems = cls.problems(config, str(accelerator_spec.execution_provider))
        for problem in problems:
            print(f"export {config.name}: candidate left out: {problem}", file=sys.stderr)
        return not problems

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
            execution_provider=OUR_NAMES[str(self.accelerator_spec.execution_provider)],
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
    """Writes the package to `folder`, each adapter's parity with PyTorch in its manifest.

    Raises ConfigError with every adapter, score and bound when one is broken, and leaves `folder` as it was. A package
    for a provider that this machine does not have is compared on the CPU and marked in `target.not_executed`.
    """
    from passes.full_package import full_adapter, write_full_package
    from passes.full_weights import write_full_base
    from passes.package import check_replaceable, write_package

    check_replaceable(folder)
    full = full_adapter(adapters)
    folder.parent.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.parent.glob("export-*"), *folder.parent.glob(f"{folder.name}-new-*")]:  # of a killed run
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="export-") as work:
        package, exact = Path(work) / "package", Path(work) / "exact"
        tuned = Path(work) / f"{base.name}-{full}"
        if full is not None:
            write_full_base(base, tuned, adapters[full])

        def build(target: Path, **options: Any) -> None:
            if full is None:
                write_package(target, base_path=base, adapter_folders=adapters, name=config.name, **options)
            else:
                write_full_package(target, base, tuned, full, adapters[full], name=config.name, **options)

        print(f"export {config.name}: building {config.precision} for {execution_provider}", file=sys.stderr)
        build(
            package,
            precision=config.precision,
            execution_provider=execution_provider,
            quantization=config.quantization,
            threads=config.threads,
            adapter_precision=config.adapter_precision,
            workflow=workflow,
        )
        if (config.precision, execution_provider) == ("fp32", "cpu"):
            exact = package
        else:
            print(f"export {config.name}: building the float32 graph to compare with PyTorch", file=sys.stderr)
            build(exact, precision="fp32", execution_provider="cpu")
        print(f"export {config.name}: comparing {len(adapters)} adapters with PyTorch", file=sys.stderr)
        certify(base, adapters, package, exact, parity.OPTIONS | (config.parity or {}))
        replace_folder(package, folder)


def certify(base: Path, adapters: dict[str, Path], package: Path, exact: Path, options: dict[str, Any]) -> None:
    """Writes each adapter's parity into the package's manifest: {precision: scores, samples,
    executed_on, reference: weights of PyTorch's base, float32 or deployed}.

    Args:
        base, adapters: of the PyTorch model, the reference: in float32, but for `package` on the integers that the
            adapters were trained on.
        package: the package to certify.
        exact: the same adapters in a float32 package for the CPU; may be `package` itself.
        options: evaluators.parity.OPTIONS with the workflow's values.

    Raises:
        ConfigError: every bound that is broken.
    """
    from evaluators.package_model import PackageModel
    from evaluators.torch_model import TorchModel, trained_on

    manifest = read_manifest(package, verify=False)

    def measure(model: PackageModel, reference: TorchModel) -> dict[str, dict[str, Any]]:
        results = {}
        for name, folder in adapters.items():
            samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))[: options["samples"]]
            scores = parity.adapter_parity(reference, model, name, samples, reference.info[name]["task"])
            where = {"executed_on": model.runtime.execution_provider, "reference": reference.weights}
            results[name] = {**scores, **where}
        return results

    precision = manifest["precision"]
    reference = TorchModel(base, adapters, as_trained=False)
    exact_scores = scores = measure(PackageModel(exact), reference)
    if package != exact:
        model, absent = _open_or_fall_back(package)
        if absent:
            manifest["target"]["not_executed"] = absent
        if trained_on(reference.info.values()):
            del reference  # one base at a time
            reference = TorchModel(base, adapters)
        scores = measure(model, reference) if model is not None else {name: {"executed_on": None} for name in adapters}
    exact_bounds = {**dict.fromkeys(parity.SCORES), "max_abs_difference": options["fp32_max_abs_difference"]}
    broken = []
    for name in adapters:
        problems = parity.violations("fp32", exact_scores[name], exact_bounds)
        if scores[name]["executed_on"]:
            problems += parity.violations(precision, scores[name], options)
        broken += [f"parity of adapter '{name}' with PyTorch: {problem}" for problem in problems]
        manifest["adapters"][name]["parity"] = {"fp32": exact_scores[name], precision: scores[name]}
    if broken:
        raise ConfigError(broken)
    write_manifest(package, manifest)


def _open_or_fall_back(package: Path) -> tuple[PackageModel | None, str | None]:
    """The package on its own provider; where this machine lacks that, on the CPU, with the reason beside it.

    The CPU's kernels compute float16 graphs too; None where they do not know an operator of the graph.
    """
    from evaluators.package_model import PackageModel

    try:
        return PackageModel(package), None
    except ProviderError as error:
        reason = str(error)
    try:
        return PackageModel(package, "cpu"), reason
    except Exception as error:  # onnxruntime has a kind of its own for each cause
        return None, f"{reason}; nor does its graph run on the CPU: {error}"


def _resolved_workflow() -> dict[str, Any] | None:
    """The workflow as Olive resolved it, which Olive keeps in its cache folder while it runs."""
    file = Path(os.environ.get("OLIVE_CACHE_DIR", "")) / "olive_config.json"
    if not file.is_file():
        return None
    workflow: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return workflow
