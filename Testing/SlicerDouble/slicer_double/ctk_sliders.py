"""Stand-ins for CTK's sliders and ranges of floating point numbers."""

# ruff: noqa: N801, N802, N815 (names of the application)
from __future__ import annotations

from PySide6 import QtCore, QtWidgets

from .stand_ins import StandIn, rows, stand_in, stored

STEPS = 1000  # of the Qt sliders inside
HORIZONTAL = QtCore.Qt.Orientation.Horizontal


@stand_in
class ctkSliderWidget(StandIn, QtWidgets.QWidget):
    """A slider with a number field."""

    _emits = ("valueChanged(double)", "valueIsChanging(double)", "decimalsChanged(int)")
    minimum = stored("minimum", 0.0, "_range_changed")
    maximum = stored("maximum", 99.0, "_range_changed")
    decimals = stored("decimals", 2, "_range_changed")
    singleStep = stored("singleStep", 1.0, "_range_changed")
    pageStep = stored("pageStep", 10.0)
    prefix = stored("prefix", "", "_range_changed")
    suffix = stored("suffix", "", "_range_changed")
    tracking = stored("tracking", True)
    tickInterval = stored("tickInterval", 0.0)
    spinBoxVisible = stored("spinBoxVisible", True, "_range_changed")
    popupSlider = stored("popupSlider", False)
    invertedAppearance = stored("invertedAppearance", False)
    invertedControls = stored("invertedControls", False)

    def _build(self) -> None:
        self._slider = QtWidgets.QSlider(HORIZONTAL, self)
        self._slider.setRange(0, STEPS)
        self._spin = QtWidgets.QDoubleSpinBox(self)
        rows(self, self._slider, self._spin)
        self._slider.connect("sliderMoved(int)", self._slider_moved)
        self._slider.connect("sliderReleased()", lambda: self.setValue(self._at(self._slider.sliderPosition)))
        self._spin.connect("valueChanged(double)", self.setValue)
        self._range_changed()

    def _at(self, step: int) -> float:
        return self.minimum + (self.maximum - self.minimum) * step / STEPS

    def _slider_moved(self, step: int) -> None:
        self._send("valueIsChanging(double)", self._at(step))
        if self.tracking:
            self.setValue(self._at(step))

    def _range_changed(self) -> None:
        blocked = self._spin.blockSignals(True)
        self._spin.setDecimals(self.decimals)
        self._spin.setRange(self.minimum, self.maximum)
        self._spin.setSingleStep(self.singleStep)
        self._spin.setPrefix(self.prefix)
        self._spin.setSuffix(self.suffix)
        self._spin.setVisible(self.spinBoxVisible)
        self._spin.blockSignals(blocked)
        self.setValue(self.value)

    @property
    def value(self) -> float:
        """Property of the same name."""
        return self._values.get("value", 0.0)

    @value.setter
    def value(self, value: float) -> None:
        value = round(min(max(float(value), self.minimum), max(self.minimum, self.maximum)), self.decimals)
        changed = value != self.value
        self._values["value"] = value
        span = self.maximum - self.minimum
        for part, shown in (
            (self._spin, value),
            (self._slider, round(STEPS * (value - self.minimum) / span) if span else 0),
        ):
            blocked = part.blockSignals(True)
            part.setValue(shown)
            part.blockSignals(blocked)
        if changed:
            self._send("valueChanged(double)", value)

    def setValue(self, value: float) -> None:
        """Slot of the same name."""
        self.value = value

    def setDecimals(self, decimals: int) -> None:
        """Slot of the same name."""
        self.decimals = decimals


@stand_in
class qMRMLSliderWidget(ctkSliderWidget):
    """The same with units of the scene."""

    quantity = stored("quantity", "")
    unitAwareProperties = stored("unitAwareProperties", 0)

    def setMRMLScene(self, scene: object) -> None:
        """Slot of the same name."""
        self._values["scene"] = scene

    def mrmlScene(self) -> object:
        """Method of the same name."""
        return self._values.get("scene")


