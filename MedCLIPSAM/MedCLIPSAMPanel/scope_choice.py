"""What part of the volume is segmented: the slice that a view shows, a range of slices, or all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from MedCLIPSAMLib import mrml
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.geometry import PLANE_NAMES, SliceGeometry
from MedCLIPSAMPanel import views
from MedCLIPSAMPanel.guard import guarded

TILT = 1.0  # degrees between a view and the nearest slice from where on that is said


@dataclass(frozen=True)
class CurrentSlice:
    """The slice that a view shows; ``note`` says what the user should know about it."""

    axis: int
    index: int
    plane: str
    last: int
    note: str = ""


class ScopeChoice:
    """Reads and fills the rows from "Segment" to the line that says which slices are meant."""

    def __init__(self, ui: Any, owner: Any):
        self.ui = ui
        self.owner = owner
        for text, scope in ((_("Current slice"), "slice"), (_("Slice range"), "range"), (_("Whole volume"), "volume")):
            ui.scopeComboBox.addItem(text, scope)
        ui.scopeComboBox.connect("currentIndexChanged(int)", self.onScopeChanged)
        ui.viewComboBox.connect("currentIndexChanged(int)", self.onViewChanged)
        ui.sliceAxisComboBox.connect("currentIndexChanged(int)", self.onPlaneChanged)
        ui.sliceRangeWidget.connect("valuesChanged(double,double)", self.onRangeChanged)
        self._show_rows()

    # ---- What the request takes --------------------------------------------------------------------------------

    def requestFields(self, volume: Any) -> dict[str, Any]:
        """Return scope, axis, index and slice_range of a request.

        Raises:
            InputError: The chosen view does not cut the volume.
        """
        scope = self.owner.parameters.scope
        if scope == "slice":
            current = self.currentSlice(volume)
            if current.note:
                self.owner.log(current.note)
            return {"scope": scope, "axis": current.axis, "index": current.index}
        geometry = self._geometry(volume)
        if scope == "volume":
            return {"scope": scope, "axis": geometry.axis}
        first, last = self._range(geometry.count)
        return {"scope": scope, "axis": geometry.axis, "slice_range": (first, last)}

    def currentSlice(self, volume: Any) -> CurrentSlice:
        """Return the slice that the chosen view shows; without views, the middle one.

        Raises:
            InputError: The view does not cut the volume.
        """
        node = views.sliceNode(self.owner.parameters.view)
        if node is None:
            geometry = _geometry_of(volume)
            note = _("There is no slice view: the middle slice is taken.")
            return CurrentSlice(geometry.axis, geometry.count // 2, geometry.plane_name, geometry.count - 1, note)
        position = mrml.slice_position(node, volume)
        geometry = _geometry_of(volume, position.axis)
        if not position.inside:
            raise InputError(
                _("the view {view} does not cut the volume {volume}; scroll to it, or choose another view.").format(
                    view=node.GetName(), volume=volume.GetName()
                )
            )
        note = ""
        if position.angle > TILT:
            note = _("The view is turned by {angle}° against the volume: its nearest slice is taken.").format(
                angle=round(position.angle)
            )
        return CurrentSlice(position.axis, position.index, geometry.plane_name, geometry.count - 1, note)

    # ---- Parameters and widgets --------------------------------------------------------------------------------

    def load(self) -> None:
        """Show the parameters, and what the volume and the views offer."""
        parameters = self.owner.parameters
        self.ui.scopeComboBox.setCurrentIndex(self.ui.scopeComboBox.findData(parameters.scope))
        self.refreshViews()
        self._show_volume(parameters.inputVolume)
        self._show_rows()
        self.refreshInfo()

    def refreshViews(self) -> None:
        """Offer the slice views of the layout."""
        combo = self.ui.viewComboBox
        offered = [(node.GetLayoutName(), node.GetOrientation()) for node in views.sliceNodes()]
        shown = [combo.itemText(number) for number in range(combo.count)]
        wanted = [f"{name} ({orientation.lower()})" for name, orientation in offered]
        with self.owner.update():
            if shown != (wanted or [_("no slice view: the middle slice")]):
                combo.clear()
                for text, (name, _orientation) in zip(wanted, offered, strict=True):
                    combo.addItem(text, name)
                if not offered:
                    combo.addItem(_("no slice view: the middle slice"), "")
            combo.setCurrentIndex(max(0, combo.findData(self.owner.parameters.view)))

    def refreshInfo(self) -> None:
        """Say which slices are meant; called often, since the views are scrolled without telling the panel."""
        volume = self.owner.parameters.inputVolume
        text = ""
        if views.isInput(volume):
            try:
                text = self._info(volume)
            except MedCLIPSAMError as error:
                text = str(error)[:1].upper() + str(error)[1:]
        if self.ui.sliceInfoLabel.text != text:
            self.ui.sliceInfoLabel.text = text
        self.ui.sliceInfoLabel.setVisible(bool(text))

    @guarded
    def onScopeChanged(self) -> None:
        if not self.owner.updating:
            self.owner.store(scope=self.ui.scopeComboBox.currentData)
            self._show_rows()
            self.refreshInfo()

    @guarded
    def onViewChanged(self) -> None:
        if not self.owner.updating:
            self.owner.store(view=self.ui.viewComboBox.currentData or "Red")
            self.refreshInfo()

    @guarded
    def onPlaneChanged(self) -> None:
        if not self.owner.updating:
            self.owner.store(plane=self.ui.sliceAxisComboBox.currentData or "", firstSlice=0, lastSlice=-1)
            self._show_volume(self.owner.parameters.inputVolume)
            self.refreshInfo()

    @guarded
    def onRangeChanged(self, first: float, last: float) -> None:
        if not self.owner.updating:
            self.owner.store(firstSlice=round(first), lastSlice=round(last))
            self.refreshInfo()

    def _show_rows(self) -> None:
        """Show the rows that belong to the scope."""
        scope = self.owner.parameters.scope
        rows = {
            "slice": (self.ui.viewLabel, self.ui.viewComboBox),
            "volume": (self.ui.sliceAxisLabel, self.ui.sliceAxisComboBox),
            "range": (self.ui.sliceRangeLabel, self.ui.sliceRangeWidget),
        }
        for name, widgets in rows.items():
            for widget in widgets:
                widget.setVisible(name == scope or (name == "volume" and scope == "range"))

    def _show_volume(self, volume: Any) -> None:
        """Offer the volume's axes and slices."""
        with self.owner.update():
            combo = self.ui.sliceAxisComboBox
            combo.clear()
            combo.addItem(_("as acquired"), "")
            if not views.isInput(volume):
                self.ui.sliceRangeWidget.setEnabled(False)
                return
            acquired = _geometry_of(volume).plane_name
            combo.setItemText(0, _("{plane} (as acquired)").format(plane=acquired))
            for plane in reversed(PLANE_NAMES):
                if plane != acquired:
                    combo.addItem(plane, plane)
            combo.setCurrentIndex(max(0, combo.findData(self.owner.parameters.plane)))
            count = self._geometry(volume).count
            first, last = self._range(count)
            self.ui.sliceRangeWidget.setEnabled(count > 1)
            self.ui.sliceRangeWidget.setRange(0, max(1, count - 1))
            self.ui.sliceRangeWidget.setValues(first, last)

    def _info(self, volume: Any) -> str:
        if self.owner.parameters.scope == "slice":
            current = self.currentSlice(volume)
            only = _("The only {plane} slice") if current.last == 0 else _("{plane} slice {index} of 0 to {last}")
            text = only.format(plane=current.plane, index=current.index, last=current.last)
            text = text[:1].upper() + text[1:]
            return f"{text}. {current.note}" if current.note else text
        geometry = self._geometry(volume)
        first, last = self._range(geometry.count) if self.owner.parameters.scope == "range" else (0, geometry.count - 1)
        text = _("One {plane} slice") if first == last else _("{count} {plane} slices")
        return text.format(count=last - first + 1, plane=geometry.plane_name)

    def _range(self, count: int) -> tuple[int, int]:
        parameters = self.owner.parameters
        last = parameters.lastSlice if 0 <= parameters.lastSlice < count else count - 1
        return min(max(parameters.firstSlice, 0), last), last

    def _geometry(self, volume: Any) -> SliceGeometry:
        return _geometry_of(volume, self.owner.parameters.plane or None)


def _geometry_of(volume: Any, axis: int | str | None = None) -> SliceGeometry:
    return SliceGeometry.of(mrml.volume_shape(volume), mrml.ijk_to_ras(volume), axis)
