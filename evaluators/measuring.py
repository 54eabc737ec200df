"""What models make of rows: class logits, likelihoods, written answers; in parts that outlive a killed evaluation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.examples import ClassificationData, GenerationData
from data.tokenizing import IGNORE, aggregate_windows, encode_generation, encode_prompt, encode_text, encode_windows
from evaluators.finished_parts import FinishedParts
from runtime.errors import OlivalError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART_ROWS = 256  # rows that are computed and kept together: seconds to minutes of work
SLOW_LOG_SECONDS = 10  # between progress lines where there is no terminal


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds the counted tokens of each row.

    Attributes:
        nats: float64 (rows,), negative log-likelihood, summed over the row's counted tokens.
        tokens: int64 (rows,), counted tokens.
        text_bytes: int64 (rows,), UTF-8 bytes of the text that they are.
    """

    nats: np.ndarray
    tokens: np.ndarray
    text_bytes: np.ndarray


class Measuring:
    """Models by name, asked about the same rows with the same token ids."""

    def __init__(
        self,
        models: Mapping[str, Any],
        identities: Mapping[str, Callable[[str | None], Any]],
        tokenizer: PreTrainedTokenizerBase,
        parts: FinishedParts,
        batch_size: int = 16,
    ) -> None:
        """
        Args:
            models: evaluators.torch_model.TorchModel and evaluators.package_model.PackageModel, such as
                {"pytorch": ..., "package": ...}.
            identities: for each of them, what says that an adapter (None: the base) is still the same, as JSON.
            tokenizer: of the base.
            parts: where finished parts are kept.
            batch_size: rows that are computed together.
        """
        self.models = models
        self.tokenizer = tokenizer
        self._identities = identities
        self._parts = parts
        self._batch_size = batch_size

    def class_logits(self, name: str, adapter: str, data: ClassificationData) -> np.ndarray:
        """Class logits of each document, float32 (documents, classes): the mean over its windows.

        Raises:
            OlivalError: logits that are no numbers; names adapter and row.
        """
        if data.window_stride is None:
            documents = [[encode_text(self.tokenizer, text, data.max_length)] for text in data.texts]
        else:
            documents = [
                encode_windows(self.tokenizer, text, data.max_length, data.window_stride) for text in data.texts
            ]

        def compute(rows: list[int]) -> list[list[float]]:
            windows = [ids for row in rows for ids in documents[row]]
            logits = self.models[name].class_logits(windows, adapter, self._batch_size)
            means = aggregate_windows(logits, [len(documents[row]) for row in rows])
            for row, values in zip(rows, means, strict=True):
                if not np.isfinite(values).all():
                    raise OlivalError(f"{data.source}: row {row + 1}: adapter '{adapter}' ({name}) gives {values}")
            return [values.tolist() for values in means]

        lengths = [sum(map(len, windows)) for windows in documents]
        return np.asarray(self._by_parts(name, adapter, "class logits", data, lengths, compute), np.float32)

    def likelihood(self, name: str, adapter: str | None, data: GenerationData) -> Likelihood:
        """Likelihood of the responses (of the whole text where there is no prompt); of each block if they are packed.

        Raises:
            OlivalError: logits that are no numbers; names adapter and row.
        """
        examples = encode_generation(self.tokenizer, data)
        counted = [np.flatnonzero(np.array(labels) != IGNORE) for _, labels in examples]
        counted = [positions[positions > 0] for positions in counted]  # nothing predicts the first token
        rows_with_tokens = [row for row, positions in enumerate(counted) if len(positions)]
        if not rows_with_tokens:
            raise OlivalError(f"{data.source}: no row has a token to predict")

        def compute(rows: list[int]) -> list[float]:
            starts = [int(counted[row][0]) for row in rows]
            try:
                scores = self.models[name].token_scores(
                    [examples[row][0] for row in rows], adapter, starts, self._batch_size
                )
            except OlivalError as error:
                raise OlivalError(f"{data.source}: {error}") from error
            return [
                -float(log_probabilities[counted[row] - start].sum())
                for row, start, (log_probabilities, _) in zip(rows, starts, scores, strict=True)
            ]

        lengths = [len(examples[row][0]) for row in rows_with_tokens]

        def compute_counted(indices: list[int]) -> list[float]:
            return compute([rows_with_tokens[i] for i in indices])

        nats = self._by_parts(name, adapter, "likelihood", data, lengths, compute_counted)
        texts = [[examples[row][0][i] for i in counted[row]] for row in rows_with_tokens]
        decoded = [self.tokenizer.decode(ids, skip_special_tokens=True).encode("utf-8") for ids in texts]
        return Likelihood(
            np.array(nats, np.float64), np.array([len(ids) for ids in texts]), np.array([len(text) for text in decoded])
        )

    def answers(
        self, name: str, adapter: str | None, data: GenerationData, max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[str]:
        """The greedy answer to each row's prompt."""
        prompts = [encode_prompt(self.tokenizer, prompt, data.template) for prompt in data.prompts]

        def compute(rows: list[int]) -> list[str]:
            chosen = [prompts[row] for row in rows]
            return list(self.models[name].generate(chosen, adapter, max_new_tokens, stop, self._batch_size))

        what = f"answers of {max_new_tokens} tokens, stop {list(stop)}"
        return self._by_parts(name, adapter, what, data, [len(ids) for ids in prompts], compute)

    def _by_parts(
        self,
        name: str,
        adapter: str | None,
        what: str,
        data: ClassificationData | GenerationData,
        lengths: Sequence[int],
        compute: Callable[[list[int]], list[Any]],
    ) -> list[Any]:
        """One value for each row, the longest rows first."""
        from tqdm import tqdm

        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        key = {"model": name, "identity": self._identities[name](adapter), "adapter": adapter, "what": what}
        key |= {"data": data.fingerprint, "batch_size": self._batch_size}
        results: list[Any] = [None] * len(lengths)
        pause = 0.1 if sys.stderr.isatty() else SLOW_LOG_SECONDS
        title = f"evaluate {adapter or 'base'} ({name}): {what.partition(' of ')[0]}"
        with tqdm(total=len(lengths), desc=title, unit="row", delay=2, leave=False, mininterval=pause) as bar:
            for start in range(0, len(order), PART_ROWS):
                rows = order[start : start + PART_ROWS]
                values = self._parts.get({**key, "rows": start}, lambda rows=rows: compute(rows))  # type: ignore[misc]
                for row, value in zip(rows, values, strict=True):
                    results[row] = value
                bar.update(len(rows))
        return results
