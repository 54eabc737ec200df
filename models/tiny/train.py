"""Makes the embedded base model: a byte-level BPE tokenizer and a small Llama, from any folder of .txt files.

    python models/tiny/train.py TEXT_FOLDER --out models/tiny --work /tmp/tiny --steps 6000

The workspace needs a language model that a quickstart can fine-tune in minutes without a network. This one follows
every constraint that ONNX Runtime puts on a deployable base (head size a multiple of 16, matrix widths multiples of
32 so that block-wise int4 fits, grouped-query attention).

Every 20th piece of about 8,000 characters of each file is held out (5 %). The learning rate is constant until the
held-out loss stops falling or `--steps` is reached, then falls linearly to zero ("warm-up, stable, decay", Hu et al.
2024, MiniCPM). Matrices are updated by Muon (Jordan et al. 2024), the rest by AdamW. Training resumes from `--work`,
also a finished one that is to have more `--steps`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>"]  # ids 0, 1, 2
VOCAB_SIZE = 4000
CONTEXT = 512
DOCUMENT_SEPARATOR = "<|story|>"  # the line that parts documents within one file
PIECE_CHARS = 8000
HELD_OUT_EVERY = 20


def read_pieces(folder: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Splits each file into pieces of whole lines and returns (training, held-out) pieces by file name."""
    training: dict[str, list[str]] = {}
    held_out: dict[str, list[str]] = {}
    number = 0
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise SystemExit(f"{folder}: no .txt file found")
    for file in files:
        pieces, piece, size = [], [], 0
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.strip() == DOCUMENT_SEPARATOR:
                line = "</s><s>"
            piece.append(line)
            size += len(line) + 1
            if size >= PIECE_CHARS:
                pieces.append("\n".join(piece))
                piece, size = [], 0
        pieces.append("\n".join(piece))
        training[file.name] = [p for i, p in enumerate(pieces) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
        held_out[file.name] = [p for i, p in enumerate(pieces) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]
        number += len(held_out[file.name])
    if number == 0:
        least = PIECE_CHARS * HELD_OUT_EVERY // 1000
        raise SystemExit(f"{folder}: too little text to hold any out; one file must have at least {least} kB")
    return training, held_out


def make_tokenizer(pieces: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized by Newton-Schulz in float32 (torch.optim.Muon uses bfloat16, slow on most CPUs)."""

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": 0.95, "weight_decay": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(momentum, group["momentum"])
                x = x if p.shape[0] <= p.shape[1] else x.T
                x = x / x.norm().clamp_min(1e-7)
                for _ in range(5):  # coefficients of Jordan et al. 2024
                    a = x @ x.T
                    x = 3.4445 * x + torch.addmm(a, a, a, beta=-4.7750, alpha=2.0315) @ x
                x = x if p.shape[0] <= p.shape[1] else x.T
                # 0.2 sqrt(max(rows, columns)): the root mean square of an AdamW update (Liu et al. 2025, Moonlight)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, windows: torch.Tensor) -> float:
    """Mean loss in nats per token over `windows` (count, CONTEXT + 1)."""
    model.eval()
    total = 0.0
    for batch in windows.split(16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    model.train()
    return total / windows[:, 1:].numel()


def windows_of(ids: np.ndarray, offset: int) -> np.ndarray:
    """Cuts a token stream (tokens,) into windows (count, CONTEXT + 1) that share their border token."""
    count = (len(ids) - offset - 1) // CONTEXT
    starts = offset + np.arange(count) * CONTEXT
    return ids[starts[:, None] + np.arange(CONTEXT + 1)]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    training, held_out = read_pieces(args.texts)
    tokenizer_folder = args.work / "tokenizer"
    if not tokenizer_folder.exists():
        make_tokenizer([p for pieces in training.values() for p in pieces]).save_pretrained(tokenizer_folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)

    def encode(pieces: list[str]) -> np.ndarray:
        return np.array([i for ids in tokenizer(pieces)["input_ids"] for i in ids], dtype=np.int64)

    tokens = encode([p for pieces in training.values() for p in pieces])
    held_out_windows = torch.from_numpy(windows_of(encode([p for ps in held_out.values() for p in ps]), 0))
    print(f"{len(tokens):,} training tokens, {held_out_windows.numel():,} held-out tokens")

    model = make_model()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = Muon(matrices, lr=args.lr)
    adamw = torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    state = {"step": 0, "decay_from": args.steps, "best": math.inf, "since_best": 0}
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        muon.load_state_dict(saved["muon"])
        adamw.load_state_dict(saved["adamw"])
        state = saved["state"]
        if state["step"] <= max(state["decay_from"], args.steps):  # still in the constant phase, or asked for a new one
            state.update(decay_from=args.steps, since_best=0)

    def save() -> None:
        parts = {"model": model, "average": average, "muon": muon, "adamw": adamw}
        temporary = checkpoint.with_suffix(".tmp")
        torch.save({**{name: part.state_dict() for name, part in parts.items()}, "state": state}, temporary)
        temporary.replace(checkpoint)

    steps_per_epoch = (len(tokens) - CONTEXT) // CONTEXT // args.batch_size
    progress = tqdm(initial=state["step"], total=state["decay_from"] + args.decay_steps, unit="step", mininterval=5)
    epoch, windows = -1, np.empty(0)
    while state["step"] < state["decay_from"] + args.decay_steps:
        step = state["step"]
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            generator = np.random.default_rng(args.seed + epoch)
            windows = generator.permutation(windows_of(tokens, int(generator.integers(CONTEXT))))
        first = step % steps_per_epoch * args.batch_size
        batch = torch.from_numpy(windows[first : first + args.batch_size])
        rate = min(1.0, (step + 1) / args.warmup_steps, 1 - (step - state["decay_from"]) / args.decay_steps)
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * rate
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
        average.update_parameters(model)
        state["step"] = step + 1
        progress.update()
        if state["step"] % args.eval_every == 0:
            current = held_out_loss(average.module, held_out_windows)
            state["since_best"] = 0 if current < state["best"] - 1e-3 else state["since_best"] + 1
            state["best"] = min(state["best"], current)
            if state["since_best"] >= args.patience and step < state["decay_from"]:
                state["decay_from"] = state["step"]
                progress.total = state["step"] + args.decay_steps
            line = {"step": state["step"], "train": round(loss.item(), 4), "held_out": round(current, 4)}
            tqdm.write(json.dumps({**line, "learning_rate": round(args.lr * rate, 6), "time": round(time.time())}))
            save()
    progress.close()
    save()
    export(average.module, tokenizer, args.out)


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes the float16 weights, the tokenizer and the configs to `out`."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="folder of .txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--work", type=Path, required=True, help="folder for the tokenizer and the checkpoint")
    parser.add_argument("--steps", type=int, default=6000, help="most steps at the constant learning rate")
    parser.add_argument("--decay-steps", type=int, default=1500)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8, help=f"windows of {CONTEXT} tokens")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--eval-every", type=int, default=250)
    parser.add_argument("--patience", type=int, default=4, help="evaluations without progress before the decay")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())
