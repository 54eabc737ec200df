"""What a training is about to do, as far as its memory goes: read off its settings, its model and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from data.tokenizing import IGNORE
from passes.base_model import DEPLOYED, WEIGHTS_SHARE
from passes.training.kept import Method
from passes.training.memory import Plan, shape_of
from passes.training.methods import LOW_RANK, VIRTUAL
from passes.training.out_of_memory import Situation
from passes.training.settings import CHECKPOINTING, DEFAULT_ARGUMENTS, AdapterSettings


def situation(
    base: Path,
    settings: AdapterSettings,
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    memory: tuple[float, float],
    responses: bool = True,
    processes: int = 1,
) -> Situation:
    """What `train_adapter` is about to do.

    Args:
        model: with what is trained in it.
        rows: tokenized, with input_ids and labels: a list where text is generated.
        memory: `passes.training.memory.free_bytes` before the base was loaded.
        responses: generation computes the logits of responses alone, see `passes.training.response_logits`.
        processes: that train together; on the CPU they share the memory.
    """
    given, (free, total) = {**DEFAULT_ARGUMENTS, **settings.training_args}, memory
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = shape_of(base)
    # where several labels belong to a text, labels are a list too, but a classifier has a head of its own
    learns = [row["labels"] for row in rows] if "document" not in rows[0] else []
    virtual = settings.virtual_tokens if settings.method in VIRTUAL else 0
    length = max(len(row["input_ids"]) for row in rows) + virtual
    accumulation = int(given.get("gradient_accumulation_steps", 1))
    plan = Plan(
        batch=-(-int(given["per_device_train_batch_size"]) // processes),
        length=length,
        learned=max(
            (sum(label != IGNORE for label in labels) if responses else length for labels in learns), default=0
        ),
        trained=trained,
        added=trained - _own_weights(settings, model),
        quantization=settings.quantization,
        double_quantization=settings.double_quantization,
        held=_held(model) if settings.quantization == DEPLOYED else None,
        dtype_bytes=4 if settings.base_dtype == "float32" else 2,
        checkpointing=any(settings.training_args.get(name) for name in CHECKPOINTING),
        dropout=settings.dropout > 0 and settings.method in LOW_RANK,
        moment_bytes=1 if "8bit" in str(given.get("optim", "")) else 4,
        accumulates=accumulation > 1,
        blocks=_trained_blocks(settings),
        resident=WEIGHTS_SHARE * memory[0] if settings.cpu_offload and torch.cuda.is_available() else None,
    )
    # a base that is trained, or that prefixes speak to, is not quantized
    nf4 = {"lora": "method qlora with quantization nf4", "prefix": None, "prompt": None, "full": None}
    return Situation(
        settings.adapter_name,
        whole,
        plan,
        accumulation,
        free if torch.cuda.is_available() else free / processes,
        total,
        processes=processes,
        nf4=nf4.get(settings.method or "", "quantization nf4"),
        base=base,
        method=counted_method(settings),
    )


def counted_method(settings: AdapterSettings) -> Method:
    """What of a training's settings decides what autograd keeps."""
    kinds = {**dict.fromkeys(LOW_RANK, "low_rank"), **dict.fromkeys(VIRTUAL, "virtual"), "dora": "dora"}
    kind = kinds.get(settings.method, settings.method)
    size = {"bottleneck": settings.bottleneck_size}.get(kind, settings.rank if kind in ("low_rank", "dora") else 0)
    return Method(kind, size, settings.dropout > 0, settings.compute_dtype)


def _own_weights(settings: AdapterSettings, model: Any) -> int:
    """Numbers of the base that are trained, a classifier's head left out."""
    if settings.method != "full":
        return 0
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.requires_grad and not name.startswith("score."))


def _trained_blocks(settings: AdapterSettings) -> int | None:
    freeze = settings.freeze if settings.method == "full" else None
    return freeze["last_n_blocks"] if isinstance(freeze, dict) else 0 if freeze == "all" else None


def _held(model: Any) -> float:
    """Bytes of what is frozen: the integers as they are, and what the base keeps beside them."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    storages = {t.untyped_storage() for t in (*frozen, *model.buffers())}
    return float(sum(storage.nbytes() for storage in storages))
