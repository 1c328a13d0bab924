"""Get one large file over HTTPS so that it goes on where it broke off: range requests (RFC 9110, section 14).

Proxies and certificates are those of the environment (``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE``).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from MedCLIPSAMLib.errors import CancelledError
from MedCLIPSAMLib.part_file import PartFile
from MedCLIPSAMLib.reporting import VERSION

logger = logging.getLogger(__name__)

CHUNK = 1 << 16
ATTEMPTS, FIRST_ATTEMPTS = 6, 3  # in a row that bring nothing; as long as the server did not answer at all
TIMEOUTS = (20.0, 60.0)  # seconds to connect, and between two pieces
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before another attempt: doubled each time
LOCAL = ("localhost", "127.0.0.1", "::1")
_PASSING = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class TransferError(Exception):
    """The file could not be had; the text says why."""


class OtherFileError(TransferError):
    """The server has another file than the registered one; nothing of it was kept."""


class _OnlyLocal(HTTPAdapter):
    """Unencrypted addresses, also those that a server sends us on to, are for this computer alone."""

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        if urlsplit(request.url or "").hostname not in LOCAL:
            raise TransferError(f"{request.url} is not encrypted; only https:// addresses are used")
        return super().send(request, *arguments, **options)


def transfer(
    url: str,
    part: PartFile,
    *,
    size: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> None:
    """Get what is missing of a file, with as many connections as that takes.

    Args:
        url: "https://...", or "http://..." on this computer.
        part: What has come, and what is to come.
        size: Registered size in bytes; a server that offers another one is not listened to.
        progress: Is called with the bytes that are there and those of the whole file, None while that is not known.
        cancelled: Is asked between two pieces.

    Raises:
        TransferError: It cannot be had; what has come is kept.
        OtherFileError: It is not the registered file.
        OutputError: It cannot be written, or there is no room for it.
        CancelledError: ``cancelled`` said so; what has come is kept.
    """
    _Transfer(url, part, size, progress, cancelled or (lambda: False)).run()


class _Transfer:
    def __init__(
        self,
        url: str,
        part: PartFile,
        size: int | None,
        progress: Callable[[int, int | None], None] | None,
        cancelled: Callable[[], bool],
    ) -> None:
        self._url, self._part, self._size, self._total = url, part, size, size
        self._progress, self._cancelled = progress, cancelled
        self._ranges, self._reached = True, False

    def run(self) -> None:
        fruitless = 0
        with requests.Session() as session:
            session.mount("http://", _OnlyLocal())
            session.auth = lambda request: request  # do not look for passwords in ~/.netrc
            while True:
                before = self._part.done
                try:
                    self._check_cancelled()
                    reason, pause = self._attempt(session)
                    if reason is None:
                        return
                except requests.exceptions.SSLError as error:
                    raise TransferError(
                        f"the certificate of the server is not accepted ({_cause(error)}); if your network looks into "
                        "encrypted connections, name its certificate: REQUESTS_CA_BUNDLE=/path/to/bundle.pem"
                    ) from error
                except requests.RequestException as error:
                    reason, pause = _cause(error), None
                    if not isinstance(error, _PASSING):
                        raise TransferError(reason) from error
                fruitless = 0 if self._part.done > before else fruitless + 1
                if fruitless >= (ATTEMPTS if self._reached else FIRST_ATTEMPTS):
                    raise TransferError(f"{reason}; {fruitless} attempts brought nothing more")
                logger.info("%s broke off at %d bytes (%s).", self._part.path.name, self._part.done, reason)
                self._wait(min(PAUSE * 2**fruitless, LONGEST_PAUSE) if pause is None else pause)

    def _attempt(self, session: requests.Session) -> tuple[str | None, float | None]:
        """Return None if all is there, else why not, and the seconds after which the server wants to be asked again."""
        part = self._part
        if self._size is not None and part.done == self._size:
            return None, None
        headers = {"Accept-Encoding": "identity", "User-Agent": f"MedCLIPSAM/{VERSION}"}
        if part.done and self._ranges:
            headers["Range"] = f"bytes={part.done}-"
            if part.version:
                headers["If-Range"] = part.version
        with session.get(self._url, headers=headers, stream=True, timeout=TIMEOUTS) as response:
            self._reached = True
            status, total = response.status_code, None
            if status in _AGAIN:
                return f"the server answers {status} {response.reason}", _retry_after(response.headers)
            if status == 416:
                if response.headers.get("Content-Range", "") == f"bytes */{part.done}":
                    return None, None  # all is there
                part.discard()
                return "the server has less than what is there", 0.0
            if status == 206:
                start, total = _content_range(response.headers)
                if "Range" not in headers:
                    raise TransferError("the server sends a part of the file although the whole was asked for")
                if start != part.done or _encoded(response.headers):
                    self._ranges = False
                    logger.warning("The server sends another range than was asked for; starting again without.")
                    return "the server sends another range than was asked for", 0.0
            elif status == 200:
                total = None if _encoded(response.headers) else _number(response.headers.get("Content-Length"))
            else:
                raise TransferError(f"the server answers {status} {response.reason}")
            self._check(response, total)
            if status == 200 and part.done:
                logger.info("The server cannot go on, or has a new version; starting again.")
                part.discard()
            self._total = total if total is not None else self._size
            self._note(response)
            return self._receive(response), None

    def _check(self, response: requests.Response, total: int | None) -> None:
        """Raise if what the server offers cannot be the file."""
        if "text/html" in response.headers.get("Content-Type", ""):
            raise TransferError(
                "a web page came instead of the file; perhaps your network wants you to log in (open any page in a "
                "browser), or the address is out of date"
            )
        if self._size is not None and total is not None and total != self._size:
            self._part.discard()
            raise OtherFileError(f"the server offers {total} bytes, {self._size} are registered: it is another file")
        chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()  # its end can be told from a break
        if self._size is None and total is None and not chunked:
            raise TransferError("the server does not say how large the file is, so a part could pass for the whole")

    def _note(self, response: requests.Response) -> None:
        """Keep what the server says of the file: its version, and on the Hugging Face hub its SHA-256."""
        for one in (*response.history, response):
            linked = one.headers.get("X-Linked-ETag", "").strip('"')
            if re.fullmatch(r"[0-9a-f]{64}", linked):
                self._part.sha256 = linked
        etag = response.headers.get("ETag", "")
        version = etag if etag.startswith('"') else response.headers.get("Last-Modified")  # not a weak ETag
        if version or not self._part.done:
            self._part.version = version
        if self._total is not None:
            self._part.check_room(self._total)
        self._part.note()

    def _receive(self, response: requests.Response) -> str | None:
        """Return None if all is there now, else why not."""
        part, total = self._part, self._total
        stream = part.open()
        try:
            for piece in response.iter_content(CHUNK):
                part.write(stream, piece)
                if total is not None and part.done > total:
                    break
                if self._progress:
                    self._progress(part.done, total)
                self._check_cancelled()
        finally:
            part.close(stream)
        if total is None or part.done == total:
            return None
        if part.done > total:
            part.discard()
            raise OtherFileError(f"more than the announced {total} bytes came")
        return f"only {part.done} of {total} bytes came"

    def _check_cancelled(self) -> None:
        if self._cancelled():
            raise CancelledError("The download was cancelled; what has come is kept.")

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (rest := end - time.monotonic()) > 0:
            self._check_cancelled()
            time.sleep(min(rest, 0.1))


def _content_range(headers: Mapping[str, str]) -> tuple[int | None, int | None]:
    """Return first byte and size of the whole file; None for what is not told."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    return (int(match[1]), _number(match[2])) if match else (None, None)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


def _encoded(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Encoding", "identity") not in ("", "identity")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    seconds = _number(headers.get("Retry-After"))
    return None if seconds is None else float(min(seconds, LONGEST_PAUSE))


def _cause(error: BaseException) -> str:
    """Return the innermost reason in a line; what requests says itself repeats the address several times."""
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not answer as it should; check HTTPS_PROXY"
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
