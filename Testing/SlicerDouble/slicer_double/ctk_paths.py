"""Stand-ins for CTK's path fields."""

# ruff: noqa: N801, N802, N815 (names of the application)
from __future__ import annotations

from PySide6 import QtCore, QtWidgets

from . import dialogs
from .stand_ins import StandIn, rows, stand_in, stored


@stand_in
class ctkPathLineEdit(StandIn, QtWidgets.QWidget):
    """A path with history and a browse button."""

    _emits = ("currentPathChanged(QString)", "validInputChanged(bool)")
    label = stored("label", "")
    filters = stored("filters", 0x4001)
    options = stored("options", 0)
    settingKey = stored("settingKey", "")
    nameFilters = stored("nameFilters", (), kind=tuple)
    showHistoryButton = stored("showHistoryButton", True)
    showBrowseButton = stored("showBrowseButton", True, "_arrange")
    minimumContentsLength = stored("minimumContentsLength", 0)
    sizeAdjustPolicy = stored("sizeAdjustPolicy", 0)

    def _build(self) -> None:
        self._combo = QtWidgets.QComboBox(self)
        self._combo.setEditable(True)
        self._combo.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        policy = QtWidgets.QSizePolicy.Policy
        self._combo.setSizePolicy(policy.Expanding, policy.Fixed)
        self._button = QtWidgets.QToolButton(self)
        self._button.setText("…")
        rows(self, self._combo, self._button)
        self._combo.connect("editTextChanged(QString)", lambda text: self._send("currentPathChanged(QString)", text))
        self._button.connect("clicked()", self.browse)

    def _arrange(self) -> None:
        self._button.setVisible(self.showBrowseButton)

    @property
    def currentPath(self) -> str:
        """Property of the same name."""
        return self._combo.currentText

    @currentPath.setter
    def currentPath(self, path: str) -> None:
        self._combo.setEditText(path)

    def setCurrentPath(self, path: str) -> None:
        """Slot of the same name."""
        self.currentPath = path

    def addCurrentPathToHistory(self) -> None:
        """Slot of the same name."""
        if self.currentPath and self._combo.findText(self.currentPath) < 0:
            self._combo.insertItem(0, self.currentPath)

    def comboBox(self) -> QtWidgets.QComboBox:
        """Method of the same name."""
        return self._combo

    def browse(self) -> None:
        """Slot of the same name: a dialog."""
        path = dialogs.ask("ctkPathLineEdit.browse", self.currentPath)
        if path:
            self.currentPath = path


for _name in (
    "Dirs",
    "Files",
    "Drives",
    "AllDirs",
    "AllEntries",
    "NoDot",
    "NoDotDot",
    "Readable",
    "Writable",
    "Hidden",
):
    setattr(ctkPathLineEdit, _name, int(getattr(QtCore.QDir.Filter, _name)))


@stand_in
class ctkDirectoryButton(StandIn, QtWidgets.QWidget):
    """A button that shows and asks for a folder."""

    _emits = ("directoryChanged(QString)", "directorySelected(QString)")
    directory = stored("directory", "", "_changed")
    caption = stored("caption", "")
    text = stored("text", "", "_changed")
    acceptMode = stored("acceptMode", 0)

    def _build(self) -> None:
        self._button = QtWidgets.QPushButton(self)
        rows(self, self._button)
        self._button.connect("clicked()", self.browse)

    def _changed(self) -> None:
        self._button.setText(self.text or self.directory)
        self._send("directoryChanged(QString)", self.directory)

    def browse(self) -> None:
        """Slot of the same name: a dialog."""
        folder = dialogs.ask("ctkDirectoryButton.browse", self.directory)
        if folder:
            self.directory = folder
            self._send("directorySelected(QString)", folder)
