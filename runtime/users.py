"""Counts who uses which adapter, so that none is replaced or dropped under a running call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from runtime.errors import PackageError


class AdapterUsers:
    """Calls and streams enter `using`; whoever changes an adapter enters `changing`, which needs it unused."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._count: Counter[str] = Counter()
        self._changed: set[str] = set()

    @contextmanager
    def using(self, names: Iterable[str | None]) -> Iterator[None]:
        """Keeps adapters from being changed; waits for a change of one of them to end first."""
        wanted = {name for name in names if name is not None}
        with self._condition:
            self._condition.wait_for(lambda: not wanted & self._changed)
            self._count.update(wanted)
        try:
            yield
        finally:
            with self._condition:
                self._count.subtract(wanted)

    @contextmanager
    def changing(self, name: str) -> Iterator[None]:
        """Keeps new calls from an adapter until the change is made.

        Raises:
            PackageError: a call or a stream uses the adapter.
        """
        with self._condition:
            self._condition.wait_for(lambda: name not in self._changed)
            if self._count[name] > 0:
                raise PackageError(
                    f"adapter '{name}' is in use by {self._count[name]} running calls or streams; "
                    "let them end, or close them, before it is replaced or dropped"
                )
            self._changed.add(name)
        try:
            yield
        finally:
            with self._condition:
                self._changed.discard(name)
                self._condition.notify_all()
