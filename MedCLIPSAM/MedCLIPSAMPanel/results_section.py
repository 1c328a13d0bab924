"""The section Results: everything in it is read from the scene, so it also works on a scene that was loaded."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from MedCLIPSAMLib.session_rows import volume_of
from MedCLIPSAMPanel import navigation, wording
from MedCLIPSAMPanel.coarse_controls import CoarseControls
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.overlay_controls import OverlayControls
from MedCLIPSAMPanel.results_table import ResultsTable


class ResultsSection:
    """Owns the parts of the section.

    Attributes:
        row: The chosen result, or None.
    """

    def __init__(self, ui: Any, owner: Any):
        self.ui = ui
        self.owner = owner
        self.row: Any = None
        self._rows: list[Any] = []
        self.table = ResultsTable(ui.resultsTable)
        self.coarse = CoarseControls(ui, owner, self)
        self.overlay = OverlayControls(ui, owner, self)
        ui.resultsSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onSegmentationChanged)
        ui.resultsTable.connect("itemSelectionChanged()", self.onChosen)
        ui.acceptButton.connect("clicked()", self.onAccept)
        ui.rejectButton.connect("clicked()", self.onReject)
        ui.undoButton.connect("clicked()", self.onUndo)
        ui.segmentEditorButton.connect("clicked()", self.onSegmentEditor)
        ui.segmentStatisticsButton.connect("clicked()", self.onSegmentStatistics)

    @property
    def segmentation(self) -> Any:
        """The segmentation whose results are shown, or None."""
        return self.owner.parameters.resultsSegmentation

    @property
    def volume(self) -> Any:
        """The volume that the segmentation belongs to, or None."""
        return None if self.segmentation is None else volume_of(self.segmentation)

    def load(self) -> None:
        """Show the parameters, and the results of the scene."""
        self.ui.resultsSelector.setCurrentNode(self.segmentation)
        self.overlay.load()
        self.refresh()

    def show(self, segmentation: Any, prompt: str) -> None:
        """Show a segmentation's results and choose one."""
        self.owner.store(resultsSegmentation=segmentation)
        with self.owner.update():
            self.ui.resultsSelector.setCurrentNode(segmentation)
        self.refresh(prompt)

    def refresh(self, chosen: str = "") -> None:
        """Read the results anew; keep the chosen one unless another is named."""
        chosen = chosen or (self.row.prompt if self.row is not None else "")
        self.refreshRows(chosen)
        self.ui.show3DButton.setSegmentationNode(self.segmentation)
        self.overlay.refresh()

    def refreshRows(self, chosen: str = "") -> None:
        """Read the table anew."""
        chosen = chosen or (self.row.prompt if self.row is not None else "")
        self._rows = self.owner.session.rows(self.segmentation)
        with self.owner.update():
            self.table.show(self._rows, self.segmentation, chosen)
        self._take_chosen()

    def rowOf(self, prompt: str) -> Any:
        """Return the row of a prompt, or None."""
        return next((row for row in self._rows if row.prompt == prompt), None)

    def _take_chosen(self) -> None:
        number = self.table.chosen
        self.row = self._rows[number] if 0 <= number < len(self._rows) else None
        self._show_row()
        self.coarse.load(self.row)

    def _show_row(self) -> None:
        ui, row = self.ui, self.row
        idle = self.owner.session.state == "idle"
        for button in (ui.acceptButton, ui.rejectButton, ui.segmentEditorButton):
            button.setEnabled(row is not None and idle)
        ui.show3DButton.setEnabled(bool(self._rows))
        ui.segmentStatisticsButton.setEnabled(bool(self._rows))
        ui.undoButton.setEnabled(self.owner.session.can_undo)
        ui.acceptButton.checked = row is not None and row.decision == "accepted"
        ui.rejectButton.checked = row is not None and row.decision == "rejected"
        text = ""
        if row is not None:
            lines = []
            if wording.presenceColour(row.presence, row.presence_threshold) != wording.GOOD:
                lines.append(wording.presence(row.prompt, row.presence, row.presence_threshold, row.size == 0))
            lines += wording.warnings(row)
            text = "<br>".join(lines)
        ui.resultDetailLabel.text = text
        ui.resultDetailLabel.setVisible(bool(text))

    @guarded
    def onSegmentationChanged(self, node: Any) -> None:
        if not self.owner.updating:
            self.owner.store(resultsSegmentation=node)
            self.refresh()

    @guarded
    def onChosen(self) -> None:
        if not self.owner.updating:
            self._take_chosen()
            self.overlay.refresh()

    @guarded
    def onAccept(self) -> None:
        self._decide("accepted" if self.ui.acceptButton.checked else "")

    @guarded
    def onReject(self) -> None:
        self._decide("rejected" if self.ui.rejectButton.checked else "")

    def _decide(self, decision: str) -> None:
        if self.row is not None:
            try:
                self.owner.session.decide(self.segmentation.GetID(), self.row.prompt, decision)
            finally:
                self.refreshRows()

    @guarded
    def onUndo(self) -> None:
        self.coarse.forget()
        self.owner.session.undo()
        self.owner.log(_("The last run was undone."))
        self.refresh()

    @guarded
    def onSegmentEditor(self) -> None:
        segment_id = None if self.row is None else self.row.mask_segment_id or self.row.coarse_segment_id
        navigation.openSegmentEditor(self.segmentation, self.volume, segment_id)

    @guarded
    def onSegmentStatistics(self) -> None:
        navigation.openSegmentStatistics(self.segmentation, self.volume)

    def forget(self) -> None:
        """Leave everything that belongs to a scene that is being closed."""
        self.coarse.forget()
        self.row = None
        self._rows = []
        self.table.show([], None, "")

    def cleanup(self) -> None:
        self.coarse.cleanup()
