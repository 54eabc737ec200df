"""Which of a space's targets this machine can measure."""

from __future__ import annotations

from typing import Any

from runtime.session import PROVIDERS
from search.space import Space

_OUR_NAMES = {theirs: ours for ours, theirs in PROVIDERS.items()}


def absent_targets(space: Space) -> dict[str, str]:
    """{target: why it cannot be measured here}, from starting a session on each target's execution provider."""
    from benchmark.targets import find_targets

    needed = {target: short_name(space.workflow(target)) for target in space.workflows}
    found = {t["execution_provider"]: t for t in find_targets(sorted(set(needed.values()) & set(PROVIDERS) - {"cpu"}))}
    return {target: str(found[p]["reason"]) for target, p in needed.items() if p in found and not found[p]["available"]}


def short_name(workflow: dict[str, Any]) -> str:
    """cpu, cuda or dml; onnxruntime's own name of a provider that is none of them."""
    return _OUR_NAMES.get(provider_of(workflow), provider_of(workflow))


def provider_of(workflow: dict[str, Any]) -> str:
    """onnxruntime's name of the first execution provider of a workflow's target; Olive's default is the CPU's."""
    system = (workflow.get("systems") or {}).get(workflow.get("target") or workflow.get("host")) or {}
    accelerators = system.get("accelerators") or [{}]
    providers = accelerators[0].get("execution_providers") or ["CPUExecutionProvider"]
    first = providers[0]
    return str(first[0] if isinstance(first, list) else first)
