"""Stand-ins for Slicer's widgets of the scene, on real MRML nodes."""

# ruff: noqa: N801, N802, N815 (names of the application)
from __future__ import annotations

import weakref
from collections.abc import Callable

import shiboken6
import slicer
import vtk
from PySide6 import QtWidgets

from .stand_ins import StandIn, rows, stand_in, stored

Scene = slicer.vtkMRMLScene


class SceneWidget(StandIn):
    """A widget with a scene; ``_scene_event(name, node)`` follows it until the widget is gone."""

    _emits = ("mrmlSceneChanged(vtkMRMLScene*)",)

    def _follow(self, subject: vtk.vtkObject, event: object, call: Callable, data: object = None) -> None:
        """Observe ``subject`` without keeping this widget alive, and not after its end."""
        itself, method = weakref.ref(self), call.__func__

        def forward(_caller: object, _event: str, value: object = None) -> None:
            widget = itself()
            if widget is not None and shiboken6.isValid(widget):
                method(widget, value)

        if data is not None:
            forward.CallDataType = data
        self._values.setdefault("observed", []).append((subject, subject.AddObserver(event, forward)))

    def _unfollow(self) -> None:
        for subject, tag in self._values.pop("observed", []):
            subject.RemoveObserver(tag)

    def setMRMLScene(self, scene: object) -> None:
        """Slot of the same name."""
        if scene is self._values.get("scene"):
            return
        self._values["scene"] = scene
        self._scene_set(scene)
        if "mrmlSceneChanged(vtkMRMLScene*)" in type(self)._emits:
            self._send("mrmlSceneChanged(vtkMRMLScene*)", scene)

    def mrmlScene(self) -> object:
        """Method of the same name."""
        return self._values.get("scene")

    def _scene_set(self, scene: object) -> None:
        """For a subclass: another scene was set."""


@stand_in
class qMRMLWidget(SceneWidget, QtWidgets.QWidget):
    """A widget with a scene."""


@stand_in
class qSlicerWidget(SceneWidget, QtWidgets.QWidget):
    """A widget with a scene."""


