"""The form of a training job: one widget for each field of its description."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ctk
import qt
from slicer.i18n import tr as _

_LARGEST = 2**31 - 1


class JobFormView:
    """A form in a widget of its own, so that it can be thrown away when another job is chosen."""

    def __init__(self, description: Any):
        self.widget = qt.QWidget()
        self._values: dict[str, Callable[[], Any]] = {}
        layout = qt.QFormLayout(self.widget)
        _tidy(layout)
        plain = [field for field in description.fields if not field.advanced]
        advanced = [field for field in description.fields if field.advanced]
        for field in plain:
            self._add(layout, field)
        if advanced:
            group = ctk.ctkCollapsibleButton()
            group.text = _("Advanced")
            inner = qt.QFormLayout(group)
            _tidy(inner, margins=False)
            for field in advanced:
                self._add(inner, field)
            group.collapsed = True
            layout.addRow(group)

    def values(self) -> dict[str, Any]:
        """Return what is chosen, by field name; numbers that were typed come as text."""
        return {name: value() for name, value in self._values.items()}

    def _add(self, layout: Any, field: Any) -> None:
        widget, self._values[field.name] = _MAKERS[field.kind](field)
        widget.toolTip = field.tooltip or field.label
        widget.objectName = f"jobField_{field.name}"
        if field.kind == "bool":
            layout.addRow("", widget)
        else:
            layout.addRow(f"{field.label}:", widget)


def _tidy(layout: Any, margins: bool = True) -> None:
    layout.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
    layout.setLabelAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    layout.setVerticalSpacing(5)
    if margins:
        layout.setContentsMargins(0, 0, 0, 0)


def _whole_number(field: Any) -> tuple[Any, Callable[[], Any]]:
    widget = qt.QSpinBox()
    widget.minimum = int(max(-_LARGEST, -_LARGEST if field.minimum is None else field.minimum))
    widget.maximum = int(min(_LARGEST, _LARGEST if field.maximum is None else field.maximum))
    widget.value = int(field.default or 0)
    return widget, lambda: widget.value


def _number(field: Any) -> tuple[Any, Callable[[], Any]]:
    # a spin box would show a learning rate of 1e-6 as 0.00
    widget = qt.QLineEdit()
    widget.text = "" if field.default is None else f"{field.default:g}"
    return widget, lambda: widget.text.strip()


def _text(field: Any) -> tuple[Any, Callable[[], Any]]:
    widget = qt.QLineEdit()
    widget.text = str(field.default or "")
    return widget, lambda: widget.text


def _choice(field: Any) -> tuple[Any, Callable[[], Any]]:
    widget = qt.QComboBox()
    for choice in field.choices:
        widget.addItem(choice or _("none"), choice)
    widget.setCurrentIndex(max(0, widget.findData(field.default)))
    return widget, lambda: widget.currentData


def _path(field: Any) -> tuple[Any, Callable[[], Any]]:
    widget = ctk.ctkPathLineEdit()
    widget.filters = ctk.ctkPathLineEdit.Dirs if field.kind == "folder" else ctk.ctkPathLineEdit.Files
    widget.currentPath = str(field.default or "")
    return widget, lambda: widget.currentPath


def _yes_or_no(field: Any) -> tuple[Any, Callable[[], Any]]:
    widget = qt.QCheckBox(field.label)
    widget.checked = bool(field.default)
    return widget, lambda: widget.checked


_MAKERS: dict[str, Callable[[Any], tuple[Any, Callable[[], Any]]]] = {
    "int": _whole_number,
    "float": _number,
    "text": _text,
    "choice": _choice,
    "folder": _path,
    "file": _path,
    "bool": _yes_or_no,
}
