"""Fixtures that need a MRML scene outside Slicer; tests that use them skip where slicer-core is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from MedCLIPSAMLib.slicer_scene import SlicerScene


@pytest.fixture
def vtk_errors() -> Iterator[list[str]]:
    """Fail the test when VTK reports errors or warnings, which it never raises; a test may clear the list."""
    vtk = pytest.importorskip("vtk", reason="slicer-core is not installed (pip install slicer-core)")
    usual, collecting = vtk.vtkOutputWindow.GetInstance(), vtk.vtkStringOutputWindow()
    reports: list[str] = []
    seen = 0

    def collect(*_: object) -> None:
        nonlocal seen
        text = collecting.GetOutput()
        reports.append(text[seen:].strip())
        seen = len(text)

    for event in ("ErrorEvent", "WarningEvent"):
        collecting.AddObserver(event, collect)
    vtk.vtkOutputWindow.SetInstance(collecting)
    try:
        yield reports
    finally:
        vtk.vtkOutputWindow.SetInstance(usual)
    rest = collecting.GetOutput()[seen:].strip()
    assert not reports and not rest, "VTK reported:\n" + "\n".join([*reports, rest])


@pytest.fixture
def slicer_scene(vtk_errors: list[str]) -> Iterator[SlicerScene]:
    """A scene with all logics, closed at the end."""
    pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-core)")
    from MedCLIPSAMLib.slicer_scene import SlicerScene

    with SlicerScene() as built:
        yield built


@pytest.fixture
def add_transform(slicer_scene: SlicerScene) -> Callable[[np.ndarray], Any]:
    """A function that adds a linear transform node with a (4, 4) matrix to its parent."""
    from MedCLIPSAMLib.mrml import vtk_matrix

    def add(matrix: np.ndarray) -> Any:
        node = slicer_scene.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        node.SetMatrixTransformToParent(vtk_matrix(matrix))
        return node

    return add


@pytest.fixture
def add_bend(slicer_scene: SlicerScene) -> Callable[[], Any]:
    """A function that adds a non-linear transform: a smooth bend of up to 12 mm around the origin."""
    import vtk

    def add() -> Any:
        points = np.array([[x, y, z] for x in (-200, 0, 200) for y in (-200, 0, 200) for z in (-200, 0, 200)], float)
        moved = points.copy()
        moved[:, 2] += 12 * np.cos(points[:, 0] / 130)
        moved[:, 1] += 8 * np.sin(points[:, 2] / 150)
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for one, other in zip(points, moved, strict=True):
            source.InsertNextPoint(*one)
            target.InsertNextPoint(*other)
        spline = vtk.vtkThinPlateSplineTransform()
        spline.SetBasisToR()
        spline.SetSourceLandmarks(source)
        spline.SetTargetLandmarks(target)
        node = slicer_scene.scene.AddNewNodeByClass("vtkMRMLTransformNode")
        node.SetAndObserveTransformToParent(spline)
        return node

    return add
