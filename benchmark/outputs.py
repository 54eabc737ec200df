"""Writes a package's logits of fixed texts on one provider to an .npz: `python -m benchmark.outputs PACKAGE ...`.

One process for one provider: benchmark/agreement.py compares two such files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.worker import BASE
from runtime.atomic_file import replacing
from runtime.errors import OlivalError, nearest
from runtime.model import MultiAdapterModel

# Several scripts, digits, code and an empty line: a provider that rounds worse shows it where tokens are rare.
TEXTS = (
    "The harbour was quiet when the last ferry came in, and the lamps along the pier went on one by one.",
    "Free prize! Reply YES to 80082 before midnight to claim your 1,000 pounds.",
    "Olá, a minha encomenda chegou com dois dias de atraso e a caixa estava aberta. O que devo fazer?",
    "def area(width: float, height: float) -> float:\n    return width * height\n\nprint(area(3.5, 2))",
    "12 + 30 = 42; 7 * 8 = 56; 1000 / 8 = 125; the square of 13 is 169.",
    "Das Wetter bleibt bis Donnerstag trocken. 明日は雨が降るでしょう。 Завтра будет дождь.",
    "no",
    "Write a short note to a neighbour who has looked after the garden for a week.",
)
LONGEST = 48  # tokens of a row: with a vocabulary of 150,000 all rows of an adapter are 200 MB in float32


def token_rows(model: MultiAdapterModel) -> list[list[int]]:
    """The first tokens of every text; texts of which the tokenizer makes nothing are left out."""
    rows = [list(model.tokenizer.encode(text).ids)[:LONGEST] for text in TEXTS]
    return [row for row in rows if row]


def all_logits(model: MultiAdapterModel, adapters: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Logits by a name such as ``adapter.blurbs.3``: adapter and row; the base's start with ``base.``.

    An adapter that classifies gives float32 (1, classes) for each row, one that writes, and the base, (tokens,
    vocabulary). The rows of token ids themselves are ``ids.0`` and so on, int64. `adapters` are all, or the named
    ones, of which "base" is the base alone.
    """
    rows = token_rows(model)
    arrays = {f"ids.{i}": np.array(row, np.int64) for i, row in enumerate(rows)}
    if model.manifest["base"].get("generates", True) and (adapters is None or BASE in adapters):
        arrays |= {f"base.{i}": model.logits(np.array([row], np.int64))[0] for i, row in enumerate(rows)}
    for name, entry in model.adapters.items():
        if adapters is not None and name not in adapters:
            continue
        if entry["task"] == "classification":
            logits = model.class_logits(rows, name)
            arrays |= {f"adapter.{name}.{i}": logits[i : i + 1] for i in range(len(rows))}
        else:
            arrays |= {
                f"adapter.{name}.{i}": model.logits(np.array([row], np.int64), adapter=name)[0]
                for i, row in enumerate(rows)
            }
    return arrays


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the file; returns the exit code, 1 with one line on stderr where the package does not run."""
    parser = argparse.ArgumentParser(prog="python -m benchmark.outputs", description="Logits of fixed texts.")
    parser.add_argument("package", type=Path)
    parser.add_argument("--execution-provider", required=True)
    parser.add_argument("--output", type=Path, required=True, help=".npz file")
    parser.add_argument("--adapters", help=f"names, separated by commas, '{BASE}' for the base alone (default: all)")
    options: Any = parser.parse_args(arguments)
    try:
        model = MultiAdapterModel.load(options.package, execution_provider=options.execution_provider)
        names = options.adapters.split(",") if options.adapters else None
        known = [BASE, *model.adapters]
        if unknown := [name for name in names or [] if name not in known]:
            raise OlivalError(f"--adapters: there is no '{unknown[0]}'; {nearest(unknown[0], known)}")
        arrays = all_logits(model, names)
    except OlivalError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    with replacing(options.output) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub takes the names for allow_pickle
    return 0


if __name__ == "__main__":
    sys.exit(main())
