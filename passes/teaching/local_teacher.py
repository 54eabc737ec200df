"""A teacher on this machine: a causal language model in a folder, or an adapter that the workflow trained before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.teacher_settings import TeacherSettings
from data.tokenizing import encode_prompt, length_sorted_batches
from passes.base_model import load_tokenizer, local_folder
from runtime.errors import ConfigError, OlivalError, nearest
from runtime.manifest import base_fingerprint

Message = dict[str, str]


class LocalTeacher:
    """Writes greedily, in the precision that its settings say, with transformers' generate."""

    def __init__(self, settings: TeacherSettings, base: Path, adapters: Mapping[str, Path]) -> None:
        """
        Args:
            settings: with `model_path` or `adapter`.
            base: folder of the workflow's base, which an adapter sits on.
            adapters: {name: folder} of the workflow's adapters that are trained by now.
        """
        self.settings = settings
        self.adapters: dict[str, Path] = {}
        self.folder = base
        if settings.adapter is not None:
            if settings.adapter not in adapters:
                found = nearest(settings.adapter, adapters)
                raise ConfigError([f"teacher.adapter: '{settings.adapter}' is not trained yet; {found}"])
            self.adapters = {settings.adapter: adapters[settings.adapter]}
        else:
            self.folder = local_folder(str(settings.model_path))
        self._tokenizer: Any = load_tokenizer(self.folder)
        self._model: Any = None

    @property
    def talks(self) -> bool:
        """Whether it can be told what was wrong with its answer; otherwise it would answer the same again."""
        return not self.adapters and self._template() == "chat"

    def weights(self) -> list[str]:
        """What says that base and adapter are the same: the base's sha256, and the adapter folder with its key."""
        return [base_fingerprint(self.folder), *(folder.name for folder in self.adapters.values())]

    def answer(self, conversations: Sequence[list[Message]], keep: Callable[[int, str], None]) -> None:
        """Hands each answer to `keep` with its conversation's place; prompts of like length are written together.

        Raises OlivalError for a question that is too long for the model; those before it are kept.
        """
        model, settings, template = self._opened(), self.settings, self._template()
        prompts = [
            self._conversation_ids(talk)
            if len(talk) > 1
            else encode_prompt(self._tokenizer, talk[0]["content"], template)
            for talk in conversations
        ]
        for places in length_sorted_batches([len(ids) for ids in prompts], settings.batch_size):
            chosen = [prompts[place] for place in places]
            try:
                texts = model.generate(
                    chosen, settings.adapter, settings.max_new_tokens, settings.stop, settings.batch_size
                )
            except OlivalError as error:
                raise OlivalError(f"teacher {settings.name}: {error}") from error
            for place, text in zip(places, texts, strict=True):
                keep(place, text)

    def _opened(self) -> Any:
        from evaluators.torch_model import TorchModel

        if self._model is None:
            options = self.settings
            self._model = TorchModel(
                self.folder,
                self.adapters,
                False,
                quantization=options.quantization,
                compute_dtype=options.compute_dtype,
            )
        return self._model

    def _template(self) -> str:
        """ "chat" where the question is to be a user's message: as the adapter was trained, or as the settings say."""
        if self.adapters:
            (folder,) = self.adapters.values()
            trained = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))["template"]
            return "chat" if trained == "chat" else "{prompt}"
        wanted = self.settings.chat_template
        return "chat" if wanted or (wanted is None and self._tokenizer.chat_template) else "{prompt}"

    def _conversation_ids(self, talk: list[Message]) -> list[int]:
        ids = self._tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(ids)
