"""Rows from files (csv, tsv, json, jsonl, parquet) or from a Hugging Face data set, and checks on their columns."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import DataError, nearest

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

# A column with the rows' numbers (from 1) in the file, added when a part is chosen: messages name the file's rows.
ROW_NUMBER = "__row__"


def load_rows(
    data_files: str | list[str] | None = None,
    data_name: str | None = None,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Dataset:
    """Loads local files, or a data set of the Hugging Face hub (or a local folder of one) by its name.

    Local files are read into memory and cached nowhere. Values of csv and tsv stay text: `01`, `NA` and `true` are
    what they are. `data_files` are relative to the current directory. `subset`, `split` and `revision` belong to
    `data_name`.

    Returns:
        One split; `dataset.info.dataset_name` is the source that messages name.

    Raises:
        DataError: both or neither of `data_files` and `data_name`; a missing, empty or unreadable file or an unknown
            suffix; files with different columns; an unknown or unreachable data set or split.
    """
    if (data_files is None) == (data_name is None):
        raise DataError(
            f"give either data_files or data_name, but got data_files={data_files!r}, data_name={data_name!r}"
        )
    if data_name is not None:
        return _load_named(data_name, subset, split, revision, trust_remote_code)
    for option, value in (("subset", subset), ("split", split), ("revision", revision)):
        if value is not None:
            raise DataError(f"{option}={value!r} goes with data_name only; a part of a file is chosen with split_part")
    paths = [data_files] if isinstance(data_files, str | Path) else data_files
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str | Path) for path in paths):
        raise DataError(f"data_files must be one path or a list of paths, but is {data_files!r}")
    return _load_files([Path(path) for path in paths])


def check_columns(dataset: Dataset, needed: Sequence[str], source: str) -> None:
    """Raises DataError for the first needed column that the data set lacks; names the nearest and all columns."""
    columns = [column for column in dataset.column_names if column != ROW_NUMBER]
    for column in needed:
        if column not in columns:
            raise DataError(f"{source}: there is no column {column!r}; {nearest(column, columns)}")


def check_values(dataset: Dataset, column: str, source: str, allow_blank: bool = False) -> list[Any]:
    """The values of a column, each of them present.

    Raises:
        DataError: None, NaN or (unless `allow_blank`) blank text, with the numbers of the first five such rows; row 1
            is the first below the header.
    """
    values = list(dataset[column])
    bad = [index for index, value in enumerate(values) if _missing(value, allow_blank)]
    if bad:
        raise DataError(f"{source}: column {column!r} has no value in {describe_rows(dataset, bad)}")
    return values


def describe_rows(dataset: Dataset, indices: Sequence[int]) -> str:
    """Names the first five of some rows by their number in the file: ``3 of 120 rows: 4, 17, 90``."""
    shown = ", ".join(str(row_number(dataset, index)) for index in indices[:5]) + (", ..." if len(indices) > 5 else "")
    return f"{len(indices)} of {len(dataset)} rows: {shown}"


def row_number(dataset: Dataset, index: int) -> int:
    """The number of a row in its file, from 1; a part of a data set keeps the numbers of the whole."""
    return int(dataset[index][ROW_NUMBER]) if ROW_NUMBER in dataset.column_names else index + 1


def _missing(value: Any, allow_blank: bool) -> bool:
    if isinstance(value, str):
        return not allow_blank and not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def _load_files(paths: list[Path]) -> Dataset:
    import pyarrow
    from datasets import Dataset

    tables: list[pyarrow.Table] = []
    for path in paths:
        table = _read(path)
        _check_header(table.column_names, path)
        if table.num_rows == 0:
            raise DataError(f"{path}: the file has no rows")
        if tables and set(table.column_names) != set(tables[0].column_names):
            raise DataError(f"{path} has the columns {table.column_names}, but {paths[0]} has {tables[0].column_names}")
        tables.append(table)
    try:
        dataset = Dataset(pyarrow.concat_tables(tables, promote_options="permissive"))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, TypeError) as error:
        raise DataError(f"{', '.join(map(str, paths))}: the files do not fit together: {_first_line(error)}") from error
    dataset.info.dataset_name = ", ".join(path.name for path in paths)
    return dataset


def _read(path: Path) -> pyarrow.Table:
    import pyarrow

    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown file type {path.suffix!r}; {nearest(path.suffix, READERS)}")
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the files in it")
    if not path.is_file():
        raise DataError(_missing_file(path))
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except pyarrow.ArrowException as error:
        hint = "; save the file as UTF-8" if "UTF8" in str(error) else ""
        hint += " (the header is row 1)" if "Row #" in str(error) else ""
        raise DataError(f"{path}: cannot be read as {path.suffix[1:].lower()}: {_first_line(error)}{hint}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {_first_line(error)}") from error


def _missing_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: there is no folder {folder} (current directory: {Path.cwd()})"
    names = sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in READERS)
    match = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if match:
        return f"{path}: there is no such file; did you mean '{match[0]}'?"
    listed = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return f"{path}: there is no such file; data files in that folder: {listed or 'none'}"


def _check_header(columns: list[str], path: Path) -> None:
    doubled = sorted({column for column in columns if columns.count(column) > 1})
    if doubled:
        raise DataError(f"{path}: the column {doubled[0]!r} stands twice in the header")
    if path.suffix.lower() in (".csv", ".tsv") and len(columns) == 1:
        separator = next((mark for mark in (";", "\t", ",") if mark in columns[0]), None)
        if separator:
            raise DataError(
                f"{path}: the header {columns[0]!r} is one column; are the values separated by {separator!r}? "
                "A .csv file uses ',', a .tsv file the tab"
            )


def _read_separated(path: Path) -> pyarrow.Table:
    from pyarrow import csv, string

    parse = csv.ParseOptions(delimiter="," if path.suffix.lower() == ".csv" else "\t", newlines_in_values=True)
    # Errors name the row only when one thread reads. No row may be longer than a block: 64 MiB holds any book.
    serial = csv.ReadOptions(use_threads=False, block_size=2**26)
    with csv.open_csv(path, parse_options=parse, read_options=serial) as reader:
        names = reader.schema.names
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, string()), strings_can_be_null=False)
    return csv.read_csv(path, parse_options=parse, read_options=serial, convert_options=convert)


def _read_json(path: Path) -> pyarrow.Table:
    text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        try:
            return _table(json.loads(text), path, "item")
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: line {error.lineno}: not JSON: {error.msg}") from error
    rows = []
    # Only the newline ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: line {number}: not a JSON object of one line: {error.msg}") from error
    return _table(rows, path, "row")


def _table(rows: list[Any], path: Path, word: str) -> pyarrow.Table:
    import pyarrow

    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: {word} {number} must be a JSON object of columns, but is {type(row).__name__}")
    columns: dict[str, Any] = {}
    for column in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[column] = pyarrow.array([row.get(column) for row in rows])
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(f"{path}: column {column!r} mixes kinds of values: {_first_line(error)}") from error
    return pyarrow.table(columns)


def _read_parquet(path: Path) -> pyarrow.Table:
    from pyarrow import parquet

    return parquet.read_table(path)


READERS: dict[str, Callable[[Path], pyarrow.Table]] = {
    ".csv": _read_separated,
    ".tsv": _read_separated,
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_parquet,
}


def _load_named(name: str, subset: str | None, split: str | None, revision: str | None, remote_code: bool) -> Dataset:
    from datasets import Dataset, DatasetDict, load_dataset

    if remote_code:
        raise DataError(
            f"{name}: trust_remote_code=true cannot be met: `datasets` runs no data set scripts since version 4; "
            "choose a data set made of data files"
        )
    try:
        loaded = load_dataset(name, name=subset, split=split, revision=revision)
    except Exception as error:  # many unrelated kinds: network, hub, builder; Olive fails a run only on ours
        raise DataError(
            f"data set {name!r} (subset {subset!r}, split {split!r}): cannot be loaded: {type(error).__name__}: "
            f"{_first_line(error)}; check the name and the network; local files go into data_files"
        ) from error
    if isinstance(loaded, DatasetDict):
        if len(loaded) > 1:
            raise DataError(f"data set {name!r} has several splits, choose one with `split`. {nearest(None, loaded)}")
        loaded = next(iter(loaded.values()))
    if not isinstance(loaded, Dataset) or len(loaded) == 0:
        raise DataError(f"data set {name!r} (subset {subset!r}, split {split!r}) has no rows")
    loaded.info.dataset_name = name
    return loaded


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
