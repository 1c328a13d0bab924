"""The stages of a run: how long each takes, and the question between them whether the user has cancelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from MedCLIPSAMLib.errors import CancelledError


class Stages:
    """Wall time per stage, and the cancel question before each.

    Attributes:
        seconds: Of the stages so far, by name.
    """

    def __init__(self, cancelled: Callable[[], bool] | None = None, tell: Callable[[str], None] | None = None):
        """Begin a run.

        Args:
            cancelled: Asked before each stage and by :meth:`check`.
            tell: Told the name of each stage when it begins.
        """
        self.seconds: dict[str, float] = {}
        self._cancelled = cancelled
        self._tell = tell

    def check(self) -> None:
        """Raise :class:`CancelledError` if the user has cancelled."""
        if self._cancelled is not None and self._cancelled():
            raise CancelledError("The run was cancelled.")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside; a stage that comes twice is added up."""
        self.check()
        if self._tell is not None:
            self._tell(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
