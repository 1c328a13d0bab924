"""Reads a checkpoint file without running what it may hold, and says in plain words why one cannot be read.

torch's own messages are not passed on: they advise to load the file unsafely.
"""

from __future__ import annotations

import contextlib
import errno
import pickle
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.weight_entry import OWN_VARIABLE

_FOREIGN = (
    "Unsupported global",
    "unsupported GLOBAL",
    "Unsupported class",
    "Can only",
    "unrecognized function",
    "TorchScript",
)
"""What torch says of a file that is whole, but holds objects that it would have to trust."""
_NEW_PROTOCOL = "Detected pickle protocol"  # which torch cannot check
_DAMAGED = (
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    AssertionError,
    OverflowError,
    struct.error,
)


def read_checkpoint_file(path: Path, allowed: Sequence[Callable[..., object]] = ()) -> Any:
    """Return what a file holds, on the CPU, read as safetensors or by ``torch.load(weights_only=True)``.

    Args:
        path: Safetensors are known by their content, too, so that they may have the name of another kind of file.
        allowed: What may be called, under its own full name, for objects that are neither tensors nor plain
            containers; with torch before 2.5 nothing.

    Raises:
        InputError: It is damaged, or holds more than numbers.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if _is_safetensors(path):
            return load_file(path)
        # The warnings are torch's advice too; the error says what matters.
        with warnings.catch_warnings(record=True) as warned, _allowing(allowed):
            warnings.simplefilter("always")
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch sought a place before the beginning of a file that is cut off
            raise damaged(path) from None
        raise InputError(f"{path} cannot be read as a checkpoint: {error.strerror or 'the disk failed'}.") from error
    except pickle.UnpicklingError as error:
        new = any(_NEW_PROTOCOL in str(one.message) for one in warned)
        # "from None": a traceback would show torch's advice
        raise (refused(path) if new or _is_foreign(error) else damaged(path)) from None
    except (*_DAMAGED, SafetensorError) as error:
        if "allocate memory" in str(error):
            raise InputError(f"{path} cannot be read: too little memory is free for it.") from error
        raise (refused(path) if _is_foreign(error) else damaged(path)) from None


def refused(path: Path, what: str = "") -> InputError:
    """Return what to say of a file that would have to be trusted.

    Args:
        what: What it asks for, if that is known.
    """
    name = path.with_suffix(".safetensors").name
    return InputError(
        f"{path} holds more than numbers{f' ({what})' if what else ''}, or holds them so that this cannot be checked: "
        "loading it could run code, so it is not loaded. If you trust where it comes from, save its state dict once as "
        f"safetensors (safetensors.torch.save_file), named {name}, and use that file; in the place of published "
        f"weights put it into a folder named in {OWN_VARIABLE}."
    )


def damaged(path: Path) -> InputError:
    """Return what to say of a file that is not whole."""
    size = path.stat().st_size
    found = "it is empty" if size == 0 else f"it is damaged or incomplete ({size} bytes), or no checkpoint"
    return InputError(f"{path} cannot be read as a checkpoint: {found}. Get the file again.")


def _is_foreign(error: Exception) -> bool:
    return any(text in str(error) for text in _FOREIGN)


def _is_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as stream:
        start = stream.read(9)  # the length of a JSON header, and its first character
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _allowing(classes: Sequence[Callable[..., object]]) -> contextlib.AbstractContextManager[object]:
    import torch

    safe_globals = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    return safe_globals(list(classes)) if classes and safe_globals else contextlib.nullcontext()
