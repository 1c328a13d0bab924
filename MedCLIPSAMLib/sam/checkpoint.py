"""Reads the checkpoints of the SAM family, without ever running what a file contains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from MedCLIPSAMLib.checkpoint_file import read_checkpoint_file
from MedCLIPSAMLib.errors import InputError


def read_checkpoint(path: Path, allowed: Sequence[Callable[..., object]] = ()) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, on the CPU and in float32.

    Args:
        path: A state dictionary as .pth, .pt or .safetensors; also one under the entry "model" of a training
            checkpoint, and with the "module." that parallel training puts before every key.
        allowed: What may be called, under its own full name, for objects that are neither tensors nor plain
            containers; with torch before 2.5 nothing.

    Raises:
        InputError: The file is damaged, no state dictionary, or holds objects that are not allowed.
    """
    content = read_checkpoint_file(path, allowed)
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} is not a checkpoint: it holds no dictionary of tensors.")
    return {
        key.removeprefix("module."): value.float() if value.is_floating_point() else value
        for key, value in content.items()
    }


def load_parts(parts: Mapping[str, nn.Module], state: Mapping[str, Tensor], name: str) -> None:
    """Give the modules their weights; every entry must be there, with the right shape, and none may be left.

    The modules take the tensors themselves, so that they can be built on the meta device and cost no memory twice.

    Args:
        parts: By the prefix of their entries.
        state: See :func:`read_checkpoint`.
        name: Of the model, for the message.

    Raises:
        InputError: The state dictionary is another model's.
    """
    expected = {
        f"{prefix}.{key}": value.shape for prefix, part in parts.items() for key, value in part.state_dict().items()
    }
    missing = [key for key in expected if key not in state]
    surplus = [key for key in state if key not in expected]
    other = [key for key in expected if key in state and state[key].shape != expected[key]]
    if missing or surplus or other:
        found = [f"{len(missing)} entries are missing, such as {missing[0]}"] if missing else []
        found += [f"{len(surplus)} are unknown, such as {surplus[0]}"] if surplus else []
        if other:
            key = other[0]
            shapes = f"{tuple(state[key].shape)} and not {tuple(expected[key])}"
            found.append(f"{len(other)} have another shape, such as {key} with {shapes}")
        raise InputError(
            f"the checkpoint is not one of {name}: {'; '.join(found)}. Take the file that belongs to {name}, or the "
            "segmenter that the file belongs to."
        )
    for prefix, part in parts.items():
        part.load_state_dict({key: state[f"{prefix}.{key}"] for key in part.state_dict()}, assign=True)
        part.eval().requires_grad_(False)


def file_identity(path: Path) -> str:
    """Return what tells a file's content from another's while this process runs, without reading it."""
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
