"""``slicer.ScriptedLoadableModule``: what the application gives a scripted module to derive from."""

# ruff: noqa: N802, N803 (names of the application)
from __future__ import annotations

import logging
import os
import unittest

import slicer
from slicer.util import VTKObservationMixin


class ScriptedLoadableModule:
    """The module as the application lists it."""

    def __init__(self, parent: object) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        for name, value in (("title", ""), ("helpText", ""), ("acknowledgementText", "")):
            setattr(parent, name, value)
        for name in ("categories", "contributors", "dependencies", "associatedNodeTypes"):
            setattr(parent, name, [])

    def resourcePath(self, filename: str) -> str:
        """Full path of a file in ``Resources`` beside the module."""
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self) -> str:
        """A line for the help text."""
        return f"<p>For more information see the documentation of {self.moduleName}.</p>"

    def runTest(self, msec: int = 100, **kwargs: object) -> None:
        """Run the module's own tests."""
        import importlib

        module = importlib.import_module(self.moduleName)
        getattr(module, f"{self.moduleName}Test")().runTest()


class ScriptedLoadableModuleWidget:
    """The panel. Without a parent it makes one and shows itself."""

    def __init__(self, parent: object = None) -> None:
        import qt

        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        self.parent = parent
        if parent is None:
            self.parent = slicer.qMRMLWidget()
            self.parent.setLayout(qt.QVBoxLayout())
            self.parent.setMRMLScene(slicer.mrmlScene)
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename: str) -> str:
        """Full path of a file in ``Resources`` beside the module."""
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self) -> None:
        """Make the panel's contents; a panel extends this."""

    def cleanup(self) -> None:
        """Called when the application ends or the module is reloaded."""

    def onReload(self) -> None:
        """Reload the module's file and make the panel again."""
        slicer.util.reloadScriptedModule(self.moduleName)

    def onReloadAndTest(self, **kwargs: object) -> None:
        """Reload, then run the module's tests."""
        self.onReload()
        self.onTest(**kwargs)

    def onTest(self, **kwargs: object) -> None:
        """Run the module's tests."""
        getattr(slicer.modules, self.moduleName.lower())._instance.runTest(**kwargs)

    def onEditSource(self) -> None:
        """Open the source in an editor: not in the double."""

    def setupDeveloperSection(self) -> None:
        """The section "Reload & Test": only in developer mode, which the double has not."""

    def _onModuleAboutToBeUnloaded(self, module_name: str) -> None:
        if module_name == self.moduleName:
            self.cleanup()


class ScriptedLoadableModuleLogic:
    """Parameter nodes of a module."""

    def __init__(self, parent: object = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> slicer.vtkMRMLScriptedModuleNode:
        """The module's parameter node in the scene, made when missing."""
        nodes = self.getAllParameterNodes()
        return nodes[0] if nodes else self.createParameterNode()

    def getAllParameterNodes(self) -> list[slicer.vtkMRMLScriptedModuleNode]:
        """All parameter nodes of the module."""
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None and node.GetAttribute("ModuleName") != self.moduleName:
                node.SetAttribute("ModuleName", self.moduleName)  # scene close keeps the node and wipes its attributes
            return [node] if node is not None else []
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> slicer.vtkMRMLScriptedModuleNode:
        """Make a parameter node."""
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return slicer.mrmlScene.AddNode(node)


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The module's own tests."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.messageDelay = 1000

    def delayDisplay(self, message: str, requestedDelay: object = None, msec: object = None) -> None:
        """Show what is being tested; logged here."""
        logging.getLogger(__name__).info("%s", message)

    def takeScreenshot(self, name: str, description: str, type: int = -1) -> None:
        """A snapshot of the application: not in the double."""

    def runTest(self) -> None:
        """Run every method whose name begins with ``test``."""
        for name in dir(self):
            if name.startswith("test"):
                self.setUp()
                getattr(self, name)()


__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
    "VTKObservationMixin",
]
