"""Rows of a data set to ClassificationData or GenerationData, and the choice of a part of the rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data.altering import altered
from data.examples import ClassificationData, GenerationData, MultiLabelData
from data.label_sets import label_sets
from data.loading import ROW_NUMBER, check_columns, check_values, describe_rows
from data.splits import split_indices
from data.templates import fill, placeholders
from runtime.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def select_part(
    dataset: Dataset,
    split_part: str | None = None,
    validation_fraction: float = 0.15,
    seed: int = 0,
    stratify_by: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """The train or the validation part of the rows, and of these the first `limit`.

    Rows that stand in both parts (all columns but `stratify_by` compared, normalised) are logged as a warning.

    Args:
        split_part: "train" or "validation"; with the same fraction, seed and `stratify_by` they are disjoint and
            complete. None takes all rows.
        stratify_by: the column whose values keep their shares in both parts, usually the label.
        limit: at most so many rows, None for all.

    Raises:
        DataError: an unknown part or column, a bad fraction or limit, a class with a single row, `stratify_by` without
            a part.
    """
    source = source_of(dataset)
    _check_count("limit", limit, optional=True)
    if split_part is None:
        if stratify_by is not None:
            raise DataError(f"{source}: stratify_by={stratify_by!r} needs split_part; Valid: train, validation")
        return dataset if limit is None else dataset.select(range(min(limit, len(dataset))))
    if split_part not in ("train", "validation"):
        raise DataError(f"{source}: unknown split_part {split_part!r}; {nearest(split_part, ['train', 'validation'])}")
    labels = None
    if stratify_by is not None:
        check_columns(dataset, [stratify_by], source)
        labels = label_texts(dataset, stratify_by, source)
    try:
        train, validation = split_indices(len(dataset), validation_fraction, seed, labels)
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    chosen = train if split_part == "train" else validation
    if ROW_NUMBER not in dataset.column_names:
        dataset = dataset.add_column(ROW_NUMBER, list(range(1, len(dataset) + 1)))
    return dataset.select(chosen[:limit])


def prepare_classification(
    dataset: Dataset,
    text: str | None = None,
    label: str = "label",
    text_template: str | None = None,
    label_names: Sequence[str] | None = None,
    max_length: int = 128,
    window_stride: int | None = None,
    multi_label: bool = False,
    separator: str = ",",
    augmentation: dict[str, Any] | None = None,
    balance: str | dict[str, Any] | None = None,
) -> ClassificationData:
    """Rows to texts and label names.

    Args:
        text: column of the text ("text" when neither it nor `text_template` is given).
        text_template: format string over columns, instead of `text`.
        label: column of the label; numbers become their digits, a ClassLabel its name.
        label_names: all labels in the order of the head's outputs; None takes those of the rows, sorted. With it the
            rows may hold fewer classes, even one.
        max_length: tokens per text or window.
        window_stride: tokens from one window's start to the next; None truncates.
        multi_label: a row has any number of labels, see `data.label_sets`; the result is MultiLabelData.
        separator: between the labels of a row that are text.
        augmentation, balance: for training rows, see `data.altering.altered`.

    Raises:
        DataError: a missing column or value, a label that is not in `label_names`, one class only, a bad number.
    """
    source = source_of(dataset)
    if text is not None and text_template is not None:
        raise DataError(f"{source}: give either text or text_template, but got {text!r} and {text_template!r}")
    _check_count("max_length", max_length)
    _check_count("window_stride", window_stride, optional=True)
    if window_stride is not None and window_stride > max_length:
        raise DataError(f"window_stride <= max_length must hold, but got ({window_stride}, {max_length})")
    text = text if text is not None else "text"
    names = _given_names(label_names, source)
    check_columns(dataset, [label, *([text] if text_template is None else [])], source)
    texts = _texts(dataset, text, source) if text_template is None else filled_template(dataset, text_template, source)
    if not isinstance(multi_label, bool):
        raise DataError(f"{source}: multi_label must be true or false, but is {multi_label!r}")
    if not isinstance(separator, str) or not separator:
        raise DataError(f"{source}: separator must be text, but is {separator!r}")
    sets = label_sets(dataset, label, separator, source) if multi_label else []
    labels = [", ".join(row) for row in sets] if multi_label else label_texts(dataset, label, source)
    rows = sets if multi_label else [[name] for name in labels]
    if names is None:
        names = sorted({name for row in rows for name in row})
        if len(names) < 2:
            raise DataError(f"{source}: column {label!r} holds one class only, {names[0]!r}, in {len(labels)} rows")
    known = set(names)
    unknown = [row for row, given in enumerate(rows) if not known.issuperset(given)]
    if unknown:
        name = next(name for name in rows[unknown[0]] if name not in known)
        where = describe_rows(dataset, unknown)
        raise DataError(f"{source}: unknown label {name!r} ({where}); {nearest(name, names)}")
    settings = (text_template or "{text}", max_length, window_stride, source)
    if multi_label:
        several = MultiLabelData(texts, labels, names, *settings, label_sets=sets)
        return altered(several, dataset, text, text_template, augmentation, balance)
    return altered(
        ClassificationData(texts, labels, names, *settings), dataset, text, text_template, augmentation, balance
    )


def prepare_generation(
    dataset: Dataset,
    prompt: str | None = None,
    response: str | None = None,
    template: str | None = None,
    text_template: str | None = None,
    max_length: int = 256,
    packing: bool = False,
    chat_template: bool = False,
    augmentation: dict[str, Any] | None = None,
) -> GenerationData:
    """Rows to prompts and responses, or to plain text.

    Args:
        prompt: column of the prompt ("prompt" when neither it nor a template is given).
        template: format string over columns that makes the prompt, instead of `prompt`.
        response: column of the response, "response" when None.
        text_template: format string over columns that makes plain text, all of it learned; instead of the three above.
        max_length: tokens per example or block.
        packing: several examples share a block.
        chat_template: the prompt becomes a user's message in the tokenizer's chat template.
        augmentation: of the prompts of training rows, see `data.altering.altered`.

    Raises:
        DataError: a missing column or value, options that exclude each other, a bad number.
    """
    source = source_of(dataset)
    _check_count("max_length", max_length)
    for option, value in (("packing", packing), ("chat_template", chat_template)):
        if not isinstance(value, bool):
            raise DataError(f"{option} must be true or false, but is {value!r}")
    if text_template is not None:
        others: dict[str, Any] = {"prompt": prompt, "response": response, "template": template}
        others["chat_template"] = chat_template or None
        others["augmentation"] = augmentation  # all of a plain text is learned, also what would be wrong in it
        given = [option for option, value in others.items() if value is not None]
        if given:
            raise DataError(f"{source}: text_template is for plain text and excludes {', '.join(given)}")
        texts = filled_template(dataset, text_template, source)
        return GenerationData([""] * len(texts), texts, "{prompt}", max_length, packing, source)
    if prompt is not None and template is not None:
        raise DataError(f"{source}: give either prompt or template, but got {prompt!r} and {template!r}")
    prompt = prompt if prompt is not None else "prompt"
    response = response if response is not None else "response"
    check_columns(dataset, [response, *([prompt] if template is None else [])], source)
    prompts = _texts(dataset, prompt, source) if template is None else filled_template(dataset, template, source)
    kept = "chat" if chat_template else (template or "{prompt}")
    data = GenerationData(prompts, _texts(dataset, response, source), kept, max_length, packing, source)
    return altered(data, dataset, prompt, template, augmentation)


def source_of(dataset: Dataset) -> str:
    """The name of the file or data set, for messages."""
    return dataset.info.dataset_name or "data set"


def label_texts(dataset: Dataset, column: str, source: str) -> list[str]:
    """The labels of a column as names: text as it is (stripped), whole numbers as digits, a ClassLabel by its name.

    Raises:
        DataError: a missing value, a fractional number, or a list.
    """
    from datasets import ClassLabel

    values = check_values(dataset, column, source)
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        unlabelled = [row for row, value in enumerate(values) if value < 0]
        if unlabelled:
            raise DataError(f"{source}: column {column!r} has no label in {describe_rows(dataset, unlabelled)}")
        return [feature.int2str(value) for value in values]
    names = []
    for row, value in enumerate(values):
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, str | int):
            raise DataError(
                f"{source}: column {column!r}: a label must be text or a whole number, "
                f"but is {value!r} ({describe_rows(dataset, [row])})"
            )
        names.append(str(value).strip())
    return names


def _texts(dataset: Dataset, column: str, source: str) -> list[str]:
    values = check_values(dataset, column, source)
    odd = next((value for value in values if not isinstance(value, str | int | float)), None)
    if odd is not None:
        raise DataError(f"{source}: column {column!r} must hold text, but holds {type(odd).__name__}: {str(odd)[:60]}")
    return [str(value) for value in values]


def filled_template(dataset: Dataset, template: str, source: str) -> list[str]:
    """The template filled for each row. Of several placeholders some may be blank (an optional input), but not all."""
    columns = placeholders(template)
    if not columns:
        raise DataError(f"{source}: template {template!r} names no column, such as {{text}}")
    check_columns(dataset, columns, source)
    values = {column: check_values(dataset, column, source, allow_blank=len(columns) > 1) for column in columns}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*values.values(), strict=True)]
    blank = [index for index, row in enumerate(rows) if not any(str(value).strip() for value in row.values())]
    if blank:
        raise DataError(f"{source}: template {template!r} is filled with nothing in {describe_rows(dataset, blank)}")
    return [fill(template, row) for row in rows]


def _given_names(label_names: Sequence[str] | None, source: str) -> list[str] | None:
    if label_names is None:
        return None
    if isinstance(label_names, str) or not isinstance(label_names, Sequence):
        raise DataError(f"{source}: label_names must be a list of names, but is {label_names!r}")
    names = [str(name) for name in label_names]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"{source}: label_names must be two or more different names, but is {names}")
    return names


def _check_count(option: str, value: Any, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DataError(f"{option} must be a whole number of at least 1, but is {value!r}")
