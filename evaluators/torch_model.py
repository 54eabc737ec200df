"""The PyTorch side of a comparison: the base in float32 with trained adapters in PEFT's own implementation.

Bottleneck adapters, which PEFT does not have, are those of passes/training/bottleneck.py.
Those of method "full" are the base's own weights, which change places with the trained ones.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from data.tokenizing import length_sorted_batches, pad_batch, pad_id
from evaluators.token_scores import Scores, check_finite, score_rows
from runtime.adapter_source import HEAD_KEY
from runtime.decoding import TextStream
from runtime.errors import OlivalError
from runtime.generation import divide
from runtime.virtual_tokens import kind_of


def trained_on(infos: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The deployed integers that all of some adapters were trained on, from their adapter.json; else None.

    See `passes.deployed_check.deployed_options`.
    """
    options = [info.get("deployed") for info in infos]
    return options[0] if options and all(other == options[0] for other in options) else None


class TorchModel:
    """One base with named adapters; the same interface as evaluators.package_model.PackageModel."""

    constrains = False  # `generate` takes no schema: transformers has no decoding under one

    def __init__(
        self,
        base: Path,
        adapters: dict[str, Path],
        as_trained: bool = True,
        quantization: str | None = None,
        compute_dtype: str = "float32",
    ) -> None:
        """
        Args:
            base: folder of the base.
            adapters: {name: folder of the trained adapter}.
            as_trained: where all adapters were trained on the same deployed integers, the base has them as well;
                otherwise, and in every other case, it is as the two below say.
            quantization, compute_dtype: as in `passes.base_model.load_base`.
        """
        from peft import PeftModel
        from safetensors.torch import load_file

        from passes.base_model import context_length, load_base, load_tokenizer
        from passes.full_weights import OwnWeights, is_full
        from passes.training.bottleneck import block_outputs, is_bottleneck, load_bottlenecks
        from passes.training.deployed_base import load_deployed, quantized_base
        from passes.training.store import cache_folder, store_folder

        self.context_length = context_length(base)  # most tokens that the base takes; None where it has no limit
        self.tokenizer = load_tokenizer(base)
        self.info: dict[str, dict[str, Any]] = {
            name: json.loads((folder / "adapter.json").read_text(encoding="utf-8")) for name, folder in adapters.items()
        }
        self.weights = compute_dtype if quantization is None else quantization  # of the base
        if as_trained and (deployed := trained_on(self.info.values())):
            self.weights = "deployed"
            store = next(iter(adapters.values())).resolve().parent
            cache = store.parent if store.name == store_folder().name else cache_folder()
            self.model: Any = load_deployed(base, quantized_base(base, deployed, cache))
        else:
            self.model = load_base(base, quantization, compute_dtype)
        self.heads: dict[str, Any] = {}
        self.bottlenecks: dict[str, dict[str, Any]] = {}
        # taken before PEFT puts its own layers around them
        self.outputs = block_outputs(self.model) if any(map(is_bottleneck, adapters.values())) else {}
        self._own: dict[str, OwnWeights] = {}  # of adapters of method "full"
        parameters = dict(self.model.named_parameters())  # by the base's own names, which PEFT changes
        with_virtual_tokens = {name: folder for name, folder in adapters.items() if virtual_tokens_of(folder)}
        for name, folder in adapters.items():
            if name in with_virtual_tokens:
                pass  # below, around what the others have put into the base
            elif is_bottleneck(folder):
                self.bottlenecks[name] = load_bottlenecks(folder, self.outputs, self.model.device)
            elif is_full(folder):
                self._own[name] = OwnWeights(parameters, folder)
            elif isinstance(self.model, PeftModel):
                self.model.load_adapter(str(folder), name)
            else:
                self.model = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name)
            if self.info[name]["task"] == "classification":
                self.heads[name] = load_file(folder / "adapter_model.safetensors")[HEAD_KEY]
        self.model.eval()
        base_model = self._base_model()
        # PEFT takes one kind in a model, so each of these has a model of its own around the same base
        self._virtual = {
            name: PeftModel.from_pretrained(base_model, str(folder), adapter_name=name).eval()
            for name, folder in with_virtual_tokens.items()
        }

    @property
    def writes(self) -> bool:
        """Whether the base has a language-model head; an encoder has none."""
        return self.model.get_output_embeddings() is not None

    def labels(self, adapter: str) -> list[str]:
        """The label names of a classification adapter, in the order of its logits."""
        return list(self.info[adapter]["labels"])

    def thresholds(self, adapter: str) -> list[float] | None:
        """From which probability on each label counts; None where a text has one label."""
        return self.info[adapter].get("thresholds")

    def logits(self, input_ids: np.ndarray, attention_mask: np.ndarray, adapter: str | None) -> np.ndarray:
        """Next-token logits float32 (batch, seq, vocab) of int64 (batch, seq) ids; `adapter` None is the base."""
        import torch

        with torch.no_grad(), self._active(adapter):
            ids, mask = self._tensors(input_ids, attention_mask)
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return logits[:, -ids.shape[1] :].float().cpu().numpy()  # without those of virtual tokens

    def class_logits(self, rows: list[list[int]], adapter: str, batch_size: int = 16) -> np.ndarray:
        """Class logits float32 (rows, classes) of token id lists.

        Raises OlivalError, naming adapter and row, when one is not finite.
        """
        import torch

        from passes.training.pooling import pooled_features

        pooling = self.info[adapter].get("pooling")
        head = self.heads[adapter].to(self.model.device)
        result = np.empty((len(rows), len(head)), dtype=np.float32)
        with torch.inference_mode(), self._active(adapter):
            for indices in length_sorted_batches([len(row) for row in rows], batch_size):
                batch = pad_batch([rows[i] for i in indices], pad_id=0)
                ids, mask = self._tensors(batch["input_ids"], batch["attention_mask"])
                features = pooled_features(self.model, ids, mask, pooling).float()
                result[indices] = (features @ head.T).cpu().numpy()
        return check_finite(result, adapter)

    def token_scores(
        self, rows: Sequence[Sequence[int]], adapter: str | None, starts: Sequence[int], batch_size: int = 16
    ) -> list[Scores]:
        """Log-probabilities of the tokens from `starts[i]` on, given all before; see `token_scores.score_rows`."""
        import torch

        def selected(ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> Any:
            tensors = dict(zip(("input_ids", "attention_mask"), self._tensors(ids, mask), strict=True))
            # a slice where it is the end, which all of them are here: an index would copy the hidden states
            return self.model(**tensors, use_cache=False, logits_to_keep=len(positions)).logits

        with torch.inference_mode(), self._active(adapter):
            vocabulary = int(self.model.config.get_text_config().vocab_size)
            return score_rows(rows, starts, batch_size, vocabulary, selected, _log_probabilities, adapter)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        adapter: str | None,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        batch_size: int = 16,
    ) -> list[str]:
        """Greedy text after each prompt's ids, without special tokens, ended by end-of-text or before a stop string.

        transformers' generate, prompts of like length padded on the left.

        Raises OlivalError, with all of them, for prompts that are empty or fill the context.
        """
        import torch

        longest = self.text_length(adapter) or max(map(len, prompts), default=0) + max_new_tokens
        problems = [
            f"row {i}: the prompt has {len(prompt)} tokens, but must have 1 to {longest - 1}"
            for i, prompt in enumerate(prompts)
            if not 0 < len(prompt) < longest
        ]
        if problems:
            raise OlivalError("\n".join(problems))
        texts = [TextStream(self.tokenizer.backend_tokenizer, stop) for _ in prompts]
        # PEFT puts virtual tokens before the padding on the left, so that padding would move a text away from them
        mixed = 0 if self._virtual_tokens(adapter) else longest - max_new_tokens
        runs = divide([len(prompt) for prompt in prompts], batch_size, longest_mixed=mixed)
        with torch.inference_mode(), self._active(adapter):
            for run in runs:
                width = max(len(prompts[i]) for i in run)
                new_tokens = min(max_new_tokens, longest - width)
                self._write([prompts[i] for i in run], [texts[i] for i in run], new_tokens)
        return [text.text() for text in texts]

    def _write(self, prompts: Sequence[Sequence[int]], texts: Sequence[TextStream], new_tokens: int) -> None:
        """One run of transformers' generate; the texts get its tokens."""
        import torch
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        padding = pad_id(self.tokenizer)
        ids = torch.tensor([[padding] * (width - len(p)) + list(p) for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        end = self.model.config.get_text_config().eos_token_id
        ends = set(end if isinstance(end, list) else [] if end is None else [end])
        ended = [False] * len(prompts)

        def read(sequences: Any, scores: Any, **_: Any) -> Any:
            for row, token in enumerate(sequences[:, -1].tolist()):
                if not ended[row]:
                    texts[row].push(token)
                    ended[row] = token in ends or texts[row].stopped
            return torch.tensor(ended, device=sequences.device)

        # LoRA sits inside the base; what its own generation_config says of sampling or penalties is not greedy
        model = self._base_model()
        writer = self.model if self.model in self._virtual.values() else model
        own = model.generation_config
        model.generation_config = GenerationConfig()
        try:
            writer.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=new_tokens,
                eos_token_id=sorted(ends) or None,
                pad_token_id=padding,
                stopping_criteria=[read],
            )
        finally:
            model.generation_config = own

    def encode(self, text: str, special: bool | None = None) -> list[int]:
        """Ids of a text; `special` adds special tokens or not, None does what the tokenizer does."""
        return list(self.tokenizer(text, add_special_tokens=special is not False, verbose=False)["input_ids"])

    def special_token(self, which: str) -> tuple[str, int] | None:
        """Text and id of the tokenizer's "bos" or "eos" token, None where it has none."""
        text, number = getattr(self.tokenizer, f"{which}_token"), getattr(self.tokenizer, f"{which}_token_id")
        return None if number is None else (str(text), int(number))

    def stream(self, prompt: list[int], adapter: str | None, new_tokens: int) -> Iterator[int]:
        """Greedy decoding with a KV cache; yields exactly `new_tokens` ids, end-of-text does not stop it."""
        import torch

        with torch.no_grad(), self._active(adapter):
            ids = torch.tensor([prompt], device=self.model.device)
            cache, model = None, self.model
            for _ in range(new_tokens):
                output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                model = self._base_model() if self._virtual_tokens(adapter) else model  # they are in the cache now
                cache, ids = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
                yield int(ids)

    def _tensors(self, *arrays: np.ndarray) -> list[Any]:
        import torch

        return [torch.from_numpy(array).to(self.model.device) for array in arrays]

    def text_length(self, adapter: str | None) -> int | None:
        """What virtual tokens of an adapter leave of `context_length`; None where that has no limit."""
        return None if self.context_length is None else self.context_length - self._virtual_tokens(adapter)

    def _base_model(self) -> Any:
        """The base itself, with what LoRA has put into it."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _virtual_tokens(self, adapter: str | None) -> int:
        """How many stand before each text of an adapter."""
        return int(self._virtual[adapter].active_peft_config.num_virtual_tokens) if adapter in self._virtual else 0

    @contextmanager
    def _active(self, adapter: str | None) -> Iterator[None]:
        if adapter in self._virtual:
            others = self.model
            disabled = others.disable_adapter() if hasattr(others, "disable_adapter") else nullcontext()
            self.model = self._virtual[adapter]
            try:
                with disabled, exact_float32(), warnings.catch_warnings():
                    # PEFT's own generate is what hands them over; they count virtual tokens without them, too
                    warnings.filterwarnings("ignore", "Position ids are not supported")
                    yield
            finally:
                self.model = others
            return
        from passes.training.bottleneck import attached

        bottlenecks, own = self.bottlenecks.get(adapter or "", {}), self._own.get(adapter or "")
        without_peft = adapter is None or bool(bottlenecks) or own is not None
        if not without_peft:
            self.model.set_adapter(adapter)
        plain = without_peft and hasattr(self.model, "disable_adapter")
        alone = self.model.disable_adapter() if plain else nullcontext()
        trained = own.active() if own is not None else nullcontext()
        with alone, trained, attached(bottlenecks, self.outputs), exact_float32():
            yield


def virtual_tokens_of(folder: Path) -> int:
    """How many virtual tokens a PEFT folder's adapter has; 0 for other kinds."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return int(config["num_virtual_tokens"]) if kind_of(config) else 0


def _log_probabilities(logits: Any, tokens: np.ndarray) -> Scores:
    """`token_scores.log_probabilities` by torch: logits (count, vocab) of any float type, taken in float32."""
    import torch

    wanted, logits = torch.from_numpy(tokens).to(logits.device), logits.float()
    losses = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
    losses[~torch.isfinite(logits.sum(dim=-1))] = torch.nan
    top = logits.argmax(dim=-1) == wanted
    return -losses.double().cpu().numpy(), top.cpu().numpy()


@contextmanager
def exact_float32() -> Iterator[None]:
    """Float32 products on a GPU are float32: a training argument such as tf32 would let it round to 10 bits."""
    import torch

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
