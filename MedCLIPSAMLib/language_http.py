"""One question to an OpenAI-compatible server: a POST to ``{base}/chat/completions`` that nothing else goes with."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib.errors import CancelledError, InputError, MedCLIPSAMError
from MedCLIPSAMLib.language_question import KEY_VARIABLE, Question
from MedCLIPSAMLib.weights import OFFLINE_VARIABLE

if TYPE_CHECKING:
    import requests

logger = logging.getLogger(__name__)

CONNECT_SECONDS, READ_SECONDS = 10.0, 300.0  # a model on a laptop thinks for minutes
TRIES = 4
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; the pause doubles where the server does not say how long
LARGEST_REPLY = 4 << 20  # bytes; a hundred sentences are 20 kB
_PASSING = (429, 500, 502, 503, 504, 529)  # too many requests, or trouble that may pass
OFFLINE_MESSAGE = (
    f"no connection is made while {OFFLINE_VARIABLE} names an offline folder; unset it to ask a language model."
)
_NO_PROXY = {"http": None, "https": None, "all": None}


class LanguageModelError(MedCLIPSAMError):
    """The language model could not be asked, or what it said is of no use; the message says what to do."""


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Attributes:
        text: All of it.
        whole: False where it was cut off at the server's limit.
    """

    text: str
    whole: bool


def offline() -> bool:
    """Return whether no connection may be made, because the environment names an offline folder of weights."""
    return bool(os.environ.get(OFFLINE_VARIABLE))


def key_of_environment() -> str | None:
    """Return the key in MEDCLIPSAM_LLM_KEY; None where there is none.

    Raises:
        InputError: It holds characters that no key has; the message does not show it.
    """
    return checked_key(os.environ.get(KEY_VARIABLE))


