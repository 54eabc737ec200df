"""A teacher behind a URL: any server that speaks OpenAI's chat completions (POST URL/chat/completions).

What may pass is tried again, with exponential back-off and full jitter ("Exponential Backoff And Jitter", AWS
Architecture Blog, 2015): timeouts, connections that are refused or break, 408, 425, 429 and 5xx, and answers that are
no chat completion. A Retry-After of the server is kept. What will not pass (400, 401, 403, 404 and the like) ends the
asking at once. urllib3's Retry would do the first half; it knows nothing of a body that stalls or is no JSON.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests

from data.teacher_settings import TeacherSettings, unset_variable
from runtime.errors import OlivalError

Message = dict[str, str]
MOST_BACKOFF_SECONDS = 60.0
MOST_RETRY_AFTER_SECONDS = 600.0  # a server that wants longer than this is one to come back to another day
MOST_BYTES = 16 * 2**20  # of one answer; models write kilobytes
# of a body at a time: one that comes drop by drop keeps each wait short and the whole long, so the clock is looked at
DRIP_BYTES = 16
SHOWN = 300  # characters of what a server says
_PASSING = (408, 425, 429)  # and 5xx
_ADVICE = {
    400: "the server does not take the request: see teacher.model, max_new_tokens and request",
    401: "the server refuses the key: see teacher.api_key_env",
    403: "the key has no right to this model: see teacher.api_key_env and teacher.model",
    404: "there is no such model or path: see teacher.model, and teacher.url, which usually ends with /v1",
    422: "the server does not take the request: see teacher.model, max_new_tokens and request",
}


class TeacherError(OlivalError):
    """A teacher gives no answers; what it gave before is kept."""


class _Passing(Exception):
    """A failure that may be gone at the next try."""

    def __init__(self, what: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(what)
        self.retry_after_seconds = retry_after_seconds


class ServerTeacher:
    """Asks a server, several questions at once."""

    talks = True  # takes a conversation, so that it can be told what was wrong with its answer

    def __init__(self, settings: TeacherSettings) -> None:
        """Raises TeacherError when the variable of the key is not set."""
        self.settings = settings
        self.url = str(settings.url).rstrip("/") + "/chat/completions"
        self._key = os.environ.get(settings.api_key_env, "").strip() if settings.api_key_env else ""
        if settings.api_key_env and not self._key:
            raise TeacherError(f"teacher.api_key_env: {unset_variable(settings.api_key_env)}")
        self._stopped = threading.Event()
        self._threads = threading.local()

    def answer(self, conversations: Sequence[list[Message]], keep: Callable[[int, str], None]) -> None:
        """Hands each answer to `keep` with its conversation's place, from one thread at a time, as they come.

        Raises TeacherError when one cannot be had; those under way are waited for and kept.
        """
        lock, failures = threading.Lock(), []

        def ask(place: int) -> None:
            try:
                text = self._asked(conversations[place])
            except BaseException as error:
                self._stopped.set()
                failures.append(error)
                return
            with lock:
                keep(place, text)

        self._stopped.clear()
        with ThreadPoolExecutor(self.settings.requests_at_once, "teacher") as pool:
            futures = [pool.submit(ask, place) for place in range(len(conversations))]
            try:
                for future in futures:
                    future.result()
            finally:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
        if failures:
            raise failures[0]

    def _asked(self, messages: list[Message]) -> str:
        """One answer, tried until it is there, it will not come, or another question has failed."""
        for retry in range(self.settings.retries + 1):
            if self._stopped.is_set():
                raise TeacherError(f"{self.url}: stopped")
            try:
                return self._once(messages)
            except _Passing as failure:
                if retry == self.settings.retries:
                    raise TeacherError(f"{self.url}: no answer in {retry + 1} tries; the last: {failure}") from failure
                longest = min(self.settings.backoff_seconds * 2**retry, MOST_BACKOFF_SECONDS)
                wait = random.uniform(0, longest)
                if failure.retry_after_seconds is not None:
                    wait += failure.retry_after_seconds
                self._stopped.wait(wait)
        raise AssertionError("the last retry returns or raises")

    def _once(self, messages: list[Message]) -> str:
        """Raises _Passing or TeacherError."""
        settings, seconds = self.settings, self.settings.timeout_seconds
        body: dict[str, Any] = {"model": settings.model, "messages": messages, "temperature": settings.temperature}
        body |= {"max_tokens": settings.max_new_tokens, **({"stop": list(settings.stop)} if settings.stop else {})}
        body = {name: value for name, value in {**body, **settings.request}.items() if value is not None}
        end = time.monotonic() + seconds
        try:
            with self._session().post(
                self.url, json=body, auth=self._authorize, timeout=seconds, stream=True, allow_redirects=False
            ) as response:
                text = _body(response, end)
        except (requests.exceptions.SSLError, requests.exceptions.InvalidURL) as error:
            raise TeacherError(self._safe(f"{self.url}: {error}")) from error
        except (requests.exceptions.Timeout, TimeoutError) as error:
            raise _Passing(f"nothing in {seconds:g} seconds (teacher.timeout_seconds)") from error
        except requests.exceptions.ConnectionError as error:
            raise _Passing(f"{self._safe(_reason(error))}; is a server running there (teacher.url)?") from error
        except requests.exceptions.RequestException as error:
            raise _Passing(self._safe(_reason(error))) from error
        if response.status_code != 200:
            self._refused(response, text)
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            raise _Passing(f"an answer that is no chat completion: {self._safe(text)!r}; see teacher.url") from None
        return content if isinstance(content, str) else ""  # null where the model refuses

    def _refused(self, response: requests.Response, text: str) -> None:
        status = response.status_code
        said = f"HTTP {status} {response.reason}: {self._safe(text)}".rstrip(": ")
        if (status in _PASSING or status >= 500) and "insufficient_quota" not in text:
            wait = _retry_after(response.headers.get("Retry-After"))
            if wait is None or wait <= MOST_RETRY_AFTER_SECONDS:
                raise _Passing(said, wait)
            raise TeacherError(f"{self.url}: {said}; it asks to come back in {wait:.0f} seconds")
        if 300 <= status < 400:
            where = self._safe(str(response.headers.get("Location")))
            raise TeacherError(f"{self.url}: HTTP {status}, it is now at {where}: change teacher.url")
        advice = _ADVICE.get(status)
        raise TeacherError(f"{self.url}: {said}" + (f"; {advice}" if advice else ""))

    def _session(self) -> requests.Session:
        """Of this thread: requests promises nothing to threads that share one."""
        if not hasattr(self._threads, "session"):
            self._threads.session = requests.Session()
        session: requests.Session = self._threads.session
        return session

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """As an `auth`, for a key in the headers gives way to what a .netrc file says."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _safe(self, text: str) -> str:
        """The beginning of a text in one line, without the key: servers may send it back."""
        line = " ".join(text.split())
        line = line.replace(self._key, "***") if self._key else line
        return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def _body(response: requests.Response, end: float) -> str:
    """The body as text. Raises TimeoutError when it is not there at `end`, of the monotonic clock; and _Passing."""
    parts, size = [], 0
    for part in response.iter_content(DRIP_BYTES):
        parts.append(part)
        size += len(part)
        if time.monotonic() > end:
            raise TimeoutError
        if size > MOST_BYTES:
            raise _Passing(f"an answer of more than {MOST_BYTES} bytes; see teacher.url")
    return b"".join(parts).decode("utf-8", "replace")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number of them or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reason(error: BaseException) -> str:
    """The innermost cause: requests and urllib3 wrap a refused connection four times."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
