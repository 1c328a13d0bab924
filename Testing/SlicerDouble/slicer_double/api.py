"""What the application has: names of Qt, CTK and Slicer classes as Python sees them.

The data in ``slicer_api.json`` was read by introspection from the running Slicer 5.13.0 (Qt 5.15, PythonQt); nothing
in it was typed by hand. It is the part that a segmentation panel can sensibly use, of a longer record that lies
outside this repository. To take the part again, with other classes:

    python api.py RECORD.json slicer_api.json
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "slicer_api.json"
ORIGIN = "read by introspection from Slicer 5.13.0 (Qt 5.15.8, PythonQt)"

# Not for this panel: other modules' widgets, and classes whose record would be most of the file.
_LEFT_OUT = """
QFileSystemWatcher QStringListModel QTreeWidget QTextBrowser QTableView QSocketNotifier ctkCoordinatesWidget
ctkErrorLogWidget qMRMLSegmentEditorWidget qMRMLSubjectHierarchyTreeView qMRMLTableView
qSlicerMarkupsPlaceWidget qSlicerSimpleMarkupsWidget qMRMLWindowLevelWidget qMRMLVolumeThresholdWidget
qSlicerTerminologySelectorButton
"""
LEFT_OUT = frozenset(_LEFT_OUT.split())


@dataclass(frozen=True)
class ClassApi:
    """One class of the application.

    Attributes:
        name: class name, without the module.
        namespace: "qt", "ctk" or "slicer".
        properties: property name -> (C++ type, writable).
        signals: normalized signatures, such as "clicked(bool)".
        names: everything that Python can look up on an object, properties, signals and slots included.
        flat: the application could not make one without arguments, so only ``names`` is known.
    """

    name: str
    namespace: str
    properties: dict[str, tuple[str, bool]]
    signals: frozenset[str]
    names: frozenset[str]
    flat: bool = False

    def is_signal(self, name: str) -> bool:
        """Whether a signal has this name, whatever its arguments."""
        return any(signature.partition("(")[0] == name for signature in self.signals)


@cache
def data() -> dict:
    """The whole record, as stored."""
    return json.loads(DATA.read_text(encoding="utf-8"))


@cache
def class_api(name: str) -> ClassApi | None:
    """The record of a class with what it inherits, or None when the record has no such class."""
    if name == "qSlicerApplication":
        return ClassApi(name, "slicer", {}, frozenset(), frozenset(data()["slicer.app"]), flat=True)
    entry = data()["classes"].get(name)
    if entry is None:
        return None
    if "names" in entry:
        return ClassApi(name, entry["namespace"], {}, frozenset(), frozenset({*entry["names"], "name"}), flat=True)
    base = class_api(entry["base"]) if entry["base"] else None
    own = {item[0]: (item[1], bool(item[2])) for item in entry["properties"]}
    properties = (base.properties if base else {}) | own
    signals = frozenset(entry["signals"]) | (base.signals if base else frozenset())
    names = {signature.partition("(")[0] for signature in (*entry["signals"], *entry["slots"])}
    names |= set(own) | set(entry["other_names"]) | (base.names if base else set())
    names |= {"name"}  # PythonQt's short form of objectName
    names |= {f"{word}_" for word in ("raise", "exec", "print") if word in names}  # reserved words of Python 2
    return ClassApi(name, entry["namespace"], properties, signals, frozenset(names))


def module_names() -> frozenset[str]:
    """Names of ``slicer.modules`` in the application as it was recorded."""
    return frozenset(data()["modules"])


def functions(module: str) -> dict[str, str]:
    """Functions of "slicer.util" or "slicer.packaging" with their signatures."""
    return data()[module]


def scripted_names(name: str) -> frozenset[str]:
    """Methods of a class of ScriptedLoadableModule.py."""
    return frozenset(data()["ScriptedLoadableModule"][name])


def normalized(signature: str) -> str:
    """A signature as Qt normalizes it: no spaces, no ``const T&``."""
    compact = re.sub(r"\s+", " ", signature.strip())
    compact = re.sub(r"const ([\w:<>*]+) ?&", r"\1", compact)
    return compact.replace(" ", "")


def extract(record: dict) -> dict:
    """The used part of a full record: without ``LEFT_OUT``, event handlers and Qt's private slots."""

    def visible(names: list[str]) -> list[str]:
        return [name for name in names if not (name.startswith("_") or name.partition("(")[0].endswith("Event"))]

    classes = {}
    for name, entry in record["classes"].items():
        if name in LEFT_OUT:
            continue
        kept = dict(entry)
        for part in ("names", "other_names", "slots"):
            if part in kept:
                kept[part] = visible(kept[part])
        if "properties" in kept:
            kept["properties"] = [[name, kind, int(writable)] for name, kind, writable in kept["properties"]]
        kept.pop("not_instantiated", None)
        classes[name] = kept
    scripted = {
        name: [method for method in methods if name != "ScriptedLoadableModuleTest" or not method.startswith("_")]
        for name, methods in record["ScriptedLoadableModule"].items()
    }
    rest = {key: record[key] for key in ("slicer.app", "slicer.packaging", "slicer.util", "modules")}
    return {"origin": ORIGIN, "classes": classes, "ScriptedLoadableModule": scripted} | rest


def write(record_file: Path, target: Path) -> None:
    """Write the used part of ``record_file``, one class or list per line."""
    part = extract(json.loads(record_file.read_text(encoding="utf-8")))
    classes = ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in part["classes"].items())
    others = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in part.items()
        if key != "classes"
    )
    target.write_text(f'{{\n{others},\n"classes": {{\n{classes}\n}}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
