"""What `inspect` and `check` print of an adapter: facts as plain values, and the same as text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.adapter_names import FITS, REPAIRED, Parts, oriented, sort_parts
from runtime.adapter_source import Source
from runtime.bottleneck import PARTS as BOTTLENECK_PARTS
from runtime.conversion import Fit
from runtime.dora import dora_note
from runtime.manifest import read_manifest
from runtime.peft_config import meaning_problems, scale


def describe_source(source: Source) -> dict[str, Any]:
    """Facts of an adapter by itself, without any base: kind, ranks, targets, layers, dtypes, head, scales, tensors."""
    parts = sort_parts(source)
    ranks, layers, scales, targets = set(), set(), set(), set()
    for module in parts.modules.values():
        targets.add(module.name.rpartition(".")[2])
        layers |= {part for part in module.name.split(".") if part.isdecimal()}
        if "lora_A" in module.parts:
            a, _ = oriented(module.parts["lora_A"][1], module.peft, None, 0)
            rank = a.shape[-1] if a.ndim else 0
            ranks.add(rank)
            if source.config is not None and rank:
                scales.add(round(scale(source.config, module.name, rank), 6))
    sizes = {
        module.parts[BOTTLENECK_PARTS[0]][1].shape[0 if module.peft else -1]
        for module in parts.bottlenecks.values()
        if BOTTLENECK_PARTS[0] in module.parts and module.parts[BOTTLENECK_PARTS[0]][1].ndim
    }
    for module in parts.bottlenecks.values():
        targets.add(module.name.rpartition(".")[2])
        layers |= {part for part in module.name.split(".") if part.isdecimal()}
    dora = any({"lora_magnitude_vector", "lora_magnitude"} & set(module.parts) for module in parts.modules.values())
    head = None
    if parts.head is not None:
        values, _ = oriented(parts.head[1], source.kind == "PEFT folder", None, 0)
        head = {"tensor": parts.head[0], "classes": values.shape[-1] if values.ndim else 0}
    kinds = {
        "full": parts.own_weights,
        "DoRA": dora,
        "LoRA": parts.modules,
        "bottleneck": parts.bottlenecks,
        "head": head,
    }
    return {
        "path": str(source.path),
        "format": source.kind,
        "kind": _virtual_kind(parts) or next((name for name, there in kinds.items() if there), "unknown"),
        "ranks": sorted(ranks),
        "bottleneck_sizes": sorted(sizes),
        "targets": sorted(targets),
        "layers": len(layers),
        "dtypes": dict(Counter(source.dtypes.values())),
        "values": sum(value.size for value in source.tensors.values()),
        "head": head,
        "labels": source.settings.get("labels"),
        "scales": sorted(scales) if source.config is not None else "folded into B",
        "base": (source.config or {}).get("base_model_name_or_path"),
        "base_version": f"{source.base_version:07x}" if source.base_version not in (0, 1) else None,
        "notes": ([] if source.config is None else [*meaning_problems(source.config), *dora_note(source)])
        + [f"{finding.key}: {finding.note}" for finding in parts.findings],
        "tensors": [
            {"name": name, "shape": list(value.shape), "dtype": source.dtypes[name]}
            for name, value in source.tensors.items()
        ],
    }


def _virtual_kind(parts: Parts) -> str:
    """Says how many virtual tokens an adapter has; empty where it has none."""
    if not parts.virtual:
        return ""
    value = next(iter(parts.virtual.values()))  # (virtual, numbers of each) of PEFT, else with a 1 before that
    return f"{value.shape[-2] if value.ndim > 1 else 0} virtual tokens"


def describe_package(folder: Path) -> dict[str, Any]:
    """Facts of a package and its adapters, from its manifest, after every file was compared with it."""
    manifest = read_manifest(folder)
    keys = (
        "task",
        "rank",
        "bottleneck_size",
        "target_modules",
        "labels",
        "template",
        "max_length",
        "file",
        "bytes",
    )
    adapters = {
        name: {key: entry.get(key) for key in (*keys, *(k for k in ("dora", "virtual_tokens") if entry.get(k)))}
        for name, entry in manifest["adapters"].items()
    }
    base, target = manifest["base"], manifest["target"]
    return {
        "path": str(folder),
        "format": "package",
        "name": manifest.get("name"),
        "base": base.get("name"),
        "fingerprint": base["fingerprint"],
        "precision": manifest["precision"],
        "target": target.get("execution_provider"),
        "slots": len(manifest["slots"]),
        **({"extra_slots": manifest["extra_slots"]} if manifest.get("extra_slots") else {}),
        "adapters": adapters,
    }


def inspect_text(facts: Mapping[str, Any]) -> str:
    """The facts of `describe_source` or `describe_package`, a line each, then the tensors or adapters as a table."""
    width = max(len(key) for key in facts)
    lines = [
        f"{key.ljust(width)}  {_plain(value)}"
        for key, value in facts.items()
        if key not in ("tensors", "adapters", "notes") and value not in (None, [], {})
    ]
    lines += [f"note: {note}" for note in facts.get("notes", [])]
    if "adapters" in facts:
        return "\n".join([*lines, "", adapters_text(facts["adapters"])])
    rows = [[t["name"], t["dtype"], " x ".join(map(str, t["shape"]))] for t in facts["tensors"]]
    return "\n".join([*lines, "", *_table(rows)])


def adapters_text(adapters: Mapping[str, Mapping[str, Any]]) -> str:
    """A package's adapters as a table: name, task, rank, bytes, template, most tokens of a text, labels."""
    rows = [["adapter", "task", "rank", "bytes", "template", "max length", "labels"]]
    for name, entry in adapters.items():
        template, most = repr(entry["template"]), str(entry["max_length"] or "-")
        sizes = [width_text(entry).removeprefix("rank "), f"{entry['bytes']:,}"]
        rows.append([name, entry["task"], *sizes, template, most, ", ".join(entry["labels"] or [])])
    return "\n".join(_table(rows)) if adapters else "no adapters"


