"""Workflows for Olive's own search (`search_strategy`): the export's options may have several values there.

Olive takes them as {"olive_parameter_type": "SearchParameter", "type": "Categorical", "support": [...]}, or a pass as a
list of configurations. A workflow without them is one candidate. docs/search.md says what `python -m search` adds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

BETTER = "`python -m search` searches over any value of a workflow (docs/search.md)"


def choices_of(value: Any) -> list[Any] | None:
    """The values of a categorical search parameter as a workflow has it; None for a value of any other kind."""
    if isinstance(value, Mapping) and value.get("olive_parameter_type") == "SearchParameter":
        return list(value.get("support") or []) if value.get("type") == "Categorical" else []
    return None


def candidates(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Every combination of a pass's options, in Olive's order of choices."""
    choices = {name: chosen for name, value in options.items() if (chosen := choices_of(value)) is not None}
    for values in itertools.product(*choices.values()):
        yield {**options, **dict(zip(choices, values, strict=True))}


def search_problems(ours: list[tuple[str, Any]], searching: bool) -> list[str]:
    """What is wrong with how a workflow asks for a search; `searching` says that it has a search_strategy."""
    problems = []
    names = [name for name, _ in ours]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        if not searching:
            problems.append(f"passes.{name}: is a list, of which Olive runs the first without a search_strategy")
    exported = any("export" in step.type for _, step in ours)
    for name, step in ours:
        for option, value in (step.config or {}).items():
            choices = choices_of(value)
            where = f"passes.{name}.{option}"
            if choices is None:
                continue
            if not searching:
                problems.append(f"{where}: has several values, but the workflow has no search_strategy; {BETTER}")
            elif "export" not in step.type:
                problems.append(f"{where}: Olive's search is over options of MultiAdapterExport alone; {BETTER}")
            elif not choices:
                problems.append(f"{where}: must be of type Categorical with a support of one value or more; {BETTER}")
    if searching and ours and not exported:
        problems.append(f"search_strategy: needs the pass MultiAdapterExport, whose options it searches; {BETTER}")
    return problems
