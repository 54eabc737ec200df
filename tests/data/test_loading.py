from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from data.loading import ROW_NUMBER, check_columns, check_values, load_rows
from data.preparing import label_texts
from runtime.errors import DataError

ROWS = [{"text": 'olá, "mundo"', "label": "01"}, {"text": "two\nlines", "label": "NA"}]


def _write(path: Path, kind: str) -> Path:
    file = path / f"rows.{kind}"
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        quoted = [[value.replace('"', '""') for value in row.values()] for row in ROWS]
        lines = [f'"{text}"{separator}{label}' for text, label in quoted]
        file.write_text("\n".join([f"text{separator}label", *lines]) + "\n", encoding="utf-8")
    elif kind == "json":
        file.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    elif kind == "jsonl":
        file.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    return file


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    dataset = load_rows(str(_write(tmp_path, kind)))
    assert dataset.to_list() == ROWS
    assert dataset.info.dataset_name == f"rows.{kind}"
    assert dataset.cache_files == []


def test_json_may_hold_lines_and_the_suffix_any_case(tmp_path: Path) -> None:
    file = tmp_path / "rows.JSON"
    file.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert load_rows(str(file)).to_list() == ROWS


def test_files_are_joined_in_order(tmp_path: Path) -> None:
    dataset = load_rows([str(_write(tmp_path, "jsonl")), str(_write(tmp_path, "csv"))])
    assert dataset["label"][:] == ["01", "NA", "01", "NA"]
    assert dataset.info.dataset_name == "rows.jsonl, rows.csv"


def test_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "excel.csv"
    file.write_bytes(b"\xef\xbb\xbftext,label\r\na,ham\r\n")
    assert load_rows(str(file)).to_list() == [{"text": "a", "label": "ham"}]


def test_a_long_document_is_one_row(tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text("text,label\n" + "word " * 500_000 + ",book\n", encoding="utf-8")
    assert len(load_rows(str(file))["text"][0]) == 2_500_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file"),
        ("a.txt", b"text", "unknown file type '.txt'"),
        ("empty.csv", b"", "the file is empty"),
        ("header.csv", b"text,label\n", "has no rows"),
        ("ragged.csv", b"text,label\na,b\nc,d,e\n", r"Row #3: Expected 2 columns, got 3.*header is row 1"),
        ("latin.csv", b"text,label\nol\xe9,ham\n", "save the file as UTF-8"),
        ("latin.jsonl", b'{"text": "ol\xe9"}\n', "save the file as UTF-8"),
        ("excel.csv", b"text;label\na;ham\n", "separated by ';'"),
        ("twice.csv", b"text,text\na,b\n", "'text' stands twice"),
        ("bad.jsonl", b'{"text": "a"}\nnope\n', "line 2: not a JSON object"),
        ("bad.json", b'[{"text": "a"},]', "line 1: not JSON"),
        ("list.json", b"[1, 2]", "item 1 must be a JSON object of columns, but is int"),
        ("none.json", b"[]", "has no rows"),
        ("mixed.jsonl", b'{"text": 1}\n{"text": "a"}\n', "column 'text' mixes kinds"),
        ("bad.parquet", b"nonsense", "cannot be read as parquet"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_rows(str(tmp_path / name))
    assert name in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "spam_train.csv").touch()
    with pytest.raises(DataError, match=r"did you mean 'spam_train.csv'"):
        load_rows(str(tmp_path / "spam_tarin.csv"))
    with pytest.raises(DataError, match="there is no folder"):
        load_rows(str(tmp_path / "nowhere" / "a.csv"))
    with pytest.raises(DataError, match="is a folder"):
        (tmp_path / "dir.csv").mkdir()
        load_rows(str(tmp_path / "dir.csv"))


def test_files_with_different_columns_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    (tmp_path / "b.csv").write_text("text,class\na,b\n")
    with pytest.raises(DataError, match=r"b.csv has the columns \['text', 'class'\]"):
        load_rows([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either data_files or data_name"),
        ({"data_files": "a.csv", "data_name": "x"}, "either data_files or data_name"),
        ({"data_files": []}, "one path or a list"),
        ({"data_files": {"train": "a.csv"}}, "one path or a list"),
        ({"data_files": "a.csv", "split": "train"}, "split='train' goes with data_name"),
        ({"data_name": "someone/something", "trust_remote_code": True}, "runs no data set scripts"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_rows(**options)  # type: ignore[arg-type]


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as the hub lays it out, with two splits, and a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "spam"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.csv").write_text(f"text,label\n{split},ham\n")
    return folder


def test_a_data_set_by_name(hub_folder: Path) -> None:
    dataset = load_rows(data_name=str(hub_folder), split="test")
    assert dataset["text"][:] == ["test"]
    with pytest.raises(DataError, match=r"several splits.*Valid: test, train"):
        load_rows(data_name=str(hub_folder))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_rows(data_name=str(hub_folder), split="tset")


def test_an_unreachable_data_set_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'imdb' on the Hub\nlong trace")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"data set 'imdb'.*Couldn't reach 'imdb' on the Hub; check") as caught:
        load_rows(data_name="imdb")
    assert "\n" not in str(caught.value)


def test_check_columns_hides_the_row_numbers() -> None:
    dataset = Dataset.from_dict({"text": ["a"], "label": ["b"], ROW_NUMBER: [1]})
    check_columns(dataset, ["text", "label"], "x.csv")
    with pytest.raises(DataError) as caught:
        check_columns(dataset, ["text", "lable"], "x.csv")
    assert str(caught.value) == "x.csv: there is no column 'lable'; did you mean 'label'? Valid: label, text"


@pytest.mark.parametrize("missing", ["", "  \n", None])
def test_missing_values_name_the_first_five_rows(missing: str | None) -> None:
    dataset = Dataset.from_dict({"text": ["a", *[missing] * 7]})
    with pytest.raises(DataError, match=r"x.csv: column 'text' has no value in 7 of 8 rows: 2, 3, 4, 5, 6, \.\.\.$"):
        check_values(dataset, "text", "x.csv")


def test_nan_is_missing_and_blank_text_may_be_allowed() -> None:
    with pytest.raises(DataError, match=r"1 of 2 rows: 2$"):
        check_values(Dataset.from_dict({"score": [1.0, float("nan")]}), "score", "x")
    assert check_values(Dataset.from_dict({"input": ["", "a"]}), "input", "x", allow_blank=True) == ["", "a"]


def test_labels_become_names() -> None:
    features = Features({"label": ClassLabel(names=["ham", "spam"])})
    assert label_texts(Dataset.from_dict({"label": [1, 0]}, features=features), "label", "x") == ["spam", "ham"]
    assert label_texts(Dataset.from_dict({"label": [1, 0]}), "label", "x") == ["1", "0"]
    assert label_texts(Dataset.from_dict({"label": [1.0, 2.0]}), "label", "x") == ["1", "2"]
    assert label_texts(Dataset.from_dict({"label": [" a ", "b"]}), "label", "x") == ["a", "b"]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset.from_dict({"label": [0.5]}), "text or a whole number, but is 0.5"),
        (Dataset.from_dict({"label": [["a", "b"]]}), "text or a whole number"),
        (Dataset.from_dict({"label": [None]}, features=Features({"label": Value("string")})), "no value"),
        (Dataset.from_dict({"label": [-1]}, features=Features({"label": ClassLabel(names=["a"])})), "no label"),
    ],
)
def test_values_that_are_no_labels_are_refused(dataset: Dataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        label_texts(dataset, "label", "x.csv")
