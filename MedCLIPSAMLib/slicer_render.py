"""Pictures of slice views and of a 3D view of a scene outside Slicer, without a display: image, overlay, segments."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMLib.file_output import check_output_folder, replacing
from MedCLIPSAMLib.slicer_scene import VIEWS, SlicerScene, quiet_vtk

_REMEDY = (
    "no picture can be drawn: OpenGL without a display (EGL) is not available. "
    "On Debian and Ubuntu: apt-get install libegl1 libgl1 libgl1-mesa-dri"
)
_SLICE_MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D",)
_THREED_MANAGERS = ("vtkMRMLModelDisplayableManager", "vtkMRMLSegmentationsDisplayableManager3D")
_GAP = 4  # pixels between the pictures of the sheet
_BACKGROUND = (0.11, 0.12, 0.16)  # of the 3D view
_TINT = (0.27, 0.29, 0.36)


def render_views(
    built: SlicerScene,
    volume: Any,
    *,
    overlay: Any = None,
    segmentation: Any = None,
    opacity: float = 0.5,
    centre: tuple[float, float, float] | None = None,
    size: int = 512,
) -> dict[str, np.ndarray]:
    """Draw the slice views that show the volume in its planes, and a 3D view with one slice and the surfaces.

    The segmentation gets closed surfaces if it has none, as by Slicer's "Show 3D".

    Args:
        built: The scene.
        volume: Volume node, shown in the background.
        overlay: Volume node laid over it, or None.
        segmentation: Segmentation node whose visible segments are drawn, or None.
        opacity: Of the overlay, 0 to 1.
        centre: Millimetres (R, A, S) through which the slices go; None takes the middle of the segments, else of the
            overlay's strongest part, else of the volume.
        size: Height and width of each picture in pixels.

    Returns:
        "axial", "sagittal", "coronal" (without those in which the volume is a single line) and "3d": (size, size, 3)
        uint8.

    Raises:
        MedCLIPSAMError: Pictures cannot be drawn on this machine; with the remedy.
    """
    _check_drawing()
    centre = centre or _centre(volume, overlay, segmentation)
    if segmentation is not None:
        segmentation.CreateClosedSurfaceRepresentation()
    shown = [name for name in VIEWS if _spans(volume, built.slice_logics[name].GetSliceNode())]
    for name in VIEWS:
        composite = built.slice_logics[name].GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(volume.GetID())
        composite.SetForegroundVolumeID(None if overlay is None else overlay.GetID())
        composite.SetForegroundOpacity(opacity)
    pictures = {VIEWS[name].lower(): _slice_picture(built, name, volume, centre, size) for name in shown}
    pictures["3d"] = _threed_picture(built, shown[:1], volume, size)  # one plane: more would hide the surfaces
    return pictures


def save_views(pictures: dict[str, np.ndarray], folder: str | Path) -> dict[str, Path]:
    """Write each picture as PNG, and "views": all of them side by side. The folder is made if it is missing.

    Returns:
        The files by the pictures' names.

    Raises:
        OutputError: The folder cannot be written.
    """
    from PIL import Image

    folder = check_output_folder(folder)
    paths = {}
    for name, picture in {**pictures, "views": contact_sheet(pictures)}.items():
        paths[name] = folder / f"{name}.png"
        with replacing(paths[name]) as file:
            Image.fromarray(picture).save(file, "PNG")
    return paths


def contact_sheet(pictures: dict[str, np.ndarray]) -> np.ndarray:
    """Return the pictures in Slicer's order: axial and 3D above, coronal and sagittal below, or in one row."""
    order = [name for name in ("axial", "3d", "coronal", "sagittal") if name in pictures]
    if len(order) < 4:
        order.sort(key="3d".__eq__)  # a single slice has one view, and beside it the 3D view
    columns = 2
    rows = -(-len(order) // columns)
    size = pictures[order[0]].shape[0]
    sheet = np.full((rows * (size + _GAP) - _GAP, columns * (size + _GAP) - _GAP, 3), 70, np.uint8)
    for number, name in enumerate(order):
        top, left = (place * (size + _GAP) for place in divmod(number, columns))
        sheet[top : top + size, left : left + size] = pictures[name]
    return sheet


def _slice_picture(
    built: SlicerScene, name: str, volume: Any, centre: tuple[float, float, float], size: int
) -> np.ndarray:
    import slicer
    import vtk

    logic = built.slice_logics[name]
    node = logic.GetSliceNode()
    node.SetDimensions(size, size, 1)
    logic.FitSliceToBackground(size, size)
    node.JumpSliceByOffsetting(*centre)
    logic.UpdatePipeline()
    mapper = vtk.vtkImageMapper()
    mapper.SetInputConnection(logic.GetImageDataConnection())
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    actor = vtk.vtkActor2D()
    actor.SetMapper(mapper)
    image, segments = vtk.vtkRenderer(), vtk.vtkRenderer()
    image.AddViewProp(actor)
    # a layer of their own: with the image in one renderer the segments' fill would blend with black
    segments.SetLayer(1)
    with _window(size, image, segments) as window:
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        group = _managers(factory, _SLICE_MANAGERS, segments, node)
        try:
            return _picture(window)
        finally:
            group.SetMRMLDisplayableNode(None)


def _threed_picture(built: SlicerScene, shown: list[str], volume: Any, size: int) -> np.ndarray:
    import slicer
    import vtk

    view = built.scene.AddNode(slicer.vtkMRMLViewNode())
    nodes = [built.slice_logics[name].GetSliceNode() for name in shown]
    renderer = vtk.vtkRenderer()
    renderer.SetBackground(*_BACKGROUND)
    renderer.SetBackground2(*_TINT)
    renderer.GradientBackgroundOn()
    for node in nodes:
        node.SetSliceVisible(True)
    try:
        with _window(size, renderer) as window:
            factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
            group = _managers(factory, _THREED_MANAGERS, renderer, view)
            try:
                _place_camera(renderer, volume)
                return _picture(window)
            finally:
                group.SetMRMLDisplayableNode(None)
    finally:
        for node in nodes:
            node.SetSliceVisible(False)
        built.scene.RemoveNode(view)


def _place_camera(renderer: Any, volume: Any) -> None:
    """Look at the volume from its front, right and above."""
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    middle = [(bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)]
    camera = renderer.GetActiveCamera()
    camera.SetFocalPoint(*middle)
    camera.SetPosition(middle[0] - 0.55, middle[1] + 1.0, middle[2] + 0.75)
    camera.SetViewUp(0, 0, 1)
    renderer.ResetCamera(bounds)
    camera.Zoom(1.25)
    renderer.ResetCameraClippingRange()


def _managers(factory: Any, names: tuple[str, ...], renderer: Any, node: Any) -> Any:
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = factory.InstantiateDisplayableManagers(renderer)
    group.SetMRMLDisplayableNode(node)
    return group


@contextmanager
def _window(size: int, *renderers: Any) -> Iterator[Any]:
    import vtk

    window = _new_window()
    window.SetSize(size, size)
    window.SetMultiSamples(0)
    window.SetNumberOfLayers(len(renderers))
    for renderer in renderers:
        renderer.UseFXAAOn() if len(renderers) == 1 else None
        window.AddRenderer(renderer)
    interactor = vtk.vtkGenericRenderWindowInteractor()
    interactor.SetRenderWindow(window)
    try:
        yield window
    finally:
        interactor.SetRenderWindow(None)
        window.Finalize()


def _new_window() -> Any:
    """Return an offscreen render window; without a display one that needs none."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    import vtk
    import vtkmodules.vtkRenderingOpenGL2  # noqa: F401  (registers the windows)

    window = vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetShowWindow(False)
    return window


def _picture(window: Any) -> np.ndarray:
    """Return what a window shows, (H, W, 3) uint8."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    window.Render()
    window.Render()  # the managers ask for a second one once their pipelines are set up
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.SetInputBufferTypeToRGB()
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    return np.array(vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 3)[::-1])


