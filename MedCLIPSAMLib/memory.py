"""What to do when a device's memory runs out: the same work in smaller batches, then on the CPU, and say so."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, be it the main memory or that of a device."""
    if isinstance(error, MemoryError):  # also DeviceMemoryError
        return True
    # torch.OutOfMemoryError is a RuntimeError; torch's allocators for the CPU and Apple's GPUs raise a plain one
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _MEMORY_TEXTS)


def free_device_memory() -> None:
    """Give the memory that torch keeps for later back to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class MemoryGuard:
    """Runs a model's work in the largest batches that fit, and remembers what fits.

    Attributes:
        device: Where the model is now; "cpu" after its memory ran out even at a batch of one.
    """

    def __init__(self, name: str, device: str, to_cpu: Callable[[], None]):
        """Watch over a model.

        Args:
            name: Of the model, for the notes.
            device: Where it is.
            to_cpu: Moves it to the CPU, with everything that it has cached.
        """
        self.device = device
        self._name = name
        self._to_cpu = to_cpu
        self._largest: dict[str, int] = {}
        self._notes: list[str] = []

    def run(self, work: Callable[[int], _Result], batch: int = 1, kind: str = "") -> _Result:
        """Return ``work(batch)``; where memory runs out, with half the batch, and so on, at last on the CPU.

        Args:
            work: Does everything anew at each call, with at most so many items at a time; must not depend on what a
                failed call left.
            batch: The batch to begin with, 1 or more.
            kind: Of the work; what fits is remembered for each kind, since an item of one may need a hundred times
                the memory of another's.

        Raises:
            ValueError: ``batch`` is below 1.
            BaseException: What ``work`` raises; also for want of memory on the CPU with a batch of one.
        """
        if batch < 1:
            raise ValueError(f"batch {batch}: it must be at least 1.")
        batch = min(batch, self._largest.get(kind, batch))
        while True:
            try:
                return work(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or (batch == 1 and self.device == "cpu"):
                    raise
            # Outside the handler: the error's traceback holds the tensors of the failed attempt.
            free_device_memory()
            if batch > 1:
                batch //= 2
                self._largest[kind] = batch
                self._note(f"{self._name}: the memory of {self.device} ran out; now in batches of {batch}.")
            else:
                self._note(
                    f"{self._name}: the memory of {self.device} ran out; it now runs on the CPU, which is slower."
                )
                self._to_cpu()
                self.device = "cpu"
                free_device_memory()

    def take_notes(self) -> list[str]:
        """Return the sentences for the user since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _note(self, text: str) -> None:
        logger.warning("%s", text)
        self._notes.append(text)
