"""With the offline folder set nothing leaves the machine: in a process in which every use of a socket is counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from MedCLIPSAMLib import weights
from MedCLIPSAMLib.clip.registry import CLIP_WEIGHTS
from MedCLIPSAMLib.download import check_fetchable, fetch
from MedCLIPSAMLib.engines import engine_names, engine_weights, segmenter_names
from MedCLIPSAMLib.errors import InputError, MissingWeightsError

ROOT = Path(__file__).resolve().parents[2]
LITE = ("lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer", "lite-alignment")

BLOCKED = """
import json, socket, sys
attempts = []
def refuse(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        attempts.append(event)
        raise OSError("the network is blocked")
sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
assert attempts, "the block does not work"
attempts.clear()
def tell(value):
    print(json.dumps({"told": value, "attempts": attempts}))
"""


def offline_child(script: str, folder: Path, *arguments: str) -> object:
    """Run a script in a process with blocked sockets and the offline folder; return what it tells."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    kept.pop(weights.OWN_VARIABLE, None)
    places = {weights.OFFLINE_VARIABLE: str(folder), "XDG_DATA_HOME": str(folder / "user"), "HOME": str(folder)}
    command = [sys.executable, "-c", BLOCKED + script, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=kept | places, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["attempts"] == []
    return told["told"]


EVERY_ENGINE = """
from MedCLIPSAMLib.engines import load_engine
from MedCLIPSAMLib.errors import MissingWeightsError
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = type(load_engine(name, device="cpu")).__name__
    except MissingWeightsError as error:
        found[name] = str(error)
tell(found)
"""


@pytest.mark.slow
def test_every_engine_loads_or_lists_all_that_it_lacks(tmp_path: Path) -> None:
    engines = [f"{clip}+{segmenter}" for clip in engine_names() for segmenter in segmenter_names()]
    told = offline_child(EVERY_ENGINE, tmp_path, "lite", *engines)
    user = tmp_path / "user" / "MedCLIPSAM" / "weights"
    for engine in engines:
        missing = [name for name in engine_weights(engine) if name not in LITE]
        if not missing:
            continue
        for name in missing:
            weight = weights.registry()[name]
            for text in (weight.install or weight.source, weight.file, str(user)):
                assert text in told[engine], (engine, name, text)
            if weight.bytes:
                assert f"{weight.bytes / 1e6:.1f} MB" in told[engine]
        assert "weights fetch" not in told[engine], "offline this would be of no use"
    try:
        for name in LITE:
            weights.verified(name)
    except MissingWeightsError as error:
        pytest.skip(str(error))
    assert told["lite"] == told["lite+lite-medsam"] == "TextSegmenter"


@pytest.mark.slow
def test_the_lite_engine_loads_from_the_folder_alone(tmp_path: Path) -> None:
    """Not from the packages: the folder comes first, and a wrong file in it is an error."""
    try:
        places = {name: weights.verified(name) for name in LITE}
    except MissingWeightsError as error:
        pytest.skip(str(error))
    for name, path in places.items():
        target = tmp_path / weights.registry()[name].file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    script = """
from MedCLIPSAMLib import weights
from MedCLIPSAMLib.engines import engine_weights, load_engine
load_engine("lite", device="cpu")
tell([str(one.path) for one in weights.resolve(engine_weights("lite")).values()])
"""
    assert all(Path(path).is_relative_to(tmp_path) for path in offline_child(script, tmp_path))


HUB_LIBRARIES = """
import os
from MedCLIPSAMLib import weights
weights.resolve([])
import huggingface_hub.constants
from transformers.utils import hub
tell([huggingface_hub.constants.HF_HUB_OFFLINE, hub.is_offline_mode(), "MedCLIPSAMLib.download" in sys.modules])
"""


def test_the_hubs_libraries_are_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert offline_child(HUB_LIBRARIES, tmp_path) == [True, True, False]


def test_without_an_offline_folder_other_users_of_the_hub_are_left_alone(monkeypatch) -> None:
    monkeypatch.delenv(weights.OFFLINE_VARIABLE, raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert weights.resolve([]) == {}
    assert "HF_HUB_OFFLINE" not in os.environ


FETCH = """
from MedCLIPSAMLib.download import fetch
from MedCLIPSAMLib.errors import InputError
try:
    fetch(sys.argv[1])
except InputError as error:
    tell([str(error), "requests" in sys.modules])
"""


def test_fetch_refuses_without_loading_the_network_library(tmp_path: Path) -> None:
    message, loaded = offline_child(FETCH, tmp_path, "biomedclip")
    assert message.startswith("No connection is made while MEDCLIPSAM_WEIGHTS names an offline folder; unset it")
    assert "open_clip_pytorch_model.bin" in message
    assert not loaded
    assert [path.name for path in tmp_path.rglob("*")] == []


def test_fetch_refuses_for_every_file_that_it_knows(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(weights.OFFLINE_VARIABLE, str(tmp_path))
    for name in weights.registry():
        with pytest.raises(InputError):
            fetch(name)


def test_every_file_that_a_model_needs_is_registered_and_can_be_had(monkeypatch) -> None:
    """Each from a package, from this installation, by a download, or by hand with an address."""
    monkeypatch.delenv(weights.OFFLINE_VARIABLE, raising=False)
    registry = weights.registry()
    needed = {name for names in CLIP_WEIGHTS.values() for name in names} | set(segmenter_names()) | set(LITE)
    assert needed == set(registry)
    for clip, names in CLIP_WEIGHTS.items():
        assert all(clip in registry[name].used_by for name in names), clip
    assert all(name in registry[name].used_by for name in segmenter_names())
    for name, weight in registry.items():
        if weight.fetchable:
            assert check_fetchable(name) == weight and weight.source.startswith("https://")
        else:
            assert weight.install or weight.by_hand or weight.source.startswith("resource:"), name
        if weight.source.startswith("https://huggingface.co/"):
            revision = weight.source.split("/resolve/")[1].split("/")[0]
            assert len(revision) == 40 and int(revision, 16), "a branch may change"
