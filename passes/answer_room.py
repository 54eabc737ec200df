"""Whether a base can write the answers of constrained metrics: by its engine, and within its context."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.examples import GenerationData
from data.json_schema import read_schema
from data.tokenizing import encode_prompt
from evaluators.constrained import answer_tokens
from passes.base_model import load_tokenizer
from passes.graph.checks import engine_of
from runtime.errors import OlivalError


def room_problems(
    options: Mapping[str, Any], data: GenerationData, base: Path, context: int | None, virtual: int
) -> list[str]:
    """What keeps a metric's constrained answers from being written to their end.

    Args:
        options: the metric's, checked before (see `evaluators.metric_check`).
        data: rows to answer.
        base: folder of the base.
        context: most tokens that the base takes; None where it has no limit.
        virtual: tokens that stand before each text.
    """
    if not options.get("constrained"):
        return []
    if engine_of(base) == "onnxruntime":
        return ["constrained: needs onnxruntime-genai, which does not know this base; leave it out"]
    if context is None:
        return []
    needed = answer_tokens(read_schema(Path(options["schema"])), options.get("max_new_tokens"))
    try:
        tokenizer = load_tokenizer(base)
        lengths = [len(encode_prompt(tokenizer, prompt, data.template)) for prompt in data.prompts]
    except OlivalError as error:
        return [f"constrained: {error}"]
    room = context - virtual - needed
    if not (long := [row for row, length in enumerate(lengths) if length > room]):
        return []
    longest = max(long, key=lambda row: lengths[row])
    return [
        f"constrained: an answer may take {needed} tokens of the {context}, which leaves {room} to a prompt, but "
        f"{len(long)} of {len(lengths)} have more; that of row {longest + 1} has {lengths[longest]}"
    ]
