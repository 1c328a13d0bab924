"""The engine that the background process keeps loaded between tasks, and what there is to say about its device."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedCLIPSAMLib.errors import DeviceMemoryError, InputError, MedCLIPSAMError
from MedCLIPSAMLib.memory import free_device_memory, is_out_of_memory

if TYPE_CHECKING:
    from MedCLIPSAMLib.engine_interface import Engine
    from MedCLIPSAMLib.recipe import Recipe

ENGINE_VARIABLE = "MEDCLIPSAM_WORKER_ENGINE"
"""For tests: "module:function" of a stand-in that is called in place of :func:`MedCLIPSAMLib.engines.load_engine`."""


class KeptEngine:
    """Holds one engine. Presets, samples and gate change its recipe alone, so they cost no loading."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._segmenter: Engine | None = None
        self._recipe: Recipe | None = None
        self._device = ""  # where it was loaded

    def is_loaded(self, engine: str, device: str) -> bool:
        """Whether :meth:`get` returns at once: not after a GPU's memory ran out, for there may be more by now."""
        return self._key == (engine, device) and str(getattr(self._segmenter, "device", "")) == self._device

    def get(
        self,
        engine: str = "lite",
        preset: str | None = None,
        device: str = "auto",
        samples: int | None = None,
        gate: bool | None = None,
    ) -> Engine:
        """Return the engine with the wanted recipe, loading it in place of another one.

        Args:
            engine, preset, device: As for :func:`MedCLIPSAMLib.engines.load_engine`.
            samples, gate: Changes of the recipe; None for its own.

        Raises:
            InputError: Unknown engine, preset or device, or fewer than one sample.
            MissingWeightsError, ChecksumError: A weight file is absent or not the registered one.
        """
        if samples is not None and samples < 1:
            raise InputError(f"samples is {samples}; it must be at least 1.")
        if not self.is_loaded(engine, device):
            self.release()
            self._segmenter = _loader()(engine, None, device)
            self._recipe = self._segmenter.recipe
            self._key, self._device = (engine, device), str(getattr(self._segmenter, "device", ""))
        changes = {"samples": samples, "gate": gate}
        self._segmenter.recipe = replace(
            self._recipe.with_preset(preset), **{name: value for name, value in changes.items() if value is not None}
        )
        return self._segmenter

    def release(self) -> None:
        """Let go of the models and give the device's memory back."""
        self._key = self._segmenter = self._recipe = None
        free_device_memory()


def _loader() -> Callable[[str, str | None, str], Engine]:
    stand_in = os.environ.get(ENGINE_VARIABLE)
    if stand_in:
        module, _, function = stand_in.partition(":")
        return getattr(importlib.import_module(module), function)
    from MedCLIPSAMLib.engines import load_engine

    return load_engine


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return the kind and the message of an "error" event."""
    if isinstance(error, MedCLIPSAMError) and not (isinstance(error, MemoryError) and not str(error)):
        return type(error).__name__, str(error)
    if is_out_of_memory(error):
        message = (
            "There is not enough memory for this; close other programs, choose a smaller model or the CPU as the "
            "device, or segment fewer slices at a time."
        )
        return DeviceMemoryError.__name__, message
    if isinstance(error, ModuleNotFoundError) and error.name:
        return "InternalError", f"The package {error.name!r} is not installed; install what is missing in the setup."
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
    return "InternalError", f"Something went wrong in the background process ({text}); its log tells more."


def spoils_process(error: BaseException) -> bool:
    """Whether an error leaves the GPU unusable until a new process is started."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def describe_device(device: str) -> dict[str, Any]:
    """Return "device", "device_name", and "memory_free" and "memory_total" in bytes or None where it is not known."""
    told: dict[str, Any] = {"device": device, "device_name": device, "memory_free": None, "memory_total": None}
    if device.startswith("cuda"):
        import torch

        told["device_name"] = torch.cuda.get_device_name(device)
        told["memory_free"], told["memory_total"] = torch.cuda.mem_get_info(device)
    elif device.startswith("mps"):
        import torch

        told["device_name"] = f"Apple GPU ({platform.machine()})"
        if hasattr(torch.mps, "recommended_max_memory"):
            told["memory_total"] = torch.mps.recommended_max_memory()
    elif device.startswith("cpu"):
        told["device_name"] = _processor_name()
        told["memory_free"], told["memory_total"] = _main_memory()
    return told


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "CPU"


def _main_memory() -> tuple[int | None, int | None]:
    """Return free and total main memory in bytes; None where the system does not tell."""
    if not hasattr(os, "sysconf"):
        return None, None
    names = os.sysconf_names
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page if "SC_PHYS_PAGES" in names else None
    table = Path("/proc/meminfo")
    if table.is_file():  # what can be had without swapping; the pages that are free right now are far fewer
        for line in table.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024, total
    return None, total
