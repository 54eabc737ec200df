"""Measures a package as a plan says: rows, a text, cases, tasks; each finished part is kept until all are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data.examples import ClassificationData
from evaluators.finished_parts import FinishedParts, files_identity
from evaluators.measuring import Measuring
from evaluators.package_model import PackageModel
from evaluators.plan import KIND, Plan
from evaluators.quality import LOWER_IS_BETTER, classification_quality, generation_quality
from evaluators.scoring import quality_rows
from evaluators.subjects import machine_and_versions, package_identity
from runtime.atomic_file import write_text
from runtime.errors import ConfigError

SCHEMA_VERSION = 1


def evaluate_package(plan: Plan) -> dict[str, Any]:
    """Measures, and writes `plan.output`.

    Returns:
        {"kind", "schema_version", "created", "machine", "versions", "package": {"folder", "precision",
        "execution_provider"}, "quality": rows as in `quality_rows`, "details": {adapter: ...}, "texts": [...],
        "cases": {adapter: report}, "tasks": {...} or None}.

    Raises:
        PackageError: the package cannot be loaded here.
        OlivalError: logits that are no numbers; names adapter and row.
    """
    package = PackageModel(plan.package, plan.execution_provider)
    models: dict[str, Any] = {"package": package}
    identities: dict[str, Callable[[str | None], Any]] = {
        "package": lambda adapter: package_identity(plan.manifest, adapter)
    }
    if plan.base is not None:
        from evaluators.torch_model import TorchModel
        from passes.base_model import quieten_transformers

        quieten_transformers()
        models = {"pytorch": TorchModel(plan.base, dict(plan.peft)), **models}
        identities["pytorch"] = lambda adapter: _torch_identity(plan, adapter)
    parts = FinishedParts(plan.output.with_suffix(".parts"))
    result: dict[str, Any] = {"kind": KIND, "schema_version": SCHEMA_VERSION, **machine_and_versions()}
    result["package"] = {
        "folder": str(plan.package),
        "precision": plan.manifest["precision"],
        "execution_provider": package.runtime.execution_provider,
    }
    result |= {"quality": [], "details": {}}
    for adapter, data in plan.rows.items():
        compared = {name: model for name, model in models.items() if name == "package" or adapter in plan.peft}
        measuring = Measuring(compared, identities, _tokenizer(plan), parts, plan.batch_size)
        wanted = plan.wanted[adapter]
        if isinstance(data, ClassificationData):
            quality = classification_quality(measuring, adapter, data, wanted)
        else:
            quality = generation_quality(measuring, adapter, data, wanted, plan.answers, base=next(iter(compared)))
        rows = quality_rows(adapter, quality)
        result["quality"] += [{**row, "higher_is_better": row["metric"] not in LOWER_IS_BETTER} for row in rows]
        result["details"][adapter] = {"data": data.source, "rows": len(data), **quality.details}
    result["texts"] = _texts(plan, models, identities, parts)
    result["cases"] = _cases(plan, package, identities, parts)
    result["tasks"] = _tasks(plan, package)
    _write(plan.output, result)
    parts.clear()
    return result


def _texts(
    plan: Plan, models: Mapping[str, Any], identities: Mapping[str, Callable[[str | None], Any]], parts: FinishedParts
) -> list[dict[str, Any]]:
    """Perplexity of the text file: of the base, and of the adapter if one is named, for each model that has it."""
    if plan.text_file is None:
        return []
    from evaluators.perplexity import text_perplexity

    text, found = plan.text_file.read_text(encoding="utf-8"), []
    for name, model in models.items():
        for adapter in dict.fromkeys([None, plan.adapter]):
            if name == "pytorch" and adapter is not None and adapter not in plan.peft:
                continue
            window, longest = plan.window or model.context_length, model.text_length(adapter)
            if window is None:
                raise ConfigError(["--window: is needed, the base states no context length"])
            window = min(window, longest or window)

            def compute(model: Any = model, window: int = window, adapter: str | None = adapter) -> Any:
                prefix = model.special_token("bos") or model.special_token("eos")
                return text_perplexity(
                    model,
                    [text],
                    [model.encode(text)],
                    adapter,
                    window,
                    plan.stride,
                    prefix[1] if prefix else None,
                    plan.batch_size,
                )

            key: dict[str, Any] = {"text": hashlib.sha256(text.encode()).hexdigest(), "model": name}
            key |= {"adapter": adapter, "window": window, "stride": plan.stride}
            key |= {"identity": identities[name](adapter)}
            found.append({"file": str(plan.text_file), "model": name, "adapter": adapter, **parts.get(key, compute)})
    return found


def _cases(
    plan: Plan, package: PackageModel, identities: Mapping[str, Callable[[str | None], Any]], parts: FinishedParts
) -> dict[str, Any]:
    """Reports of the cases by adapter: of the one named, or of all. A classifier's rows are perturbed as well."""
    if plan.cases is None:
        return {}
    from evaluators.case_quality import case_quality

    measuring = Measuring({"package": package}, identities, _tokenizer(plan), parts, plan.batch_size)
    reports = {}
    for adapter in [plan.adapter] if plan.adapter is not None else plan.manifest["adapters"]:
        task, data = plan.manifest["adapters"][adapter]["task"], plan.rows.get(adapter)
        quality = case_quality(measuring, adapter, task, plan.cases, data, plan.answers.max_new_tokens)
        reports[adapter] = quality.details["package"]
    return reports


def _tasks(plan: Plan, package: PackageModel) -> dict[str, Any] | None:
    """lm-evaluation-harness's results on the package."""
    if not plan.tasks:
        return None
    from evaluators.harness import run_tasks

    return run_tasks(
        package,
        plan.tasks,
        include_path=plan.include_path,
        adapter=plan.adapter,
        limit=plan.limit,
        num_fewshot=plan.num_fewshot,
        batch_size=plan.batch_size,
    )


def _tokenizer(plan: Plan) -> Any:
    from passes.base_model import load_tokenizer

    return load_tokenizer(plan.package)


def _torch_identity(plan: Plan, adapter: str | None) -> Any:
    assert plan.base is not None
    files = [*plan.base.glob("*.safetensors"), *([] if adapter is None else plan.peft[adapter].glob("*"))]
    return files_identity(*sorted(files))


def _write(file: Path, result: Mapping[str, Any]) -> None:
    """In one step; raises ValueError on NaN or infinity, which are no JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
