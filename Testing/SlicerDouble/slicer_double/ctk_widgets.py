"""Stand-ins for CTK's buttons and boxes."""

# ruff: noqa: N801, N802, N815 (names of the application)
from __future__ import annotations

from PySide6 import QtCore, QtGui, QtWidgets

from .stand_ins import StandIn, stand_in, stored

Align = QtCore.Qt.AlignmentFlag
QWIDGETSIZE_MAX = (1 << 24) - 1  # Qt's own constant: no limit


class _Collapsing(StandIn):
    """Children are shown or hidden with ``collapsed``; hidden ones stay as they were when opened again."""

    def _fold(self) -> None:
        if self._values.get("folded") == self.collapsed:
            return
        self._values["folded"] = self.collapsed
        kept = self._values.setdefault("hidden", set())
        for child in QtCore.QObject.children(self):
            if not isinstance(child, QtWidgets.QWidget) or QtWidgets.QWidget.isWindow(child):
                continue
            if self.collapsed:
                if QtWidgets.QWidget.isHidden(child):
                    kept.add(id(child))
                QtWidgets.QWidget.setVisible(child, False)
            elif id(child) not in kept:
                QtWidgets.QWidget.setVisible(child, True)
        if not self.collapsed:
            kept.clear()
        height = self._header() + self.collapsedHeight if self.collapsed else QWIDGETSIZE_MAX
        QtWidgets.QWidget.setMaximumHeight(self, height)

    def _header(self) -> int:
        return QtGui.QFontMetrics(QtWidgets.QWidget.font(self)).height() + 8

    def event(self, event: QtCore.QEvent) -> bool:
        """Children that are added while folded are hidden."""
        if event.type() == QtCore.QEvent.Type.ChildPolished and self.collapsed:
            child = event.child()
            if isinstance(child, QtWidgets.QWidget):
                QtWidgets.QWidget.setVisible(child, False)
        return super().event(event)


