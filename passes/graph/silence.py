"""Keeps exporters from filling the terminal: what they print is shown when they fail."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from runtime.errors import OlivalError


@contextlib.contextmanager
def silence(what: str) -> Iterator[None]:
    """Keeps what an exporter prints and logs; whatever it raises becomes an OlivalError with the end of that."""
    printed = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # whatever the builder, torch, transformers or onnx raise
        raise OlivalError(f"{what} failed: {type(error).__name__}: {error}\n{printed.getvalue()[-2000:]}") from error
    finally:
        logging.disable(disabled)
