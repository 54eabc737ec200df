"""Measures the embedded base model on the text that its training held out, and lets it write a few lines.

    python models/tiny/evaluate.py TEXT_FOLDER [MODEL_FOLDER]

Perplexity is per token, over windows of 512 tokens that do not overlap; bits per byte divides the same loss by the
UTF-8 bytes of the text, so that it can be compared between tokenizers.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from train import CONTEXT, held_out_loss, read_pieces, windows_of
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ("Once upon a time", "I don't know what", "O velho olhou para", "Eu não sei se")


def main(texts: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _, held_out = read_pieces(texts)
    print("| held-out text | bytes | perplexity per token | bits per byte |\n| --- | ---: | ---: | ---: |")
    total_nats, total_tokens, total_bytes = 0.0, 0, 0
    for name, pieces in held_out.items():
        ids = np.array([i for row in tokenizer(pieces)["input_ids"] for i in row] if pieces else [], dtype=np.int64)
        if len(ids) <= CONTEXT:
            continue  # the file is too small to have a whole window held out
        windows = torch.from_numpy(windows_of(ids, 0))
        nats = held_out_loss(model, windows) * windows[:, 1:].numel()
        # the last, incomplete window is not scored: its share of the bytes is left out too
        size = sum(len(piece.encode()) for piece in pieces) * windows[:, 1:].numel() / len(ids)
        print(_row(name, nats, windows[:, 1:].numel(), size))
        total_nats, total_tokens, total_bytes = (
            total_nats + nats,
            total_tokens + windows[:, 1:].numel(),
            total_bytes + size,
        )
    print(_row("all", total_nats, total_tokens, total_bytes))
    torch.manual_seed(0)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=60, do_sample=True, temperature=0.7, top_k=40)
        print(f"\n> {tokenizer.decode(written[0], skip_special_tokens=True)}")


def _row(name: str, nats: float, tokens: int, size: float) -> str:
    return f"| {name} | {size:,.0f} | {math.exp(nats / tokens):.1f} | {nats / math.log(2) / size:.3f} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