def checked_key(key: str | None) -> str | None:
    """Return a key without outer white space; None where it is empty.

    Raises:
        InputError: It holds characters that no key has; the message does not show it.
    """
    key = (key or "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise InputError(f"the key ({KEY_VARIABLE}) holds blanks or characters that no key has; copy it anew.")
    return key or None


def post(question: Question, key: str | None, cancelled: Callable[[], bool] | None = None) -> Reply:
    """Send the question and return the reply.

    The body is ``question.body`` to the letter. Proxies and REQUESTS_CA_BUNDLE of the environment are honoured, but for
    a server on this computer; redirections are not followed, since they lead elsewhere than what the user agreed to.
    A server that is busy or in trouble is asked up to 4 times, after the pause that it asks for.

    Args:
        question: What and where.
        key: Sent as a bearer token, and kept nowhere.
        cancelled: Asked between the tries.

    Raises:
        InputError: Offline (MEDCLIPSAM_WEIGHTS), the package requests is missing, or the key cannot be used.
        CancelledError: ``cancelled`` said so.
        LanguageModelError: No connection, a refusal, or an answer of another kind.
    """
    if offline():
        raise InputError(OFFLINE_MESSAGE)
    key = checked_key(key)
    try:
        import requests
    except ImportError as error:
        raise InputError('asking a language model needs the package requests: run "pip install requests".') from error

    with requests.Session() as session:
        for attempt in range(1, TRIES + 1):
            if cancelled is not None and cancelled():
                raise CancelledError("asking the language model was cancelled.")
            logger.info("asking %s at %s", question.model, question.host)
            status, headers, content = _exchange(session, question, key)
            if status == 200:
                return _reply(content)
            if status not in _PASSING or attempt == TRIES:
                break
            pause = _pause(headers.get("Retry-After"), attempt)
            if pause > LONGEST_PAUSE:
                raise LanguageModelError(
                    f"{question.host} asks to wait {pause:.0f} s (status {status}); try again then."
                )
            logger.info("%s answered with status %d; asking again in %.1f s", question.host, status, pause)
            _wait(pause, cancelled)
    raise LanguageModelError(_refusal(question, status, headers, content, key))


def _exchange(session: requests.Session, question: Question, key: str | None) -> tuple[int, Any, bytes]:
    """Return status, headers and content of one exchange."""
    import requests

    def authorise(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        # As a function and not among the headers: otherwise what ~/.netrc holds for the host would take its place.
        if key:
            prepared.headers["Authorization"] = f"Bearer {key}"
        return prepared

    where = f"{question.host} ({question.endpoint})"
    try:
        with session.post(
            question.url,
            data=question.body.encode("utf-8"),
            headers=question.headers,
            auth=authorise,
            timeout=(CONNECT_SECONDS, READ_SECONDS),
            allow_redirects=False,
            stream=True,
            proxies=dict(_NO_PROXY) if question.stays_here else None,
        ) as response:
            return response.status_code, response.headers, _content(response)
    except requests.exceptions.SSLError as error:
        raise LanguageModelError(
            f"the certificate of {where} cannot be trusted; where a proxy has its own, name it in REQUESTS_CA_BUNDLE."
        ) from error
    except requests.exceptions.ProxyError as error:
        raise LanguageModelError(
            f"the proxy on the way to {where} does not answer; check HTTPS_PROXY and NO_PROXY."
        ) from error
    except requests.exceptions.ReadTimeout as error:
        raise LanguageModelError(
            f"{where} said nothing for {READ_SECONDS:.0f} s; ask for fewer sentences or take a faster model."
        ) from error
    except requests.exceptions.ConnectionError as error:
        raise LanguageModelError(
            f"there is no connection to {where}, or it broke; is the server running, and is the address right?"
        ) from error
    except (requests.exceptions.RequestException, UnicodeError) as error:
        raise LanguageModelError(f"{where} could not be asked: {type(error).__name__}; check the address.") from error


def _content(response: requests.Response) -> bytes:
    pieces, size, until = [], 0, time.monotonic() + READ_SECONDS
    for piece in response.iter_content(512):  # few at a time: it waits until it has so many
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST_REPLY or time.monotonic() > until:
            raise LanguageModelError(
                f"the reply is longer than {LARGEST_REPLY >> 20} MiB or comes too slowly; check the endpoint."
            )
    return b"".join(pieces)


def _pause(asked: str | None, attempt: int) -> float:
    """Return the seconds until the next try: those that the server asks for (a number, or a date), or our own."""
    asked = (asked or "").strip()
    if re.fullmatch(r"\d{1,9}(?:\.\d+)?", asked):
        return float(asked)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return FIRST_PAUSE * 2 ** (attempt - 1)


def _wait(seconds: float, cancelled: Callable[[], bool] | None) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if cancelled is not None and cancelled():
            raise CancelledError("asking the language model was cancelled.")
        time.sleep(min(0.1, left))


def _reply(content: bytes) -> Reply:
    try:
        choices = json.loads(content)["choices"]
        texts = [_text(choice["message"]["content"]) for choice in choices]
        cut = any(choice.get("finish_reason") == "length" for choice in choices)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LanguageModelError(
            "the server's reply is not that of a chat server; check the endpoint, which often ends in /v1."
        ) from error
    text = "\n".join(texts).strip()
    if not text:
        raise LanguageModelError("the model said nothing; ask again, or take another model.")
    return Reply(text, not cut)


def _text(content: Any) -> str:
    """Return a message's content: a text, nothing, or a list of parts of which some are texts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("neither text nor parts")


def _refusal(question: Question, status: int, headers: Any, content: bytes, key: str | None) -> str:
    """Return the message for a status other than 200, with what the server says of it."""
    if 300 <= status < 400:
        place = headers.get("Location", "elsewhere")
        return f"{question.url} sends on to {_printable(place, key)!r}; give that server's address as the endpoint."
    if status in (401, 403):
        remedy = f"set {KEY_VARIABLE} to a key that is valid there" if key is None else f"check {KEY_VARIABLE}"
    elif status in (404, 405):
        remedy = f"check the endpoint (it often ends in /v1) and the model's name {question.model!r}"
    elif status in _PASSING:
        remedy = "try again later"
    else:
        remedy = "see what it says"
    said = _printable(_said(content), key)
    told = f' It says: "{said}".' if said else ""
    return f"{question.host} refused with status {status}; {remedy}.{told}"


def _said(content: bytes) -> str:
    """Return the server's own words in an error's body."""
    text = content[:100_000].decode("utf-8", "replace")
    try:
        found = json.loads(text)
        for name in ("error", "message", "detail"):
            found = found.get(name, found) if isinstance(found, dict) else found
        return found if isinstance(found, str) else ""
    except (ValueError, RecursionError):
        return "" if "<" in text else text  # a page for a browser


def _printable(text: str, key: str | None) -> str:
    """Return a server's text as one short line, without the key, which some servers repeat."""
    text = text.replace(key, "(your key)") if key else text
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return line if len(line) <= 300 else f"{line[:299]}…"
