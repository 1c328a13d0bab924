"""The lint of a ``.ui`` file."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from .api import class_api, normalized

_INPUTS = """
QLineEdit QPlainTextEdit QTextEdit QComboBox QSpinBox QDoubleSpinBox QSlider QCheckBox QRadioButton
QPushButton QToolButton ctkSliderWidget ctkRangeWidget ctkDoubleSlider ctkDoubleRangeSlider ctkPathLineEdit
ctkComboBox ctkCheckableComboBox ctkDirectoryButton ctkPushButton ctkMenuButton ctkCheckBox ctkSearchBox
qMRMLNodeComboBox qMRMLSliderWidget qMRMLRangeWidget qMRMLColorTableComboBox qMRMLSegmentationShow3DButton
"""
INPUTS = frozenset(_INPUTS.split())


def names(root: ET.Element) -> dict[str, str]:
    """Everything that ``childWidgetVariables`` gives: name -> class."""
    tags = ("widget", "layout", "action", "buttongroup")
    found = {}
    for element in root.iter():
        if element.tag in tags and element.get("name"):
            found[element.get("name")] = element.get("class") or {"action": "QAction"}.get(element.tag, "QButtonGroup")
    return found


def check(path: Path) -> tuple[dict[str, str], list[str]]:
    """Check a form.

    Returns:
        The form's names with their classes, and what is wrong.
    """
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        return {}, [f"not valid XML: {error}"]
    found = names(root)
    problems = []
    every = [e.get("name") for e in root.iter() if e.tag in ("widget", "layout", "action", "spacer") and e.get("name")]
    problems += [f"the name {name!r} is given {count} times" for name, count in Counter(every).items() if count > 1]
    problems += _widgets(root, found)
    problems += _custom(root)
    problems += _connections(root, found)
    return found, problems


def _widgets(root: ET.Element, found: dict[str, str]) -> list[str]:
    problems = []
    for element in root.iter("widget"):
        kind, name = element.get("class", ""), element.get("name", "")
        record = class_api(kind)
        if record is None:
            problems.append(f"{name}: the application has no class {kind}")
            continue
        properties = {node.get("name"): node for node in element.findall("property")}
        for key, node in properties.items():
            if node.get("stdset") != "0" and key != "buddy" and not record.flat and key not in record.properties:
                problems.append(f"{name}: {kind} has no property {key!r}")
            elif key in record.properties and not record.properties[key][1]:
                problems.append(f"{name}: property {key!r} of {kind} cannot be written")
        if "buddy" in properties:
            buddy = "".join(properties["buddy"].itertext()).strip()
            if buddy not in found:
                problems.append(f"{name}: its buddy {buddy!r} does not exist")
        tip = "".join(properties["toolTip"].itertext()).strip() if "toolTip" in properties else ""
        if kind in INPUTS and not tip:
            problems.append(f"{name}: a {kind} without a tooltip")
    return problems


def _custom(root: ET.Element) -> list[str]:
    problems = []
    declared = {node.findtext("class", ""): node for node in root.iter("customwidget")}
    for element in root.iter("widget"):
        kind = element.get("class", "")
        if not kind.startswith("Q") and kind not in declared:
            problems.append(f"{element.get('name')}: {kind} is not declared in <customwidgets>")
        holds = element.find("layout") is not None or element.find("widget") is not None
        if holds and kind in declared and declared[kind].findtext("container") != "1":
            problems.append(f"{element.get('name')}: {kind} holds widgets, but is not declared as a container")
    return problems


def _connections(root: ET.Element, found: dict[str, str]) -> list[str]:
    problems = []
    for link in root.iter("connection"):
        part = {child.tag: (child.text or "").strip() for child in link}
        for end, what in (("sender", "signal"), ("receiver", "slot")):
            record = class_api(found.get(part[end], ""))
            if record is None:
                problems.append(f"connection from {part['sender']}: {part[end]!r} does not exist")
            elif what == "signal" and not record.flat and normalized(part[what]) not in record.signals:
                problems.append(f"connection from {part['sender']}: {record.name} has no signal {part[what]}")
            elif part[what].partition("(")[0] not in record.names:
                problems.append(f"connection from {part['sender']}: {record.name} has no {what} {part[what]}")
    return problems
