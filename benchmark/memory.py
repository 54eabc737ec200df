"""What trainings of large bases need: `python -m benchmark.memory --estimate 7B 13B 33B 65B`, without their weights.

The estimate that every training here begins with (passes/training/memory.py), for the sizes of LLaMA (Touvron et al.
2023, 2302.13971), whose configurations stand below, or for a model folder. It is of a GPU's tensors: the driver, the
libraries and what the allocator keeps come on top. `--paper` puts it beside the figures of Dettmers et al. 2023,
"QLoRA" (2305.14314).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluators.report import plain_table, wide_console
from runtime.errors import ConfigError, OlivalError, nearest

# (hidden, intermediate, layers, heads); vocabulary 32,000, the head is not tied
LLAMA = {
    "7B": (4096, 11008, 32, 32),
    "13B": (5120, 13824, 40, 40),
    "33B": (6656, 17920, 60, 52),
    "65B": (8192, 22016, 80, 64),
}
DTYPES = {"float32": 4, "bfloat16": 2}
PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")


class Setting(NamedTuple):
    """A way to train: what `Plan` says of it beside the rows."""

    name: str
    trained_bytes: int = 4
    full: bool = False
    quantization: str | None = None
    double_quantization: bool = False


SETTINGS = (
    Setting("full", full=True),
    Setting("full, 16 bits", trained_bytes=2, full=True),
    Setting("LoRA"),
    Setting("QLoRA", quantization="nf4", double_quantization=True),
)


class Compared(NamedTuple):
    """A figure of the paper and what is estimated for it, in GB."""

    what: str
    where: str
    paper: float
    estimate: float


def llama(size: str) -> Any:
    """The configuration of a LLaMA. Raises ConfigError for a size that there is not."""
    from transformers import LlamaConfig

    if size not in LLAMA:
        raise ConfigError([f"--estimate {size}: is neither a model folder nor a size of LLaMA; {nearest(size, LLAMA)}"])
    hidden, inner, layers, heads = LLAMA[size]
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=32000,
        tie_word_embeddings=False,
    )


def needs(
    base: str, settings: Sequence[Setting], batch: int, length: int, dtype: str, checkpointing: bool, rank: int
) -> Iterator[tuple[Setting, Any]]:
    """(setting, Estimate in bytes) of each setting; all tokens are learned, LoRA is beside all linear layers."""
    from passes.training.kept import Method
    from passes.training.memory import Plan, estimate, shape_of

    source = Path(base) if Path(base).is_dir() else llama(base)
    for setting in settings:
        kind = "full" if setting.full else "low_rank"
        shape = shape_of(source, Method(kind, rank, dtype=dtype, cast=setting.trained_bytes == 4))
        trained = shape.linear + shape.other if setting.full else rank * (shape.read + shape.written)
        # weights that are trained in 32 bits are held so, whatever they are computed in
        held = (shape.linear + shape.other) * setting.trained_bytes if setting.full else None
        plan = Plan(
            batch=batch,
            length=length,
            learned=length,
            trained=trained,
            added=0 if setting.full else trained,
            quantization=setting.quantization,
            double_quantization=setting.double_quantization,
            held=float(held) if held else None,
            dtype_bytes=DTYPES[dtype],
            checkpointing=checkpointing,
            trained_bytes=setting.trained_bytes,
        )
        yield setting, estimate(shape, plan)


def paper() -> list[Compared]:
    """The paper's figures that have an estimate of the same; 1 GB is 10^9 bytes.

    Its models hold embeddings and head in float32, as its code (prepare_model_for_kbit_training) leaves them. Guanaco
    has LoRA of rank 64 beside all linear layers, here counted in float32.
    """
    from passes.training.memory import Plan, estimate, shape_of

    shapes = {size: shape_of(llama(size)) for size in LLAMA}
    seven, largest = shapes["7B"], shapes["65B"]
    every = largest.linear + largest.other
    full = Plan(0, 0, trained=every, dtype_bytes=2, trained_bytes=2)
    found = [
        Compared("65B, full fine-tuning in 16 bits: more than", "abstract", 780, estimate(largest, full).total),
        Compared("7B, the base in 4 bits", "section 2", 5.048, _held(seven, double=False)),
    ]
    for size, said in (("7B", 5), ("13B", 10), ("33B", 21), ("65B", 41)):
        adapter = 4 * 64 * (shapes[size].read + shapes[size].written)
        found.append(Compared(f"Guanaco {size}", "table of the Vicuna benchmark", said, _held(shapes[size]) + adapter))
    ((_, need),) = needs("65B", [SETTINGS[-1]._replace(trained_bytes=2)], 1, 512, "bfloat16", True, 64)
    found.append(Compared("65B, QLoRA, rank 64 in 16 bits: less than", "abstract", 48, need.total))
    return [figure._replace(estimate=figure.estimate / 1e9) for figure in found]


def _held(shape: Any, double: bool = True) -> float:
    """Bytes of a base in 4 bits, at rest."""
    from passes.training.memory import FOUR_BIT, FOUR_BIT_DOUBLE

    return (FOUR_BIT_DOUBLE if double else FOUR_BIT) * shape.linear + 4 * shape.other


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables. Returns 0, or 1 after an error line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmark.memory",
        allow_abbrev=False,
        description="Estimates the memory of full fine-tuning, LoRA and QLoRA.",
    )
    parser.add_argument(
        "--estimate", nargs="+", metavar="BASE", default=[], help=f"{', '.join(LLAMA)}, or model folders"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="rows computed at once (default: 1)")
    parser.add_argument(
        "--length", type=int, default=512, metavar="N", help="tokens of a row, all learned (default: 512)"
    )
    parser.add_argument(
        "--rank", type=int, default=8, metavar="N", help="of LoRA, beside all linear layers (default: 8)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of activations and frozen weights")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--paper", action="store_true", help="beside the figures of the QLoRA paper")
    options = parser.parse_args(arguments)
    console = wide_console()
    try:
        if not options.estimate and not options.paper:
            raise ConfigError([f"nothing to estimate; give --estimate {' '.join(LLAMA)}, or --paper"])
        if wrong := [name for name in ("batch", "length", "rank") if getattr(options, name) < 1]:
            raise ConfigError([f"--{name} {getattr(options, name)}: must be 1 or more" for name in wrong])
        if options.estimate:
            table = plain_table(["base", "method"], [*PARTS, "GB"], [])
            for base in options.estimate:
                given = (options.batch, options.length, options.dtype, options.checkpointing, options.rank)
                for setting, need in needs(base, SETTINGS, *given):
                    name = Path(base).name if Path(base).is_dir() else base
                    table.add_row(name, setting.name, *(_gb(getattr(need, part)) for part in PARTS), _gb(need.total))
            console.print(table)
        if options.paper:
            table = plain_table(["QLoRA paper", "where"], ["GB there", "estimate", "ratio"], [])
            for row in paper():
                table.add_row(
                    row.what, row.where, f"{row.paper:g}", _gb(row.estimate * 1e9), f"{row.estimate / row.paper:.2f}"
                )
            console.print(table)
    except OlivalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size < 99.95e9 else f"{size / 1e9:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
