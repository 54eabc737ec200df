"""Whether a base takes the virtual tokens of prompt and prefix tuning, and has room: asked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.graph.checks import TORCH_ARCHITECTURES
from passes.graph.virtual_tokens import VIRTUAL_BASES, prefix_problem
from passes.training.methods import VIRTUAL
from passes.training.settings import AdapterSettings
from runtime.virtual_tokens import room_problem


def virtual_tokens(options: Mapping[str, Any]) -> int:
    """How many virtual tokens stand before each text of the adapter that a pass with these options trains."""
    if options.get("method") not in VIRTUAL:
        return 0
    given = options.get("virtual_tokens")
    if given is not None and type(given) is not int:
        return 0  # its own line says what is wrong with it
    return AdapterSettings.virtual_tokens if given is None else given


def virtual_problems(ours: list[tuple[str, Any]], base: Path, context: int | None) -> list[str]:
    """What keeps passes from giving virtual tokens to texts of `base`.

    Args:
        ours: (name, Olive's pass configuration) of this workspace's passes.
        base: its folder.
        context: most tokens that it takes, None where it has no limit.
    """
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    architecture, problems = (config.get("architectures") or [""])[0], []
    for name, step in ours:
        virtual, method = virtual_tokens(step.config), step.config.get("method")
        if not virtual:
            continue
        if architecture in TORCH_ARCHITECTURES:
            problems.append(f"passes.{name}.method: '{method}', but the base is a {architecture}; {VIRTUAL_BASES}")
        elif method == "prefix" and (reason := prefix_problem(config)):
            problems.append(f"passes.{name}.method: 'prefix', but the base's {reason}; take prompt")
        if problem := room_problem(virtual, None, context):
            problems.append(f"passes.{name}.virtual_tokens: {problem}")
    return problems
