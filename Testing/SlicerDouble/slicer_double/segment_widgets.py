"""Stand-ins for Slicer's widgets of a segmentation, on real MRML nodes."""

# ruff: noqa: N801, N802, N815 (names of the application)
from __future__ import annotations

import slicer
from PySide6 import QtWidgets

from .mrml_widgets import SceneWidget
from .stand_ins import StandIn, rows, stand_in, stored


@stand_in
class qMRMLSegmentsTableView(SceneWidget, QtWidgets.QWidget):
    """The list of a segmentation's segments."""

    _emits = ("mrmlSceneChanged(vtkMRMLScene*)", "selectionChanged(QItemSelection,QItemSelection)")
    readOnly = stored("readOnly", False)
    selectionMode = stored("selectionMode", 3)
    headerVisible = stored("headerVisible", True)
    visibilityColumnVisible = stored("visibilityColumnVisible", True)
    colorColumnVisible = stored("colorColumnVisible", True)
    opacityColumnVisible = stored("opacityColumnVisible", True)
    statusColumnVisible = stored("statusColumnVisible", False)
    layerColumnVisible = stored("layerColumnVisible", False)
    filterBarVisible = stored("filterBarVisible", False)
    textFilter = stored("textFilter", "")

    def _build(self) -> None:
        self._table = QtWidgets.QTableWidget(0, 1, self)
        self._table.setHorizontalHeaderLabels(("Name",))
        self._table.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        rows(self, self._table)
        changed = self._table.selectionModel().selectionChanged
        changed.connect(lambda *parts: self._send("selectionChanged(QItemSelection,QItemSelection)", *parts))

    def setSegmentationNode(self, node: object) -> None:
        """Slot of the same name."""
        self._unfollow()
        self._values["node"] = node
        if node is not None:
            kind = slicer.vtkSegmentation
            for event in (kind.SegmentAdded, kind.SegmentRemoved, kind.SegmentModified):
                self._follow(node, event, self._refill)
        self._refill()

    def segmentationNode(self) -> object:
        """Method of the same name."""
        return self._values.get("node")

    def displayedSegmentIDs(self) -> tuple:
        """Method of the same name."""
        node = self._values.get("node")
        return tuple(node.GetSegmentation().GetSegmentIDs()) if node is not None else ()

    def _refill(self, _event: object = None) -> None:
        ids = self.displayedSegmentIDs()
        self._table.setRowCount(len(ids))
        for row, segment_id in enumerate(ids):
            segment = self._values["node"].GetSegmentation().GetSegment(segment_id)
            self._table.setItem(row, 0, QtWidgets.QTableWidgetItem(segment.GetName()))

    @property
    def segmentCount(self) -> int:
        """Property of the same name."""
        return len(self.displayedSegmentIDs())

    def selectedSegmentIDs(self) -> tuple:
        """Method of the same name."""
        ids = self.displayedSegmentIDs()
        return tuple(ids[row] for row in sorted({index.row() for index in self._table.selectedIndexes()}))

    def setSelectedSegmentIDs(self, chosen: tuple) -> None:
        """Method of the same name."""
        self._table.clearSelection()
        for segment_id in chosen:
            self._table.selectRow(self.displayedSegmentIDs().index(segment_id))

    def clearSelection(self) -> None:
        """Method of the same name."""
        self._table.clearSelection()

    def setReadOnly(self, on: bool) -> None:
        """Slot of the same name."""
        self.readOnly = on


@stand_in
class qMRMLSegmentationShow3DButton(StandIn, QtWidgets.QPushButton):
    """A button that makes and removes the closed surface."""

    locked = stored("locked", False)

    def _build(self) -> None:
        QtWidgets.QPushButton.setCheckable(self, True)
        QtWidgets.QPushButton.setText(self, "Show 3D")
        self.connect("toggled(bool)", self._show_surface)

    def setSegmentationNode(self, node: object) -> None:
        """Slot of the same name."""
        self._values["node"] = node
        blocked = self.blockSignals(True)
        surface = node is not None and node.GetSegmentation().ContainsRepresentation("Closed surface")
        QtWidgets.QPushButton.setChecked(self, surface)
        self.blockSignals(blocked)

    def segmentationNode(self) -> object:
        """Method of the same name."""
        return self._values.get("node")

    def _show_surface(self, on: bool) -> None:
        node = self._values.get("node")
        if node is not None and on:
            node.CreateClosedSurfaceRepresentation()
        elif node is not None:
            node.RemoveClosedSurfaceRepresentation()
