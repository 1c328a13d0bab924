"""How the background process is started, and what its end means."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

MALLOC_LIMIT = "4000000000"  # glibc then keeps freed arrays instead of giving each back to the system
ROOT = Path(__file__).resolve().parents[1]
PARENT_GROUP_VARIABLE = "MEDCLIPSAM_WORKER_PARENT_GROUP"
"""Tells the worker its client's process group. If its own is another one, it may end what is left in that."""

_OWN_START = ("PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
_SIGNAL_HINTS = {
    int(getattr(signal, name)): hint
    for name, hint in {
        "SIGKILL": "; perhaps out of memory",
        "SIGSEGV": "; a crash in a native library",
        "SIGABRT": "; a crash in a native library",
        "SIGBUS": "; perhaps the disk is full",
    }.items()
    if hasattr(signal, name)
}


def process_group() -> str:
    """Return this process's group; empty on Windows, which has none of that kind."""
    return str(os.getpgrp()) if hasattr(os, "getpgrp") else ""


def command(python: str | None) -> list[str]:
    """Return the command line; the interpreter is by default this one, which in Slicer is PythonSlicer."""
    return [python or sys.executable, "-m", "MedCLIPSAMLib.worker"]


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for the background process.

    The project's folder comes first on the search path, the current folder is not on it, and what this interpreter was
    told about its own home and start is left out; Slicer's Python sets its own again.
    """
    inherited = {name: value for name, value in os.environ.items() if name not in _OWN_START} | dict(extra)
    path = [] if ROOT.name in ("site-packages", "dist-packages") else [str(ROOT)]
    path += [inherited["PYTHONPATH"]] if inherited.get("PYTHONPATH") else []
    inherited |= {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",
        "PYTHONUTF8": "1",
        "PYTHONUNBUFFERED": "1",
        PARENT_GROUP_VARIABLE: process_group(),
    }
    inherited.setdefault("MALLOC_TRIM_THRESHOLD_", MALLOC_LIMIT)
    inherited.setdefault("MALLOC_MMAP_THRESHOLD_", MALLOC_LIMIT)
    return inherited


def end_reason(code: int | None, last_words: str) -> str:
    """Return the sentence for the user about a process that has ended; ``last_words`` if it never was ready."""
    if code is not None and code < 0:
        detail = f"signal {-code}{_SIGNAL_HINTS.get(-code, '')}"
    else:
        detail = f"code {code:#010x}" if code is not None and code > 255 else f"code {code}"  # the first on Windows
    told = f' Its last words: "{last_words.strip()[:200]}".' if last_words else ""
    return f"The background process ended unexpectedly ({detail}). The next run starts a new one.{told}"
