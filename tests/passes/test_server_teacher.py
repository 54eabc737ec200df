"""The client of chat completions against a server that answers well, badly, slowly, or not at all."""

from __future__ import annotations

import email.utils
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from data.teacher_settings import TeacherSettings
from passes.teaching.server_teacher import ServerTeacher, TeacherError
from tests.passes.chat_server import Reply, chat_server

GOOD = Reply("Answer: ham")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def ask(url: str, questions: int = 1, **options: Any) -> dict[int, str]:
    """{place: answer} of so many questions."""
    options = {"model": "tiny", "retries": 3, "backoff_seconds": 0.01, "timeout_seconds": 5, **options}
    found: dict[int, str] = {}
    talks = [[{"role": "user", "content": f"question {place}"}] for place in range(questions)]
    ServerTeacher(TeacherSettings.from_options({"url": url, **options})).answer(talks, found.__setitem__)
    return found


def test_what_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The request of OpenAI's API; the key is the variable's, whatever a .netrc file says."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password else\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    options: dict[str, Any] = {"api_key_env": "TEACHER_KEY", "max_new_tokens": 7, "temperature": 0.5, "stop": ["\n"]}
    with chat_server(lambda request, _: Reply(request["messages"][0]["content"].upper())) as server:
        assert ask(server.url + "/", **options) == {0: "QUESTION 0"}
        ask(server.url, **options, request={"max_tokens": None, "max_completion_tokens": 9, "seed": 1})
    sent = {"model": "tiny", "messages": [{"role": "user", "content": "question 0"}], "temperature": 0.5}
    assert server.requests == [
        {**sent, "max_tokens": 7, "stop": ["\n"]},
        {**sent, "max_completion_tokens": 9, "stop": ["\n"], "seed": 1},
    ]
    assert server.paths == ["/v1/chat/completions"] * 2
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}


def test_several_questions_at_once() -> None:
    """Not more than are allowed, and each answer goes to its question."""
    with chat_server(lambda request, _: Reply(request["messages"][0]["content"], seconds=0.02)) as server:
        assert ask(server.url, 12, requests_at_once=3) == {place: f"question {place}" for place in range(12)}
    assert server.most_at_once == 3
    assert not any("Authorization" in headers for headers in server.headers)


@pytest.mark.parametrize(
    "first",
    [
        Reply(status=500, body="broken"),
        Reply(status=503),
        Reply(status=429, body='{"error": {"message": "slow down"}}'),
        Reply(status=408),
        Reply(body="<html>Welcome</html>"),
        Reply(body='{"choices": []}'),
        Reply(body='{"error": "no"}'),
        Reply(body="[1, 2"),
        Reply(body=""),
        Reply(says="late", seconds=0.6),
        Reply(says="x" * 200, drop_seconds=0.01),
        Reply(says="cut off", headers={"Content-Length": "5000", "Connection": "close"}),
    ],
    ids=["500", "503", "429", "408", "HTML", "no choices", "no chat", "no JSON", "empty", "late", "drops", "cut off"],
)
def test_what_may_pass_is_tried_again(first: Reply) -> None:
    with chat_server(lambda _, number: first if number == 0 else GOOD) as server:
        assert ask(server.url, timeout_seconds=0.3) == {0: "Answer: ham"}
    assert len(server.requests) == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_kept(as_date: bool) -> None:
    value = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"  # dates are whole seconds
    slow = Reply(status=429, headers={"Retry-After": value})
    start = time.monotonic()
    with chat_server(lambda _, number: slow if number == 0 else GOOD) as server:
        ask(server.url)
    assert 0.9 < time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (
            Reply(status=400, body="bad field sk-secret"),
            "HTTP 400 Bad Request: bad field ***; the server does not take",
        ),
        (Reply(status=401, body="no such key"), "HTTP 401 Unauthorized: no such key; the server refuses the key: see "),
        (Reply(status=403), "HTTP 403 Forbidden; the key has no right to this model"),
        (Reply(status=404), "HTTP 404 Not Found; there is no such model or path: see teacher.model, and teacher.url"),
        (Reply(status=418, body="tea"), "HTTP 418 I'm a Teapot: tea"),
        (Reply(status=429, body='{"code": "insufficient_quota"}'), "HTTP 429 Too Many Requests: {"),
        (Reply(status=429, headers={"Retry-After": "7200"}), "it asks to come back in 7200 seconds"),
        (Reply(status=301, headers={"Location": "http://else/v1"}), "HTTP 301, it is now at http://else/v1"),
    ],
    ids=["400", "401", "403", "404", "418", "quota", "long", "301"],
)
def test_what_will_not_pass_ends_at_once(monkeypatch: pytest.MonkeyPatch, reply: Reply, expected: str) -> None:
    """One request, and an error with URL, status, what the server says, what to change; never the key."""
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    with chat_server(lambda *_: reply) as server, pytest.raises(TeacherError) as error:
        ask(server.url, api_key_env="TEACHER_KEY")
    assert str(error.value).startswith(f"{server.url}/chat/completions: ") and expected in str(error.value)
    assert "secret" not in str(error.value)
    assert len(server.requests) == 1


def test_a_teacher_that_never_answers() -> None:
    with chat_server(lambda *_: Reply(status=500, body="down")) as server, pytest.raises(TeacherError) as error:
        ask(server.url, retries=2)
    said = "no answer in 3 tries; the last: HTTP 500 Internal Server Error: down"
    assert str(error.value) == f"{server.url}/chat/completions: {said}"
    assert len(server.requests) == 3
    with chat_server(lambda *_: Reply("late", seconds=0.5)) as server, pytest.raises(TeacherError) as error:
        ask(server.url, retries=1, timeout_seconds=0.1)
    assert "in 2 tries; the last: nothing in 0.1 seconds (teacher.timeout_seconds)" in str(error.value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(TeacherError, match=r"in 4 tries; the last: .*refused"):
        ask(url)


def test_a_failure_stops_the_others_and_keeps_what_was_under_way() -> None:
    """The third question is refused; nothing is asked after it, and the answers before it are handed over."""

    def answer(_: Any, number: int) -> Reply:
        return Reply(status=401) if number == 2 else GOOD

    found: dict[int, str] = {}
    with chat_server(answer) as server, pytest.raises(TeacherError, match="401"):
        settings = TeacherSettings.from_options({"url": server.url, "model": "tiny", "requests_at_once": 1})
        talks = [[{"role": "user", "content": str(place)}] for place in range(50)]
        ServerTeacher(settings).answer(talks, found.__setitem__)
    assert found == {0: "Answer: ham", 1: "Answer: ham"} and len(server.requests) == 3


def test_a_refusal_ends_waiting_at_once() -> None:
    """A question that waits for its next try does not keep a failed run from ending."""

    def answer(request: dict[str, Any], _: int) -> Reply:
        waits = request["messages"][0]["content"] == "question 0"
        return Reply(status=429, headers={"Retry-After": "60"}) if waits else Reply(status=401, seconds=0.1)

    start = time.monotonic()
    with chat_server(answer) as server, pytest.raises(TeacherError, match="401"):
        ask(server.url, 2, requests_at_once=2)
    assert time.monotonic() - start < 5
