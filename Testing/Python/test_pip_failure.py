"""A failed installation is explained, with what to do about it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from MedCLIPSAMLib.pip_failure import explain


@pytest.mark.parametrize(
    ("log", "remedy"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("SSLError(SSLCertVerificationError(1, 'certificate verify failed: self-signed'))", "PIP_CERT"),
        ("ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407'))", "HTTPS_PROXY"),
        ("Failed to establish a new connection: [Errno -3] Temporary failure in name resolution", "PIP_FIND_LINKS"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "was not installed"),
        ("ERROR: ResolutionImpossible: for help visit https://pip.pypa.io", "No set of versions"),
        ("[WinError 5] Access is denied: 'torch_cpu.dll'", "Restart Slicer"),
        ("ERROR: Could not find a version that satisfies the requirement torch", "no file for this system"),
        ("[Errno 13] Permission denied: '/opt/Slicer/lib'", "cannot be written"),
        ("something else", "See the log"),
    ],
)
def test_a_failed_installation_is_explained_with_its_remedy(log, remedy):
    assert remedy in explain("Collecting torch\n" * 500 + log)


def test_pip_without_an_index_is_explained(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--no-index",
            "--find-links",
            str(tmp_path),
            "nosuchthing",
        ],
        capture_output=True,
        text=True,
    )
    assert "no file for this system" in explain(done.stdout + done.stderr)
