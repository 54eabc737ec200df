"""Olive's own search as the benchmark runs it: its workflows for a space of export options, and what it measured.

Olive has no conditions between options. A space that has them can be said in two ways: `alternatives`, a list of
configurations of the pass, which Olive's sequential and random samplers take and its TPE does not (Olive 0.13: its
search ends in an error or in an endless loop), and `flat`, every precision with every quantization, where the
combinations without meaning are candidates too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Options = tuple[str, str | None, int | None]  # precision, algorithm, block size; None where the workflow leaves it out
PERPLEXITY, SIZE = "blurbs-perplexity", "size_on_disk"


class Attempt(NamedTuple):
    """One candidate of a search: its options, and what was measured of it (None: it failed or was left out)."""

    options: Options
    metrics: Mapping[str, float] | None  # PERPLEXITY, and SIZE in bytes


class Space(NamedTuple):
    """Export options to search: algorithm and block size have a meaning at int4 alone."""

    algorithms: Sequence[str]
    block_sizes: Sequence[int]
    others: Sequence[str]  # precisions without further options


def combinations(space: Space) -> list[Options]:
    """Every candidate once."""
    int4 = [("int4", algorithm, block) for algorithm in space.algorithms for block in space.block_sizes]
    return [*int4, *((precision, None, None) for precision in space.others)]


def alternatives(step: Mapping[str, Any], space: Space) -> list[dict[str, Any]]:
    """The export pass as a list of configurations: exactly the combinations."""
    first = {**step, "precision": "int4", "quantization": categorical(_quantizations(space))}
    others = [{**step, "precision": precision} for precision in space.others]
    for other in others:
        other.pop("quantization", None)
    return [first, *others]


def flat(step: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The export pass with two independent options: more candidates than combinations, some without a meaning."""
    precisions = categorical(["int4", *space.others])
    return {**step, "precision": precisions, "quantization": categorical([None, *_quantizations(space)])}


def categorical(values: Sequence[Any]) -> dict[str, Any]:
    """Olive's JSON of an option that it searches."""
    return {"olive_parameter_type": "SearchParameter", "type": "Categorical", "support": list(values)}


def read_attempts(output: Path, log: str) -> tuple[list[Attempt], int]:
    """What a run of Olive's search measured, in order, and how many candidates it tried (its log counts them)."""
    attempts = []
    for node in json.loads((output / "footprint.json").read_text(encoding="utf-8")).values():
        if node.get("from_pass") == "multiadapterexport" and node.get("metrics"):
            values = {name: metric["value"] for name, metric in node["metrics"]["value"].items()}
            metrics = {PERPLEXITY: values[PERPLEXITY], SIZE: values[f"{SIZE}-bytes"]}
            attempts.append(Attempt(options_of(node["pass_run_config"]), metrics))
    return attempts, len(set(re.findall(r"Step (\d+) with search point", log)))


def options_of(config: Mapping[str, Any]) -> Options:
    """The options of the export pass's configuration."""
    quantization = config.get("quantization") or {}
    return config["precision"], quantization.get("algorithm"), quantization.get("block_size")


def _quantizations(space: Space) -> list[dict[str, Any]]:
    return [
        {"algorithm": algorithm, "block_size": block} for algorithm in space.algorithms for block in space.block_sizes
    ]