@stand_in
class ctkCollapsibleButton(_Collapsing, QtWidgets.QAbstractButton):
    """A section with a header that folds it."""

    _emits = ("contentsCollapsed(bool)",)
    collapsed = stored("collapsed", False, "_collapsed_changed")
    collapsedHeight = stored("collapsedHeight", 14)
    flat = stored("flat", False)
    contentsFrameShape = stored("contentsFrameShape", 0)
    contentsFrameShadow = stored("contentsFrameShadow", 16)
    contentsLineWidth = stored("contentsLineWidth", 1)
    contentsMidLineWidth = stored("contentsMidLineWidth", 0)
    buttonTextAlignment = stored("buttonTextAlignment", int(Align.AlignLeft | Align.AlignVCenter))
    indicatorAlignment = stored("indicatorAlignment", int(Align.AlignLeft | Align.AlignVCenter))

    def _build(self) -> None:
        QtWidgets.QAbstractButton.setCheckable(self, True)
        QtWidgets.QAbstractButton.setChecked(self, True)
        policy = QtWidgets.QSizePolicy.Policy
        QtWidgets.QWidget.setSizePolicy(self, policy.MinimumExpanding, policy.Preferred)
        QtWidgets.QWidget.setContentsMargins(self, 0, self._header(), 0, 0)
        self.connect("toggled(bool)", self._toggled)

    def _toggled(self, opened: bool) -> None:
        self.collapsed = not opened

    def _collapsed_changed(self) -> None:
        QtWidgets.QAbstractButton.setChecked(self, not self.collapsed)
        self._fold()
        self._send("contentsCollapsed(bool)", self.collapsed)

    def collapse(self, folded: bool) -> None:
        """Slot of the same name."""
        self.collapsed = folded

    def hitButton(self, position: QtCore.QPoint) -> bool:
        """Only the header is clickable."""
        return position.y() < self._header()

    def paintEvent(self, _event: QtGui.QPaintEvent) -> None:
        """Header with an arrow, and a thin frame."""
        painter = QtWidgets.QStylePainter(self)
        option = QtWidgets.QStyleOptionButton()
        option.initFrom(self)
        width = option.rect.width()
        option.rect = QtCore.QRect(0, 0, width, self._header())
        painter.drawControl(QtWidgets.QStyle.ControlElement.CE_PushButtonBevel, option)
        arrow = QtWidgets.QStyleOption()
        arrow.initFrom(self)
        arrow.rect = QtCore.QRect(6, (self._header() - 10) // 2, 10, 10)
        kind = QtWidgets.QStyle.PrimitiveElement
        painter.drawPrimitive(kind.PE_IndicatorArrowRight if self.collapsed else kind.PE_IndicatorArrowDown, arrow)
        place = QtCore.QRect(22, 0, width - 24, self._header())
        painter.setPen(QtWidgets.QWidget.palette(self).color(QtGui.QPalette.ColorRole.ButtonText))
        painter.drawText(place, int(Align.AlignLeft | Align.AlignVCenter), QtWidgets.QAbstractButton.text(self))
        painter.end()


@stand_in
class qMRMLCollapsibleButton(ctkCollapsibleButton):
    """The same with a scene."""

    _emits = (*ctkCollapsibleButton._emits, "mrmlSceneChanged(vtkMRMLScene*)")

    def setMRMLScene(self, scene: object) -> None:
        """Slot of the same name."""
        self._send("mrmlSceneChanged(vtkMRMLScene*)", scene)


@stand_in
class ctkCollapsibleGroupBox(_Collapsing, QtWidgets.QGroupBox):
    """A group box whose check box folds it."""

    collapsed = stored("collapsed", False, "_collapsed_changed")
    collapsedHeight = stored("collapsedHeight", 14)

    def _build(self) -> None:
        QtWidgets.QGroupBox.setCheckable(self, True)
        self.connect("toggled(bool)", self.expand)

    def _collapsed_changed(self) -> None:
        QtWidgets.QGroupBox.setChecked(self, not self.collapsed)
        self._fold()

    def expand(self, opened: bool) -> None:
        """Slot of the same name."""
        self.collapsed = not opened


@stand_in
class ctkComboBox(StandIn, QtWidgets.QComboBox):
    """A combo box with a text for no selection."""

    defaultText = stored("defaultText", "")
    forceDefault = stored("forceDefault", False)
    elideMode = stored("elideMode", int(QtCore.Qt.TextElideMode.ElideNone))
    scrollWheelEffect = stored("scrollWheelEffect", 1)


@stand_in
class ctkCheckableComboBox(StandIn, QtWidgets.QComboBox):
    """A combo box whose items have check boxes."""

    _emits = ("checkedIndexesChanged()",)

    def _build(self) -> None:
        QtWidgets.QComboBox.model(self).dataChanged.connect(lambda *_: self._send("checkedIndexesChanged()"))

    def _indexes(self) -> list[QtCore.QModelIndex]:
        model = QtWidgets.QComboBox.model(self)
        return [model.index(row, 0) for row in range(QtWidgets.QComboBox.count(self))]

    def checkedIndexes(self) -> tuple[QtCore.QModelIndex, ...]:
        """Method of the same name."""
        return tuple(index for index in self._indexes() if self.checkState(index) == QtCore.Qt.CheckState.Checked)

    def checkState(self, index: QtCore.QModelIndex) -> int:
        """Method of the same name."""
        return index.data(QtCore.Qt.ItemDataRole.CheckStateRole) or 0

    def setCheckState(self, index: QtCore.QModelIndex, state: int) -> None:
        """Method of the same name."""
        QtWidgets.QComboBox.model(self).setData(index, int(state), QtCore.Qt.ItemDataRole.CheckStateRole)

    def allChecked(self) -> bool:
        """Method of the same name."""
        return len(self.checkedIndexes()) == len(self._indexes())

    def noneChecked(self) -> bool:
        """Method of the same name."""
        return not self.checkedIndexes()


@stand_in
class ctkMessageBox(StandIn, QtWidgets.QMessageBox):
    """A message box that can be told not to come again."""

    dontShowAgain = stored("dontShowAgain", False)
    dontShowAgainVisible = stored("dontShowAgainVisible", False)
    dontShowAgainSettingsKey = stored("dontShowAgainSettingsKey", "")


def _plain(name: str, base: type) -> type:
    """A CTK class that adds nothing the panel needs to a Qt class."""
    return stand_in(type(name, (StandIn, base), {"__module__": __name__, "__doc__": f"{base.__name__} of CTK."}))


for _name, _base in (
    ("ctkPushButton", QtWidgets.QPushButton),
    ("ctkMenuButton", QtWidgets.QPushButton),
    ("ctkCheckBox", QtWidgets.QCheckBox),
    ("ctkExpandButton", QtWidgets.QToolButton),
    ("ctkSearchBox", QtWidgets.QLineEdit),
):
    _plain(_name, _base)
