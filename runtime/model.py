"""A finished package in use: generate and classify with one base and its adapters, one by one or mixed in a batch."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import Tokenizer

from runtime.adapter_file import HEAD
from runtime.adapter_settings import SETTINGS
from runtime.adapters import add_adapter, drop_adapter
from runtime.classification import Classification, Document, class_logits, classification
from runtime.decoding import TextStream
from runtime.errors import PackageError, nearest
from runtime.generation import TextGenerator
from runtime.manifest import read_manifest
from runtime.options import GenerationOptions, read_options
from runtime.plain_generation import PlainGenerator
from runtime.prompts import Prompt, Text, check_messages, encode_windows, fill
from runtime.session import GraphSession, check_wheels
from runtime.stacking import AdapterFile
from runtime.users import AdapterUsers
from runtime.virtual_tokens import virtual_ids

__all__ = ["Classification", "MultiAdapterModel"]
Result = TypeVar("Result")


class MultiAdapterModel:
    """One base with its adapters, loaded from a package folder. The two engines start when they are first needed.

    Several threads may use one model. Adapters are added, replaced and dropped while others are in use.

    >>> model = MultiAdapterModel.load("output/package")  # doctest: +SKIP
    >>> model.classify("free prize, call now", adapter="spam")[0].label  # doctest: +SKIP
    'spam'
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], execution_provider: str, threads: int | None) -> None:
        self.folder = folder
        self.manifest = manifest
        self.execution_provider = execution_provider
        self.threads = threads  # of computing; None leaves it to onnxruntime
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise PackageError(f"{path}: there is no such file; the base needs a fast tokenizer")
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        # onnxruntime-genai does not know every base: plain onnxruntime runs the others
        self._is_plain = manifest.get("engine") == "onnxruntime"
        if self._is_plain:
            self._context_length = int(manifest["base"]["context_length"])
        else:
            config = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
            self._context_length = int(config["model"]["context_length"])
        self._session: GraphSession | None = None
        self._generator: TextGenerator | PlainGenerator | None = None
        self._starting = threading.Lock()  # an engine is started once
        self._changing = threading.Lock()  # one change of the package at a time
        self._users = AdapterUsers()
        self._verified: dict[str, tuple[int, int, str]] = {}  # see read_manifest

    @classmethod
    def load(
        cls, folder: str | Path, verify: bool = True, execution_provider: str | None = None, threads: int | None = None
    ) -> MultiAdapterModel:
        """Opens a package.

        Args:
            folder: the package.
            verify: compare every file with the manifest first (reads the whole package once).
            execution_provider: "cpu", "cuda" or "dml" in the place of the one that the package was written for.
            threads: compute threads, in the place of the target's.

        Raises:
            PackageError: the package is damaged (see `runtime.manifest.read_manifest`), or wheels of onnxruntime clash.
        """
        check_wheels()
        folder = Path(folder)
        verified: dict[str, tuple[int, int, str]] = {}
        manifest = read_manifest(folder, verify, verified)
        target = manifest["target"]
        model = cls(folder, manifest, execution_provider or target["execution_provider"], threads or target["threads"])
        model._verified = verified
        return model

    @property
    def adapters(self) -> dict[str, dict[str, Any]]:
        """Adapters by name, each with its entry of the manifest: task, labels, rank, template and so on."""
        return dict(self.manifest["adapters"])

    @property
    def context_length(self) -> int:
        """Most tokens that the base takes, prompt and answer together."""
        return self._context_length

    def add_adapter(self, name: str, path: str | Path, replace: bool = False, **settings: Any) -> dict[str, Any]:
        """Adds an adapter to the package and makes it usable at once; the base stays loaded, other calls go on.

        Args:
            name: letters, digits, _ and -.
            path: a PEFT folder, or an .onnx_adapter or .safetensors file.
            replace: put it in the place of an adapter with this name.
            settings: task, labels, template, max_length and so on; see `runtime.adapter_settings.SETTINGS`.

        Returns:
            The adapter's entry of the manifest.

        Raises:
            PackageError: it does not fit, the name is taken, or the adapter that it would replace is in use.
        """
        unknown = [f"there is no setting '{key}'; {nearest(key, SETTINGS)}" for key in settings if key not in SETTINGS]
        if unknown:
            raise PackageError("; ".join(unknown))
        with self._changing, self._users.changing(name):
            if replace:
                self._forget(name)
            entry = add_adapter(self.folder, name, Path(path), settings, replace, self._verified)
            self._reload()
        return entry

    def drop_adapter(self, name: str) -> None:
        """Takes an adapter out of the package; other calls go on.

        Raises:
            PackageError: there is no such adapter, or it is in use.
        """
        with self._changing, self._users.changing(name):
            self._forget(name)
            drop_adapter(self.folder, name)
            self._reload()

    def reload(self) -> None:
        """Reads the manifest again, after another process changed adapters; the base stays loaded.

        Files that have not changed since they were verified are not read again.

        Raises:
            PackageError: the package is damaged, or holds another base now. The model goes on with what it had.
        """
        with self._changing:
            self._reload()

    def generate(self, prompt: Prompt, adapter: str | None = None, max_new_tokens: int = 128, **options: Any) -> str:
        """Text that follows a prompt, without special tokens; arguments and errors as in `stream`."""
        return self.generate_batch([(prompt, adapter)], max_new_tokens, **options)[0]

    def stream(
        self, prompt: Prompt, adapter: str | None = None, max_new_tokens: int = 128, **options: Any
    ) -> Iterator[str]:
        """The same text piece by piece, as soon as each piece is complete. Its adapter is in use until it ends.

        Args:
            prompt: goes into the adapter's template, a dict by its placeholders' names; without an adapter a text is
                taken as it is. A list of messages {"role", "content"} goes into the chat template, where the adapter's
                is "chat" or there is no adapter.
            adapter: name of a generation adapter, or None for the base.
            max_new_tokens: at most this many, and at most what the model's context has left.
            options: see `runtime.options.GenerationOptions`.

        Raises:
            PackageError: unknown adapter, one for another task, a bad option, or a prompt that fills the context.
        """
        chosen = read_options({"max_new_tokens": max_new_tokens, **options})
        self._check_writes()
        ids = self._encode_checked(prompt, adapter)
        self._check_options([adapter], chosen)
        return self._stream(ids, adapter, chosen)

    def generate_batch(
        self,
        requests: Sequence[tuple[Prompt, str | None]],
        max_new_tokens: int = 128,
        batch_size: int = 16,
        **options: Any,
    ) -> list[str]:
        """Texts for (prompt, adapter) pairs, in their order, computed together whatever their adapters are.

        A row's greedy text is that of `generate` for it alone. With sampling, `seed` makes the batch as a whole
        repeatable. Rows run one after the other under a constraint or a repetition penalty.

        Args:
            requests: prompt and adapter as in `stream`.
            batch_size: most rows that are computed together.
            max_new_tokens, options: as in `stream`, for all rows.

        Raises:
            PackageError: as in `stream`; one error names all requests that cannot be met, before anything is computed.
        """
        with self._users.using(adapter for _, adapter in requests):
            self._check_writes()
            ids = _for_each(requests, self._encode_checked)
            rows = [(row, adapter) for row, (_, adapter) in zip(ids, requests, strict=True)]
            return self.complete(rows, max_new_tokens, batch_size, **options)

    def complete(
        self,
        rows: Sequence[tuple[Sequence[int], str | None]],
        max_new_tokens: int = 128,
        batch_size: int = 16,
        **options: Any,
    ) -> list[str]:
        """`generate_batch` for prompts that are token ids already, which `encode_prompt` makes.

        Raises:
            PackageError: unknown adapter, one for classification, a bad option, or a prompt that fills the context.
        """
        chosen = read_options({"max_new_tokens": max_new_tokens, **options})
        _check_batch_size(batch_size)
        adapters = [adapter for _, adapter in rows]
        with self._users.using(adapters):
            self._check_writes()
            _for_each(rows, self._check_row)
            texts = [TextStream(self.tokenizer, chosen.stop) for _ in rows]
            self._check_options(adapters, chosen)
            runs = self._engine().runs(self._lengths(rows), chosen, batch_size) if rows else []
            for run in runs:
                run = sorted(run, key=lambda i: adapters[i] or "")  # equal mixtures of adapters then share one stack
                going = set(run)
                with closing(self._steps([rows[i] for i in run], chosen)) as steps:
                    for tokens in steps:
                        for i, token in zip(run, tokens, strict=True):
                            if i in going and token >= 0:
                                texts[i].push(token)
                            if token < 0 or texts[i].stopped:
                                going.discard(i)
                        if not going:
                            break
        return [text.text() for text in texts]

    def classify(self, texts: Text | Sequence[Text], adapter: str, batch_size: int = 16) -> list[Classification]:
        """Labels of texts, in their order, with softmax probabilities.

        A template with several placeholders takes dicts.

        Raises:
            PackageError: unknown adapter, one for another task, or a text of which the tokenizer makes nothing.
        """
        self._entry(adapter, "classification")
        return self.classify_batch([(text, adapter) for text in _as_list(texts)], batch_size)

    def classify_batch(self, requests: Sequence[tuple[Text, str]], batch_size: int = 16) -> list[Classification]:
        """Labels for (text, adapter) pairs, in their order; adapters of any rank and number of labels go together.

        Raises:
            PackageError: as in `classify`; one error names all requests that cannot be met, before anything is run.
        """
        with self._users.using(adapter for _, adapter in requests):
            entries = self.manifest["adapters"]
            documents = _for_each(requests, self._document)
            logits = self._class_logits(documents, batch_size)
            return [classification(row, entries[adapter]) for row, (_, adapter) in zip(logits, requests, strict=True)]

    def class_logits(
        self, texts: Sequence[Text] | Sequence[Sequence[int]], adapter: str, batch_size: int = 16
    ) -> np.ndarray:
        """Class logits, float32 (texts, classes). A text in several windows gets the mean of their logits.

        Args:
            texts: texts, which go into the adapter's template, or rows of token ids, which are taken as they are.
            adapter: name of a classification adapter.
            batch_size: rows that are run together; rows of like length go together.
        """
        with self._users.using([adapter]):
            labels = self._entry(adapter, "classification")["labels"]
            logits = self._class_logits([self._document(text, adapter) for text in texts], batch_size)
        return np.stack(logits) if logits else np.zeros((0, len(labels)), np.float32)

    def logits(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        adapter: str | None = None,
        positions: np.ndarray | None = None,
    ) -> np.ndarray:
        """Next-token logits, float32 (batch, seq, vocab), of ids and mask int64 (batch, seq), padded on the right.

        With `positions`, int64 (count,), only those of each row are computed: (batch, count, vocab). An adapter's
        virtual tokens go before each row, and are in neither positions nor logits.
        """
        self._check_writes()
        ids = np.ascontiguousarray(input_ids, np.int64)
        mask = np.ones_like(ids) if attention_mask is None else np.ascontiguousarray(attention_mask, np.int64)
        with self._users.using([adapter]):
            tensors = self._graph().adapters([self._file(adapter)])
            tensors = {k: v for k, v in tensors.items() if k != HEAD}
            if not (virtual := np.array(self._virtual(adapter), np.int64)).size:
                return self._graph().logits(ids, mask, tensors, positions)
            shown = np.arange(ids.shape[1], dtype=np.int64) if positions is None else positions
            ids, mask = (
                np.concatenate([np.broadcast_to(lead, (len(ids), len(virtual))), own], axis=1)
                for lead, own in ((virtual, ids), (np.ones_like(virtual), mask))
            )
            return self._graph().logits(ids, mask, tensors, np.where(shown < 0, shown, shown + len(virtual)))

    def encode_prompt(self, prompt: Prompt, adapter: str | None = None) -> list[int]:
        """Token ids that `generate` continues: template or chat template applied, special tokens in place."""
        template = "{text}" if adapter is None else self._entry(adapter, "generation")["template"]
        if not isinstance(prompt, str | Mapping):
            check_messages(prompt, adapter, template)
            messages = prompt
        elif template == "chat":
            messages = [{"role": "user", "content": fill("{prompt}", prompt)}]
        else:
            return list(self.tokenizer.encode(fill(template, prompt)).ids)
        # the chat template writes the special tokens itself
        return list(self.tokenizer.encode(self._engine().chat(messages), add_special_tokens=False).ids)

    def tokens(
        self, ids: Sequence[int], adapter: str | None = None, max_new_tokens: int = 128, **options: Any
    ) -> Iterator[int]:
        """Ids that follow the prompt's ids, which `encode_prompt` makes; arguments and errors as in `stream`.

        Stop strings are for texts: here `stop` is refused.
        """
        return (token for (token,) in self.tokens_batch([(ids, adapter)], max_new_tokens, **options))

    def tokens_batch(
        self, rows: Sequence[tuple[Sequence[int], str | None]], max_new_tokens: int = 128, **options: Any
    ) -> Iterator[list[int]]:
        """At each step the next id of every (ids, adapter) row, and -1 behind a row's end; all are computed together.

        Arguments and errors as in `tokens`.

        Raises:
            PackageError: also where these rows cannot be computed together (see `runtime.generation.divide`).
        """
        chosen = read_options({"max_new_tokens": max_new_tokens, **options})
        if chosen.stop:
            raise PackageError("stop ends texts; `tokens` gives ids, stop reading them where they shall end")
        self._check_writes()
        for ids, adapter in rows:
            self._check_row(ids, adapter)
        self._check_options([adapter for _, adapter in rows], chosen)
        if len(rows) != 1 and len(self._engine().runs(self._lengths(rows), chosen, len(rows))) != 1:
            raise PackageError(f"these {len(rows)} rows cannot be computed together; `generate_batch` divides them")
        return self._steps(rows, chosen)

    def _stream(self, ids: Sequence[int], adapter: str | None, options: GenerationOptions) -> Iterator[str]:
        text = TextStream(self.tokenizer, options.stop)
        with closing(self._steps([(ids, adapter)], options)) as steps:
            for (token,) in steps:
                if piece := text.push(token):
                    yield piece
                if text.stopped:
                    return
        if piece := text.finish():
            yield piece

    def _steps(
        self, rows: Sequence[tuple[Sequence[int], str | None]], options: GenerationOptions
    ) -> Generator[list[int], None, None]:
        """One run of the generator, whose adapters are in use from the first step until it is closed or at its end."""
        with self._users.using(adapter for _, adapter in rows):
            files = [([*self._virtual(adapter), *ids], self._file(adapter, "generation")) for ids, adapter in rows]
            with closing(self._engine().steps(files, options)) as steps:
                yield from steps

    def _encode_checked(self, prompt: Prompt, adapter: str | None) -> list[int]:
        ids = self.encode_prompt(prompt, adapter)
        self._check_length(ids, adapter)
        return ids

    def _check_writes(self) -> None:
        if not self.manifest["base"].get("generates", True):
            name = self.manifest["base"]["name"]
            raise PackageError(f"the base {name} is an encoder: it classifies, and writes no text")

    def _check_row(self, ids: Sequence[int], adapter: str | None) -> None:
        if adapter is not None:
            self._entry(adapter, "generation")
        self._check_length(ids, adapter)

    def _check_length(self, ids: Sequence[int], adapter: str | None) -> None:
        longest = self._context_length - len(self._virtual(adapter)) - 1
        if not 0 < len(ids) <= longest:
            raise PackageError(f"the prompt has {len(ids)} tokens, but must have 1 to {longest}")

    def _check_options(self, adapters: Sequence[str | None], options: GenerationOptions) -> None:
        """Raises PackageError for what virtual tokens do not go with: onnxruntime-genai's repetition penalty looks up
        the logit of each id, and theirs have none."""
        found = sorted({adapter for adapter in adapters if adapter is not None and self._virtual(adapter)})
        if found and options.repetition_penalty != 1 and isinstance(self._engine(), TextGenerator):
            raise PackageError(
                f"repetition_penalty is {options.repetition_penalty:g}, but onnxruntime-genai has none for texts with "
                f"virtual tokens, which stand before those of {', '.join(found)}; leave it at 1"
            )

    def _virtual(self, adapter: str | None) -> list[int]:
        """Ids of the virtual tokens that stand before an adapter's texts; none for most adapters."""
        entry = self.manifest["adapters"].get(adapter) if adapter is not None else None
        return virtual_ids(entry, self.manifest["base"])

    def _lengths(self, rows: Sequence[tuple[Sequence[int], str | None]]) -> list[int]:
        """Tokens of prompts, virtual ones included."""
        return [len(self._virtual(adapter)) + len(ids) for ids, adapter in rows]

    def _document(self, text: Text | Sequence[int], adapter: str) -> Document:
        entry = self._entry(adapter, "classification")
        if isinstance(text, str | Mapping):
            limit = entry["max_length"] or self._context_length - len(self._virtual(adapter))
            filled = fill(entry["template"], text)
            windows = encode_windows(self.tokenizer, filled, limit, entry["window_stride"])
        else:
            windows = [list(map(int, text))]
        windows = [[*self._virtual(adapter), *window] for window in windows]
        return Document(windows, AdapterFile(self.folder / entry["file"], entry["sha256"]), entry["labels"])

    def _class_logits(self, documents: Sequence[Document], batch_size: int) -> list[np.ndarray]:
        _check_batch_size(batch_size)
        return class_logits(self._graph(), documents, batch_size) if documents else []

    def _entry(self, adapter: str, task: str | None = None) -> dict[str, Any]:
        """An adapter's entry, if it is there and made for the task."""
        adapters = self.manifest["adapters"]
        fitting = [name for name, entry in adapters.items() if task in (None, entry["task"])]
        if adapter not in adapters:
            raise PackageError(f"there is no adapter '{adapter}'; {nearest(adapter, fitting)}")
        if adapter not in fitting:
            raise PackageError(
                f"adapter '{adapter}' is for {adapters[adapter]['task']}, not for {task}; {nearest(adapter, fitting)}"
            )
        return dict(adapters[adapter])

    def _file(self, adapter: str | None, task: str | None = None) -> AdapterFile | None:
        if adapter is None:
            return None
        entry = self._entry(adapter, task)
        return AdapterFile(self.folder / entry["file"], entry["sha256"])

    def _reload(self) -> None:
        manifest = read_manifest(self.folder, known=self._verified)
        if any(manifest[key] != self.manifest[key] for key in ("base", "files")):
            raise PackageError(f"{self.folder}: holds another base now; load it anew")
        self.manifest = manifest
        self._keep_only(list(manifest["adapters"]))

    def _forget(self, name: str) -> None:
        """Unloads an adapter before its file goes: Windows does not delete what is mapped."""
        self._keep_only([other for other in self.manifest["adapters"] if other != name])

    def _keep_only(self, names: Sequence[str]) -> None:
        kept = {self.manifest["adapters"][name]["sha256"] for name in names}
        if self._session is not None:
            self._session.keep_only(kept)
        if isinstance(self._generator, TextGenerator):
            self._generator.loaded.keep_only(kept)

    def _ends(self) -> list[int]:
        end: int | list[int] | None = self.manifest["base"]["eos_token_id"]
        return end if isinstance(end, list) else [] if end is None else [end]

    def _graph(self) -> GraphSession:
        with self._starting:
            if self._session is None:
                self._session = GraphSession(self.folder, self.execution_provider, self.threads)
            return self._session

    def _engine(self) -> TextGenerator | PlainGenerator:
        session = self._graph() if self._is_plain or self.execution_provider == "dml" else None
        with self._starting:
            if self._generator is None and session is not None:
                self._generator = PlainGenerator(self.folder, session, self._context_length, self._ends())
            elif self._generator is None:
                self._generator = TextGenerator(self.folder, self.execution_provider, self.threads)
            return self._generator


def _for_each(requests: Sequence[tuple[Any, Any]], prepare: Callable[[Any, Any], Result]) -> list[Result]:
    """Prepares each request; what is wrong with any of them becomes one error."""
    results, problems = [], []
    for number, (content, adapter) in enumerate(requests):
        try:
            results.append(prepare(content, adapter))
        except PackageError as error:
            problems.append(str(error) if len(requests) == 1 else f"request {number}: {error}")
    if problems:
        raise PackageError("\n".join(problems))
    return results


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise PackageError(f"batch_size is {batch_size}, but must be at least 1")


def _as_list(texts: Text | Sequence[Text]) -> Sequence[Text]:
    return [texts] if isinstance(texts, str | Mapping) else texts