@stand_in
class qMRMLNodeComboBox(SceneWidget, QtWidgets.QWidget):
    """A choice among the scene's nodes. As in the application, it selects nothing by itself."""

    _emits = (
        "currentNodeChanged(vtkMRMLNode*)",
        "currentNodeChanged(bool)",
        "currentNodeIDChanged(QString)",
        "nodeAdded(vtkMRMLNode*)",
        "nodeAddedByUser(vtkMRMLNode*)",
        "nodeAboutToBeRemoved(vtkMRMLNode*)",
        "nodeActivated(vtkMRMLNode*)",
    )
    nodeTypes = stored("nodeTypes", (), "_refill", tuple)
    hideChildNodeTypes = stored("hideChildNodeTypes", (), "_refill", tuple)
    showHidden = stored("showHidden", False, "_refill")
    showChildNodeTypes = stored("showChildNodeTypes", True, "_refill")
    noneEnabled = stored("noneEnabled", False, "_refill")
    noneDisplay = stored("noneDisplay", "None", "_refill")
    baseName = stored("baseName", "")
    addEnabled = stored("addEnabled", True)
    removeEnabled = stored("removeEnabled", True)
    editEnabled = stored("editEnabled", False)
    renameEnabled = stored("renameEnabled", False)
    selectNodeUponCreation = stored("selectNodeUponCreation", True)
    interactionNodeSingletonTag = stored("interactionNodeSingletonTag", "")

    def _build(self) -> None:
        self._combo = QtWidgets.QComboBox(self)
        rows(self, self._combo)
        self._combo.connect("activated(int)", self._activated)
        self._refill()

    def _scene_set(self, scene: object) -> None:
        self._unfollow()
        if scene is not None:
            self._follow(scene, Scene.NodeAddedEvent, self._added, vtk.VTK_OBJECT)
            self._follow(scene, Scene.NodeAboutToBeRemovedEvent, self._about_to_remove, vtk.VTK_OBJECT)
            self._follow(scene, Scene.NodeRemovedEvent, self._removed, vtk.VTK_OBJECT)
        self._values["current"] = None
        self._refill()

    def _suits(self, node: slicer.vtkMRMLNode) -> bool:
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        kinds = self.nodeTypes
        if any(node.IsA(kind) for kind in self.hideChildNodeTypes):
            return False
        return any(node.IsA(kind) if self.showChildNodeTypes else node.GetClassName() == kind for kind in kinds)

    def _nodes(self) -> list:
        scene = self.mrmlScene()
        if scene is None:
            return []
        return [node for node in map(scene.GetNthNode, range(scene.GetNumberOfNodes())) if self._suits(node)]

    def _entries(self) -> list:
        return [None, *self._nodes()] if self.noneEnabled else self._nodes()

    def _refill(self, _event: object = None) -> None:
        blocked = self._combo.blockSignals(True)
        self._combo.clear()
        entries = self._entries()
        for node in entries:
            self._combo.addItem(self.noneDisplay if node is None else node.GetName())
        current = self._values.get("current")
        self._combo.setCurrentIndex(entries.index(current) if current in entries else -1)
        self._combo.blockSignals(blocked)

    def _added(self, node: slicer.vtkMRMLNode) -> None:
        if self._suits(node):
            self._follow(node, vtk.vtkCommand.ModifiedEvent, self._refill)
            self._refill()
            self._send("nodeAdded(vtkMRMLNode*)", node)

    def _about_to_remove(self, node: slicer.vtkMRMLNode) -> None:
        if self._suits(node):
            self._values["row"] = self._entries().index(node)
            self._send("nodeAboutToBeRemoved(vtkMRMLNode*)", node)

    def _removed(self, node: slicer.vtkMRMLNode) -> None:
        if node is self._values.get("current"):
            left = self._entries()  # Qt's combo box goes on to the row that takes the place
            self.setCurrentNode(left[min(self._values.get("row", 0), len(left) - 1)] if left else None)
        self._refill()

    def _activated(self, index: int) -> None:
        self.setCurrentNode(self._entries()[index])
        self._send("nodeActivated(vtkMRMLNode*)", self.currentNode())

    def currentNode(self) -> object:
        """Method of the same name."""
        return self._values.get("current")

    def setCurrentNode(self, node: object) -> None:
        """Slot of the same name: a node or its ID; what is not listed means none."""
        if isinstance(node, str):
            node = self.mrmlScene().GetNodeByID(node) if node and self.mrmlScene() else None
        if node is not None and node not in self._nodes():
            node = None
        if node is self._values.get("current"):
            return
        self._values["current"] = node
        self._refill()
        self._send("currentNodeChanged(vtkMRMLNode*)", node)
        self._send("currentNodeChanged(bool)", node is not None)
        self._send("currentNodeIDChanged(QString)", self.currentNodeID)

    def setCurrentNodeID(self, node_id: str) -> None:
        """Slot of the same name."""
        self.setCurrentNode(node_id)

    def setCurrentNodeIndex(self, index: int) -> None:
        """Slot of the same name."""
        self.setCurrentNode(self.nodeFromIndex(index))

    @property
    def currentNodeID(self) -> str:
        """Property of the same name."""
        node = self._values.get("current")
        return node.GetID() if node is not None and node.GetScene() else ""

    @currentNodeID.setter
    def currentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(node_id)

    def nodeCount(self) -> int:
        """Method of the same name."""
        return len(self._nodes())

    def nodeFromIndex(self, index: int) -> object:
        """Method of the same name."""
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def addNode(self, kind: str | None = None) -> object:
        """Slot of the same name: what "Create new" in the list does."""
        scene, kind = self.mrmlScene(), kind or self.nodeTypes[0]
        name = self.baseName or scene.CreateNodeByClass(kind).GetNodeTagName()
        node = scene.AddNewNodeByClass(kind, scene.GenerateUniqueName(name))
        self._send("nodeAddedByUser(vtkMRMLNode*)", node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        return node


@stand_in
class qMRMLColorTableComboBox(qMRMLNodeComboBox):
    """A choice among colour tables."""

    def _build(self) -> None:
        super()._build()
        self._values["nodeTypes"] = ("vtkMRMLColorTableNode",)
