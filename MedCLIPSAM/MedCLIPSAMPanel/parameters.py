"""The panel's parameters as typed attributes of a ``vtkMRMLScriptedModuleNode``: saved and loaded with the scene.

Every attribute is read from the node each time and has a default, so that a parameter that is missing (a new scene, a
scene that was closed, a scene of an older version) or that cannot be read is simply its default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Parameter(Generic[T]):
    """A bool, int, float, str, or tuple of str; kept as text."""

    def __init__(self, default: T, choices: tuple[T, ...] = ()):
        self.default = default
        self.choices = choices

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Parameters | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self.name not in instance.node.GetParameterNames():
            return self.default
        value = self._parsed(instance.node.GetParameter(self.name))
        return value if not self.choices or value in self.choices else self.default

    def __set__(self, instance: Parameters, value: T) -> None:
        text = json.dumps(list(value)) if isinstance(self.default, tuple) else value
        if isinstance(self.default, bool):
            text = "true" if value else "false"
        elif isinstance(self.default, int | float):
            text = repr(type(self.default)(value))  # type: ignore[arg-type]
        instance.node.SetParameter(self.name, str(text))

    def _parsed(self, text: str) -> Any:
        try:
            if isinstance(self.default, bool):
                return {"true": True, "false": False}[text]
            if isinstance(self.default, tuple):
                return tuple(str(entry) for entry in json.loads(text))
            return type(self.default)(text)
        except (KeyError, TypeError, ValueError):
            return self.default


class NodeParameter:
    """A node of the scene, or None; a node reference, so that it stays right when ids change at import."""

    def __init__(self, class_name: str):
        self.class_name = class_name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Parameters | None, owner: type | None = None) -> Any:
        if instance is None:
            return self
        node = instance.node.GetNodeReference(self.name)
        return node if node is not None and node.IsA(self.class_name) else None

    def __set__(self, instance: Parameters, node: Any) -> None:
        if node is None:
            instance.node.RemoveNodeReferenceIDs(self.name)
        else:
            instance.node.SetNodeReferenceID(self.name, node.GetID())


class Parameters:
    """Typed access to one parameter node; the attributes of subclasses are :class:`Parameter` and the like."""

    def __init__(self, node: Any):
        self.node = node

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all parameters."""
        return [name for name, value in vars(cls).items() if isinstance(value, Parameter | NodeParameter)]

    @contextmanager
    def oneChange(self) -> Iterator[None]:
        """Let observers of the node hear of several changes once."""
        was = self.node.StartModify()
        try:
            yield
        finally:
            self.node.EndModify(was)

    def set(self, **values: Any) -> None:
        """Set several parameters as one change.

        Raises:
            AttributeError: There is no such parameter.
        """
        unknown = set(values) - set(self.names())
        if unknown:
            raise AttributeError(f"there is no parameter {', '.join(sorted(unknown))}")
        with self.oneChange():
            for name, value in values.items():
                setattr(self, name, value)


class PanelParameters(Parameters):
    """What the panel keeps in the scene."""

    inputVolume = NodeParameter("vtkMRMLScalarVolumeNode")
    outputSegmentation = NodeParameter("vtkMRMLSegmentationNode")
    resultsSegmentation = NodeParameter("vtkMRMLSegmentationNode")
    prompts = Parameter("")
    promptHistory: Parameter[tuple[str, ...]] = Parameter(())
    engine = Parameter("lite")
    preset = Parameter("")
    scope = Parameter("slice", ("slice", "range", "volume"))
    view = Parameter("Red")
    plane = Parameter("", ("", "axial", "coronal", "sagittal"))
    firstSlice = Parameter(0)
    lastSlice = Parameter(-1)
    seed = Parameter(0)
    samples = Parameter(0)
    gate = Parameter(True)
    windowMode = Parameter("auto", ("auto", "display", "manual"))
    windowLow = Parameter(0.0)
    windowHigh = Parameter(0.0)
    overlay = Parameter("none", ("none", "saliency", "entropy"))
    overlayOpacity = Parameter(0.5)
