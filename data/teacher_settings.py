"""Who a teacher is: a server that speaks OpenAI's chat completions, a local model, or an adapter of the workflow.

{"url": "https://api.openai.com/v1", "model": "gpt-4o-mini", "api_key_env": "OPENAI_API_KEY"}
{"model_path": "models/teacher"}
{"adapter": "teacher"}
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runtime.errors import nearest

KINDS = ("url", "model_path", "adapter")
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
QUANTIZATIONS = ("nf4", "fp4")
_EVERYWHERE = ("max_new_tokens", "stop")
_SERVER = ("model", "api_key_env", "timeout_seconds", "retries", "backoff_seconds", "requests_at_once", "temperature",
           "request")  # fmt: skip
_LOCAL = ("batch_size", "chat_template", "compute_dtype", "quantization")
OPTIONS = {"url": (*_SERVER, *_EVERYWHERE), "model_path": (*_LOCAL, *_EVERYWHERE),
           "adapter": ("batch_size", *_EVERYWHERE)}  # fmt: skip
_NO_PART_OF_ANSWERS = ("api_key_env", "timeout_seconds", "retries", "backoff_seconds", "requests_at_once", "batch_size")
_SECRET_ENDS = ("authorization", "api_key", "apikey", "token")  # of fields of a request
# option -> whether a value is right, and what is
_RANGES: dict[str, tuple[Any, str]] = {
    "timeout_seconds": (lambda v: _is_number(v) and v > 0, "a number above 0"),
    "retries": (lambda v: _is_count(v) and v >= 0, "a whole number from 0"),
    "backoff_seconds": (lambda v: _is_number(v) and v >= 0, "a number from 0"),
    "requests_at_once": (lambda v: _is_count(v) and v >= 1, "a whole number from 1"),
    "temperature": (lambda v: _is_number(v) and v >= 0, "a number from 0"),
    "max_new_tokens": (lambda v: _is_count(v) and v >= 1, "a whole number from 1"),
    "batch_size": (lambda v: _is_count(v) and v >= 1, "a whole number from 1"),
    "stop": (lambda v: isinstance(v, list) and all(isinstance(t, str) and t for t in v), "a list of texts"),
    "request": (lambda v: isinstance(v, dict), "an object of fields"),
    "model": (lambda v: isinstance(v, str) and v.strip(), "the model's name on the server"),
    "api_key_env": (
        lambda v: isinstance(v, str) and re.fullmatch(r"[A-Za-z_]\w*", v),
        "an environment variable's name",
    ),
    "chat_template": (lambda v: v is None or isinstance(v, bool), "true, false or null"),
    "compute_dtype": (lambda v: v in COMPUTE_DTYPES, f"one of {', '.join(COMPUTE_DTYPES)}"),
    "quantization": (lambda v: v in (None, *QUANTIZATIONS), f"one of {', '.join(QUANTIZATIONS)} or null"),
    **{kind: (lambda v: isinstance(v, str) and v.strip(), "text") for kind in KINDS},
}


@dataclass(frozen=True)
class TeacherSettings:
    """A teacher's options; of `url`, `model_path` and `adapter` one is given.

    Attributes:
        api_key_env: name of the environment variable with the server's key; the key itself is nowhere in a workflow.
        timeout_seconds: for one answer, from the request to its last byte.
        retries: how often a request is sent again after a timeout, a refused connection, or 429 and 5xx.
        backoff_seconds: before the first of these; it doubles each time, with jitter.
        request: more fields of the request's JSON, or other values for ours; null leaves a field out.
        chat_template: of a local model: the question is a user's message; null does so where the tokenizer has one.
    """

    url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    timeout_seconds: float = 60.0
    retries: int = 5
    backoff_seconds: float = 1.0
    requests_at_once: int = 4
    temperature: float = 0.0
    request: dict[str, Any] = field(default_factory=dict)
    model_path: str | None = None
    adapter: str | None = None
    batch_size: int = 16
    chat_template: bool | None = None
    compute_dtype: str = "float32"
    quantization: str | None = None
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> TeacherSettings:
        """`options` without `teacher_problems`."""
        return cls(**{**options, "stop": tuple(options.get("stop", ()))})

    @property
    def name(self) -> str:
        """Short, for messages and tables."""
        return self.model or self.adapter or Path(str(self.model_path)).name

    def identity(self) -> dict[str, Any]:
        """What the answers depend on, but for the weights behind the name."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in _NO_PART_OF_ANSWERS}


