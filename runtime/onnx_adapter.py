"""Parses .onnx_adapter files with every offset, length and shape checked, for files may come from strangers.

The format is a flatbuffer (onnxruntime/lora/adapter_format/adapter_schema.fbs): a root table with format_version,
adapter_version, model_version and a vector of parameters, each a table of name, dims, data_type and raw_data. A table
starts with the signed distance back to its vtable, which holds its own size, the table's size, and the place of each
field. What onnxruntime's own reader checks, such as whether a shape agrees with the length of its data, differs between
its versions, so it sees a stranger's file only after this parser did.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import PackageError

MAX_BYTES = 8 << 30  # rank 64 on every projection of a model with 70 billion weights is 3.3 GB in float32
MAX_NAME = 1024  # bytes
MAX_VALUES = 1 << 40  # product of a shape in which 0 counts as 1: numpy cannot form larger ones, even when empty
_MAX_TENSORS, _MAX_DIMS = 100_000, 8
_IDENTIFIER, _FORMAT_VERSION = b"TORT", 1
# numbers of onnx.TensorProto; onnxruntime takes no others in adapters, but bfloat16
_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}
_DTYPES |= {12: "<u4", 13: "<u8"}
_BFLOAT16 = 16


@dataclass(frozen=True)
class AdapterFile:
    """What an .onnx_adapter file holds; bfloat16, which numpy lacks, as float32, and what was stored in `dtypes`."""

    adapter_version: int
    model_version: int
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]


def read_onnx_adapter(path: Path) -> AdapterFile:
    """Reads a whole file; the tensors are copies, so that the file may be replaced afterwards.

    Raises:
        PackageError: the file is missing, too large, or damaged; the first damage is named.
    """
    if not path.is_file():
        raise PackageError(f"{path}: there is no such file")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise PackageError(f"{path}: has {size} bytes, but an adapter has at most {MAX_BYTES}")
    try:
        return _parse(path.read_bytes())
    except Damaged as error:
        raise PackageError(f"{path}: is no .onnx_adapter file, or a damaged one: {error}") from error


class Damaged(ValueError):
    """An offset, length or value that a sound file cannot have."""


def widen_bfloat16(data: bytes) -> np.ndarray:
    """float32 of bfloat16 values: they are the upper halves."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


class _Table:
    """One flatbuffer table; `number` and `target` read its fields by their index in the schema."""

    def __init__(self, data: bytes, start: int) -> None:
        self.data, self.start = data, start
        vtable = start - _number(data, "<i", start)
        length, self._size = _number(data, "<H", vtable), _number(data, "<H", vtable + 2)
        if length < 4 or self._size < 4 or vtable + length > len(data) or start + self._size > len(data):
            raise Damaged(f"the table at byte {start} does not lie within the file")
        self._vtable, self._fields = vtable, (length - 4) // 2

    def number(self, field: int) -> int:
        """An int32 field; 0 where it is left out."""
        place = self._place(field)
        return _number(self.data, "<i", place) if place else 0

    def vector(self, field: int, item_bytes: int, most: int) -> tuple[int, int]:
        """Start and item count of a vector or string; (0, 0) where it is left out."""
        place = self._place(field)
        if not place:
            return 0, 0
        start = place + _number(self.data, "<I", place)
        count = _number(self.data, "<I", start)
        if count > most or start + 4 + count * item_bytes > len(self.data):
            raise Damaged(f"the vector at byte {start} claims {count} items")
        return start + 4, count

    def _place(self, field: int) -> int:
        offset = _number(self.data, "<H", self._vtable + 4 + 2 * field) if field < self._fields else 0
        if offset and not 4 <= offset <= self._size - 4:
            raise Damaged(f"field {field} of the table at byte {self.start} does not lie within the table")
        return self.start + offset if offset else 0


def _parse(data: bytes) -> AdapterFile:
    if data[4:8] != _IDENTIFIER:
        raise Damaged(f"it has {len(data)} bytes, and bytes 4 to 8 are {data[4:8]!r}, not {_IDENTIFIER!r}")
    root = _Table(data, _number(data, "<I", 0))
    if root.number(0) != _FORMAT_VERSION:
        raise Damaged(f"its format version is {root.number(0)}; {_FORMAT_VERSION} is known")
    start, count = root.vector(3, 4, _MAX_TENSORS)
    tensors: dict[str, np.ndarray] = {}
    dtypes: dict[str, str] = {}
    total = 0
    for place in range(start, start + 4 * count, 4):
        parameter = _Table(data, place + _number(data, "<I", place))
        begin, length = parameter.vector(0, 1, MAX_NAME)
        try:
            name = data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged(f"a tensor's name is no text: {error}") from error
        if not name.isprintable() or not name or name in tensors:
            raise Damaged(f"a tensor's name is {name!r}, which is {'used twice' if name in tensors else 'no name'}")
        tensors[name], dtypes[name], length = _tensor(parameter, name)
        total += length
        if total > len(data):  # several tensors may point at the same bytes: a small file must not fill the memory
            raise Damaged(f"its tensors claim more than its {len(data)} bytes")
    return AdapterFile(root.number(1), root.number(2), tensors, dtypes)


def _tensor(parameter: _Table, name: str) -> tuple[np.ndarray, str, int]:
    """(values, stored dtype, bytes) of one parameter."""
    begin, count = parameter.vector(1, 8, _MAX_DIMS)
    shape = [_number(parameter.data, "<q", begin + 8 * i) for i in range(count)]
    kind = parameter.number(2)
    if kind not in _DTYPES and kind != _BFLOAT16:
        raise Damaged(f"{name} has data type {kind}, which is no number type of an adapter")
    width = 2 if kind == _BFLOAT16 else np.dtype(_DTYPES[kind]).itemsize
    values = check_shape(shape, name)
    begin, length = parameter.vector(3, 1, len(parameter.data))
    if values * width != length:
        raise Damaged(f"{name} has shape {shape} of {width} bytes a value, but {length} bytes of data")
    raw = parameter.data[begin : begin + length]
    if kind == _BFLOAT16:
        return widen_bfloat16(raw).reshape(shape), "bfloat16", length
    array = np.frombuffer(raw, _DTYPES[kind]).reshape(shape).copy()
    return array, str(array.dtype), length


def check_shape(shape: list[int], name: str) -> int:
    """Number of values of a shape.

    Raises:
        Damaged: a size is negative, or too large for any adapter.
    """
    values, bound = 1, 1
    for size in shape:
        values, bound = values * size, bound * max(size, 1)
        if size < 0 or bound > MAX_VALUES:
            raise Damaged(f"{name} has the impossible shape {shape}")
    return values


def _number(data: bytes, layout: str, place: int) -> int:
    try:
        if place < 0:
            raise Damaged(f"an offset points {-place} bytes before the file")
        return int(struct.unpack_from(layout, data, place)[0])
    except struct.error as error:
        raise Damaged(f"an offset points at byte {place}, but the file has {len(data)}") from error
