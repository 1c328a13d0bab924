"""The table of weights in the section Setup: what is there, download, verify, delete, open the folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedCLIPSAMLib import weights
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, MissingWeightsError, OutputError
from MedCLIPSAMPanel import wording
from MedCLIPSAMPanel.engine_needs import isThere, sizeText
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.install_wording import amount
from MedCLIPSAMPanel.weights_downloads import WeightsDownloads, howToGet, partSize
from MedCLIPSAMPanel.weights_verifying import WeightsVerifying, words

_NAME, _SIZE, _STATUS, _FOR, _LICENCE = range(5)  # columns


class WeightsTable:
    """Fills ``ui.weightsTable`` and serves its buttons.

    Args:
        ui: The widgets of MedCLIPSAM.ui.
        owner: The panel.
        changed: Called when a file has come or was deleted.
    """

    def __init__(self, ui: Any, owner: Any, changed: Callable[[], None]) -> None:
        self.ui, self.owner = ui, owner
        self._changed = changed
        self._shown: list[weights.Weight] = []
        self._needed: tuple[weights.Weight, ...] = ()
        self.verifying = WeightsVerifying(owner, self._showOne, self._updateButtons)
        self.downloads = WeightsDownloads(ui, owner, self._showDownloads, self._came)
        table = ui.weightsTable
        table.columnCount = 5
        table.setHorizontalHeaderLabels([_("Weights"), _("Size"), _("Status"), _("For"), _("Licence")])
        header = table.horizontalHeader()
        for column in range(_LICENCE):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setStretchLastSection(True)
        table.verticalHeader().setVisible(False)
        table.connect("itemSelectionChanged()", self.onSelectionChanged)
        ui.verifyWeightsButton.toolTip = _("Compare every file with its registered SHA-256; you can go on working.")
        ui.downloadWeightsButton.connect("clicked()", self.onDownload)
        ui.downloadEngineButton.connect("clicked()", self.onDownloadNeeded)
        ui.verifyWeightsButton.connect("clicked()", self.onVerify)
        ui.deleteWeightsButton.connect("clicked()", self.onDelete)
        ui.openWeightsFolderButton.connect("clicked()", self.onOpenFolder)

    def setNeeded(self, needed: Sequence[weights.Weight]) -> None:
        """Tell which weights the chosen engine needs; they are shown first."""
        if tuple(needed) != self._needed:
            self._needed = tuple(needed)
            self.refresh()
        else:
            self._updateButtons()

    def refresh(self, stop: bool = False) -> None:
        """Look anew at which weights are there.

        Args:
            stop: Stop verifying; otherwise nothing is changed while that goes on.
        """
        if self.verifying.active and not stop:
            return
        self.verifying.stop()
        chosen = self._chosen()
        others = [one for one in weights.registry().values() if one not in self._needed]
        self._shown = [*self._needed, *others]
        table = self.ui.weightsTable
        table.blockSignals(True)
        table.rowCount = len(self._shown)
        for number, one in enumerate(self._shown):
            size = amount(one.bytes / 1e6) if one.bytes else one.size_text
            for column, cell in enumerate((one.name, size, "", ", ".join(one.used_by), one.licence)):
                item = qt.QTableWidgetItem(cell)
                item.setToolTip(self._tip(one) if column in (_NAME, _FOR) else one.citation)
                table.setItem(number, column, item)
            self._show(number, *self._state(one))
        names = [one.name for one in self._shown]
        if chosen is not None and chosen.name in names:
            table.selectRow(names.index(chosen.name))
        table.resizeRowsToContents()
        table.blockSignals(False)
        self._updateButtons()

    def cleanup(self) -> None:
        """Stop verifying and downloading."""
        self.verifying.close()
        self.downloads.close()

    def _tip(self, weight: weights.Weight) -> str:
        needed = _("The chosen engine needs them.") + " " if weight in self._needed else ""
        return f"{needed}{weight.citation}"

    def _state(self, weight: weights.Weight) -> tuple[str, str, str]:
        """Return text, colour and tooltip."""
        state = self.downloads.state(weight.name)
        if state is not None:
            return state
        try:
            path = weights.locate(weight.name)
        except MedCLIPSAMError as error:
            part = partSize(weight)
            if part and weight.bytes:
                percent = _("{percent} % downloaded").format(percent=int(100 * part / weight.bytes))
                return percent, wording.DOUBTFUL, str(error)
            return _("missing"), wording.BAD if weight in self._needed else "gray", str(error)
        found = self.verifying.found(weight.name, path)
        if found is not None:
            return words(found)
        return _("there, not verified"), wording.DOUBTFUL, str(path)

    def _show(self, number: int, text: str, colour: str, tip: str) -> None:
        item = self.ui.weightsTable.item(number, _STATUS)
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
        ui, chosen, busy = self.ui, self._chosen(), self.downloads.active
        verifying = self.verifying.active
        ui.deleteWeightsButton.enabled = chosen is not None and not busy and _deletable(chosen)
        ui.verifyWeightsButton.text = _("Stop") if verifying else _("Verify")
        ui.verifyWeightsButton.enabled = not busy
        button, engineButton = ui.downloadWeightsButton, ui.downloadEngineButton
        missing = [one for one in self._needed if one.fetchable and self._wanted(one)]
        engineButton.text = _("Download what the engine needs…")
        if missing:
            engineButton.text = _("Download what the engine needs ({size})…").format(size=sizeText(missing))
        reason = self.downloads.refusal(missing) if missing else _("Nothing that can be downloaded is lacking.")
        engineButton.enabled = not (busy or verifying or reason)
        engineButton.toolTip = reason or ", ".join(one.name for one in missing)
        if busy:
            button.text, button.enabled = _("Stop"), True
            button.toolTip = _("Stop the download; a later one goes on where it stopped.")
            return
        button.text = _("How to get…") if chosen is not None and chosen.by_hand else _("Download…")
        reason = _("Wait until the files are verified.") if verifying else self._cannotDownload(chosen)
        button.enabled = not reason
        button.toolTip = reason or _("Download the chosen weights, after showing address, size and licence.")

    # ---- Download ----------------------------------------------------------------------------------------------

    def _wanted(self, weight: weights.Weight) -> bool:
        """Whether a file is missing, or damaged where a download would replace it."""
        if not isThere(weight.name):
            return True
        path = weights.removable(weight.name)
        found = None if path is None else self.verifying.found(weight.name, path)
        return found is not None and found.status in ("wrong size", "wrong hash")

    def _cannotDownload(self, chosen: weights.Weight | None) -> str:
        """Return why the chosen weights cannot be downloaded or explained; empty if they can."""
        if chosen is None:
            return self.downloads.refusal(())
        if not self._wanted(chosen):
            return _("They are there already.")
        if chosen.by_hand:
            return ""
        return self.downloads.refusal([chosen])

    @guarded
    def onDownload(self) -> None:
        chosen = self._chosen()
        if self.downloads.active:
            self.downloads.stop()
        elif chosen is not None and chosen.by_hand:
            self._explain(chosen)
        elif chosen is None:
            raise InputError(self.downloads.refusal(()))
        else:
            self.downloads.ask([chosen])

    @guarded
    def onDownloadNeeded(self) -> None:
        self.downloads.ask([one for one in self._needed if one.fetchable and self._wanted(one)])

    def _explain(self, chosen: weights.Weight) -> None:
        """Tell how weights are fetched by hand, and open their page if the user wants that."""
        text = "\n\n".join(
            (
                howToGet(chosen),
                _("Put the file at {path}").format(path=weights.user_folder() / chosen.file),
                _("Licence: {licence}").format(licence=chosen.licence),
                _("Cite: {citation}").format(citation=chosen.citation),
                _("Open the page in the browser?"),
            )
        )
        if slicer.util.confirmOkCancelDisplay(text, "MedCLIPSAM") and not slicer.app.testingEnabled():
            qt.QDesktopServices.openUrl(qt.QUrl(chosen.source))

    def _showDownloads(self) -> None:
        for number, one in enumerate(self._shown):
            self._show(number, *self._state(one))
        self._updateButtons()

    def _came(self, name: str) -> None:
        """A file was downloaded: its SHA-256 was compared on the way."""
        with suppress(MissingWeightsError):  # removed a moment ago; the table says so
            self.verifying.note(weights.Verification(name, weights.locate(name), "ok"))
        self._changed()

    @guarded
    def onVerify(self) -> None:
        """Verify all that is shown, or stop doing so."""
        if self.verifying.active:
            self.refresh(stop=True)
        else:
            self.verifying.start(self._shown)
            self._updateButtons()

    def _showOne(self, name: str, text: str, colour: str, tip: str) -> None:
        self._show([one.name for one in self._shown].index(name), text, colour, tip)

    # ---- Files -------------------------------------------------------------------------------------------------

    @guarded
    def onDelete(self) -> None:
        chosen = self._chosen()
        if chosen is None:
            raise InputError(_("Choose the weights to delete in the table first."))
        if not _deletable(chosen):
            weights.remove(chosen.name)  # raises, saying where they lie and whose they are
            return
        path = weights.removable(chosen.name)
        size = partSize(chosen) if path is None else path.stat().st_size
        text = _("Delete {path} ({size})?").format(
            path=path or _("what was downloaded of {name}").format(name=chosen.name), size=amount(size / 1e6)
        )
        if slicer.util.confirmOkCancelDisplay(text, "MedCLIPSAM"):
            self.verifying.stop()  # an open file cannot be deleted on Windows
            weights.remove(chosen.name)
            self.refresh(stop=True)
            self._changed()

    @guarded
    def onOpenFolder(self) -> None:
        folder = weights.user_folder()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            text = _("The folder {folder} cannot be made ({reason}).")
            raise OutputError(text.format(folder=folder, reason=error.strerror)) from error
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(folder)))


def _deletable(weight: weights.Weight) -> bool:
    return weights.removable(weight.name) is not None or partSize(weight) > 0
