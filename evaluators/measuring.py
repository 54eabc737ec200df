"""What models make of rows: class logits, likelihoods, written answers; in parts that outlive a killed evaluation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from data.examples import ClassificationData, GenerationData, MultiLabelData
from data.tokenizing import IGNORE, aggregate_windows, encode_generation, encode_prompt, encode_text, encode_windows
from evaluators.finished_parts import FinishedParts
from evaluators.intermediate_values import report, wanted
from evaluators.multilabel_quality import chosen_labels
from evaluators.perplexity import RowScore, example_scores
from evaluators.token_scores import NotFiniteError
from runtime.errors import OlivalError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART_ROWS = 256  # rows that are computed and kept together: seconds to minutes of work
WATCHED_PART_ROWS = 32  # the same where someone watches: two batches, after which a paired test has something to say
SLOW_LOG_SECONDS = 10  # between progress lines where there is no terminal


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

        Where someone watches (see `evaluators.intermediate_values`), those of the final model, the last of `models`,
        are computed in smaller parts, and each is reported. The rows are shuffled then, by a seed that the data give:
        an early part is a fair sample, and the same one for each model that is ever compared on these data. A row's
        ids are the same in either order, its neighbours in a batch and so its padding are not; its logits are equal
        as far as the model's arithmetic is the same for batches of other shapes, which for float32 is about 1e-6.

        Raises:
            NotFiniteError: logits that are no numbers; names adapter and row.
        """
        if data.window_stride is None:
            documents = [[encode_text(self.tokenizer, text, data.max_length)] for text in data.texts]
        else:
            documents = [
                encode_windows(self.tokenizer, text, data.max_length, data.window_stride) for text in data.texts
            ]

        def compute(rows: list[int]) -> list[list[float]]:
            owners = [row for row in rows for _ in documents[row]]
            windows = [ids for row in rows for ids in documents[row]]
            with _naming(data.source, name, adapter, owners):
                logits = self.models[name].class_logits(windows, adapter, self._batch_size)
            return aggregate_windows(logits, [len(documents[row]) for row in rows]).tolist()

        lengths = [sum(map(len, windows)) for windows in documents]
        tell = self._teller(name, adapter, data) if wanted() and name == list(self.models)[-1] else None
        return np.asarray(self._by_parts(name, adapter, "class logits", data, lengths, compute, tell), np.float32)

    def likelihood(self, name: str, adapter: str | None, data: GenerationData) -> list[RowScore]:
        """Likelihood of each response (of the whole text where there is no prompt), or of each block of packed rows.

        `text_bytes` are those of the tokens that count, so they fit a response that was cut to the data's length.

        Raises:
            NotFiniteError: logits that are no numbers; names adapter and row.
            OlivalError: no row has a token to predict.
        """
        examples = encode_generation(self.tokenizer, data)

        def compute(rows: list[int]) -> list[list[float]]:
            with _naming(data.source, name, adapter, rows):
                chosen = [examples[row] for row in rows]
                scores = example_scores(self.models[name], chosen, adapter, self._batch_size)
            return [[score.negative_log_likelihood, score.tokens] for score in scores]

        lengths = [len(ids) for ids, _ in examples]
        scores = []
        values = self._by_parts(name, adapter, "likelihood", data, lengths, compute)
        for (nats, tokens), (_, labels) in zip(values, examples, strict=True):
            counted = [label for label in labels[1:] if label != IGNORE]
            text = self.tokenizer.decode(counted, skip_special_tokens=True)
            scores.append(RowScore(nats, int(tokens), len(text.encode("utf-8"))))
        if not any(score.tokens for score in scores):
            raise OlivalError(f"{data.source}: no row has a token to predict")
        return scores

    def answers(
        self,
        name: str,
        adapter: str | None,
        data: GenerationData,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        schema: Any = None,
    ) -> list[str]:
        """The greedy answer to each row's prompt, held to a schema if one is given to a model that `constrains`."""
        prompts = [encode_prompt(self.tokenizer, prompt, data.template) for prompt in data.prompts]

        def compute(rows: list[int]) -> list[str]:
            chosen = [prompts[row] for row in rows]
            held = {} if schema is None else {"schema": schema}
            return list(self.models[name].generate(chosen, adapter, max_new_tokens, stop, self._batch_size, **held))

        what = f"answers of {max_new_tokens} tokens, stop {list(stop)}"
        what += "" if schema is None else f", schema {json.dumps(schema)}"
        return self._by_parts(name, adapter, what, data, [len(ids) for ids in prompts], compute)

    def part(self, name: str, adapter: str | None, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """A value of one model with an adapter that stands for itself; `key` says what else it depends on."""
        return self._parts.get({**key, **self._who(name, adapter)}, compute)

    def _who(self, name: str, adapter: str | None) -> dict[str, Any]:
        return {"model": name, "identity": self._identities[name](adapter), "adapter": adapter}

    def _teller(
        self, name: str, adapter: str, data: ClassificationData
    ) -> Callable[[Sequence[int], Sequence[Sequence[float]]], None]:
        """Reports of a part's rows whether their labels were found."""
        model = self.models[name]
        labels, several = model.labels(adapter), isinstance(data, MultiLabelData)
        expected: Any = data.label_matrix(labels) if isinstance(data, MultiLabelData) else data.label_ids(labels)

        def tell(rows: Sequence[int], logits: Sequence[Sequence[float]]) -> None:
            values = np.asarray(logits, np.float32)
            chosen = chosen_labels(model, adapter, values) if several else values.argmax(axis=-1)
            found = [[row, int(np.all(label == expected[row]))] for row, label in zip(rows, chosen, strict=True)]
            line = {"stage": "evaluation", "adapter": adapter, "model": name, "metric": "accuracy"}
            report({**line, "rows": found, "of": len(data)})

        return tell

    def _by_parts(
        self,
        name: str,
        adapter: str | None,
        what: str,
        data: ClassificationData | GenerationData,
        lengths: Sequence[int],
        compute: Callable[[list[int]], list[Any]],
        tell: Callable[[Sequence[int], Sequence[Any]], None] | None = None,
    ) -> list[Any]:
        """One value for each row, the longest rows first; shuffled where `tell` hears of each part."""
        from tqdm import tqdm

        key = {**self._who(name, adapter), "what": what, "data": data.fingerprint, "batch_size": self._batch_size}
        if tell is None:
            order, part_rows = sorted(range(len(lengths)), key=lambda row: -lengths[row]), PART_ROWS
        else:
            order, part_rows = shuffled(data.fingerprint, len(lengths)), WATCHED_PART_ROWS
            key |= {"order": "shuffled", "part_rows": part_rows}  # a part holds other rows than the one at its start
        results: list[Any] = [None] * len(lengths)
        pause = 0.1 if sys.stderr.isatty() else SLOW_LOG_SECONDS
        title = f"evaluate {adapter or 'base'} ({name}): {what.partition(' of ')[0]}"
        with tqdm(total=len(lengths), desc=title, unit="row", delay=2, leave=False, mininterval=pause) as bar:
            for start in range(0, len(order), part_rows):
                rows = order[start : start + part_rows]
                values = self._parts.get({**key, "rows": start}, lambda rows=rows: compute(rows))  # type: ignore[misc]
                for row, value in zip(rows, values, strict=True):
                    results[row] = value
                if tell is not None:
                    tell(rows, values)
                bar.update(len(rows))
        return results


def shuffled(fingerprint: str, rows: int) -> list[int]:
    """Places 0 to rows - 1 in an order that the data's fingerprint (hex) decides, the same on every machine."""
    return [int(row) for row in np.random.default_rng(int(fingerprint[:16], 16)).permutation(rows)]


@contextmanager
def _naming(source: str, model: str, adapter: str | None, rows: Sequence[int]) -> Iterator[None]:
    """Errors of logits that are no numbers name the data's row in the place of the batch's."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(adapter, rows[error.row], f"{source}, {model}") from error
