"""Adapters that onnxruntime-genai has loaded: single ones, and stacks that give each row of a batch its own."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from runtime.adapter_file import write_adapter
from runtime.stacking import CACHE_BYTES, Rows, read_rows, stack_key


class LoadedAdapters:
    """Loads what a run needs and unloads what no run needs: adapters that are gone, and the longest unused stacks.

    onnxruntime-genai feeds adapter weights only from a file, so a stack is written to a temporary one. The base's
    weights are in none of them.
    """

    def __init__(self, adapters: Any) -> None:
        self.adapters = adapters  # onnxruntime_genai.Adapters
        self._bytes: OrderedDict[tuple[str, ...], int] = OrderedDict()  # stack_key -> size; the last used is last
        self._users: Counter[tuple[str, ...]] = Counter()
        self._gone: set[tuple[str, ...]] = set()  # to be unloaded once no run uses them
        self._lock = threading.RLock()
        self._folder = tempfile.TemporaryDirectory(prefix="adapter-stacks-", ignore_cleanup_errors=True)

    @contextlib.contextmanager
    def using(self, rows: Rows) -> Iterator[str | None]:
        """Gives the name to activate for a run with these rows, or None; it stays loaded until the run ends."""
        key = stack_key(rows)
        if not key:
            yield None
            return
        with self._lock:
            if key not in self._bytes:
                self._bytes[key] = self._load(key, rows)
            self._bytes.move_to_end(key)
            self._gone.discard(key)
            self._users[key] += 1
            self._unload_surplus()
        try:
            yield _name(key)
        finally:
            with self._lock:
                self._users[key] -= 1
                self._unload_surplus()

    def keep_only(self, sha256s: Collection[str]) -> None:
        """Unloads everything that holds another adapter; what a run uses goes when that ends."""
        with self._lock:
            self._gone |= {key for key in self._bytes if not set(key) - {""} <= set(sha256s)}
            self._unload_surplus()

    def _load(self, key: tuple[str, ...], rows: Rows) -> int:
        if len(key) == 1:
            self.adapters.load(str(next(row.path for row in rows if row)), _name(key))
            return 0
        tensors = read_rows(rows)
        path = Path(self._folder.name) / f"{abs(hash(key))}.onnx_adapter"
        write_adapter(path, tensors)
        self.adapters.load(str(path), _name(key))
        with contextlib.suppress(OSError):  # Windows keeps a mapped file until the end; it goes with its folder
            path.unlink()
        return sum(value.nbytes for value in tensors.values())

    def _unload_surplus(self) -> None:
        for key in list(self._bytes):
            surplus = key in self._gone or (len(key) > 1 and sum(self._bytes.values()) > CACHE_BYTES)
            if surplus and not self._users[key]:
                self.adapters.unload(_name(key))
                del self._bytes[key], self._users[key]
                self._gone.discard(key)


def _name(key: tuple[str, ...]) -> str:
    return ",".join(sha256[:16] for sha256 in key)