def width_text(facts: Mapping[str, Any]) -> str:
    """How wide an adapter is, of its entry or what conversion says of it: "rank 8 DoRA", "5 virtual tokens"."""
    if virtual := facts.get("virtual_tokens"):
        return f"{virtual} virtual tokens"
    rank = f"rank {facts['rank']}{' DoRA' if facts.get('dora') else ''}"
    if size := facts.get("bottleneck_size"):
        return f"{rank} and bottleneck {size}" if facts["rank"] else f"bottleneck {size}"
    return rank


def check_text(source: Source, result: Fit, manifest: Mapping[str, Any], as_json: bool) -> str:
    """Every tensor with its verdict, the slots that stay empty, and whether the adapter fits; as JSON for programs."""
    base = manifest["base"]
    counts = Counter(finding.verdict for finding in result.findings)
    if as_json:
        facts = {
            "fits": result.fits,
            "problems": result.problems,
            "verdicts": dict(counts),
            "empty_slots": result.empty_slots,
            **result.info,
            "tensors": [vars(finding) for finding in result.findings],
        }
        return json.dumps(facts, indent=2)
    order = {key: position for position, key in enumerate(source.tensors)}
    rows = [
        [f.verdict, f.key, " x ".join(map(str, f.shape)), f.dtype, f.note]
        for f in sorted(result.findings, key=lambda f: order[f.key])
    ]
    slots = len(manifest["slots"])
    lines = [*_table(rows), ""]
    lines += [f"problem: {problem}" for problem in result.problems]
    lines.append(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "no tensors")
    lines.append(f"{slots - len(result.empty_slots)} of {slots} slots filled, the others stay empty")
    named = f"the base of '{manifest.get('name')}' ({base.get('name')}, {base['fingerprint'][:12]})"
    bad = sum(counts[verdict] for verdict in counts if verdict not in (FITS, REPAIRED))
    if result.fits:
        lines.append(f"fits {named}" + (", after the repairs above" if counts[REPAIRED] else ""))
    else:
        lines.append(f"does not fit {named}: {bad} tensors, {len(result.problems)} other problems")
    return "\n".join(lines)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)] if rows else []
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
