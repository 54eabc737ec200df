"""Bias and robustness cases as scores of an adapter, for the models at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.examples import ClassificationData, GenerationData
from data.templates import unfill
from evaluators.case_models import package_answer, package_classify, torch_answer, torch_classify
from evaluators.case_rates import rate
from evaluators.cases import read_cases, run_cases, run_classifier_cases
from evaluators.measuring import Measuring
from evaluators.quality import Quality

CASES = Path(__file__).resolve().parents[1] / "data" / "samples" / "cases.json"
SCORES = {"classification": ("pass_rate", "flip_rate"), "generation": ("pass_rate",)}


def case_quality(
    measuring: Measuring,
    adapter: str,
    task: str,
    file: Path,
    data: ClassificationData | GenerationData | None = None,
    max_new_tokens: int = 64,
) -> Quality:
    """`SCORES` of an adapter on the cases of a file; the details are the reports, by model name.

    pass_rate is the share of cases that pass; flip_rate the share of changed labels among all pairs of the cases and
    all perturbed forms of a classifier's rows together. The intervals are Wilson's, as in the reports.

    Args:
        measuring: the models, and where their finished parts are kept.
        task: the adapter's, "classification" or "generation".
        file: see `evaluators.case_file`.
        data: rows of a classifier, which are perturbed; not those of a template with several columns.
        max_new_tokens: most tokens of an answer.

    Raises:
        ConfigError: the cases are not what `evaluators.case_file` describes.
    """
    cases, quality = read_cases(file), Quality()
    texts = perturbable(data)
    for name, model in measuring.models.items():
        key = {"cases": cases, "texts": texts, "tokens": max_new_tokens}

        def compute(name: str = name, model: Any = model) -> Any:
            if task == "classification":
                classify = (package_classify if name == "package" else torch_classify)(model, adapter)
                return run_classifier_cases(cases, texts, classify)
            answer = (package_answer if name == "package" else torch_answer)(model, adapter, max_new_tokens)
            return run_cases(cases, answer)

        report = measuring.part(name, adapter, key, compute)
        found = case_scores(report)
        quality.add(name, {s: v[0] for s, v in found.items()}, {s: (v[1], v[2]) for s, v in found.items()})
        quality.details[name] = report
    return quality


def perturbable(data: ClassificationData | GenerationData | None) -> list[str]:
    """A classifier's rows without their template, where it has one placeholder."""
    if not isinstance(data, ClassificationData):
        return []
    return [text for filled in data.texts if (text := unfill(data.template, filled)) is not None]


def case_scores(report: Mapping[str, Any]) -> dict[str, tuple[float, float, float]]:
    """{score: (value, low, high)} of a report; a score of nothing is left out."""
    compared: Sequence[Mapping[str, Any]] = []
    if report["kind"] == "classification":
        compared = [*report["pairs"].values(), *report["perturbations"].values()]
    passed = (report["total"]["passed"], report["total"]["total"])
    flipped = (sum(each["flipped"] for each in compared), sum(each["total"] for each in compared))
    found = {}
    for score, counts in (("pass_rate", passed), ("flip_rate", flipped)):
        value, low, high = rate(*counts)
        if value is not None and low is not None and high is not None:
            found[score] = (value, low, high)
    return found
