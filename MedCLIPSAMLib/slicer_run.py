"""The panel's job without Slicer: a file into a scene, a session, and the scene with pictures of it into a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from MedCLIPSAMLib.errors import CancelledError, InputError, MedCLIPSAMError
from MedCLIPSAMLib.file_output import check_output_folder, write_json
from MedCLIPSAMLib.reporting import RESEARCH_NOTE, versions
from MedCLIPSAMLib.result_folder import collected
from MedCLIPSAMLib.session_types import ResultRow, RunRequest

if TYPE_CHECKING:
    from MedCLIPSAMLib.medical_image import MedicalImage
    from MedCLIPSAMLib.session import Session
    from MedCLIPSAMLib.slicer_scene import SlicerScene

logger = logging.getLogger(__name__)

SCENE_FILE, SEGMENTATION_FILE, REPORT_FILE = "scene.mrb", "segmentation.seg.nrrd", "result.json"


@dataclass(frozen=True)
class SlicerRunSettings:
    """How to run; the attributes are those of :class:`RunRequest`.

    Attributes:
        axis: Array axis, or "axial", "coronal", "sagittal"; None for the axis of acquisition.
        slice_range: (first, last), from 0, both included; None for the whole volume.
    """

    engine: str = "lite"
    preset: str | None = None
    device: str = "auto"
    seed: int = 0
    gate: bool = True
    axis: int | str | None = None
    slice_range: tuple[int, int] | None = None


def slicer_run(
    source: str | Path | MedicalImage,
    prompts: Sequence[str],
    output: str | Path,
    settings: SlicerRunSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    session_factory: Callable[[Any], Session] | None = None,
) -> dict[str, Any]:
    """Do what the panel does, in a scene outside Slicer.

    Writes ``scene.mrb`` (opens in Slicer with everything), ``segmentation.seg.nrrd``, pictures of the slice views and
    of a 3D view, and ``result.json``.

    Args:
        source: A file, a DICOM folder, or an image in memory.
        prompts: One segment each.
        output: Folder for the results.
        settings: See :class:`SlicerRunSettings`.
        progress: Called with (done, in all).
        session_factory: Makes the session for a scene; None for the usual one.

    Returns:
        What ``result.json`` says.

    Raises:
        InputError, OutputError: Anything wrong with the input, the request or the folder, which is then as it was.
        MedCLIPSAMError: The run failed.
    """
    from MedCLIPSAMLib.session import Session
    from MedCLIPSAMLib.slicer_scene import SlicerScene

    settings = settings or SlicerRunSettings()
    folder = check_output_folder(output)
    with SlicerScene() as slicer_scene:
        volume = _load(slicer_scene, source)
        session = (session_factory or Session)(slicer_scene.scene)
        try:
            request = _request(volume, prompts, settings)
            session.run(request)
            segmentation = _finish(session, progress)
            rows = session.rows(segmentation)
            with collected(folder) as unfinished:
                slicer_scene.save_segmentation(segmentation, unfinished / SEGMENTATION_FILE)
                pictures, warnings = _pictures(slicer_scene, session, volume, segmentation, rows, unfinished)
                slicer_scene.save_scene(unfinished / SCENE_FILE)
                report = {
                    "input": volume.GetName(),
                    "engine": settings.engine,
                    "preset": settings.preset,
                    "seed": settings.seed,
                    "prompts": [asdict(row) for row in rows],
                    "files": [SCENE_FILE, SEGMENTATION_FILE, *pictures],
                    "warnings": warnings,
                    "versions": versions(),
                    "note": RESEARCH_NOTE,
                }
                write_json(unfinished / REPORT_FILE, report)
            return report
        finally:
            session.close()


def _load(slicer_scene: SlicerScene, source: str | Path | MedicalImage) -> Any:
    if isinstance(source, (str, Path)):
        return slicer_scene.load_volume(source)
    array = source.array if source.is_volume else source.array[None]
    return slicer_scene.add_volume(array, source.ijk_to_ras, source.path.stem, source.window)


def _request(volume: Any, prompts: Sequence[str], settings: SlicerRunSettings) -> RunRequest:
    """Turn settings into a request; a single slice is segmented as an image, as the panel does."""
    from MedCLIPSAMLib import mrml
    from MedCLIPSAMLib.geometry import SliceGeometry

    geometry = SliceGeometry.of(mrml.volume_shape(volume), mrml.ijk_to_ras(volume), settings.axis)
    scope: Literal["slice", "range", "volume"] = "range" if settings.slice_range else "volume"
    single = geometry.count == 1
    return RunRequest(
        volume_id=volume.GetID(),
        prompts=tuple(prompts),
        scope="slice" if single else scope,
        axis=geometry.axis,
        index=0 if single else None,
        slice_range=settings.slice_range,
        engine=settings.engine,
        preset=settings.preset,
        device=settings.device,
        seed=settings.seed,
        gate=settings.gate,
        window=mrml.displayed_window(volume) if _asks_for_window(volume) else None,
    )


def _asks_for_window(volume: Any) -> bool:
    display = volume.GetDisplayNode()
    return display is not None and hasattr(display, "GetAutoWindowLevel") and not display.GetAutoWindowLevel()


def _finish(session: Session, progress: Callable[[int, int], None] | None) -> Any:
    """Poll until the run ends and return its segmentation."""
    while True:
        for event in session.poll():
            logger.info("%s: %s", event.kind, event.text)
            if event.kind == "progress" and progress is not None and session.status.total:
                progress(session.status.done, session.status.total)
            if event.kind == "failed":
                kind = InputError if event.data.get("kind") == "InputError" else MedCLIPSAMError
                raise kind(event.text)
            if event.kind == "cancelled":
                raise CancelledError(event.text)
            if event.kind == "finished":
                return session.scene.GetNodeByID(event.data["segmentation_id"])
        session.rest()


def _pictures(
    slicer_scene: SlicerScene,
    session: Session,
    volume: Any,
    segmentation: Any,
    rows: list[ResultRow],
    folder: Path,
) -> tuple[list[str], list[str]]:
    """Draw the views; a machine that cannot draw gets a warning instead of pictures."""
    from MedCLIPSAMLib.slicer_render import render_views, save_views

    overlay = session.scene.GetNodeByID(rows[0].saliency_node_id) if rows and rows[0].saliency_node_id else None
    try:
        pictures = render_views(slicer_scene, volume, overlay=overlay, segmentation=segmentation)
    except MedCLIPSAMError as error:
        return [], [f"No pictures were made: {error}"]
    return sorted(path.name for path in save_views(pictures, folder).values()), []
