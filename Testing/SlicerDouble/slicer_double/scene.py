"""A scene with the logics that the application has, built by hand from slicer-core."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import slicer
import vtk

LOGICS = {
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "volumes": "vtkSlicerVolumesLogic",
    "terminologies": "vtkSlicerTerminologiesModuleLogic",
    "subjecthierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "colors": "vtkSlicerColorLogic",
}
SCHEMAS = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/schemas"  # a mark of the format; nothing is fetched


@dataclass
class World:
    """The application's logic, the scene, and the modules' logics by the modules' names."""

    scene: slicer.vtkMRMLScene
    application: slicer.vtkSlicerApplicationLogic
    logics: dict[str, vtk.vtkObject]


def _write_terminologies(folder: Path) -> None:
    """Empty lists with the names that the application's have, since slicer-core brings no files."""
    folder.mkdir(parents=True)
    for file, title in (
        ("SegmentationCategoryTypeModifier-SlicerGeneralAnatomy", "3D Slicer General Anatomy list"),
        ("SegmentationCategoryTypeModifier-DICOM-Master", "DICOM master list"),
    ):
        content = {
            "@schema": f"{SCHEMAS}/segment-context-schema.json#",
            "SegmentationCategoryTypeContextName": f"Segmentation category and type - {title}",
            "SegmentationCodes": {"Category": []},
        }
        (folder / f"{file}.term.json").write_text(json.dumps(content), encoding="utf-8")
    content = {
        "@schema": f"{SCHEMAS}/anatomic-context-schema.json#",
        "AnatomicContextName": "Anatomic codes - DICOM master list",
        "AnatomicCodes": {"AnatomicRegion": []},
    }
    (folder / "AnatomicRegionAndModifier-DICOM-Master.term.json").write_text(json.dumps(content), encoding="utf-8")


def build(folder: Path) -> World:
    """Make a scene as the application has it after start.

    Args:
        folder: does not exist yet; for the files that the terminologies logic reads.
    """
    _write_terminologies(folder)
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    colors = application.GetColorLogic()
    colors.SetMRMLScene(scene)
    colors.AddDefaultColorNodes()
    application.SetSliceLogics(vtk.vtkCollection())
    application.SetViewLogics(vtk.vtkCollection())
    logics: dict[str, vtk.vtkObject] = {"colors": colors}
    application.SetModuleLogic("Colors", colors)
    for name, kind in LOGICS.items():
        if name in logics:
            continue
        logic = getattr(slicer, kind)()
        if name == "terminologies":
            logic.SetModuleShareDirectory(str(folder))
        logic.SetMRMLApplicationLogic(application)
        logic.SetMRMLScene(scene)
        application.SetModuleLogic(name.capitalize(), logic)
        logics[name] = logic
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
    for name in ("vtkMRMLSelectionNode", "vtkMRMLInteractionNode", "vtkMRMLCrosshairNode"):
        node = scene.CreateNodeByClass(name)
        node.UnRegister(None)
        if not node.GetSingletonTag():
            node.SetSingletonTag("Singleton")
        scene.AddNode(node)
    return World(scene, application, logics)


def add_slice_views(world: World) -> dict[str, slicer.vtkMRMLSliceLogic]:
    """Add the three slice views that a main window has; returns their logics by name."""
    logics = {}
    for name, orientation in (("Red", "Axial"), ("Yellow", "Sagittal"), ("Green", "Coronal")):
        logic = slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(world.application)
        logic.SetMRMLScene(world.scene)
        node = logic.AddSliceNode(name)
        node.SetOrientation(orientation)
        node.SetMappedInLayout(1)
        world.application.GetSliceLogics().AddItem(logic)
        logics[name] = logic
    return logics