@cache
def _check_drawing() -> None:
    """Raise an error where VTK cannot draw."""
    with quiet_vtk():
        window = _new_window()
        # VTK's last resort is OSMesa, which ends the process where its library is missing: not even asked
        supported = window.GetClassName() != "vtkOSOpenGLRenderWindow" and window.SupportsOpenGL()
        window.Finalize()
    if not supported:
        raise MedCLIPSAMError(_REMEDY)


def _spans(volume: Any, slice_node: Any) -> bool:
    """Return whether a slice view shows the volume in two dimensions, not as a single line of voxels."""
    from MedCLIPSAMLib.mrml import slice_position, volume_shape

    shape = volume_shape(volume)
    axis = slice_position(slice_node, volume).axis
    return all(size > 1 for one, size in enumerate(shape) if one != axis)


def _centre(volume: Any, overlay: Any, segmentation: Any) -> tuple[float, float, float]:
    """Return the world point where there is most to see, without transforms' non-linear parts."""
    import vtk

    from MedCLIPSAMLib.mrml import ijk_to_ras, volume_view
    from MedCLIPSAMLib.mrml_segments import own_segments, segment_array

    source, weights = volume, None
    if segmentation is not None:
        masks = [segment_array(segmentation, volume, one) for one in own_segments(segmentation)]
        weights = next((mask for mask in masks if mask.any()), None)
    if weights is None and overlay is not None:
        source, values = overlay, volume_view(overlay)
        weights = values >= 0.9 * values.max() if values.max() > 0 else None
    if weights is None:
        k, j, i = ((size - 1) / 2 for size in volume_view(source).shape[:3])
    else:
        k, j, i = (float(np.median(one)) for one in np.nonzero(weights))
    matrix = ijk_to_ras(source)
    point = matrix[:3, :3] @ (i, j, k) + matrix[:3, 3]
    to_world = vtk.vtkGeneralTransform()
    if source.GetParentTransformNode() is not None:
        source.GetParentTransformNode().GetTransformToWorld(to_world)
    r, a, s = to_world.TransformPoint(*point)
    return r, a, s
