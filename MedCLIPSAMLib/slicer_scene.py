"""A MRML scene with everything around it that the Slicer application builds, outside Slicer (package slicer-core)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError, OutputError
from MedCLIPSAMLib.file_io import PICTURE_SUFFIXES, VOLUME_SUFFIXES, read_image

VIEWS = {"Red": "Axial", "Yellow": "Sagittal", "Green": "Coronal"}
"""The slice views of Slicer's layouts and their orientations."""

_LOGICS = {
    "Colors": "vtkMRMLColorLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",  # before any segment: it registers the converters
    "Volumes": "vtkSlicerVolumesLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
}
_LOAD_SINGLE_FILE = 4  # vtkSlicerVolumesLogic: do not stack files with similar names


class SlicerScene:
    """The scene, the application logic and the module logics that our code and saved scenes need; a context manager.

    Only one may be open in a process, since VTK keeps the factories of the views for the whole process.

    Attributes:
        scene: vtkMRMLScene.
        application: vtkSlicerApplicationLogic.
        logics: The module logics by name ("Volumes", "Segmentations", ...).
        slice_logics: vtkMRMLSliceLogic by the name of its view ("Red", "Yellow", "Green").

    Raises:
        MedCLIPSAMError: slicer-core is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("slicer") is None:
            raise MedCLIPSAMError("a Slicer scene needs the package slicer-core: pip install slicer-core")
        import slicer
        import vtk

        self._slicer = slicer
        self._folder = Path(tempfile.mkdtemp(prefix="medclipsam-scene-"))
        self.scene: Any = slicer.vtkMRMLScene()
        self.application: Any = slicer.vtkSlicerApplicationLogic()
        self.application.SetTemporaryPath(str(self._folder))
        self._set_up_data_io()
        self.application.SetMRMLScene(self.scene)
        self.application.GetColorLogic().SetMRMLScene(self.scene)
        self.application.GetColorLogic().AddDefaultColorNodes()
        self.application.SetSliceLogics(vtk.vtkCollection())  # before any view
        self.application.SetViewLogics(vtk.vtkCollection())
        for factory in self._view_factories():
            factory.SetMRMLApplicationLogic(self.application)
        self.logics: dict[str, Any] = {name: self._add_logic(name) for name in _LOGICS}
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self.slice_logics: dict[str, Any] = {name: self._add_view(name, VIEWS[name]) for name in VIEWS}

    def load_volume(self, path: str | Path) -> Any:
        """Load an image as Slicer does and show it in the slice views.

        Args:
            path: NRRD, NIfTI, MetaImage, a picture (PNG, JPEG, TIFF), a DICOM file, or a folder with one DICOM series.

        Returns:
            The volume node; a colour picture is a vector volume of one slice.

        Raises:
            InputError: No such file, of unknown type, several series in the folder, or unreadable.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path} does not exist; check the path.")
        files = _dicom_files(path)
        lower = path.name.lower()
        if lower.endswith(".seg.nrrd"):
            raise InputError(f"{path} is a segmentation; pass the image that it belongs to.")
        if not files and not lower.endswith((*PICTURE_SUFFIXES, *VOLUME_SUFFIXES)):
            raise InputError(
                f"{path} is of no type that can be loaded; pass NRRD, NIfTI, MetaImage, PNG, TIFF or DICOM."
            )
        if lower.endswith(PICTURE_SUFFIXES):  # slicer-core's ITK has no reader for them
            picture = read_image(path)
            return self.add_volume(picture.array[None], picture.ijk_to_ras, path.stem)
        node = self._read(path, files)
        if node is None or node.GetImageData() is None:
            if node is not None:
                self.scene.RemoveNode(node)
            raise InputError(f"{path} cannot be read as an image; it may be damaged or of an unusual kind.")
        self.show_volume(node)
        return node

    def add_volume(self, array: Any, ijk_to_ras: Any, name: str, window: tuple[float, float] | None = None) -> Any:
        """Add (K, J, I) or (K, J, I, 3) with its geometry as a volume node and show it in the slice views.

        Args:
            array: Any type that VTK knows; bool becomes uint8.
            ijk_to_ras: (4, 4), mm.
            name: Node name.
            window: (lower, upper) intensity to show, or None for automatic.
        """
        import numpy as np
        import vtk
        from vtk.util.numpy_support import numpy_to_vtk

        from MedCLIPSAMLib.mrml import vtk_matrix

        array = np.ascontiguousarray(array, np.uint8 if array.dtype == bool else None)
        kind = "vtkMRMLVectorVolumeNode" if array.ndim == 4 else "vtkMRMLScalarVolumeNode"
        image = vtk.vtkImageData()
        image.SetDimensions(*array.shape[2::-1])
        image.GetPointData().SetScalars(numpy_to_vtk(array.reshape(-1, *array.shape[3:]), deep=True))
        node = self.scene.AddNewNodeByClass(kind, name)
        node.SetIJKToRASMatrix(vtk_matrix(ijk_to_ras))
        node.SetAndObserveImageData(image)
        node.CreateDefaultDisplayNodes()
        if window is not None and array.ndim == 3:
            node.GetDisplayNode().AutoWindowLevelOff()
            node.GetDisplayNode().SetWindowLevelMinMax(*window)
        self.show_volume(node)
        return node

    def show_volume(self, volume: Any) -> None:
        """Make ``volume`` the background of the slice views, in whole."""
        for logic in self.slice_logics.values():
            logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
            logic.FitSliceToBackground()

    def load_scene(self, path: str | Path) -> None:
        """Replace the scene's content by that of an ``.mrb`` file.

        Raises:
            InputError: It cannot be read.
        """
        if not Path(path).is_file() or not self.scene.ReadFromMRB(str(path), True):
            raise InputError(f"{path} cannot be read as a Slicer scene (.mrb).")

    def save_scene(self, path: str | Path) -> Path:
        """Write the scene with all data as ``.mrb``; whole or not at all.

        Raises:
            InputError: Another file name extension.
            OutputError: It cannot be written.
        """
        return self._save(Path(path), ".mrb", lambda temporary: self.scene.WriteToMRB(str(temporary)))

    def save_segmentation(self, node: Any, path: str | Path) -> Path:
        """Write a segmentation node as ``.seg.nrrd``; whole or not at all.

        Raises:
            InputError: Another file name extension.
            OutputError: It cannot be written.
        """

        def write(temporary: Path) -> bool:
            storage = self._slicer.vtkMRMLSegmentationStorageNode()
            storage.SetFileName(str(temporary))
            return bool(storage.WriteData(node))  # not the node's own storage: its file name stays as it is

        return self._save(Path(path), ".seg.nrrd", write)

    def close(self) -> None:
        """Empty the scene and let go of all logics; idempotent."""
        if self.scene is None:
            return
        self.scene.Clear(1)
        self.application.GetSliceLogics().RemoveAllItems()
        for logic in self.slice_logics.values():
            logic.SetMRMLScene(None)
            logic.SetMRMLApplicationLogic(None)
        for name, logic in self.logics.items():
            logic.SetMRMLApplicationLogic(None)
            self.application.SetModuleLogic(name, None)
        self.application.GetColorLogic().SetMRMLScene(None)
        for factory in self._view_factories():
            factory.SetMRMLApplicationLogic(None)
        self.application.SetMRMLSceneDataIO(None, None, None)
        self.application.SetMRMLScene(None)
        self.slice_logics, self.logics = {}, {}
        self.scene = self.application = self._data_io = logic = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> SlicerScene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _view_factories(self) -> tuple[Any, Any]:
        slices, volumes = (
            self._slicer.vtkMRMLSliceViewDisplayableManagerFactory,
            self._slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
        )
        return slices.GetInstance(), volumes.GetInstance()

    def _set_up_data_io(self) -> None:
        """Without these two logics a saved scene cannot be read again."""
        remote = self._slicer.vtkMRMLRemoteIOLogic()
        remote.GetCacheManager().SetRemoteCacheDirectory(str(self._folder))
        manager = self._slicer.vtkDataIOManagerLogic()
        manager.SetMRMLApplicationLogic(self.application)
        manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
        self.application.SetMRMLSceneDataIO(self.scene, remote, manager)
        self._data_io = remote, manager

    def _add_logic(self, name: str) -> Any:
        logic = getattr(self._slicer, _LOGICS[name])()
        logic.SetMRMLApplicationLogic(self.application)
        if name != "Terminologies":  # its lists are files of the application, which are not here to be loaded
            logic.SetMRMLScene(self.scene)
        self.application.SetModuleLogic(name, logic)
        return logic

    def _add_view(self, name: str, orientation: str) -> Any:
        logic = self._slicer.vtkMRMLSliceLogic()
        logic.SetMRMLApplicationLogic(self.application)
        logic.SetMRMLScene(self.scene)
        logic.AddSliceNode(name).SetOrientation(orientation)
        self.application.GetSliceLogics().AddItem(logic)
        return logic

    def _read(self, path: Path, files: tuple[str, ...]) -> Any:
        import vtk

        names = vtk.vtkStringArray()
        for file in files:
            names.InsertNextValue(file)
        name = path.name
        for suffix in (".nii.gz", path.suffix):
            name = name.removesuffix(suffix) or name
        # The reader tries one kind of volume after the other and reports each failure as an error.
        with quiet_vtk():
            first = files[0] if files else str(path)
            options = 0 if files else _LOAD_SINGLE_FILE
            return self.logics["Volumes"].AddArchetypeVolume(first, name, options, names if files else None)

    def _save(self, path: Path, suffix: str, write: Callable[[Path], bool]) -> Path:
        if not path.name.endswith(suffix):
            raise InputError(f"{path}: the file name must end with {suffix}.")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
                temporary = Path(folder, path.name)  # under its own name, which the files inside a scene repeat
                if not write(temporary) or not temporary.is_file():
                    raise OutputError(f"{path} cannot be written; check the permissions and the free space.")
                os.replace(temporary, path)
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); choose another folder.") from error
        return path


@contextmanager
def quiet_vtk() -> Iterator[None]:
    """Keep VTK's messages from the console while something is tried that may fail."""
    import vtk

    usual, verbosity = vtk.vtkOutputWindow.GetInstance(), vtk.vtkLogger.GetCurrentVerbosityCutoff()
    vtk.vtkOutputWindow.SetInstance(vtk.vtkStringOutputWindow())
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    try:
        yield
    finally:
        vtk.vtkLogger.SetStderrVerbosity(verbosity)
        vtk.vtkOutputWindow.SetInstance(usual)


def _dicom_files(path: Path) -> tuple[str, ...]:
    """Return the files of the DICOM series at ``path`` in their order; empty if it is another kind of file."""
    if path.is_file():
        with path.open("rb") as file:
            is_dicom = file.read(132)[128:] == b"DICM"
        return (str(path),) if is_dicom or path.suffix.lower() in (".dcm", ".dicom", ".ima") else ()
    import SimpleITK as sitk

    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(path))
    if len(series) != 1:
        number = "no DICOM series" if not series else f"{len(series)} DICOM series"
        raise InputError(f"{path} holds {number}; pass a folder with exactly one.")
    return sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series[0])
