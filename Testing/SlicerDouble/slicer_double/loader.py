"""QUiLoader that makes the double's classes from a ``.ui`` file, as Slicer's designer plug-ins do."""

# ruff: noqa: N802 (names of the application)
from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

from PySide6 import QtCore, QtUiTools, QtWidgets

from . import pythonqt
from .api import class_api
from .qt_module import native_class
from .stand_ins import STAND_INS

READERS = {
    "bool": lambda text: text == "true",
    "number": int,
    "double": float,
    "string": str,
    "cstring": str,
}


def _value(node: ET.Element) -> object:
    """The value of a ``<property>``."""
    child = node[0]
    if child.tag == "stringlist":
        return tuple(item.text or "" for item in child)
    if child.tag in ("enum", "set"):
        result = 0
        for word in (child.text or "").split("|"):
            owner, _, member = word.rpartition("::")
            name = owner.split("::")[0]
            result |= int(getattr(STAND_INS.get(name) or native_class(name), member))
        return result
    if child.tag not in READERS:
        raise ValueError(f"the double cannot read a <{child.tag}> property {node.get('name')!r}")
    return READERS[child.tag](child.text or "")


def widgets(root: ET.Element) -> Iterator[ET.Element]:
    """Every widget element of a ``.ui`` document."""
    return root.iter("widget")


class Loader(QtUiTools.QUiLoader):
    """``qt.QUiLoader``."""

    def createWidget(self, kind: str, parent: QtWidgets.QWidget | None = None, name: str = "") -> QtWidgets.QWidget:
        """Make one widget of the file; an unknown class has been refused before."""
        made = STAND_INS[kind](parent) if kind in STAND_INS else native_class(kind)(parent)
        QtCore.QObject.setObjectName(made, name)
        return made

    def load(self, device: QtCore.QIODevice, parent: QtWidgets.QWidget | None = None) -> QtWidgets.QWidget:
        """Load a ``.ui`` file.

        Raises:
            AttributeError: a class, property, signal or slot that the application does not have.
        """
        root = ET.fromstring(bytes(QtCore.QIODevice.readAll(device).data()))
        pending = []
        for element in widgets(root):
            kind = element.get("class", "")
            record = class_api(kind)
            if record is None:
                raise AttributeError(f"widget {element.get('name')!r}: the application has no class {kind!r}")
            for node in element.findall("property"):
                if not (record.flat or node.get("stdset") == "0" or node.get("name") in (*record.properties, "buddy")):
                    raise AttributeError(f"widget {element.get('name')!r}: {kind} has no property {node.get('name')!r}")
            if kind in STAND_INS:
                own = record.properties.keys() - class_api("QWidget").properties.keys()
                for node in element.findall("property"):
                    if node.get("stdset") != "0" and node.get("name") in own:
                        pending.append((element.get("name"), node.get("name"), _value(node)))
                        element.remove(node)
        links = root.find("connections")
        if links is not None:
            root.remove(links)  # Qt knows nothing of the stand-ins' signals: made below
        buffer = QtCore.QBuffer()
        QtCore.QBuffer.setData(buffer, ET.tostring(root))
        QtCore.QBuffer.open(buffer, QtCore.QIODevice.OpenModeFlag.ReadOnly)
        pythonqt.loading[0] = True
        try:
            top = QtUiTools.QUiLoader.load(self, buffer, parent)
        finally:
            pythonqt.loading[0] = False
        if top is None:
            raise AttributeError(f"Qt cannot load the file: {QtUiTools.QUiLoader.errorString(self)}")
        named = {QtCore.QObject.objectName(child): child for child in (top, *top.findChildren("QObject"))}
        for widget_name, key, value in pending:
            setattr(named[widget_name], key, value)
        for link in links if links is not None else ():
            part = {child.tag: child.text for child in link}
            named[part["sender"]].connect(part["signal"], named[part["receiver"]], part["slot"])
        return top
