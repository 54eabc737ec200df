"""Makes what the adapter benchmark runs: an int4 base with and without slots, adapters, the stock route's graph."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.random_adapter import save_random_adapter
from benchmark.random_base import save_random_base

QUANTIZATION: dict[str, Any] = {"algorithm": "default", "block_size": 32, "symmetric": True, "accuracy_level": 4}
ROWS = 8  # of the mixed batch
STOCK_RANK = 16


class Prepared(NamedTuple):
    """Paths of one shape. The graphs in `int4` share model.onnx.data, so that all read the very same weights."""

    base: Path  # the model in the format of transformers
    int4: Path  # model.onnx: plain; pruned.onnx: head only; slots.onnx; slots_int8.onnx
    adapters: Path  # r{rank}.onnx_adapter, r{rank}_int8.onnx_adapter, row{0..7}.onnx_adapter, rows.onnx_adapter
    stock: Path | None  # the stock route's model.onnx with adapter_weights.onnx_adapter


def prepare(
    work: Path, shape: str, ranks: tuple[int, ...], threads: int, stock: bool, tell: Callable[[str], None]
) -> Prepared:
    """Makes what is missing under `work`/`shape`; what an earlier call finished there is used again.

    Heavy steps run in processes of their own, so that neither their memory nor their threads are left behind.

    Args:
        work: any folder; Qwen2.5-0.5B takes about 5 GB there and 7 GB of memory.
        shape: a key of `benchmark.random_base.SHAPES`.
        ranks: of the single adapters.
        threads: compute threads that genai_config.json states.
        stock: make the stock route's graph too, which needs Olive.
        tell: called with a line about each step.
    """
    folder = work / shape
    stock_folder = folder / f"stock_r{STOCK_RANK}"
    paths = Prepared(folder / "base", folder / "int4", folder / "adapters", stock_folder if stock else None)
    what = f"random base of shape {shape}, and its int4 export"
    _step(folder / "int4.done", what, tell, _build, paths.base, shape, paths.int4, threads)
    _step(folder / "adapters.done", "random adapters", tell, _adapters, folder, paths, ranks)
    if stock:
        peft = folder / f"peft_r{STOCK_RANK}"
        _step(folder / "stock.done", "stock route", tell, _stock, paths.base, peft, stock_folder)
    return paths


def _step(done: Path, what: str, tell: Callable[[str], None], function: Callable[..., None], *args: object) -> None:
    if done.is_file():
        return
    tell(what)
    done.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(function, *args).result()
    done.touch()


def _build(base: Path, shape: str, folder: Path, threads: int) -> None:
    import onnx

    from passes.graph.builder import build_base
    from passes.graph.head import add_class_head
    from passes.graph.slots import add_slots

    save_random_base(base, shape)
    build_base(base, folder, "int4", "cpu", QUANTIZATION, threads)
    for name, precision in (("pruned", None), ("slots", "float"), ("slots_int8", "int8")):
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        if precision:
            add_slots(model, precision)
        add_class_head(model)
        onnx.save(model, folder / f"{name}.onnx")


def _adapters(folder: Path, paths: Prepared, ranks: tuple[int, ...]) -> None:
    """One adapter per rank in both forms, one per row of the batch, and those stacked: each row its own."""
    import json

    import onnx

    from passes.graph.slots import add_slots
    from runtime.adapter_file import write_adapter
    from runtime.conversion import slot_tensors

    hidden = json.loads((paths.base / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    graph = paths.int4 / "model.onnx"
    slots = {form: add_slots(onnx.load(graph, load_external_data=False), form) for form in ("float", "int8")}
    paths.adapters.mkdir(exist_ok=True)

    def convert(peft: Path, name: str, form: str) -> dict[str, np.ndarray]:
        tensors, _ = slot_tensors(peft, slots[form], hidden)
        write_adapter(paths.adapters / f"{name}.onnx_adapter", tensors)
        return tensors

    for rank in sorted({*ranks, STOCK_RANK}):
        peft = folder / f"peft_r{rank}"
        save_random_adapter(peft, paths.base, rank, seed=rank)
        convert(peft, f"r{rank}", "float")
        convert(peft, f"r{rank}_int8", "int8")
    rows = []
    for row in range(ROWS):
        save_random_adapter(folder / f"peft_row{row}", paths.base, STOCK_RANK, seed=100 + row)
        rows.append(convert(folder / f"peft_row{row}", f"row{row}", "float"))
    stacked = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    write_adapter(paths.adapters / "rows.onnx_adapter", stacked)


def _stock(base: Path, peft: Path, folder: Path) -> None:
    """Olive's own passes with their defaults: ModelBuilder with the adapter at int4, then ExtractAdapters."""
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    from olive.hardware import DEFAULT_CPU_ACCELERATOR
    from olive.model import HfModelHandler
    from olive.passes.olive_pass import create_pass_from_dict
    from olive.passes.onnx.extract_adapters import ExtractAdapters
    from olive.passes.onnx.model_builder import ModelBuilder

    steps: list[tuple[Any, dict[str, Any]]] = [
        (ModelBuilder, {"precision": "int4", "int4_accuracy_level": 4}),
        (ExtractAdapters, {"make_inputs": True, "save_format": "onnx_adapter"}),
    ]
    logging.disable(logging.WARNING)  # a line for each node otherwise; this process ends with the step
    model: Any = HfModelHandler(model_path=str(base), adapter_path=str(peft))
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        for kind, options in steps:
            step = create_pass_from_dict(kind, options, disable_search=True, accelerator_spec=DEFAULT_CPU_ACCELERATOR)
            model = step.run(model, str(folder if kind is ExtractAdapters else folder / "built"))
