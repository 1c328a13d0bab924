"""A map over the image in the slice views, and back to what the user had there before."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from MedCLIPSAMLib import mrml_overlays
from MedCLIPSAMPanel.guard import guarded


class OverlayControls:
    """The box "Overlay"; shows the map of the result that ``results`` (the section) has chosen."""

    def __init__(self, ui: Any, owner: Any, results: Any):
        self.ui = ui
        self.owner = owner
        self.results = results
        for text, kind in ((_("None"), "none"), (_("Saliency"), "saliency"), (_("Entropy"), "entropy")):
            ui.overlayComboBox.addItem(text, kind)
        ui.overlayComboBox.connect("currentIndexChanged(int)", self.onKind)
        ui.overlayOpacitySlider.connect("valueChanged(double)", self.onOpacity)

    def load(self) -> None:
        """Show the parameters."""
        parameters = self.owner.parameters
        self.ui.overlayComboBox.setCurrentIndex(self.ui.overlayComboBox.findData(parameters.overlay))
        self.ui.overlayOpacitySlider.value = parameters.overlayOpacity

    def refresh(self) -> None:
        """Put the chosen map into the slice views, or restore them."""
        parameters, row = self.owner.parameters, self.results.row
        self.ui.overlayGroup.setEnabled(row is not None and bool(row.saliency_node_id or row.entropy_node_id))
        self.ui.overlayOpacitySlider.setEnabled(parameters.overlay != "none")
        mrml_overlays.show_overlay(slicer.mrmlScene, self._node(), parameters.overlayOpacity)

    @guarded
    def onKind(self) -> None:
        if not self.owner.updating:
            self.owner.store(overlay=self.ui.overlayComboBox.currentData)
            self.refresh()

    @guarded
    def onOpacity(self) -> None:
        if not self.owner.updating:
            self.owner.store(overlayOpacity=self.ui.overlayOpacitySlider.value)
            self.refresh()

    def _node(self) -> Any:
        """Return the map to show, or None."""
        kind, row = self.owner.parameters.overlay, self.results.row
        if row is None or kind == "none":
            return None
        return slicer.mrmlScene.GetNodeByID((row.saliency_node_id if kind == "saliency" else row.entropy_node_id) or "")
