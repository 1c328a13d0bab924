"""Why an installation failed, in a sentence with the remedy, from what pip printed."""

from __future__ import annotations

import re

OFFLINE_REMEDY = (
    'Without internet: on another computer with the same system and Python, run "pip download" for the same packages, '
    "copy the folder, and start Slicer with PIP_NO_INDEX=1 and PIP_FIND_LINKS=FOLDER set."
)

# The first that matches counts: a certificate's failure also prints "connection".
_CAUSES = (
    (r"no space left|disk full|not enough space|\[errno 28\]", "The disk is full. Make room and try again."),
    (
        r"do not match the hashes|hash mismatch|hashes are required",
        "A downloaded file is not the registered one; it was not installed. "
        "Try again, or ask who runs your package mirror.",
    ),
    (
        r"certificate|ssl(error|:)|sslcert",
        "The package index's certificate was refused; often a hospital's firewall signs the traffic itself. Ask for "
        "its certificate file and start Slicer with PIP_CERT=FILE set. " + OFFLINE_REMEDY,
    ),
    (
        r"proxy",
        "The proxy refused the connection. Start Slicer with HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT set. "
        + OFFLINE_REMEDY,
    ),
    (
        r"connection|timed out|timeout|resolve|network is unreachable|max retries",
        "The package index could not be reached. Check the network; behind a proxy start Slicer with HTTPS_PROXY set. "
        + OFFLINE_REMEDY,
    ),
    (
        r"winerror 5\b|winerror 32|being used by another process|access is denied",
        "A file is in use, because a package that must be replaced is loaded. Restart Slicer and install before "
        "anything else.",
    ),
    (
        r"permission denied|\[errno 13\]",
        "Slicer's folder cannot be written. Install Slicer in a folder of your own, or let whoever installed it start "
        "it once and install from there.",
    ),
    (
        r"resolutionimpossible|conflicting dependencies|conflict(s|ing)? (is|are|with)|requires a different python",
        "No set of versions fits both MedCLIPSAM and what is installed; the log names the packages. "
        "Remove the extension that needs the other version, or use a Slicer of its own for MedCLIPSAM.",
    ),
    (
        r"no matching distribution|could not find a version",
        "There is no file for this system and Python. " + OFFLINE_REMEDY,
    ),
)


def explain(log: str) -> str:
    """Return cause and remedy for the output of a pip that failed."""
    tail = "\n".join(log.splitlines()[-200:])
    for pattern, text in _CAUSES:
        if re.search(pattern, tail, re.IGNORECASE):
            return text
    return "See the log for the reason, and try again; packages that are already installed are kept."
