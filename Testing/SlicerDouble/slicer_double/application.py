"""``slicer.app``, its managers, and the main window when there is one."""

# ruff: noqa: N801, N802, N815 (names of the application)
from __future__ import annotations

import os
from types import SimpleNamespace

import slicer
from PySide6 import QtCore, QtWidgets

from . import collect
from .scene import World, add_slice_views
from .stand_ins import StandIn, stored


class Manager(QtCore.QObject):
    """``slicer.app.moduleManager()``: the modules that were opened."""

    _emits = ("moduleAboutToBeUnloaded(QString)",)

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[str, object] = {}

    def module(self, name: str) -> object:
        """Method of the same name; None when there is no such module."""
        return self._modules.get(name)

    def modulesNames(self) -> tuple[str, ...]:
        """Method of the same name."""
        return tuple(self._modules)

    def factoryManager(self) -> SimpleNamespace:
        """Method of the same name, with the one thing that slicer.util asks of it."""
        return SimpleNamespace(loadedModuleNames=self.modulesNames)


class SliceWidget:
    """What a panel may ask of ``layoutManager().sliceWidget(name)``."""

    def __init__(self, logic: slicer.vtkMRMLSliceLogic) -> None:
        self._logic = logic

    def sliceLogic(self) -> slicer.vtkMRMLSliceLogic:
        """Method of the same name."""
        return self._logic

    def mrmlSliceNode(self) -> slicer.vtkMRMLSliceNode:
        """Method of the same name."""
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> slicer.vtkMRMLSliceCompositeNode:
        """Method of the same name."""
        return self._logic.GetSliceCompositeNode()


class LayoutManager(QtCore.QObject):
    """``slicer.app.layoutManager()`` of an application with a main window: three slice views, no 3D view."""

    _emits = ("layoutChanged(int)",)
    threeDViewCount = 0

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self._widgets = {name: SliceWidget(logic) for name, logic in add_slice_views(world).items()}

    def sliceViewNames(self) -> tuple[str, ...]:
        """Method of the same name."""
        return tuple(self._widgets)

    def sliceWidget(self, name: str) -> SliceWidget | None:
        """Method of the same name."""
        return self._widgets.get(name)

    def mrmlSliceLogics(self) -> object:
        """Method of the same name."""
        return self._world.application.GetSliceLogics()

    def resetSliceViews(self) -> None:
        """Method of the same name."""
        for widget in self._widgets.values():
            widget.sliceLogic().FitSliceToAll()

    def resetThreeDViews(self) -> None:
        """Method of the same name: there is no 3D view."""


class ModuleSelector(QtWidgets.QWidget):
    """``slicer.util.moduleSelector()``: remembers which module was chosen."""

    _emits = ("moduleSelected(QString)",)
    selectedModule = ""

    def selectModule(self, name: str) -> None:
        """Slot of the same name."""
        self.__dict__["selectedModule"] = name


class MainWindow(QtWidgets.QMainWindow):
    """``slicer.util.mainWindow()``"""

    def __init__(self) -> None:
        super().__init__()
        QtCore.QObject.setObjectName(self, "qSlicerMainWindow")
        self._selector = ModuleSelector(self)

    def moduleSelector(self) -> ModuleSelector:
        """Method of the same name."""
        return self._selector


class qSlicerApplication(StandIn, QtWidgets.QApplication):
    """``slicer.app``"""

    _emits = ("startupCompleted()", "mrmlSceneChanged(vtkMRMLScene*)", "aboutToQuit()")
    applicationName = "Slicer"
    mainApplicationName = "Slicer"
    applicationVersion = "5.13.0"
    majorVersion, minorVersion = 5, 13
    revision = repositoryRevision = "34000"
    os, arch = "linux", "amd64"
    temporaryPath = stored("temporaryPath", "")
    slicerHome = stored("slicerHome", "")
    cachePath = stored("cachePath", "")
    extensionsInstallPath = stored("extensionsInstallPath", "")

    def _start(self, world: World, folder: str, main_window: bool, testing: bool) -> None:
        """Become the application of ``world``, with its files below ``folder``."""
        for name in ("temporaryPath", "slicerHome", "cachePath", "extensionsInstallPath"):
            setattr(self, name, os.path.join(folder, name))
            os.makedirs(os.path.join(folder, name), exist_ok=True)
        self._values |= {"world": world, "testing": testing, "manager": Manager()}
        self._values["layout"] = LayoutManager(world) if main_window else None
        self._values["window"] = MainWindow() if main_window else None

    def testingEnabled(self) -> bool:
        """Method of the same name."""
        return self._values["testing"]

    def applicationLogic(self) -> slicer.vtkSlicerApplicationLogic:
        """Method of the same name."""
        return self._values["world"].application

    def mrmlScene(self) -> slicer.vtkMRMLScene:
        """Method of the same name."""
        return self._values["world"].scene

    def layoutManager(self) -> LayoutManager | None:
        """Method of the same name; None without a main window."""
        return self._values["layout"]

    def moduleManager(self) -> Manager:
        """Method of the same name."""
        return self._values["manager"]

    def moduleLogic(self, name: str) -> object:
        """Method of the same name."""
        return self._values["world"].logics.get(name.lower())

    def settings(self) -> QtCore.QSettings:
        """Method of the same name; one object, as in the application."""
        return self._values.setdefault("settings", QtCore.QSettings())

    def userSettings(self) -> QtCore.QSettings:
        """Method of the same name."""
        return self.settings()

    def startupEnvironment(self) -> dict[str, str]:
        """Method of the same name."""
        return dict(os.environ)

    def restart(self) -> None:
        """Method of the same name: an error unless a test replaces it."""
        collect.record("slicer.app.restart() was called")

    def pauseRender(self) -> None:
        """Method of the same name: nothing is rendered."""

    def resumeRender(self) -> None:
        """Method of the same name: nothing is rendered."""

    def isInstalled(self) -> bool:
        """Method of the same name."""
        return False
