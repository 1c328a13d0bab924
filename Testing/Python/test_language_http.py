"""Asking a chat server: what is sent, what is tried again, what is refused; the key, proxies and certificates."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from chat_server import SENTENCES, ChatServer, chat, chat_server

from MedCLIPSAMLib import language_http
from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.language_http import LanguageModelError, post
from MedCLIPSAMLib.language_question import KEY_VARIABLE, Question

KEY = "sk-test-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    """A server here, an environment without proxies and keys, and short pauses."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("MEDCLIPSAM_WEIGHTS", KEY_VARIABLE, "NETRC", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(language_http, "FIRST_PAUSE", 0.05)
    with chat_server() as running:
        yield running


def question(server: ChatServer, **changes: object) -> Question:
    """A question to the server."""
    return Question("breast tumor", "breast ultrasound", server.endpoint, "small-model", **changes)


def test_exactly_what_was_shown_is_sent(server: ChatServer) -> None:
    one = question(server)
    reply = post(one, KEY)
    assert reply.text.splitlines() == SENTENCES and reply.whole
    (asked,) = server.asked
    assert asked.body.decode() == one.body
    assert asked.line == "POST /v1/chat/completions HTTP/1.1"
    assert asked.headers["Authorization"] == f"Bearer {KEY}"
    shown = one.outgoing(with_key=True)
    transport = {"Host", "Accept-Encoding", "Connection", "Content-Length", "Authorization"}
    for name, value in asked.headers.items():
        assert name in transport or f"{name}: {value}" in shown


def test_without_a_key_none_is_sent_and_netrc_is_not_read(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    post(question(server), None)
    post(question(server), KEY)
    assert "Authorization" not in server.asked[0].headers
    assert server.asked[1].headers["Authorization"] == f"Bearer {KEY}"


def test_a_busy_server_is_asked_again_after_the_pause_it_names(server: ChatServer) -> None:
    server.replies = [(429, {"Retry-After": "0.3"}, b"{}"), (503, {}, b""), "\n".join(SENTENCES)]
    began = time.monotonic()
    assert post(question(server), None).text
    assert len(server.asked) == 3 and 0.35 < time.monotonic() - began < 5
    assert len({asked.body for asked in server.asked}) == 1


def test_a_date_counts_as_a_pause(server: ChatServer) -> None:
    server.replies = [(503, {"Retry-After": formatdate(time.time() - 100, usegmt=True)}, b""), "\n".join(SENTENCES)]
    assert post(question(server), None).text
    server.replies = [(503, {"Retry-After": formatdate(time.time() + 900, usegmt=True)}, b"")]
    with pytest.raises(LanguageModelError, match=r"asks to wait (89\d|900) s"):
        post(question(server), None)
    assert len(server.asked) == 3


@pytest.mark.parametrize("asked", ["nonsense", "-5", "nan", "1e9"])
def test_a_pause_that_is_none_is_left_to_us(server: ChatServer, asked: str) -> None:
    server.replies = [(500, {"Retry-After": asked}, b""), "\n".join(SENTENCES)]
    began = time.monotonic()
    assert post(question(server), None).text and time.monotonic() - began < 5


def test_after_four_tries_the_servers_words_are_told(server: ChatServer) -> None:
    body = json.dumps({"error": {"message": "quota used\n up\x1b[2J", "type": "x"}}).encode()
    server.replies = [(429, {}, body)]
    with pytest.raises(LanguageModelError, match=r'status 429; try again later\. It says: "quota used up \[2J"'):
        post(question(server), None)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            401,
            json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            r"check MEDCLIPSAM_LLM_KEY.*your",
        ),
        (403, "no entry", 'check MEDCLIPSAM_LLM_KEY.*"no entry"'),
        (404, json.dumps({"error": "model 'small-model' not found"}), "model's name 'small-model'.*not found"),
        (400, json.dumps({"detail": "bad " * 500}), "status 400.*bad bad.*…"),
        (418, "<html><body>a page</body></html>", r"status 418; see what it says\.$"),
    ],
)
def test_a_refusal_is_final_and_says_what_to_do(server: ChatServer, status: int, body: str, told: str) -> None:
    server.replies = [(status, {}, body.encode())]
    with pytest.raises(LanguageModelError, match=told) as caught:
        post(question(server), KEY)
    assert KEY not in str(caught.value) and len(str(caught.value)) < 500
    assert len(server.asked) == 1


def test_a_missing_key_is_named(server: ChatServer) -> None:
    server.replies = [(401, {}, b"")]
    with pytest.raises(LanguageModelError, match=f"set {KEY_VARIABLE}"):
        post(question(server), None)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirections_are_told_and_not_followed(server: ChatServer, status: int) -> None:
    with chat_server() as other:
        server.replies = [(status, {"Location": f"{other.endpoint}/chat/completions"}, b"")]
        with pytest.raises(LanguageModelError, match=r"sends on to 'http://127\.0\.0\.1"):
            post(question(server), KEY)
        assert other.asked == []


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": 3}', b'{"choices": [{"message": {"content": 3}}]}', b"\xff\xfe",
     b'{"choices": [3]}', b'{"choices": [{"message": {"content": [3]}}]}', b"[" * 100_000],
)  # fmt: skip
def test_another_kind_of_reply_is_refused(server: ChatServer, body: bytes) -> None:
    server.replies = [(200, {}, body)]
    with pytest.raises(LanguageModelError, match="not that of a chat server"):
        post(question(server), None)


