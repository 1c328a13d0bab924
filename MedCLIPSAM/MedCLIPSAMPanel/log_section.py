"""The log: what the panel did, and what the library and its child process said."""

from __future__ import annotations

import logging
import queue
import time
from typing import Any

import slicer

from MedCLIPSAMPanel.guard import guarded

_LINES_PER_POLL = 50


class _Collector(logging.Handler):
    """Keeps log records until the panel shows them: they may come from any thread, and Qt is for the main one."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put(record.getMessage())


class LogSection:
    """Shows lines; those of the library's loggers are shown by :meth:`drain`."""

    def __init__(self, ui: Any, owner: Any):
        self.ui = ui
        self.owner = owner
        self._collector = _Collector()
        logging.getLogger("MedCLIPSAMLib").addHandler(self._collector)
        ui.copyLogButton.connect("clicked()", self.onCopy)
        ui.clearLogButton.connect("clicked()", self.onClear)

    def add(self, text: str) -> None:
        """Append a line with the time of day."""
        self.ui.logEdit.appendPlainText(f"{time.strftime('%H:%M:%S')}  {text}")

    def drain(self) -> None:
        """Show what was logged since; called by the panel's timer."""
        for _number in range(_LINES_PER_POLL):
            try:
                self.add(self._collector.lines.get_nowait())
            except queue.Empty:
                return

    @guarded
    def onCopy(self) -> None:
        slicer.app.clipboard().setText(self.ui.logEdit.plainText)

    @guarded
    def onClear(self) -> None:
        self.ui.logEdit.clear()

    def cleanup(self) -> None:
        logging.getLogger("MedCLIPSAMLib").removeHandler(self._collector)
