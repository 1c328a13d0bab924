"""A web server on this computer for the tests: it has files, and it fails as a test wants."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Faults:
    """What goes wrong with the next answer.

    Attributes:
        break_after: Close the connection after so many bytes of the body.
        status: Answer with this status and nothing else.
        headers: Sent in place of, or beside, the usual ones; None leaves one out.
        body: Sent in place of the file.
        ignore_range: Send the whole file whatever was asked for.
        shift: Send a range that begins so many bytes later than was asked for.
        wait: Send half of the body, and the rest when this is set.
    """

    break_after: int | None = None
    status: int | None = None
    headers: dict[str, str | None] = field(default_factory=dict)
    body: bytes | None = None
    ignore_range: bool = False
    shift: int = 0
    wait: threading.Event | None = None


@dataclass
class FileServer:
    """The server.

    Attributes:
        files: Content by path, "/net.bin".
        etag: Of all files; None sends none.
        faults: Of the next answers, the first one first; without any left, answers are right.
        asked: (path, headers) of the requests so far.
        half: Set when half of a body with ``wait`` has been sent.
    """

    port: int = 0
    scheme: str = "http"
    files: dict[str, bytes] = field(default_factory=dict)
    etag: str | None = '"one"'
    faults: list[Faults] = field(default_factory=list)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    half: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        """The address of a file."""
        return f"{self.scheme}://localhost:{self.port}{path}"

    def ranges(self) -> list[str | None]:
        """What the requests asked for."""
        return [headers.get("Range") for _, headers in self.asked]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        server: FileServer = self.server.files  # type: ignore[attr-defined]
        server.asked.append((self.path, dict(self.headers)))
        faults = server.faults.pop(0) if server.faults else Faults()
        content = server.files.get(self.path)
        self.close_connection = True
        if faults.status is not None or content is None:
            self._head(faults.status or 404, {"Content-Length": "0", **faults.headers})
            return
        content = content if faults.body is None else faults.body
        headers: dict[str, str | None] = {"Content-Type": "application/octet-stream", "ETag": server.etag}
        start = self._start(server)
        if start is None or faults.ignore_range:
            status, body = 200, content
        elif start >= len(content):
            self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        else:
            start += faults.shift
            status, body = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(status, {**headers, "Content-Length": str(len(body)), **faults.headers})
        if faults.wait:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            server.half.set()
            faults.wait.wait(30)
            body = body[len(body) // 2 :]
        self.wfile.write(body if faults.break_after is None else body[: faults.break_after])

    def _start(self, server: FileServer) -> int | None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, server.etag)
        return int(match[1]) if match and same else None

    def _head(self, status: int, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()


@contextmanager
def file_server(certificate: Path | None = None) -> Iterator[FileServer]:
    """Run a server; with a certificate (and its key in the same file) by HTTPS."""
    server = ThreadingHTTPServer(("localhost", 0), _Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # clients that hang up are part of the tests
    files = FileServer(server.server_address[1])
    server.files = files  # type: ignore[attr-defined]
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        files.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield files
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