@pytest.mark.parametrize("body", [chat(""), chat(None), b'{"choices": []}', chat([])])
def test_silence_is_told(server: ChatServer, body: bytes) -> None:
    server.replies = [(200, {}, body)]
    with pytest.raises(LanguageModelError, match="said nothing"):
        post(question(server), None)


def test_parts_and_cut_replies(server: ChatServer) -> None:
    parts = [{"type": "text", "text": "A dark mass."}, {"type": "image_url", "image_url": {}}]
    server.replies = [(200, {}, chat(parts, "length"))]
    reply = post(question(server), None)
    assert (reply.text, reply.whole) == ("A dark mass.", False)


def test_a_flood_is_not_read_to_its_end(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_http, "LARGEST_REPLY", 1 << 20)

    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.stopping.is_set():
            try:
                handler.wfile.write(b" " * 65_536)
            except OSError:
                return

    server.replies = [flood]
    with pytest.raises(LanguageModelError, match="longer than 1 MiB"):
        post(question(server), None)


def test_a_trickle_is_given_up(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_http, "READ_SECONDS", 0.5)

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.stopping.wait(0.02):
            try:
                handler.wfile.write(b" " * 64)
            except OSError:
                return

    server.replies = [trickle]
    began = time.monotonic()
    with pytest.raises(LanguageModelError, match="too slowly"):
        post(question(server), None)
    assert time.monotonic() - began < 5


def test_a_silent_server_and_a_broken_connection(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_http, "READ_SECONDS", 0.2)
    server.replies = [lambda handler: server.stopping.wait(5)]
    with pytest.raises(LanguageModelError, match="said nothing for"):
        post(question(server), None)

    def break_off(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices"')
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    for answer in (break_off, lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)):
        server.replies = [answer]
        with pytest.raises(LanguageModelError, match=r"it broke|could not be asked"):
            post(question(server), None)


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(LanguageModelError, match="is the server running"):
        post(Question("tumor", "brain MRI", f"http://127.0.0.1:{port}/v1", "m"), None)


def test_cancelling_ends_the_waiting(server: ChatServer) -> None:
    server.replies = [(503, {"Retry-After": "30"}, b"")]
    began = time.monotonic()
    with pytest.raises(CancelledError):
        post(question(server), None, cancelled=lambda: bool(server.asked) and time.monotonic() - began > 0.3)
    assert time.monotonic() - began < 5 and len(server.asked) == 1


def test_offline_means_no_connection_at_all(
    server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(InputError, match="MEDCLIPSAM_WEIGHTS"):
        post(question(server), None)


def test_a_key_with_odd_characters_is_refused_unseen(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sk secret", "sk\nsecret", "sk-sécret"):
        with pytest.raises(InputError, match=KEY_VARIABLE) as caught:
            post(question(server), key)
        assert "ecret" not in str(caught.value) and "cret" not in str(caught.value)
        monkeypatch.setenv(KEY_VARIABLE, key)
        with pytest.raises(InputError, match=KEY_VARIABLE):
            language_http.key_of_environment()
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    assert language_http.key_of_environment() == KEY
    assert server.asked == []


def test_the_key_is_in_no_log(server: ChatServer, caplog: pytest.LogCaptureFixture) -> None:
    server.replies = [(503, {"Retry-After": "0"}, KEY.encode()), (401, {}, KEY.encode())]
    with caplog.at_level(logging.DEBUG), pytest.raises(LanguageModelError):
        post(question(server), KEY)
    assert "asking small-model" in caplog.text and KEY not in caplog.text


def test_a_proxy_is_used_for_other_computers(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{server.port}")
    server.replies = [(403, {}, b"")]
    far = Question("breast tumor", "breast ultrasound", "https://api.example.invalid/v1", "small-model")
    with pytest.raises(LanguageModelError, match="proxy"):
        post(far, KEY)
    (asked,) = server.asked
    assert asked.line.startswith("CONNECT api.example.invalid:443 ")
    assert KEY not in str(asked)


@pytest.mark.parametrize("variable", ["http_proxy", "ALL_PROXY"])
def test_what_is_for_this_computer_goes_past_the_proxy(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    with chat_server() as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
        assert post(question(server), KEY).text
        assert proxy.asked == [] and len(server.asked) == 1


def test_a_certificate_that_nobody_vouches_for_is_refused(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, certificate: Callable[[], tuple[Path, Path]]
) -> None:
    import ssl
    import threading

    chain, key = certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    listener = socket.create_server(("127.0.0.1", 0))
    body = chat("A dark mass in the breast.")

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as secure:
                    secure.recv(65_536)
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    one = Question("breast tumor", "breast ultrasound", f"https://localhost:{listener.getsockname()[1]}/v1", "m")
    with pytest.raises(LanguageModelError, match="REQUESTS_CA_BUNDLE"):
        post(one, KEY)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(chain))
    assert post(one, KEY).text == "A dark mass in the breast."
    listener.close()


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[], tuple[Path, Path]]:
    """Makes a certificate for localhost that signs itself; skips where openssl is missing."""
    import shutil
    import subprocess

    def make() -> tuple[Path, Path]:
        if shutil.which("openssl") is None:
            pytest.skip("this needs the program openssl")
        chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run([*command, "-keyout", key, "-out", chain], check=True, capture_output=True)
        return chain, key

    return make