def teacher_problems(options: Any) -> list[str]:
    """Everything that is wrong with the option `teacher` by itself, a line each; nothing is asked or opened."""
    if not isinstance(options, dict):
        return [f"teacher: must be an object with one of {', '.join(KINDS)}, but is {options!r}"]
    kinds = [kind for kind in KINDS if kind in options]
    if len(kinds) != 1:
        given = f"both {' and '.join(kinds)}" if kinds else "none of them"
        return [f"teacher: give one of {', '.join(KINDS)}, but there is {given}"]
    valid = (kinds[0], *OPTIONS[kinds[0]])
    problems = []
    for key, value in options.items():
        if key not in valid:
            problems.append(f"teacher.{key}: unknown option of a teacher with {kinds[0]}; {nearest(key, valid)}")
        elif not _RANGES[key][0](value):
            shown = "" if key == "api_key_env" else f", but is {value!r}"  # it may be the key itself
            problems.append(f"teacher.{key}: must be {_RANGES[key][1]}{shown}")
    if kinds[0] == "url":
        wrong = {line.split(":")[0].removeprefix("teacher.") for line in problems}
        problems += _server_problems({key: value for key, value in options.items() if key not in wrong})
        problems += [] if "model" in options else ["teacher.model: is required, the model's name on the server"]
    return problems


def _server_problems(options: dict[str, Any]) -> list[str]:
    """What is wrong with values of the right kind; those of another kind are left out of `options`."""
    problems = _url_problems(options["url"]) if "url" in options else []
    if (variable := options.get("api_key_env")) is not None:
        key = os.environ.get(variable, "").strip()
        if not key:
            problems.append(
                f"teacher.api_key_env: {unset_variable(variable)}; export it, or leave out the option for a server "
                "without keys"
            )
        elif not (key.isascii() and key.isprintable()) or " " in key:
            problems.append(f"teacher.api_key_env: the value of {variable} has spaces or other signs that no key has")
    if secrets := _secret_fields(options.get("request", {})):
        problems.append(
            f"teacher.request: a key has no place in a workflow, and packages would store {', '.join(secrets)}; use "
            "api_key_env"
        )
    return problems


def unset_variable(name: str) -> str:
    """That a key's variable is not set; its name is shown where it can hardly be the key itself."""
    if re.fullmatch(r"[A-Z0-9_]+", name):
        return f"the environment variable {name} is not set"
    return "the variable that api_key_env names is not set (names are upper case, such as OPENAI_API_KEY)"


def _secret_fields(value: Any, where: str = "") -> list[str]:
    """Paths of the fields, at any depth, whose names say that a key is in them; "max_tokens" and the like do not."""
    if isinstance(value, list | tuple):
        return [found for item in value for found in _secret_fields(item, where)]
    found = []
    for key, item in value.items() if isinstance(value, dict) else ():
        path = f"{where}.{key}" if where else str(key)
        if str(key).strip().lower().replace("-", "_").endswith(_SECRET_ENDS):
            found.append(path)
        else:
            found += _secret_fields(item, path)
    return found


def _url_problems(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        wrong = parts.scheme not in ("http", "https") or not parts.hostname or (parts.port or 1) < 1
    except ValueError:  # a port that is no number, an open bracket
        return ["teacher.url: is no URL; right is https://HOST/v1"]
    if parts.username or parts.password:  # not shown: it may be a key
        return ["teacher.url: has a user or password in it, which would be stored; use api_key_env"]
    if wrong:
        return [f"teacher.url: '{url}' is no http or https URL; right is https://HOST/v1"]
    if parts.query or parts.fragment:
        return ["teacher.url: has a query or fragment; right is https://HOST/v1"]
    if parts.path.rstrip("/").endswith("/completions"):
        return [f"teacher.url: '{url}' is a single path of the API; right is what stands before it, .../v1"]
    return []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
