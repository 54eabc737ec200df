"""An adapter's settings: task, labels, template and the like, with defaults, and what is wrong with them."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from runtime.errors import PackageError, nearest
from runtime.prompts import check_template

SETTINGS: dict[str, Any] = {
    "task": "generation",
    "labels": None,
    "template": "{text}",
    "max_length": None,
    "pooling": "last",
    "window_stride": None,
    "thresholds": None,
    "metrics": {},
}
TASKS = ("classification", "generation")


def checked_settings(
    name: str, given: Mapping[str, Any], classes: int | None, base: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings with defaults.

    Args:
        name: of the adapter, for messages.
        given: some of SETTINGS; what is None, or not among them, counts as not given.
        classes: of the adapter's head; None without one.
        base: entry of the manifest; says how the graph pools, whether the base writes text, and how long a
            text it takes.

    Raises:
        PackageError: all problems at once, each naming key and value.
    """
    problems = []
    pooling = base.get("pooling", "last")
    known = {"pooling": pooling, **{key: given[key] for key in SETTINGS if given.get(key) is not None}}
    if classes is not None and "task" not in known:
        known["task"] = "classification"
    settings = {**SETTINGS, **known}
    labels = settings["labels"]
    if settings["task"] not in TASKS:
        problems.append(f"task is {reprlib.repr(settings['task'])}; {nearest(settings['task'], TASKS)}")
    elif settings["task"] == "classification":
        named = isinstance(labels, list) and all(isinstance(label, str) and label for label in labels)
        if classes is None:
            problems.append("task is classification, but there is no head (score.weight, class_head.weight)")
        elif labels is not None and not named:
            problems.append(f"labels is {reprlib.repr(labels)}, but must be a list of names")
        elif len(labels or []) != classes:
            problems.append(
                f"labels must name the head's {classes} classes in order, but there are {len(labels or [])}; "
                f"give them as --labels NAME,NAME"
            )
        elif len(set(labels)) != len(labels):
            problems.append(f"labels must differ, but are {labels}")
        if settings["template"] == "chat":
            problems.append("template 'chat' is for generation")
    else:
        if labels:
            problems.append(f"labels are for classification, but the task is {settings['task']}")
        settings["labels"] = settings["thresholds"] = None
        settings["pooling"] = pooling  # read by heads alone
    if settings["task"] == "generation" and not base.get("generates", True):
        problems.append("task is generation, but the base is an encoder, which writes no text; valid: classification")
    if settings["pooling"] != pooling:
        found = reprlib.repr(settings["pooling"])
        problems.append(f"pooling is {found}, but the package's graph pools in one way; valid: {pooling}")
    for key in ("max_length", "window_stride"):
        value = settings[key]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31):
            problems.append(f"{key} is {reprlib.repr(value)}, but must be a whole number of tokens, at least 1")
        elif value is not None and (context := base.get("context_length")) and value > context:
            problems.append(f"{key} is {value}, but the base's context is {context}")
    thresholds = settings["thresholds"]
    numbers = isinstance(thresholds, list) and all(type(t) in (int, float) and 0 <= t <= 1 for t in thresholds)
    if thresholds is not None and not (numbers and len(thresholds) == classes):
        found = reprlib.repr(thresholds)
        problems.append(f"thresholds is {found}, but must be {classes} probabilities, one for each of the labels")
    if not isinstance(settings["metrics"], dict):
        problems.append(f"metrics is {reprlib.repr(settings['metrics'])}, but must be an object")
    problems += check_template(settings["template"])
    if problems:
        raise PackageError("\n".join(f"adapter '{name}': {p}" for p in problems))
    return settings
