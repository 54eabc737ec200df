"""What passes learn from and evaluators measure on: two frozen records, and the way to them from a data config."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import ConfigError, DataError, OlivalError, nearest

if TYPE_CHECKING:
    from olive.data.config import DataConfig

    from data.teaching import Unanswered

KINDS = ("classification", "generation", "structured", "taught_classification", "taught_generation")


@dataclass(frozen=True)
class ClassificationData:
    """Texts with the NAME of their class; the numbers of the classes are made only where a head is built.

    Attributes:
        texts: one text per row, the template already filled.
        labels: one label name per row.
        label_names: all names in the order of the head's outputs.
        template: how a row's columns became the text; "{text}" for one column as it is.
        max_length: tokens per text, or per window, special tokens included.
        window_stride: tokens from one window's start to the next; None truncates.
        source: file or data set, for messages.
        row_numbers: of each row in the file, where the rows are augmented or balanced; else empty.
    """

    texts: list[str]
    labels: list[str]
    label_names: list[str]
    template: str = "{text}"
    max_length: int = 128
    window_stride: int | None = None
    source: str = ""
    row_numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over content and settings; the source's name and rows' numbers are not part of it."""
        return _fingerprint(self)

    def label_ids(self, label_names: Sequence[str]) -> list[int]:
        """The labels as numbers: their places in `label_names`, which may come from another data set or a package.

        Raises:
            DataError: a label that is not in `label_names`; names source, label and nearest.
        """
        places = {name: place for place, name in enumerate(label_names)}
        for row, label in enumerate(self.labels):
            if label not in places:
                number = row_number(self, row)
                raise DataError(f"{self.source}: row {number}: unknown label {label!r}; {nearest(label, label_names)}")
        return [places[label] for label in self.labels]

    def check_labels(self, label_names: Sequence[str]) -> None:
        """Raises DataError for a label that is not in `label_names`."""
        self.label_ids(label_names)

    def take(self, indices: Sequence[int]) -> ClassificationData:
        """The rows at `indices`, in that order; `label_names` and settings stay."""
        texts, labels = ([column[index] for index in indices] for column in (self.texts, self.labels))
        return dataclasses.replace(self, texts=texts, labels=labels, row_numbers=_taken_numbers(self, indices))


@dataclass(frozen=True)
class MultiLabelData(ClassificationData):
    """Texts with any number of labels each, none included.

    Attributes:
        labels: each row's labels as one text, for messages and counts; "" for none.
        label_sets: the labels of each row.
    """

    label_sets: list[list[str]] = field(default_factory=list)

    def label_matrix(self, label_names: Sequence[str]) -> np.ndarray:
        """bool (rows, labels), columns in the order of `label_names`.

        Raises:
            DataError: a label that is not in `label_names`; names source, row, label and nearest.
        """
        places = {name: place for place, name in enumerate(label_names)}
        matrix = np.zeros((len(self), len(places)), bool)
        for row, labels in enumerate(self.label_sets):
            for label in labels:
                if label not in places:
                    found = nearest(label, label_names)
                    raise DataError(f"{self.source}: row {row_number(self, row)}: unknown label {label!r}; {found}")
                matrix[row, places[label]] = True
        return matrix

    def check_labels(self, label_names: Sequence[str]) -> None:
        self.label_matrix(label_names)

    def take(self, indices: Sequence[int]) -> MultiLabelData:
        texts, labels = ([column[index] for index in indices] for column in (self.texts, self.labels))
        sets, numbers = [self.label_sets[index] for index in indices], _taken_numbers(self, indices)
        return dataclasses.replace(self, texts=texts, labels=labels, label_sets=sets, row_numbers=numbers)


