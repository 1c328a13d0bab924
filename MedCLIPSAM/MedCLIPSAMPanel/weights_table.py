"""The table of weights in the section Setup: what is there, verify, delete, open the folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedCLIPSAMLib import weights
from MedCLIPSAMLib.engines import engine_names
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, OutputError
from MedCLIPSAMPanel import wording
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.install_wording import amount

_File = tuple[str, int, int]  # path, size and time of change: what was verified is still the same
_PORTION = 0.02  # seconds of hashing before the user interface has its turn


class WeightsTable:
    """Fills ``ui.weightsTable`` and serves its buttons."""

    def __init__(self, ui: Any, owner: Any) -> None:
        self.ui, self.owner = ui, owner
        self._shown: list[weights.Weight] = []
        self._verified: dict[str, tuple[_File, weights.Verification]] = {}
        self._queue: list[str] = []
        self._work: Iterator[int | weights.Verification] | None = None
        self._timer = qt.QTimer()
        self._timer.interval = 0
        self._timer.connect("timeout()", self.onVerifyMore)
        table = ui.weightsTable
        table.columnCount = 4
        table.setHorizontalHeaderLabels([_("Weights"), _("Size"), _("Licence"), _("Status")])
        header = table.horizontalHeader()
        for column in range(3):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setStretchLastSection(True)
        table.verticalHeader().setVisible(False)
        table.connect("itemSelectionChanged()", self.onSelectionChanged)
        ui.verifyWeightsButton.toolTip = _("Compare every file with its registered SHA-256; you can go on working.")
        ui.verifyWeightsButton.connect("clicked()", self.onVerify)
        ui.deleteWeightsButton.connect("clicked()", self.onDelete)
        ui.openWeightsFolderButton.connect("clicked()", self.onOpenFolder)

    def refresh(self, stop: bool = False) -> None:
        """Look anew at which weights are there; those of engines that this version does not have are left out.

        Args:
            stop: Stop verifying; otherwise nothing is changed while that goes on.
        """
        if self._timer.active and not stop:
            return
        self._stop()
        known = set(engine_names())
        self._shown = [one for one in weights.registry().values() if known & set(one.used_by)]
        table, row = self.ui.weightsTable, self.ui.weightsTable.currentRow()
        table.blockSignals(True)
        table.rowCount = len(self._shown)
        for number, one in enumerate(self._shown):
            text, colour, tip = self._state(one.name)
            size = amount(one.bytes / 1e6) if one.bytes else ""
            for column, cell in enumerate((one.name, size, one.licence, text)):
                item = qt.QTableWidgetItem(cell)
                item.setToolTip(one.citation if column in (0, 2) else tip)
                table.setItem(number, column, item)
            self._show(number, text, colour, tip)
        if 0 <= row < len(self._shown):
            table.selectRow(row)
        table.resizeRowsToContents()
        table.blockSignals(False)
        self._updateButtons()

    def cleanup(self) -> None:
        """Stop verifying."""
        self._stop()
        self._timer.disconnect("timeout()", self.onVerifyMore)

    def _state(self, name: str) -> tuple[str, str, str]:
        try:
            path = weights.locate(name)
        except MedCLIPSAMError as error:
            return _("missing"), wording.BAD, str(error)
        known, found = self._verified.get(name, (None, None))
        if found is not None and known == _file(path):
            return self._words(found)
        return _("there, not verified"), wording.DOUBTFUL, str(path)

    def _show(self, number: int, text: str, colour: str, tip: str) -> None:
        item = self.ui.weightsTable.item(number, 3)
        item.setText(text)
        item.setForeground(qt.QBrush(qt.QColor(colour)))
        item.setToolTip(tip)

    def _chosen(self) -> weights.Weight | None:
        row = self.ui.weightsTable.currentRow()
        return self._shown[row] if 0 <= row < len(self._shown) else None

    @guarded
    def onSelectionChanged(self) -> None:
        self._updateButtons()

    def _updateButtons(self) -> None:
        chosen = self._chosen()
        self.ui.deleteWeightsButton.enabled = chosen is not None and weights.removable(chosen.name) is not None
        self.ui.verifyWeightsButton.text = _("Stop") if self._timer.active else _("Verify")

    # ---- Verify ------------------------------------------------------------------------------------------------

    @guarded
    def onVerify(self) -> None:
        """Verify all, a portion at a time so that the user can go on working; or stop doing so."""
        if self._timer.active:
            self.refresh(stop=True)
            return
        self._queue = [one.name for one in self._shown]
        self._timer.start()
        self._updateButtons()

    @guarded
    def onVerifyMore(self) -> None:
        until = time.perf_counter() + _PORTION
        try:
            while time.perf_counter() < until:
                if self._work is None:
                    if not self._queue:
                        self._stop()
                        return
                    self._work = weights.verifying(self._queue[0])
                step = next(self._work)
                number = [one.name for one in self._shown].index(self._queue[0])
                if isinstance(step, weights.Verification):
                    self._showVerification(number, step)
                    self._queue.pop(0)
                    self._work = None
                else:
                    total = self._shown[number].bytes or step
                    self._show(number, f"{100 * step / max(total, step):.0f} %", wording.DOUBTFUL, "")
        except (MedCLIPSAMError, OSError) as error:
            self._stop()
            raise (
                error
                if isinstance(error, MedCLIPSAMError)
                else OutputError(
                    _("A weight file cannot be read ({reason}); check the disk.").format(reason=error.strerror)
                )
            ) from error

    def _showVerification(self, number: int, found: weights.Verification) -> None:
        if found.path is not None:
            self._verified[found.name] = (_file(found.path), found)
        self._show(number, *self._words(found))

    @staticmethod
    def _words(found: weights.Verification) -> tuple[str, str, str]:
        """Return text, colour and tooltip."""
        if found.status == "ok":
            return _("✓ verified"), wording.GOOD, str(found.path)
        if found.status == "unregistered":
            return _("cannot be verified"), wording.DOUBTFUL, found.message
        texts = {"missing": _("missing"), "wrong size": _("wrong size"), "wrong hash": _("damaged")}
        return texts[found.status], wording.BAD, found.message

    def _stop(self) -> None:
        self._timer.stop()
        self._queue.clear()
        self._work = None
        self._updateButtons()

    # ---- Files -------------------------------------------------------------------------------------------------

    @guarded
    def onDelete(self) -> None:
        chosen = self._chosen()
        if chosen is None:
            raise InputError(_("Choose the weights to delete in the table first."))
        path = weights.removable(chosen.name)
        if path is None:
            weights.remove(chosen.name)  # raises, saying where they lie and whose they are
            return
        text = _("Delete {path} ({size})?").format(path=path, size=amount(path.stat().st_size / 1e6))
        if slicer.util.confirmOkCancelDisplay(text, "MedCLIPSAM"):
            self._stop()  # an open file cannot be deleted on Windows
            weights.remove(chosen.name)
            self.refresh(stop=True)

    @guarded
    def onOpenFolder(self) -> None:
        folder = weights.user_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = _("The folder {folder} cannot be made ({reason}).")
            raise OutputError(text.format(folder=folder, reason=error.strerror)) from error
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))


def _file(path: Path) -> _File:
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns
