"""Places in a workflow by dotted path, such as `passes.spam.training_args.learning_rate`.

An element of a list goes by its number or, where it has one, by its `name`: `data_configs.spam_train.max_samples`.
"""

from __future__ import annotations

from typing import Any

from runtime.errors import nearest

REMOVE = object()  # set_value with it drops the option


def path_problem(workflow: dict[str, Any], path: str) -> str | None:
    """Why a path leads nowhere, with the nearest names that are there; None if it leads to an option."""
    here: Any = workflow
    walked: list[str] = []
    for part in path.split("."):
        names = _names(here)
        if part not in names:
            where = ".".join(walked) or "the workflow"
            if not names:
                return f"'{path}' does not exist: {where} is {here!r}, which has nothing in it"
            return f"'{path}' does not exist: {where} has no '{part}'; {nearest(part, names)}"
        here = here[names[part]]
        walked.append(part)
    return None


def get_value(workflow: dict[str, Any], path: str) -> Any:
    """The value at a path that is there."""
    parent, key = _parent(workflow, path)
    return parent[key]


def set_value(workflow: dict[str, Any], path: str, value: Any) -> None:
    """Puts a value at a path that is there; REMOVE drops it."""
    parent, key = _parent(workflow, path)
    if value is REMOVE:
        del parent[key]
    else:
        parent[key] = value


def _parent(workflow: dict[str, Any], path: str) -> tuple[Any, Any]:
    here: Any = workflow
    *parts, last = path.split(".")
    for part in parts:
        here = here[_names(here)[part]]
    return here, _names(here)[last]


def _names(value: Any) -> dict[str, Any]:
    """What a part of a path may say here, and the key or index it means."""
    if isinstance(value, dict):
        return {str(key): key for key in value}
    if isinstance(value, list):
        named = {str(e["name"]): i for i, e in enumerate(value) if isinstance(e, dict) and "name" in e}
        return {str(i): i for i in range(len(value))} | named
    return {}