@dataclass(frozen=True)
class GenerationData:
    """Prompts and the responses to learn.

    Attributes:
        prompts: one per row, the template already filled; "" for plain text.
        responses: one per row.
        template: "chat" = the prompt is a user's message in the tokenizer's chat template; otherwise the format string
            that made the prompt from columns, "{prompt}" for one column as it is and for plain text. A deployed package
            applies it to what its user gives.
        max_length: tokens per example or packed block, special tokens included.
        packing: several examples share a block.
        source: file or data set, for messages.
        row_numbers: of each row in the file, where the rows are augmented; else empty.
    """

    prompts: list[str]
    responses: list[str]
    template: str = "{prompt}"
    max_length: int = 256
    packing: bool = False
    source: str = ""
    row_numbers: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.responses)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) over content and settings; the source's name and rows' numbers are not part of it."""
        return _fingerprint(self)

    def take(self, indices: Sequence[int]) -> GenerationData:
        """The rows at `indices`, in that order; settings stay."""
        prompts, responses = ([column[index] for index in indices] for column in (self.prompts, self.responses))
        numbers = _taken_numbers(self, indices)
        return dataclasses.replace(self, prompts=prompts, responses=responses, row_numbers=numbers)


def row_number(data: ClassificationData | GenerationData, place: int) -> int:
    """The number of a row in the file, from 1, for messages."""
    return data.row_numbers[place] if data.row_numbers else place + 1


def _taken_numbers(data: ClassificationData | GenerationData, indices: Sequence[int]) -> list[int]:
    return [data.row_numbers[index] for index in indices] if data.row_numbers else []


def _fingerprint(data: ClassificationData | GenerationData) -> str:
    content = dataclasses.asdict(data)
    del content["source"], content["row_numbers"]
    content["kind"] = type(data).__name__
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def load_data(data_config: DataConfig | dict[str, Any]) -> ClassificationData | GenerationData:
    """Runs load_dataset and pre_process of an Olive data config.

    Args:
        data_config: an Olive DataConfig, or the dict of one (left unchanged).

    Raises:
        DataError: unknown component or parameter, rows that a teacher is to answer (`passes.teaching` loads those), or
            whatever is wrong with the data; names the data config.
    """
    result = read_data(data_config)
    if not isinstance(result, ClassificationData | GenerationData):
        name = data_config["name"] if isinstance(data_config, dict) else data_config.name
        raise DataError(f"data config {name!r}: its rows are answered by a teacher, which only a workflow's passes ask")
    return result


def read_data(data_config: DataConfig | dict[str, Any]) -> ClassificationData | GenerationData | Unanswered:
    """As `load_data`, but also takes rows that a teacher is yet to answer.

    Raises DataError as `load_data` does; ConfigError where several options are wrong.
    """
    from olive.data.config import DataConfig

    import data.olive_components  # registers the components that the config names  # noqa: F401
    from data.teaching import Unanswered

    config = _parse(data_config) if isinstance(data_config, dict) else data_config
    if not isinstance(config, DataConfig):
        raise DataError(f"a data config must be an Olive DataConfig or a dict, but is {type(data_config).__name__}")
    try:
        container = config.to_data_container()
        result = container.pre_process(container.load_dataset())
    except ConfigError as error:
        raise ConfigError([f"data config {config.name!r}: {problem}" for problem in error.problems]) from error
    except OlivalError as error:
        raise DataError(f"data config {config.name!r}: {error}") from error
    except (
        Exception
    ) as error:  # components of other people raise anything; Olive fails a run only on ValueError and kin
        raise DataError(f"data config {config.name!r}: {type(error).__name__}: {error}") from error
    if not isinstance(result, ClassificationData | GenerationData | Unanswered):
        kind = config.pre_process_data_config.type if config.pre_process_data_config else None
        raise DataError(
            f"data config {config.name!r}: pre_process_data_config.type {kind!r} makes no data for this workspace; "
            + nearest(kind, KINDS)
        )
    return result


def config_content(data_config: Any) -> dict[str, Any]:
    """Of Olive's DataConfig, or of the dict of one."""
    content: dict[str, Any] = data_config if isinstance(data_config, dict) else data_config.model_dump(mode="json")
    return content


def _parse(data_config: dict[str, Any]) -> DataConfig:
    from olive.data.config import DataConfig
    from olive.data.registry import Registry
    from pydantic import ValidationError

    name = data_config.get("name")
    try:
        return DataConfig(**copy.deepcopy(data_config))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc'])) or 'config'}: {item['msg']}" for item in error.errors())
        raise DataError(f"data config {name!r}: {problems}") from error
    except KeyError as error:  # Olive's look-up of a component ends in a bare KeyError
        for key, kind in (("load_dataset_config", "load_dataset"), ("pre_process_data_config", "pre_process_data")):
            wanted = (data_config.get(key) or {}).get("type")
            choices = Registry._REGISTRY[kind]
            if wanted is not None and str(wanted).lower() not in choices:
                raise DataError(
                    f"data config {name!r}: {key}.type: unknown {wanted!r}; {nearest(wanted, choices)}"
                ) from error
        raise DataError(f"data config {name!r}: unknown type {error}") from error
    except (AttributeError, TypeError, ValueError) as error:  # what Olive lets through, `task` for example
        raise DataError(f"data config {name!r}: {type(error).__name__}: {error}") from error
