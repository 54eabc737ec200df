"""A small server that speaks OpenAI's chat completions and misbehaves as told, in a thread of the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What a request gets: a status, a body (text, or a chat completion with `says`), headers; after some seconds."""

    says: str | None = None
    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    drop_seconds: float = 0.0  # between two bytes of the body


@dataclass
class ChatServer:
    """Counts and keeps what it is asked."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def questions(self) -> list[str]:
        """The last message of each request."""
        return [request["messages"][-1]["content"] for request in self.requests]


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """`answer` gets a request's JSON and its number (from 0) in the order of arrival."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(request)
                server.headers.append(dict(self.headers))
                server.paths.append(self.path)
                server.at_once += 1
                server.most_at_once = max(server.most_at_once, server.at_once)
            reply = answer(request, number)
            time.sleep(reply.seconds)
            with lock:
                server.at_once -= 1
            body = reply.body
            if reply.says is not None:
                body = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply.says}}]})
            content = body.encode()
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(content)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for place in range(0, len(content), 1 if reply.drop_seconds else len(content)):
                    self.wfile.write(content[place : place + 1] if reply.drop_seconds else content)
                    self.wfile.flush()
                    time.sleep(reply.drop_seconds)
            except OSError:  # the asker has gone
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to the terminal."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    listener = Server(("127.0.0.1", 0), Handler)
    server = ChatServer(f"http://127.0.0.1:{listener.server_address[1]}/v1")
    thread = threading.Thread(target=lambda: listener.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