@stand_in
class ctkDoubleSlider(StandIn, QtWidgets.QWidget):
    """A slider without a number field."""

    _emits = ("valueChanged(double)", "sliderPressed()", "sliderReleased()")
    minimum = stored("minimum", 0.0, "_show")
    maximum = stored("maximum", 99.0, "_show")
    singleStep = stored("singleStep", 1.0)
    pageStep = stored("pageStep", 10.0)
    tracking = stored("tracking", True)
    orientation = stored("orientation", int(HORIZONTAL), "_show")
    value = stored("value", 0.0, "_value_changed")

    def _build(self) -> None:
        self._slider = QtWidgets.QSlider(HORIZONTAL, self)
        self._slider.setRange(0, STEPS)
        rows(self, self._slider)
        self._slider.connect("sliderMoved(int)", self._moved)
        self._slider.connect("sliderPressed()", lambda: self._send("sliderPressed()"))
        self._slider.connect("sliderReleased()", lambda: self._send("sliderReleased()"))

    def _moved(self, step: int) -> None:
        self.value = self.minimum + (self.maximum - self.minimum) * step / STEPS

    def _show(self) -> None:
        self._slider.setOrientation(QtCore.Qt.Orientation(self.orientation))
        span = self.maximum - self.minimum
        self._slider.setValue(round(STEPS * (self.value - self.minimum) / span) if span else 0)

    def _value_changed(self) -> None:
        self._values["value"] = min(max(self.value, self.minimum), self.maximum)
        self._show()
        self._send("valueChanged(double)", self.value)

    def setValue(self, value: float) -> None:
        """Slot of the same name."""
        self.value = value


@stand_in
class ctkRangeWidget(StandIn, QtWidgets.QWidget):
    """Two numbers with a range slider between."""

    _emits = (
        "valuesChanged(double,double)",
        "minimumValueChanged(double)",
        "maximumValueChanged(double)",
        "rangeChanged(double,double)",
    )
    minimum = stored("minimum", 0.0, "_range_changed")
    maximum = stored("maximum", 99.0, "_range_changed")
    decimals = stored("decimals", 2, "_show")
    singleStep = stored("singleStep", 1.0, "_show")
    tracking = stored("tracking", True)
    prefix = stored("prefix", "")
    suffix = stored("suffix", "")
    symmetricMoves = stored("symmetricMoves", False)

    def _build(self) -> None:
        self._values["pair"] = (self.minimum, self.maximum)
        self._low, self._high = QtWidgets.QDoubleSpinBox(self), QtWidgets.QDoubleSpinBox(self)
        rows(self, self._low, self._high)
        self._show()
        self._low.connect("valueChanged(double)", lambda value: self.setValues(value, self.maximumValue))
        self._high.connect("valueChanged(double)", lambda value: self.setValues(self.minimumValue, value))

    def _range_changed(self) -> None:
        self._send("rangeChanged(double,double)", self.minimum, self.maximum)
        self.setValues(*self._values["pair"])

    def _show(self) -> None:
        for part, value in zip((self._low, self._high), self._values["pair"], strict=True):
            blocked = part.blockSignals(True)
            part.setDecimals(self._values.get("decimals", 2))
            part.setRange(self.minimum, self.maximum)
            part.setSingleStep(self.singleStep)
            part.setValue(value)
            part.blockSignals(blocked)

    def setValues(self, low: float, high: float) -> None:
        """Slot of the same name."""
        before = self._values["pair"]
        low, high = sorted(min(max(float(v), self.minimum), self.maximum) for v in (low, high))
        self._values["pair"] = (low, high)
        self._show()
        if low != before[0]:
            self._send("minimumValueChanged(double)", low)
        if high != before[1]:
            self._send("maximumValueChanged(double)", high)
        if (low, high) != before:
            self._send("valuesChanged(double,double)", low, high)

    def setRange(self, low: float, high: float) -> None:
        """Method of the same name."""
        self._values["minimum"], self._values["maximum"] = float(low), float(high)
        self._range_changed()

    minimumValue = property(
        lambda self: self._values["pair"][0], lambda self, value: self.setValues(value, self.maximumValue)
    )
    maximumValue = property(
        lambda self: self._values["pair"][1], lambda self, value: self.setValues(self.minimumValue, value)
    )


@stand_in
class qMRMLRangeWidget(ctkRangeWidget):
    """The same with units of the scene."""

    quantity = stored("quantity", "")

    def setMRMLScene(self, scene: object) -> None:
        """Slot of the same name."""
        self._values["scene"] = scene


@stand_in
class ctkDoubleRangeSlider(ctkRangeWidget):
    """The two handles without the numbers; drawn as numbers here."""

    orientation = stored("orientation", int(HORIZONTAL))
