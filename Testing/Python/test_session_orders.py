"""Orders of events around a run that a user brings about by hand: other outputs, moved volumes, late cancels."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer")

from test_session import bright_box, contents, run, session, worker  # noqa: F401

from MedCLIPSAMLib import mrml, mrml_segments, session_active
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.session import Session
from MedCLIPSAMLib.session_folder import SessionFolder
from MedCLIPSAMLib.session_types import RunRequest, SessionEvent


def until_result(session: Session) -> None:  # noqa: F811
    """Poll until the first of several results is in the scene."""
    end = time.monotonic() + 60
    while not any(event.kind == "result" for event in session.poll()):
        assert time.monotonic() < end
        session.rest()


def ends(events: list[SessionEvent]) -> list[str]:
    return [event.kind for event in events if event.kind in ("finished", "failed", "cancelled")]


def add_case(slicer_scene: Any, name: str = "case") -> Any:
    return slicer_scene.add_volume(bright_box()[0], np.diag([1.0, 1, 3, 1]), name)


def test_output_into_a_node_as_slicers_selectors_make_it(slicer_scene: Any, session: Session) -> None:  # noqa: F811
    """It has neither a display node nor a volume yet."""
    volume = add_case(slicer_scene)
    bare = slicer_scene.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "bare")
    run(session, RunRequest(volume.GetID(), ("bright",), axis=0, index=3, segmentation_id=bare.GetID()))
    (row,) = session.rows(bare)
    assert row.size > 0 and row.saliency_node_id and session.segmentation(volume) is bare
    session.preview(bare.GetID(), "bright", 0.9, 0.0)
    session.undo()
    assert session.rows(bare) == [] and slicer_scene.scene.IsNodePresent(bare)


def test_the_segmentation_of_another_volume_is_no_output(slicer_scene: Any, session: Session) -> None:  # noqa: F811
    first, second = add_case(slicer_scene, "first"), add_case(slicer_scene, "second")
    run(session, RunRequest(first.GetID(), ("bright",), axis=0, index=3))
    chosen = session.segmentation(first)
    before = contents(slicer_scene.scene)
    with pytest.raises(InputError, match="belongs to the volume 'first', not to 'second'"):
        session.run(RunRequest(second.GetID(), ("bright",), axis=0, index=3, segmentation_id=chosen.GetID()))
    assert session.state == "idle" and contents(slicer_scene.scene) == before


@pytest.mark.parametrize("scope", ["slice", "range"])
def test_a_moved_volume_keeps_its_slices(slicer_scene: Any, session: Session, scope: str) -> None:  # noqa: F811
    """Centred, or registered and hardened: slices of 3 mm are moved by five."""
    volume = add_case(slicer_scene)
    request = RunRequest(volume.GetID(), ("bright",), axis=0, index=3)
    if scope == "range":
        request = RunRequest(volume.GetID(), ("bright",), "range", axis=0, slice_range=(3, 4))
    run(session, request)
    segmentation = session.segmentation(volume)
    (row,) = session.rows(segmentation)
    volume.SetOrigin(10, -20, 15)
    session.preview(segmentation.GetID(), "bright", 0.9, 0.0, index=3)
    session.finish_coarse()
    coarse = mrml_segments.segment_array(segmentation, volume, row.coarse_segment_id)
    written = coarse.any(axis=(1, 2))
    assert written[3] and not written[8:].any()
    session.refine(segmentation.GetID(), "bright")
    assert ends(session.wait(60)) == ["finished"]
    refined = mrml_segments.segment_array(segmentation, volume, session.rows(segmentation)[0].mask_segment_id)
    assert refined[3].any() and not refined[8:].any()


def test_a_volume_of_another_size_is_told(slicer_scene: Any, session: Session) -> None:  # noqa: F811
    """Cropped in place: during the run, and after it."""
    import vtk

    volume = add_case(slicer_scene)
    before = contents(slicer_scene.scene)

    def crop() -> None:
        image = vtk.vtkImageData()
        image.SetDimensions(41, 33, 7)
        image.AllocateScalars(vtk.VTK_SHORT, 1)
        volume.SetAndObserveImageData(image)

    whole = volume.GetImageData()
    session.run(RunRequest(volume.GetID(), ("bright",), axis=0, index=3))
    crop()
    events = session.wait(60)
    assert ends(events) == ["failed"] and "was changed while the run" in events[-1].text
    assert contents(slicer_scene.scene) == before
    volume.SetAndObserveImageData(whole)
    run(session, RunRequest(volume.GetID(), ("bright",), scope="volume"))
    segmentation = session.segmentation(volume)
    crop()
    for work in (
        lambda: session.preview(segmentation.GetID(), "bright", 0.9, 0.0),
        lambda: session.refine(segmentation.GetID(), "bright"),
    ):
        with pytest.raises(InputError, match="was changed since 'bright' was segmented"):
            work()
    assert session.state == "idle"


def test_undo_leaves_what_the_user_has_drawn(slicer_scene: Any, session: Session) -> None:  # noqa: F811
    _, box = bright_box()
    volume = add_case(slicer_scene)
    run(session, RunRequest(volume.GetID(), ("bright",), axis=0, index=3))
    segmentation = session.segmentation(volume)
    drawn = segmentation.GetSegmentation().AddEmptySegment("mine", "mine")
    mrml_segments.set_segment(segmentation, volume, drawn, box)
    session.undo()
    assert slicer_scene.scene.IsNodePresent(segmentation) and session.rows(segmentation) == []
    assert segmentation.GetSegmentation().GetSegmentIDs() == ("mine",)
    assert (mrml_segments.segment_array(segmentation, volume, drawn) == box).all()


def test_a_fault_while_showing_a_result_ends_the_run_as_failed(
    slicer_scene: Any,
    session: Session,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not as an exception out of a timer, after which the next poll would report success."""
    volume = add_case(slicer_scene)
    before = contents(slicer_scene.scene)

    def broken(*_: object) -> None:
        raise AttributeError("'NoneType' object has no attribute 'SetVisibility'")

    with monkeypatch.context() as patch:
        patch.setattr(session_active, "publish", broken)
        session.run(RunRequest(volume.GetID(), ("bright", "bright; two"), axis=0, index=3))
        assert ends(session.wait(60)) == ["failed"]
    assert session.state == "idle" and contents(slicer_scene.scene) == before
    run(session, RunRequest(volume.GetID(), ("bright",), axis=0, index=3))


