"""Downloads of weight files from a real server on this computer that fails in all the ways servers do."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Faults, FileServer, file_server
from typer.testing import CliRunner

from MedCLIPSAMLib import cli, download, http_range, part_file, weights
from MedCLIPSAMLib.download import fetch
from MedCLIPSAMLib.errors import CancelledError, ChecksumError, InputError, MissingWeightsError, OutputError
from MedCLIPSAMLib.event_lines import parse_event
from MedCLIPSAMLib.weights import Weight

ROOT = Path(__file__).resolve().parents[2]
CONTENT = random.Random(0).randbytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
LATER = random.Random(1).randbytes(700_000)
_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server() as running:
        running.files["/net.bin"] = CONTENT
        yield running


@pytest.fixture
def folder(server: FileServer, tmp_path: Path, monkeypatch) -> Path:
    """The user's folder; "net" has a published SHA-256, "new" has none, "linked" is a page."""
    for name in (*_VARIABLES, "HF_ENDPOINT", weights.OFFLINE_VARIABLE, weights.OWN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    register(monkeypatch, server.url("/net.bin"))
    place = tmp_path / "user" / "weights"
    monkeypatch.setattr(weights, "user_folder", lambda: place)
    monkeypatch.setattr(http_range, "PAUSE", 0.0)
    return place


def entries(url: str) -> tuple[Weight, ...]:
    common = {"licence": "MIT", "citation": "Somebody 2024", "used_by": ("biomedclip",)}
    return (
        Weight("net", "models/net.bin", url, len(CONTENT), SHA256, **common),
        Weight("new", "models/new.bin", url, None, None, **common),
        Weight("page", "page.bin", "https://example.org/view", None, None, by_hand="Open it.", **common),
        Weight("packed", "p.bin", "package:p/p.bin", 1, SHA256, install="pip install p==1", **common),
    )


def register(monkeypatch, url: str) -> None:
    monkeypatch.setattr(weights, "_entries", lambda: entries(url))


def left(folder: Path) -> set[str]:
    """Names of all files below the folder, but for the locks."""
    return {path.name for path in folder.rglob("*") if path.is_file() and path.parent.name != ".locks"}


# ---- What should happen --------------------------------------------------------------------------------------------


def test_a_file_is_fetched_checked_and_not_fetched_again(server: FileServer, folder: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = fetch("net", progress=lambda done, total: seen.append((done, total)))
    assert path == folder / "models" / "net.bin" and path.read_bytes() == CONTENT
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert left(folder) == {"net.bin"}
    assert weights.resolve(["net"])["net"].status == "verified"
    assert fetch("net") == path
    assert len(server.asked) == 1
    assert server.asked[0][1]["Accept-Encoding"] == "identity", "what is packed cannot be gone on with"


def test_broken_connections_are_gone_on_with(server: FileServer, folder: Path) -> None:
    server.faults = [Faults(break_after=200_000), Faults(break_after=150_000), Faults(status=503)]
    assert fetch("net").read_bytes() == CONTENT
    starts = [int(one.removeprefix("bytes=").removesuffix("-")) for one in server.ranges()[1:]]
    assert server.ranges()[0] is None
    assert 200_000 - http_range.CHUNK <= starts[0] <= 200_000
    assert starts[0] + 150_000 - http_range.CHUNK <= starts[1] == starts[2] <= starts[0] + 150_000
    assert {headers.get("If-Range") for _, headers in server.asked[1:]} == {'"one"'}


def test_a_later_process_goes_on_where_an_earlier_one_ended(server: FileServer, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(http_range, "ATTEMPTS", 1)
    server.faults = [Faults(break_after=400_000), Faults(status=500)]
    with pytest.raises(MissingWeightsError, match=r"the server answers 500 .* MB have come and are kept\. Try again"):
        fetch("net")
    assert left(folder) == {"net.bin.part", "net.bin.part.json"}
    there = (folder / "models" / "net.bin.part").stat().st_size
    assert there > 300_000
    assert fetch("net").read_bytes() == CONTENT
    assert server.ranges()[-1] == f"bytes={there}-"
    assert left(folder) == {"net.bin"}


def test_a_new_version_on_the_server_is_not_mixed_with_the_old_one(server: FileServer, folder: Path) -> None:
    """Nobody published a SHA-256, so only the version (If-Range) tells."""
    server.faults = [Faults(break_after=400_000), *[Faults(status=500)] * http_range.ATTEMPTS]
    with pytest.raises(MissingWeightsError):
        fetch("new")
    server.files["/net.bin"], server.etag = LATER, '"two"'
    assert fetch("new").read_bytes() == LATER
    assert server.asked[-1][1]["If-Range"] == '"one"'


@pytest.mark.parametrize("etag", [None, 'W/"one"'])
def test_a_part_without_a_version_is_gone_on_with_only_where_the_hash_is_known(
    server: FileServer, folder: Path, etag: str | None
) -> None:
    server.etag = etag
    for name, goes_on in (("net", True), ("new", False)):
        server.faults = [Faults(break_after=400_000), *[Faults(status=500)] * http_range.ATTEMPTS]
        with pytest.raises(MissingWeightsError):
            fetch(name)
        server.asked.clear()
        assert fetch(name).read_bytes() == CONTENT
        assert (server.ranges() != [None]) == goes_on
        assert "If-Range" not in server.asked[0][1]


def test_a_server_that_knows_no_ranges_starts_again(server: FileServer, folder: Path) -> None:
    server.faults = [Faults(break_after=300_000), Faults(ignore_range=True)]
    done: list[int] = []
    assert fetch("net", progress=lambda now, _: done.append(now)).read_bytes() == CONTENT
    assert len(server.asked) == 2
    assert sorted(done) != done, "the progress goes back, since that is what happens"


def test_a_server_that_sends_another_range_is_asked_without(server: FileServer, folder: Path, caplog) -> None:
    server.faults = [Faults(break_after=300_000), Faults(shift=7)]
    assert fetch("net").read_bytes() == CONTENT
    assert server.ranges()[2] is None
    assert "another range than was asked for" in caplog.text
    shutil.rmtree(folder)
    server.faults = [Faults(headers={"Content-Range": "bytes 5-9/10"}, status=206)]
    with pytest.raises(MissingWeightsError, match="a part of the file although the whole was asked for"):
        fetch("net")


def test_a_part_that_is_complete_needs_no_second_download(server: FileServer, folder: Path, monkeypatch) -> None:
    """As when the process was ended between the last byte and the new name."""
    for name in ("net", "new"):
        monkeypatch.setattr(download, "_install", lambda part, path: (_ for _ in ()).throw(CancelledError("ended")))
        with pytest.raises(CancelledError):
            fetch(name)
        monkeypatch.undo()
        monkeypatch.setattr(weights, "user_folder", lambda: folder)
        register(monkeypatch, server.url("/net.bin"))
        server.asked.clear()
        assert fetch(name).read_bytes() == CONTENT
        assert server.ranges() == ([] if name == "net" else [f"bytes={len(CONTENT)}-"])


def test_a_part_that_is_too_long_or_from_elsewhere_is_thrown_away(server: FileServer, folder: Path) -> None:
    part = folder / "models" / "net.bin.part"
    part.parent.mkdir(parents=True)
    note = {"url": server.url("/net.bin"), "version": '"one"'}
    for content, told in ((CONTENT + b"x", note), (CONTENT[:9], {**note, "url": "https://other"}), (CONTENT[:9], None)):
        part.write_bytes(content)
        Path(f"{part}.json").write_text(json.dumps(told), encoding="utf-8")
        assert fetch("net").read_bytes() == CONTENT
        assert server.ranges()[-1] is None
        (folder / "models" / "net.bin").unlink()


def test_the_hub_that_the_environment_names_is_used_and_its_hash_counts(
    server: FileServer, folder: Path, monkeypatch
) -> None:
    """The hub answers with the SHA-256 of the file and sends on to where it lies; no SHA-256 is published elsewhere."""
    path = "/datasets/somebody/things/resolve/abc123/net(1).bin"
    register(monkeypatch, f"https://huggingface.co{path}")
    monkeypatch.setenv("HF_ENDPOINT", server.url("") + "/")
    moved = {"Location": server.url("/net.bin"), "X-Linked-ETag": f'"{SHA256}"'}
    server.faults = [Faults(status=302, headers=moved)]
    assert fetch("new").read_bytes() == CONTENT
    assert [one for one, _ in server.asked] == [path, "/net.bin"]
    shutil.rmtree(folder)
    server.faults = [Faults(status=302, headers=moved), Faults(body=LATER)]
    with pytest.raises(ChecksumError, match=f"{SHA256} is known for it"):
        fetch("new")
    assert left(folder) == set()


def test_the_registered_tokenizer_comes_from_the_hub(data_dir: Path, tmp_path: Path, server: FileServer) -> None:
    """The shipped registry, and a copy of the hub's own file: address, revision, size and SHA-256 fit together."""
    path = "/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224/resolve/"
    path += "9f341de24bfb00180f1b847274256e9b65a3a32e/tokenizer.json"
    server.files[path] = (data_dir / "pubmedbert_vocab" / "tokenizer.json").read_bytes()
    environment = {"HF_ENDPOINT": server.url(""), "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "MedCLIPSAMLib", "weights", "fetch", "biomedclip-tokenizer", "--yes"]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment() | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [one for one, _ in server.asked] == [path]
    assert Path(done.stdout.strip().split(": ", 1)[1]).read_bytes() == server.files[path]


# ---- Wrong content -------------------------------------------------------------------------------------------------


def test_wrong_content_never_gets_the_name(server: FileServer, folder: Path) -> None:
    """Of the right size, so only the SHA-256 tells; what stood there before still stands."""
    server.files["/net.bin"] = LATER
    before = folder / "models" / "net.bin"
    before.parent.mkdir(parents=True)
    before.write_bytes(b"damaged")
    with pytest.raises(ChecksumError) as caught:
        fetch("net")
    assert SHA256 in str(caught.value) and hashlib.sha256(LATER).hexdigest() in str(caught.value)
    assert left(folder) == {"net.bin"} and before.read_bytes() == b"damaged"
    server.files["/net.bin"] = CONTENT
    assert fetch("net").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"!"])
def test_content_of_another_size_is_not_even_downloaded(server: FileServer, folder: Path, content: bytes) -> None:
    server.files["/net.bin"] = content
    with pytest.raises(ChecksumError, match=f"offers {len(content)} bytes, {len(CONTENT)} are registered"):
        fetch("net")
    assert left(folder) == set()


def test_more_than_was_announced_is_not_taken(server: FileServer, folder: Path) -> None:
    """In pieces without an announced length, as behind a proxy that packs anew."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (CONTENT, b"more than that")) + b"0\r\n\r\n"
    server.faults = [Faults(body=body, headers={"Content-Length": None, "Transfer-Encoding": "chunked"})]
    with pytest.raises(ChecksumError, match=f"more than the announced {len(CONTENT)} bytes"):
        fetch("net")
    assert left(folder) == set()


def test_a_body_without_length_and_end_could_be_a_part(server: FileServer, folder: Path) -> None:
    server.faults = [Faults(headers={"Content-Length": None}, break_after=1000)]
    with pytest.raises(MissingWeightsError, match="does not say how large"):
        fetch("new")
    assert left(folder) == set()


def test_a_login_page_is_recognised(server: FileServer, folder: Path) -> None:
    server.faults = [Faults(body=b"<html>Please log in", headers={"Content-Type": "text/html; charset=utf-8"})]
    with pytest.raises(MissingWeightsError, match="a web page came instead of the file; perhaps your network wants"):
        fetch("net")


# ---- No file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, http_range.ATTEMPTS)])
def test_refusals_are_told_with_address_and_place(server: FileServer, folder: Path, status: int, requests: int) -> None:
    server.faults = [Faults(status=status)] * 20
    with pytest.raises(MissingWeightsError, match=f"the server answers {status}") as caught:
        fetch("net")
    assert server.url("/net.bin") in str(caught.value) and str(folder / "models" / "net.bin") in str(caught.value)
    assert len(server.asked) == requests


def test_a_busy_server_is_asked_again_when_it_says(server: FileServer, folder: Path) -> None:
    server.faults = [Faults(status=429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    fetch("net")
    assert 1.0 <= time.monotonic() - began < 10


def test_no_server_is_told_after_a_few_attempts(folder: Path, monkeypatch) -> None:
    register(monkeypatch, "http://localhost:9/net.bin")
    with pytest.raises(MissingWeightsError, match=r"refused; 3 attempts brought nothing more"):
        fetch("net")


@pytest.mark.parametrize("way", ["direct", "sent on"])
def test_unencrypted_addresses_elsewhere_are_refused(server: FileServer, folder: Path, monkeypatch, way: str) -> None:
    if way == "direct":
        register(monkeypatch, "http://weights.example.org/net.bin")
    else:
        server.faults = [Faults(status=302, headers={"Location": "http://weights.example.org/net.bin"})]
    with pytest.raises(MissingWeightsError, match=r"http://weights\.example\.org/net\.bin is not encrypted"):
        fetch("net")
    assert len(server.asked) == (way != "direct")


def test_files_that_come_another_way_say_so(folder: Path) -> None:
    with pytest.raises(InputError, match="pip install p==1"):
        fetch("packed")
    with pytest.raises(InputError, match=r"Open it\. .*https://example\.org/view"):
        fetch("page")
    with pytest.raises(InputError, match="no weights 'nett'"):
        fetch("nett")


# ---- Disk ----------------------------------------------------------------------------------------------------------


def test_too_little_room_is_told_before_anything_is_written(server: FileServer, folder: Path, monkeypatch) -> None:
    usage = shutil.disk_usage(folder.parent.parent)
    monkeypatch.setattr(part_file.shutil, "disk_usage", lambda place: usage._replace(free=100_000_000))
    for name in ("net", "new"):  # of the second only the server knows the size
        with pytest.raises(OutputError, match=r"0\.10 GB are free on the disk of .*models; 0\.10 GB are needed"):
            fetch(name)
    assert left(folder) == set()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_disk_that_gets_full_on_the_way_is_told(server: FileServer, folder: Path) -> None:
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "net.bin.part").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=r"The disk of .*net\.bin\.part is full"):
        fetch("net")
    assert not (folder / "models" / "net.bin").exists()
    assert len(server.asked) == 1, "this is not a broken connection"


def test_a_folder_that_cannot_be_written_to_is_told(server: FileServer, folder: Path, monkeypatch) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"a file, not a folder")
    with pytest.raises(OutputError, match=r"cannot be written to .*XDG_DATA_HOME.* models/net\.bin in a folder that"):
        fetch("net")
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o500)
    try:
        if not os.access(folder, os.W_OK):  # the system's administrator may write everywhere
            with pytest.raises(OutputError, match="cannot be written to"):
                fetch("net")
        if Path("/sys/kernel").is_dir():  # where not even the administrator may
            monkeypatch.setattr(weights, "user_folder", lambda: Path("/sys/kernel/medclipsam"))
            with pytest.raises(OutputError, match=r"/sys/kernel/medclipsam cannot be written to"):
                fetch("net")
    finally:
        folder.chmod(0o700)
    assert server.asked == []


# ---- Cancel, two at once -------------------------------------------------------------------------------------------


def test_cancel_keeps_what_has_come(server: FileServer, folder: Path) -> None:
    seen: list[int] = []
    with pytest.raises(CancelledError):
        fetch("net", progress=lambda done, _: seen.append(done), cancelled=lambda: len(seen) > 3)
    there = (folder / "models" / "net.bin.part").stat().st_size
    assert there == seen[-1] < len(CONTENT)
    assert fetch("net").read_bytes() == CONTENT
    assert server.ranges()[-1] == f"bytes={there}-"
    with pytest.raises(InputError):
        weights.remove("new")


def test_remove_deletes_what_a_broken_download_left(server: FileServer, folder: Path) -> None:
    with pytest.raises(CancelledError):
        fetch("net", progress=lambda *_: None, cancelled=lambda: len(server.asked) > 0)
    assert left(folder) == {"net.bin.part", "net.bin.part.json"}
    assert weights.removable("net") is None
    assert weights.remove("net") == folder / "models" / "net.bin.part"
    assert left(folder) == set()


CHILD = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
import test_download
from MedCLIPSAMLib import download, weights
weights._entries = lambda: test_download.entries({url!r})
weights.user_folder = lambda: Path({folder!r})
sys.argv = ["download", *sys.argv[1:]]
sys.exit(download.main())
"""


def clean_environment() -> dict[str, str]:
    unwanted = {*_VARIABLES, *(name.lower() for name in _VARIABLES), weights.OFFLINE_VARIABLE, weights.OWN_VARIABLE}
    return {name: value for name, value in os.environ.items() if name not in unwanted}


def child(server: FileServer, folder: Path, *names: str) -> subprocess.Popen[bytes]:
    """The panel's child, with this test's registry."""
    tests = str(Path(__file__).parent)
    script = CHILD.format(root=str(ROOT), tests=tests, url=server.url("/net.bin"), folder=str(folder))
    command = [sys.executable, "-c", script, *names]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=clean_environment(), **pipes)


def events(process: subprocess.Popen[bytes]) -> list[dict]:
    """Read the child's events while its stdin stays open."""
    lines = process.stdout.read().splitlines()
    process.wait(30)
    found = [parse_event(line) for line in lines]
    assert all(found), lines
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()
    return found


def test_of_two_processes_one_downloads_and_the_other_waits(server: FileServer, folder: Path) -> None:
    go_on = threading.Event()
    server.faults = [Faults(wait=go_on)]
    first = child(server, folder, "net")
    assert server.half.wait(30)
    second = child(server, folder, "net")
    line = parse_event(second.stdout.readline())  # it sees how far the first one is
    assert line["event"] == "progress" and 0 < line["done"] < len(CONTENT)
    go_on.set()
    path = str(folder / "models" / "net.bin")
    assert events(first)[-1] == {"event": "done", "path": path}
    assert events(second)[-1] == {"event": "done", "path": path}
    assert len(server.asked) == 1
    assert Path(path).read_bytes() == CONTENT


def test_when_the_downloading_process_is_killed_the_waiting_one_goes_on(server: FileServer, folder: Path) -> None:
    go_on = threading.Event()
    server.faults = [Faults(wait=go_on)]
    first = child(server, folder, "net")
    assert server.half.wait(30)
    second = child(server, folder, "net")
    second.stdout.readline()
    first.kill()
    assert events(second)[-1]["event"] == "done"
    go_on.set()
    events(first)
    assert (folder / "models" / "net.bin").read_bytes() == CONTENT
    assert server.ranges()[1] is not None, "what the first one got was used"


def test_the_child_tells_progress_and_its_end(server: FileServer, folder: Path) -> None:
    told = events(child(server, folder, "net"))
    assert told[0]["event"] == "progress" and told[-2] == {
        "event": "progress",
        "done": len(CONTENT),
        "total": len(CONTENT),
    }
    server.files["/net.bin"] = LATER
    (folder / "models" / "net.bin").unlink()
    error = events(child(server, folder, "net"))[-1]
    assert error["event"] == "error" and error["kind"] == "ChecksumError" and SHA256 in error["message"]
    error = events(child(server, folder))[-1]
    assert error["kind"] == "InputError"


def test_the_child_ends_when_its_stdin_closes(server: FileServer, folder: Path) -> None:
    go_on = threading.Event()
    server.faults = [Faults(wait=go_on)]
    process = child(server, folder, "net")
    assert server.half.wait(30)
    part = folder / "models" / "net.bin.part"
    whole_pieces = len(CONTENT) // 2 // http_range.CHUNK * http_range.CHUNK
    end = time.monotonic() + 20
    while not (part.is_file() and part.stat().st_size >= whole_pieces) and time.monotonic() < end:
        time.sleep(0.02)
    began = time.monotonic()
    process.stdin.close()  # the connection is silent; nothing arrives that could wake the download
    assert process.wait(20) == 1
    assert download.ENDING_SECONDS <= time.monotonic() - began < download.ENDING_SECONDS + 3
    go_on.set()
    assert "net.bin" not in left(folder) and part.stat().st_size == whole_pieces
    process.stdout.close()
    process.stderr.close()


# ---- Proxies and certificates --------------------------------------------------------------------------------------


def test_the_proxy_of_the_environment_is_used(server: FileServer, folder: Path, monkeypatch) -> None:
    url = "http://localhost:9/net.bin"  # where nobody listens
    register(monkeypatch, url)
    monkeypatch.setenv("http_proxy", server.url(""))
    server.files[url] = CONTENT
    assert fetch("net").read_bytes() == CONTENT
    assert server.asked[0][0] == url


def test_the_certificates_of_the_environment_are_used(folder: Path, tmp_path: Path, monkeypatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate, both = (tmp_path / name for name in ("key.pem", "certificate.pem", "both.pem"))
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    options += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", "req", "-x509", *options], check=True, capture_output=True)
    both.write_bytes(key.read_bytes() + certificate.read_bytes())
    with file_server(both) as secure:
        secure.files["/net.bin"] = CONTENT
        register(monkeypatch, secure.url("/net.bin"))
        with pytest.raises(MissingWeightsError, match=r"certificate of the server is not accepted.*REQUESTS_CA_BUNDLE"):
            fetch("net")
        assert secure.asked == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert fetch("net").read_bytes() == CONTENT


def test_passwords_in_netrc_are_not_sent(server: FileServer, folder: Path, tmp_path: Path, monkeypatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    fetch("net")
    assert "Authorization" not in server.asked[0][1]


# ---- SHA-256 that nobody publishes ---------------------------------------------------------------------------------


def test_a_fetched_file_without_published_hash_is_recorded(server: FileServer, folder: Path, caplog) -> None:
    path = fetch("new")
    assert f"the one it has now, {SHA256}, is recorded" in caplog.text
    assert json.loads((folder / "recorded.json").read_text("utf-8"))["new"]["sha256"] == SHA256
    assert weights.resolve(["new"])["new"].status == "recorded"
    path.unlink()
    server.files["/net.bin"] = LATER
    with pytest.raises(ChecksumError, match=f"{SHA256} is known for it"):
        fetch("new")
    assert left(folder) == {"recorded.json"}
    assert weights.remove("new") == folder / "recorded.json"  # the user wants the new version
    assert fetch("new").read_bytes() == LATER


# ---- Command line --------------------------------------------------------------------------------------------------


def test_the_command_shows_what_it_would_fetch_and_asks(server: FileServer, folder: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(cli.app, ["weights", "fetch", "net", "new"], input="n\n")
    assert done.exit_code == 1
    for text in (server.url("/net.bin"), f"{len(CONTENT)} bytes", SHA256, "none published", "MIT", "Somebody 2024"):
        assert text in done.stderr, text
    assert server.asked == [] and left(folder) == set()
    done = runner.invoke(cli.app, ["weights", "fetch", "net"], input="y\n")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.endswith(f"net: {folder / 'models' / 'net.bin'}\n")
    done = runner.invoke(cli.app, ["weights", "remove", "net"])
    assert done.exit_code == 0 and left(folder) == set()
    done = runner.invoke(cli.app, ["weights", "remove", "net"])
    assert done.exit_code == 2 and "they are not installed" in done.stderr
    done = runner.invoke(cli.app, ["weights", "fetch", "net", "packed", "--yes"])
    assert done.exit_code == 2 and "pip install p==1" in done.stderr and left(folder) == set()
    done = runner.invoke(cli.app, ["weights", "list"])
    assert "not installed; medclipsam weights fetch new" in done.stdout and "Open it." in done.stdout
