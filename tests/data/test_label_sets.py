"""Rows with any number of labels: lists and separated text, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.examples import ClassificationData, MultiLabelData
from data.loading import load_rows
from data.preparing import prepare_classification
from data.statistics import describe
from runtime.errors import DataError

SETS = [["red", "loud"], [], ["red"], ["blue", "red", "red"]]
MATRIX = [[0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1]]  # blue, loud, red


def as_jsonl(folder: Path, values: list[Any]) -> Any:
    file = folder / "rows.jsonl"
    lines = [json.dumps({"text": f"text {i}", "label": value}) for i, value in enumerate(values)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_rows(str(file))


def as_csv(folder: Path, separator: str) -> Any:
    file = folder / "rows.csv"
    lines = [f'text {i},"{separator.join(row)}"' for i, row in enumerate(SETS)]
    file.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return load_rows(str(file))


@pytest.mark.parametrize("kind", ["lists", ",", "; "])
def test_labels_of_rows(tmp_path: Path, kind: str) -> None:
    dataset = as_jsonl(tmp_path, SETS) if kind == "lists" else as_csv(tmp_path, kind)
    options: dict[str, Any] = {} if kind == "lists" else {"separator": kind.strip()}
    data = prepare_classification(dataset, multi_label=True, **options)
    assert isinstance(data, MultiLabelData)
    assert data.label_names == ["blue", "loud", "red"]
    assert data.labels == ["loud, red", "", "red", "blue, red"]
    np.testing.assert_array_equal(data.label_matrix(data.label_names), np.array(MATRIX, bool))
    np.testing.assert_array_equal(data.label_matrix(["red", "x", "loud", "blue"])[3], [True, False, False, True])
    part = data.take([3, 0])
    np.testing.assert_array_equal(part.label_matrix(data.label_names), np.array([MATRIX[3], MATRIX[0]], bool))
    assert part.texts == ["text 3", "text 0"]


def test_numbers_are_labels(tmp_path: Path) -> None:
    data = prepare_classification(as_jsonl(tmp_path, [[3, 1], [1], []]), multi_label=True)
    assert isinstance(data, MultiLabelData) and data.label_sets == [["1", "3"], ["1"], []]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([[1.5], [2.0]], {}, "labels must be a list of texts or whole numbers.* one is 1.5 .1 of 2 rows: 1"),
        ([[], []], {}, "column 'label' has not a label in any of 2 rows"),
        ([["a"], ["a"]], {}, "column 'label' holds one class only, 'a', in 2 rows"),
        ([["a"], ["b", "redd"]], {"label_names": ["a", "b", "red"]}, "unknown label 'redd' .*did you mean 'red'"),
        ([["a"], ["b"]], {"separator": ""}, "separator must be text, but is ''"),
        ([["a"], ["b"]], {"multi_label": "yes"}, "multi_label must be true or false, but is 'yes'"),
    ],
)
def test_wrong_rows(tmp_path: Path, values: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare_classification(as_jsonl(tmp_path, values), **{"multi_label": True, **options})


def test_unknown_labels_of_another_data_set_and_fingerprints(tmp_path: Path) -> None:
    data = prepare_classification(as_jsonl(tmp_path, SETS), multi_label=True)
    with pytest.raises(DataError, match="row 1: unknown label 'loud'; did you mean 'lod'"):
        data.check_labels(["blue", "lod", "red"])
    single = ClassificationData(data.texts, data.labels, data.label_names)
    assert len({data.fingerprint, data.take([0, 1, 3, 2]).fingerprint, single.fingerprint}) == 3


def test_statistics_count_each_label(tmp_path: Path) -> None:
    data = prepare_classification(as_jsonl(tmp_path, SETS), multi_label=True)
    assert {name: entry["count"] for name, entry in describe(data)["classes"].items()} == {
        "blue": 1, "loud": 1, "red": 3,
    }  # fmt: skip


def test_a_separator_that_separates_nothing_is_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = as_csv(tmp_path, ";")
    prepare_classification(rows, multi_label=True, separator=";")
    assert not caplog.records
    prepare_classification(rows, multi_label=True, separator="/")
    assert "no row has two labels, and one of them is 'blue;red;red'; is separator '/' the right one?" in caplog.text