def test_sliders_of_two_results_in_turn(slicer_scene: Any, session: Session) -> None:  # noqa: F811
    """The first one's slices are finished, too, though the second was moved before they were."""
    volume = add_case(slicer_scene)
    run(session, RunRequest(volume.GetID(), ("bright", "bright; two"), scope="volume"))
    segmentation = session.segmentation(volume)
    for prompt, threshold in (("bright", 0.9), ("bright; two", 0.8)):
        session.preview(segmentation.GetID(), prompt, threshold, 0.0, index=3)
    while not session.apply_coarse(0.0):
        pass
    for row, threshold in zip(session.rows(segmentation), (0.9, 0.8), strict=True):
        saliency = slicer_scene.scene.GetNodeByID(row.saliency_node_id)
        coarse = mrml_segments.segment_array(segmentation, volume, row.coarse_segment_id)
        assert row.threshold == threshold and (coarse == (mrml.volume_view(saliency) > threshold)).all()


@pytest.mark.parametrize("keep", [False, True])
def test_a_cancel_while_results_are_being_shown(slicer_scene: Any, session: Session, keep: bool) -> None:  # noqa: F811
    volume = add_case(slicer_scene)
    before = contents(slicer_scene.scene)
    session.run(RunRequest(volume.GetID(), ("bright", "bright; two", "bright; three"), axis=0, index=3))
    until_result(session)
    session.cancel(keep)
    assert ends(session.wait(60)) == ["finished" if keep else "cancelled"]
    if keep:
        assert len(session.rows(session.segmentation(volume))) == 3
    else:
        assert contents(slicer_scene.scene) == before and not session.can_undo


def test_images_of_a_crashed_program_are_removed_at_the_next_start(
    slicer_scene: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os; from MedCLIPSAMLib.session_folder import SessionFolder as F; f = F(); print(f.path, flush=True); "
    )
    code += "(f.path / 'volume.npy').write_bytes(b'image'); os._exit(1)"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    crashed = Path(ended.stdout.strip())
    living, other = SessionFolder(), tmp_path / "medclipsam-session-without-lock"
    other.mkdir()
    assert crashed.is_dir(), "so new, it may be about to be locked"
    for folder in (crashed, living.path):
        os.utime(folder / "lock", (1, 1))
    one = Session(slicer_scene.scene)
    assert not crashed.exists() and living.path.is_dir() and other.is_dir()
    one.close()
    living.remove()
    assert list(tmp_path.iterdir()) == [other]
