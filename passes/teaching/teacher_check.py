"""What keeps a teacher from being asked, found before anything runs; no question is sent and no model loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.teacher_settings import TeacherSettings
from data.teaching import Unanswered
from passes.base_model import context_length, is_encoder, load_tokenizer, local_folder
from runtime.errors import OlivalError, nearest
from runtime.manifest import base_fingerprint


def teacher_problems(rows: Unanswered, trained: Mapping[str, str]) -> list[str]:
    """Problems of a teacher whose options are right by themselves, a line each.

    Args:
        rows: with their teacher.
        trained: {adapter name: task} of the passes before the one that needs the answers.
    """
    settings = rows.teacher
    if settings.adapter is not None:
        return _adapter_problems(settings, trained)
    if settings.model_path is None:
        return []
    try:
        folder = local_folder(settings.model_path)
    except OlivalError as error:
        return [f"teacher.model_path: {error}"]
    if is_encoder(folder):
        return [f"teacher.model_path: {settings.model_path} is an encoder, which writes no text"]
    if settings.chat_template and not load_tokenizer(folder).chat_template:
        return [f"teacher.chat_template: the tokenizer of {settings.model_path} has none; leave it out"]
    longest = context_length(folder)
    if longest is not None and settings.max_new_tokens >= longest:
        return [f"teacher.max_new_tokens: is {settings.max_new_tokens}, but the teacher's context is {longest}"]
    return []


def weights_of(settings: TeacherSettings) -> str:
    """sha256 (hex) of a local model; "" where it is none, or is not to be had."""
    try:
        return base_fingerprint(local_folder(settings.model_path)) if settings.model_path else ""
    except OlivalError:
        return ""


def _adapter_problems(settings: TeacherSettings, trained: Mapping[str, str]) -> list[str]:
    name: Any = settings.adapter
    if name not in trained:
        return [f"teacher.adapter: no pass before this one trains '{name}'; {nearest(name, trained)}"]
    if trained[name] != "generation":
        return [f"teacher.adapter: '{name}' classifies and writes no text; take an adapter of AdapterFineTune"]
    return []
