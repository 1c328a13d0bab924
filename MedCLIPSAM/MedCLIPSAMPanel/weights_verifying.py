"""The check of weight files against their SHA-256, in portions so that the user can go on working."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from MedCLIPSAMLib import weights
from MedCLIPSAMLib.errors import MedCLIPSAMError, OutputError
from MedCLIPSAMPanel import wording
from MedCLIPSAMPanel.guard import guarded

_File = tuple[str, int, int]  # path, size and time of change: what was verified is still the same
_PORTION = 0.02  # seconds of hashing before the user interface has its turn


class WeightsVerifying:
    """Verifies files one after the other and remembers what was found.

    Args:
        owner: The panel.
        show: Called with name, text, colour and tooltip of what is known of a file now.
        changed: Called when it begins or ends.
    """

    def __init__(self, owner: Any, show: Callable[[str, str, str, str], None], changed: Callable[[], None]) -> None:
        self.owner = owner
        self._show, self._changed = show, changed
        self._found: dict[str, tuple[_File, weights.Verification]] = {}
        self._queue: list[weights.Weight] = []
        self._work: Iterator[int | weights.Verification] | None = None
        self._timer = qt.QTimer()
        self._timer.interval = 0
        self._timer.connect("timeout()", self.onMore)

    @property
    def active(self) -> bool:
        """Whether files are being verified."""
        return bool(self._timer.active)

    def found(self, name: str, path: Path) -> weights.Verification | None:
        """Return what was found for a file, if that file has not been changed since."""
        known, found = self._found.get(name, (None, None))
        try:
            return found if found is not None and known == _file(path) else None
        except OSError:  # removed a moment ago
            return None

    def note(self, found: weights.Verification) -> None:
        """Remember what was found."""
        if found.path is not None:
            with suppress(OSError):  # removed a moment ago
                self._found[found.name] = (_file(found.path), found)

    def start(self, chosen: Sequence[weights.Weight]) -> None:
        """Begin."""
        self._queue = list(chosen)
        self._timer.start()

    def stop(self) -> None:
        """Stop; a file that is read is closed."""
        self._timer.stop()
        self._queue.clear()
        self._work = None

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._timer.disconnect("timeout()", self.onMore)

    @guarded
    def onMore(self) -> None:
        until = time.perf_counter() + _PORTION
        try:
            while time.perf_counter() < until:
                if not self._queue:
                    self.stop()
                    self._changed()
                    return
                one = self._queue[0]
                self._work = self._work or weights.verifying(one.name)
                step = next(self._work)
                if isinstance(step, weights.Verification):
                    self.note(step)
                    self._show(one.name, *words(step))
                    self._queue.pop(0)
                    self._work = None
                else:
                    percent = f"{100 * step / max(one.bytes or step, step):.0f} %"
                    self._show(one.name, percent, wording.DOUBTFUL, "")
        except (MedCLIPSAMError, OSError) as error:
            self.stop()
            self._changed()
            if isinstance(error, MedCLIPSAMError):
                raise
            text = _("A weight file cannot be read ({reason}); check the disk.")
            raise OutputError(text.format(reason=error.strerror)) from error


def words(found: weights.Verification) -> tuple[str, str, str]:
    """Return text, colour and tooltip."""
    if found.status == "ok":
        return _("✓ verified"), wording.GOOD, str(found.path)
    if found.status == "unregistered":
        return _("cannot be verified"), wording.DOUBTFUL, found.message
    texts = {"missing": _("missing"), "wrong size": _("wrong size"), "wrong hash": _("damaged")}
    return texts[found.status], wording.BAD, found.message


def _file(path: Path) -> _File:
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns
