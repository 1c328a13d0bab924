"""Reads the weights of a TorchScript archive without running the program in it.

``torch.jit.load`` builds and runs what the archive describes. Here its table of contents, a pickle, is read with a
handful of allowed names; the modules become plain dictionaries and everything else is refused.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from MedCLIPSAMLib.checkpoint_file import damaged, refused

_TYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:  # damaged, but with a whole end
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return every tensor of an archive's modules by its name, as ``state_dict`` would.

    Raises:
        InputError: It is not a TorchScript archive, is damaged, or its table of contents asks for anything but tensors
            and modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (contents,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            root = _Unpickler(archive, contents.removesuffix("data.pkl") + "data/").load()
            return dict(_tensors(root, ""))
    except _ForbiddenError as error:
        raise refused(path, str(error)) from error
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        struct.error,
        zlib.error,
        pickle.UnpicklingError,
        AttributeError,
        EOFError,
        IndexError,
        KeyError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise damaged(path) from error


class _ForbiddenError(Exception):
    """The table of contents asks for something that is not allowed."""


class _Module:
    """Stands for a module of the archive; ``attributes`` are its tensors, modules and settings."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.attributes = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(archive.read(folder.removesuffix("data/") + "data.pkl")))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Module,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name in _LISTS:
            return list
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _first
        raise _ForbiddenError(f"it asks for {module}.{name}, which is not allowed")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise _ForbiddenError(f"it refers to {kind!r}, which is not allowed")
        if key not in self._storages:
            content = bytearray(self._archive.read(self._folder + key))
            values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            if len(values) < count:
                raise pickle.UnpicklingError(f"tensor {key} has {len(values)} of {count} values.")
            self._storages[key] = values
        return self._storages[key]


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset)


def _first(value: Any, *_: Any) -> Any:
    return value


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield prefix + name, value
