"""The Olive data components of this workspace; importing this module registers them.

load_dataset "rows"; pre_process "classification", "generation" and "structured", and the first two as "taught_", by a
teacher. A data config:

    {"name": "spam_train", "user_script": "register.py",
     "load_dataset_config": {"type": "rows", "data_files": "data/samples/sms_spam_train.csv"},
     "pre_process_data_config": {"type": "classification", "text": "text", "label": "label", "max_length": 96}}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from olive.data.registry import Registry

from data.examples import ClassificationData, GenerationData
from data.loading import load_rows
from data.preparing import prepare_classification, prepare_generation, select_part
from data.structured import prepare_structured
from data.teacher_answers import ANSWER_MARK
from runtime.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

    from data.teaching import Unanswered

# What Olive itself puts into the parameters when a data config's type is HuggingfaceContainer; it means nothing here.
OLIVE_PARAMETERS = {"model_name", "task", "trust_remote_code"}


@Registry.register_dataset("rows")
def rows(
    data_files: str | list[str] | None = None,
    data_name: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    split_part: str | None = None,
    validation_fraction: float = 0.15,
    seed: int = 0,
    stratify_by: str | None = None,
    limit: int | None = None,
    **others: Any,
) -> Dataset:
    """Rows of files or of a data set by name (`data.loading.load_rows`), or a part (`data.preparing.select_part`)."""
    _refuse("rows", rows, others)
    dataset = load_rows(data_files, data_name, subset, split, revision, bool(trust_remote_code))
    return select_part(dataset, split_part, validation_fraction, seed, stratify_by, limit)


@Registry.register_pre_process("classification")
def classification(
    dataset: Dataset,
    text: str | None = None,
    label: str = "label",
    text_template: str | None = None,
    label_names: list[str] | None = None,
    max_length: int = 128,
    window_stride: int | None = None,
    multi_label: bool = False,
    separator: str = ",",
    augmentation: dict[str, Any] | None = None,
    balance: str | dict[str, Any] | None = None,
    **others: Any,
) -> ClassificationData:
    """Rows to ClassificationData, see `data.preparing.prepare_classification`."""
    _refuse("classification", classification, others)
    _check_rows("classification", dataset)
    return prepare_classification(
        dataset, text, label, text_template, label_names, max_length, window_stride, multi_label, separator,
        augmentation, balance,
    )  # fmt: skip


@Registry.register_pre_process("generation")
def generation(
    dataset: Dataset,
    prompt: str | None = None,
    response: str | None = None,
    template: str | None = None,
    text_template: str | None = None,
    max_length: int = 256,
    packing: bool = False,
    chat_template: bool = False,
    augmentation: dict[str, Any] | None = None,
    **others: Any,
) -> GenerationData:
    """Rows to GenerationData, see `data.preparing.prepare_generation`."""
    _refuse("generation", generation, others)
    _check_rows("generation", dataset)
    return prepare_generation(
        dataset, prompt, response, template, text_template, max_length, packing, chat_template, augmentation
    )


@Registry.register_pre_process("structured")
def structured(
    dataset: Dataset,
    template: str | None = None,
    answer: Any = None,
    schema: str | None = None,
    max_length: int = 256,
    chat_template: bool = False,
    **others: Any,
) -> GenerationData:
    """Rows to GenerationData whose responses are JSON, see `data.structured.prepare_structured`."""
    _refuse("structured", structured, others)
    _check_rows("structured", dataset)
    return prepare_structured(dataset, template, answer, schema, max_length, chat_template)


@Registry.register_pre_process("taught_classification")
def taught_classification(
    dataset: Dataset,
    teacher: dict[str, Any] | None = None,
    prompt_template: str | None = None,
    labels: list[str] | None = None,
    answer_mark: str = ANSWER_MARK,
    attempts: int = 3,
    label: str | None = None,
    text: str | None = None,
    text_template: str | None = None,
    max_length: int = 128,
    window_stride: int | None = None,
    **others: Any,
) -> Unanswered:
    """Rows that get their labels from a teacher, see `data.teaching.taught_classification`."""
    from data import teaching

    _refuse("taught_classification", taught_classification, others)
    _check_rows("taught_classification", dataset)
    asked = (teacher, prompt_template, labels, answer_mark, attempts, label)
    return teaching.taught_classification(dataset, *asked, text, text_template, max_length, window_stride)


@Registry.register_pre_process("taught_generation")
def taught_generation(
    dataset: Dataset,
    teacher: dict[str, Any] | None = None,
    prompt_template: str | None = None,
    labels: list[str] | None = None,
    reasoning: str = "none",
    answer_mark: str = ANSWER_MARK,
    attempts: int = 3,
    label: str | None = None,
    prompt: str | None = None,
    template: str | None = None,
    reasoning_template: str | None = None,
    max_length: int = 256,
    packing: bool = False,
    chat_template: bool = False,
    **others: Any,
) -> Unanswered:
    """Rows that get their responses from a teacher, see `data.teaching.taught_generation`."""
    from data import teaching

    _refuse("taught_generation", taught_generation, others)
    _check_rows("taught_generation", dataset)
    asked = (teacher, prompt_template, labels, reasoning, answer_mark, attempts, label)
    learned = (prompt, template, reasoning_template, max_length, packing, chat_template)
    return teaching.taught_generation(dataset, *asked, *learned)


def _refuse(name: str, component: Callable[..., Any], others: dict[str, Any]) -> None:
    """Raises DataError for all unknown parameters at once."""
    valid = [option for option in inspect.signature(component).parameters if option not in ("dataset", "others")]
    unknown = [option for option in others if option not in OLIVE_PARAMETERS]
    if unknown:
        raise DataError(
            "; ".join(f"{name}: unknown parameter {option!r}; {nearest(option, valid)}" for option in unknown)
        )


def _check_rows(name: str, dataset: Any) -> None:
    from datasets import Dataset

    if not isinstance(dataset, Dataset):
        raise DataError(
            f"{name} needs the rows of a data set, but got {dataset!r}; set load_dataset_config.type to 'rows'"
        )
