"""A chat server on this computer for the tests: it answers what a test prepared, and keeps what it was sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SENTENCES = [
    "A hypoechoic mass with irregular margins in a breast ultrasound.",
    "Breast ultrasound showing a dark lobulated nodule that casts a shadow.",
    "An oval, well-circumscribed lesion is seen within the glandular tissue.",
    "Spiculated borders and heterogeneous echoes mark this breast tumor.",
]


@dataclass
class Asked:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ChatServer:
    """What is answered next, and what was asked.

    Attributes:
        replies: One a request, the last again and again: a text (the model's words), or (status, headers, body), or a
            function that is given the handler and answers by itself.
        asked: The requests so far.
    """

    port: int = 0
    replies: list[Any] = field(default_factory=lambda: ["\n".join(SENTENCES)])
    asked: list[Asked] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.port}/v1"


def chat(content: Any, finish_reason: str = "stop") -> bytes:
    """A chat server's body with one message."""
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": finish_reason}]}).encode()


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """Serve in threads until the block ends."""
    state = ChatServer()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                state.asked.append(Asked(self.requestline, dict(self.headers), body))
                reply = state.replies.pop(0) if len(state.replies) > 1 else state.replies[0]
            if callable(reply):
                answer: Callable[[BaseHTTPRequestHandler], None] = reply
                answer(self)
                return
            status, headers, content = (200, {}, chat(reply)) if isinstance(reply, str) else reply
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_CONNECT = do_POST  # noqa: N815 - the base class names them so

        def log_message(self, format: str, *values: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
