"""Fixtures for downloads from the section Setup: a web server on this computer in place of the registry's addresses."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys

import pytest
from download_steps import SIZE
from file_server import file_server

CHILD = """
import json, sys
from MedCLIPSAMLib import download, weights
entries = json.load(open(sys.argv[1], encoding="utf-8"))
weights._entries = lambda: tuple(weights.Weight(**{**one, "used_by": tuple(one["used_by"])}) for one in entries)
sys.argv = ["download", *sys.argv[2:]]
sys.exit(download.main())
"""


@pytest.fixture
def server(world, monkeypatch, tmp_path):
    """The registry's addresses are on this computer, and its files are small; those of the engine lite are there."""
    from MedCLIPSAMLib import weights
    from MedCLIPSAMPanel import download_child

    real = weights._entries()
    for variable in ("http_proxy", "HTTP_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    with file_server() as server:
        entries = []
        for number, one in enumerate(real):
            if not one.fetchable:
                entries.append(one)
                continue
            content = number.to_bytes(1, "big") * SIZE
            server.files[f"/{one.name}"] = content
            digest = hashlib.sha256(content).hexdigest() if one.sha256 else None
            entries.append(
                dataclasses.replace(one, source=server.url(f"/{one.name}"), bytes=len(content), sha256=digest)
            )
        monkeypatch.setattr(weights, "_entries", lambda: tuple(entries))
        file = tmp_path / "registry.json"
        file.write_text(json.dumps([dataclasses.asdict(one) for one in entries]), encoding="utf-8")
        monkeypatch.setattr(
            download_child, "command", lambda name: [sys.executable, "-c", CHILD, str(file), name], raising=True
        )
        yield server


@pytest.fixture
def table(server, section):
    """The table of weights, with the engine biomedclip+medsam chosen."""
    section.setEngine("biomedclip+medsam", None)
    return section.ui.weightsTable
