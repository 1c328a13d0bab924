"""Live sliders: the coarse mask follows threshold and confidence at once, from the saliency in the scene.

The slice that is looked at changes with the slider; the others follow in portions, so that nothing blocks.
"""

from __future__ import annotations

from typing import Any

import qt
import slicer

from MedCLIPSAMPanel import views
from MedCLIPSAMPanel.guard import guarded, guardedQuietly

_COALESCE = 15  # ms: a dragged slider sends more changes than anybody sees
_PORTION = 30  # ms between portions of the other slices
_BUDGET = 0.03  # s for each portion
_UNKNOWN = 0.5  # where a slider stands while the recipe's own rule is in effect and its value is not known


class CoarseControls:
    """The box "Coarse mask"; works on the result that ``results`` (the section) has chosen."""

    def __init__(self, ui: Any, owner: Any, results: Any):
        self.ui = ui
        self.owner = owner
        self.results = results
        self._preview_timer = _timer(_COALESCE, self.onPreview)
        self._preview_timer.singleShot = True
        self._portion_timer = _timer(_PORTION, self.onPortion)
        ui.thresholdSlider.connect("valueChanged(double)", self.onThreshold)
        ui.confidenceSlider.connect("valueChanged(double)", self.onConfidence)
        ui.automaticThresholdCheckBox.connect("toggled(bool)", self.onAutomatic)
        ui.automaticConfidenceCheckBox.connect("toggled(bool)", self.onAutomatic)
        ui.refineButton.connect("clicked()", self.onRefine)

    def load(self, row: Any) -> None:
        """Show a result's settings; None disables everything."""
        ui = self.ui
        idle = self.owner.session.state == "idle"
        ui.coarseGroup.setEnabled(row is not None and row.saliency_node_id is not None and idle)
        if row is None:
            return
        with self.owner.update():
            ui.automaticThresholdCheckBox.checked = row.threshold is None
            ui.automaticConfidenceCheckBox.checked = row.minimum_confidence is None
            threshold = row.used_threshold if row.threshold is None else row.threshold
            ui.thresholdSlider.value = _UNKNOWN if threshold is None else threshold
            if row.minimum_confidence is not None:
                ui.confidenceSlider.value = row.minimum_confidence

    @guarded
    def onThreshold(self) -> None:
        if not self.owner.updating:
            with self.owner.update():
                self.ui.automaticThresholdCheckBox.checked = False
            self._preview_timer.start()

    @guarded
    def onConfidence(self) -> None:
        if not self.owner.updating:
            with self.owner.update():
                self.ui.automaticConfidenceCheckBox.checked = False
            self._preview_timer.start()

    @guarded
    def onAutomatic(self) -> None:
        if not self.owner.updating:
            self._preview_timer.start()

    @guardedQuietly
    def onPreview(self) -> None:
        """Recompute the slice that is looked at, and begin with the others."""
        row, segmentation = self.results.row, self.results.segmentation
        if row is None or self.owner.session.state != "idle":
            return
        ui = self.ui
        self.owner.session.preview(
            segmentation.GetID(),
            row.prompt,
            None if ui.automaticThresholdCheckBox.checked else ui.thresholdSlider.value,
            None if ui.automaticConfidenceCheckBox.checked else ui.confidenceSlider.value,
            self._shown_slice(row),
        )
        self._portion_timer.start()

    @guardedQuietly
    def onPortion(self) -> None:
        done = True
        try:
            done = self.owner.session.apply_coarse(_BUDGET)
        finally:
            if done:
                self._portion_timer.stop()
                self.results.refreshRows()

    @guarded
    def onRefine(self) -> None:
        row, segmentation = self.results.row, self.results.segmentation
        if row is not None:
            self.owner.session.refine(segmentation.GetID(), row.prompt)
            self.owner.runStarted()

    def forget(self) -> None:
        """Leave unfinished changes: their scene is being closed."""
        self._preview_timer.stop()
        self._portion_timer.stop()

    def _shown_slice(self, row: Any) -> int | None:
        """Return the slice of the result's axis that a view shows, or None."""
        map_node = slicer.mrmlScene.GetNodeByID(row.saliency_node_id or "")
        volume = self.results.volume
        if map_node is None or volume is None:
            return None
        return views.shownSlice(volume, int(map_node.GetAttribute("MedCLIPSAM.Axis") or 0))

    cleanup = forget


def _timer(interval: int, slot: Any) -> Any:
    timer = qt.QTimer()
    timer.interval = interval
    timer.connect("timeout()", slot)
    return timer
