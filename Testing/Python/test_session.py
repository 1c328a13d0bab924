"""The session on a real MRML scene with a real child process; a quick engine stands in for most of the runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_in_engine import worker_environment

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.session_types import RunRequest, SessionEvent

pytest.importorskip("slicer", reason="slicer-core is not installed (pip install slicer-core)")

from MedCLIPSAMLib import mrml, mrml_overlays, mrml_segments
from MedCLIPSAMLib.session import Session
from MedCLIPSAMLib.session_publish import remove
from MedCLIPSAMLib.worker_client import WorkerClient

SHAPE = (12, 33, 41)


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerClient]:
    """One child for all tests, as in the panel."""
    client = WorkerClient(environment=worker_environment())
    yield client
    client.close()


@pytest.fixture
def session(slicer_scene: Any, worker: WorkerClient, tmp_path: Path) -> Iterator[Session]:
    """A session whose child outlives it."""
    one = Session(slicer_scene.scene, worker=worker, folder=tmp_path / "session")
    (tmp_path / "session").mkdir()
    yield one
    if one.state != "idle":
        one.scene_closing()
    for _ in range(100):  # the child ends what it was doing before the next test
        one.poll()


def bright_box(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy volume (K, J, I) int16 with a bright box, and the box."""
    rng = np.random.default_rng(seed)
    box = np.zeros(shape, bool)
    box[tuple(slice(size // 4, size // 4 + max(2, size // 3)) for size in shape)] = True
    return (rng.normal(100, 8, shape) + 700 * box).astype(np.int16), box


def run(session: Session, request: RunRequest, wanted: str = "finished") -> list[SessionEvent]:
    session.run(request)
    events = session.wait(60)
    assert [event.kind for event in events if event.kind in ("finished", "failed", "cancelled")] == [wanted], [
        event.text for event in events
    ]
    return events


def contents(scene: Any) -> list[tuple[str, str]]:
    """Return id and name of every node that a run could add or leave over."""
    kinds = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLDisplayNode", "vtkMRMLStorageNode")
    nodes = (scene.GetNthNode(number) for number in range(scene.GetNumberOfNodes()))
    own = (node for node in nodes if any(node.IsA(kind) for kind in kinds) and not node.IsA("vtkMRMLSliceDisplayNode"))
    return sorted((node.GetID(), node.GetName() or "") for node in own)


def test_a_slice_becomes_segments_overlays_and_a_row(slicer_scene: Any, session: Session) -> None:
    array, box = bright_box()
    volume = slicer_scene.add_volume(array, np.diag([0.5, 0.7, 3.0, 1.0]), "case")
    run(session, RunRequest(volume.GetID(), ("bright thing",), axis=0, index=3))
    segmentation = session.segmentation(volume)
    (row,) = session.rows(segmentation)
    assert (row.prompt, row.scope, row.unit, row.decision) == ("bright thing", "slice 3", "mm²", "")
    mask = mrml_segments.segment_array(segmentation, volume, row.mask_segment_id)
    coarse = mrml_segments.segment_array(segmentation, volume, row.coarse_segment_id)
    others = np.arange(SHAPE[0]) != 3
    assert not mask[others].any() and not coarse[others].any()
    assert (coarse[3] & box[3]).sum() > 0.9 * box[3].sum() and not (mask[3] & ~box[3]).any()
    assert row.size == pytest.approx(mask[3].sum() * 0.35)
    saliency = session.scene.GetNodeByID(row.saliency_node_id)
    assert mrml_overlays.overlay_slice(saliency) == (0, 3)
    plane = mrml_overlays.overlay_array(saliency)
    assert row.mean_saliency == pytest.approx(plane[mask[3]].mean(), rel=1e-4)
    assert 0 < row.mean_entropy < np.log(2) and row.presence == pytest.approx(0.9)
    tags = mrml_segments.tags(segmentation, row.mask_segment_id)
    assert tags["MedCLIPSAM.Engine"] == "lite" and tags["MedCLIPSAM.Seed"] == "0"


@pytest.mark.parametrize("scope", ["slice", "range"])
def test_the_mask_lies_on_its_voxels_in_every_orientation(slicer_scene: Any, session: Session, scope: str) -> None:
    """48 axis orders and flips, an oblique matrix and a parent transform: the same voxels, from the scene's view."""
    array, box = bright_box((18, 20, 22))
    oblique = np.eye(4)
    oblique[:3, :3] = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0] @ np.diag([1.0, 1.2, 1.5])
    matrices = [oblique]
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
            matrix[row, column] = sign * (1.0, 1.3, 1.7)[column]
        matrices.append(matrix)
    if scope == "range":
        matrices = matrices[::8]
    for number, matrix in enumerate(matrices):
        volume = slicer_scene.add_volume(array, matrix, f"v{number}")
        axis = number % 3
        index = array.shape[axis] // 4 + 1
        seen = np.flatnonzero(box.any(axis=tuple(one for one in range(3) if one != axis)))
        request = RunRequest(
            volume.GetID(),
            ("bright",),
            scope,  # type: ignore[arg-type]
            axis=axis,
            index=index,
            slice_range=(int(seen[0]), int(seen[-1])),
        )
        run(session, request)
        segmentation = session.segmentation(volume)
        (row,) = session.rows(segmentation)
        coarse = mrml_segments.segment_array(segmentation, volume, row.coarse_segment_id)
        wanted = box.copy()
        if scope == "slice":
            others = np.arange(array.shape[axis]) != index
            wanted[tuple(others if one == axis else slice(None) for one in range(3))] = False
        inner = 2 * (coarse & wanted).sum() / (coarse.sum() + wanted.sum())
        assert inner > 0.9, (number, matrix, inner)
        session.scene.RemoveNode(segmentation)
        slicer_scene.scene.RemoveNode(volume)


def test_running_again_replaces_and_undo_takes_back(slicer_scene: Any, session: Session) -> None:
    array, _ = bright_box()
    volume = slicer_scene.add_volume(array, np.eye(4), "case")
    empty = contents(slicer_scene.scene)
    run(session, RunRequest(volume.GetID(), ("one", "two"), axis=0, index=2))
    segmentation = session.segmentation(volume)
    first = contents(slicer_scene.scene)
    before = mrml_segments.segment_array(segmentation, volume, session.rows(segmentation)[0].mask_segment_id)
    saliency = slicer_scene.scene.GetNodeByID(session.rows(segmentation)[0].saliency_node_id)
    voxels = mrml_overlays.overlay_array(saliency)
    run(session, RunRequest(volume.GetID(), ("one",), axis=0, index=3, seed=4))
    assert (mrml_overlays.overlay_array(saliency) != voxels).any()
    assert contents(slicer_scene.scene) == first, "nodes pile up"
    assert [row.prompt for row in session.rows(segmentation)] == ["two", "one"] or len(session.rows(segmentation)) == 2
    after = mrml_segments.segment_array(segmentation, volume, session.rows(segmentation)[0].mask_segment_id)
    assert after[3].any() and (after[2] == before[2]).all(), "the other slice stays"
    session.undo()
    undone = mrml_segments.segment_array(segmentation, volume, session.rows(segmentation)[0].mask_segment_id)
    assert (undone == before).all() and not session.can_undo
    saliency = slicer_scene.scene.GetNodeByID(session.rows(segmentation)[0].saliency_node_id)
    assert mrml_overlays.overlay_slice(saliency) == (0, 2)
    assert (mrml_overlays.overlay_array(saliency) == voxels).all()
    run(session, RunRequest(volume.GetID(), ("three",), scope="volume"))
    session.undo()
    assert contents(slicer_scene.scene) == first
    for node in (segmentation, *mrml_overlays.find_overlays(slicer_scene.scene, volume)):
        remove(slicer_scene.scene, node)
    run(session, RunRequest(volume.GetID(), ("four",), axis=0, index=2))
    session.undo()
    assert contents(slicer_scene.scene) == empty, "undo of a first run leaves nothing"


def test_a_user_segmentation_keeps_its_own_segments(slicer_scene: Any, session: Session) -> None:
    array, box = bright_box()
    volume = slicer_scene.add_volume(array, np.eye(4), "case")
    own = mrml_segments.new_segmentation(slicer_scene.scene, volume, "mine")
    segment = own.GetSegmentation().AddEmptySegment("liver", "liver")
    mrml_segments.set_segment(own, volume, segment, ~box)
    run(session, RunRequest(volume.GetID(), ("bright",), scope="volume", segmentation_id=own.GetID()))
    assert (mrml_segments.segment_array(own, volume, segment) == ~box).all()
    assert len(session.rows(own)) == 1
    session.undo()
    assert (mrml_segments.segment_array(own, volume, segment) == ~box).all() and session.rows(own) == []


@pytest.mark.parametrize("scope", ["slice", "volume"])
def test_live_threshold_and_refine(slicer_scene: Any, session: Session, scope: str) -> None:
    array, _ = bright_box()
    volume = slicer_scene.add_volume(array, np.diag([-1.0, 1, 2, 1]), "case")
    index = 3 if scope == "slice" else None
    run(session, RunRequest(volume.GetID(), ("bright",), scope, axis=0, index=index))  # type: ignore[arg-type]
    segmentation = session.segmentation(volume)
    (row,) = session.rows(segmentation)
    key = segmentation.GetID(), "bright"
    saliency = mrml.volume_view(slicer_scene.scene.GetNodeByID(row.saliency_node_id)).copy()

    session.preview(*key, 0.9, 0.0, index=3)
    shown = mrml_segments.segment_slice(segmentation, volume, row.coarse_segment_id, 0, 3)
    assert (shown == (saliency[3 if scope == "volume" else 0] > 0.9)).all()
    while not session.apply_coarse():
        pass
    coarse = mrml_segments.segment_array(segmentation, volume, row.coarse_segment_id)
    if scope == "volume":
        assert (coarse == (saliency > 0.9)).all()
    (row,) = session.rows(segmentation)
    assert (row.threshold, row.minimum_confidence, row.used_threshold) == (0.9, 0.0, pytest.approx(0.9))

    before = mrml_segments.segment_array(segmentation, volume, row.mask_segment_id)
    session.refine(*key)
    assert [event.kind for event in session.wait(30) if event.kind in ("finished", "failed")] == ["finished"]
    refined = mrml_segments.segment_array(segmentation, volume, row.mask_segment_id)
    assert refined.any() and refined.sum() < before.sum(), "a higher threshold gives a smaller mask"
    (row,) = session.rows(segmentation)
    assert row.threshold == 0.9 and row.presence == pytest.approx(0.9)
    session.undo()
    assert (mrml_segments.segment_array(segmentation, volume, row.mask_segment_id) == before).all()

    session.preview(*key, None, None, index=3)
    session.finish_coarse()
    assert session.rows(segmentation)[0].threshold is None, "back to the recipe's own rules"
    with pytest.raises(InputError, match=r"threshold 1\.5"):
        session.preview(*key, 1.5, None)


@pytest.mark.parametrize("hand", [1.0, -1.0])  # Slicer turns a left-handed volume's slices round when it loads it
def test_everything_works_again_from_a_saved_scene(
    slicer_scene: Any, session: Session, tmp_path: Path, hand: float
) -> None:
    array, box = bright_box()
    volume = slicer_scene.add_volume(array, np.diag([hand, 1, 1, 1]), "case")
    prompt = "bright | 50% of: it\\ü"
    run(session, RunRequest(volume.GetID(), (prompt,), scope="range", slice_range=(3, 4)))
    (before,) = session.rows(session.segmentation(volume))
    session.decide(session.segmentation(volume).GetID(), prompt, "accepted")
    slicer_scene.save_scene(tmp_path / "s.mrb")
    session.scene_closing()
    slicer_scene.load_scene(tmp_path / "s.mrb")
    nodes = slicer_scene.scene.GetNodesByClass("vtkMRMLSegmentationNode")
    nodes.UnRegister(None)
    segmentation = nodes.GetItemAsObject(0)
    (row,) = session.rows(segmentation)
    assert row.decision == "accepted" and row.scope == "slices 3 to 4"
    assert row.size == pytest.approx(before.size) and row.saliency_node_id and row.entropy_node_id
    session.preview(segmentation.GetID(), prompt, 0.8, 0.0)
    session.refine(segmentation.GetID(), prompt)
    assert [event.kind for event in session.wait(30) if event.kind in ("finished", "failed")] == ["finished"]
    volume = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    (row,) = session.rows(segmentation)
    refined = mrml_segments.segment_array(segmentation, volume, row.mask_segment_id)
    box[5:] = False
    wanted = box if (mrml.volume_view(volume) == array).all() else box[::-1]
    assert (refined & wanted).sum() > 0.5 * wanted.sum() and not (refined & ~wanted).any()


def test_bad_requests_leave_everything_alone(slicer_scene: Any, session: Session) -> None:
    array, _ = bright_box()
    volume = slicer_scene.add_volume(array, np.eye(4), "case")
    flat = slicer_scene.add_volume(np.full(SHAPE, 5, np.int16), np.eye(4), "flat")
    holes = slicer_scene.add_volume(np.full(SHAPE, np.nan, np.float32), np.eye(4), "holes")
    good = RunRequest(volume.GetID(), ("bright",), axis=0, index=3)
    before = contents(slicer_scene.scene)
    for change, message in (
        ({"prompts": ()}, "no prompt"),
        ({"prompts": ("  ",)}, "prompt"),
        ({"prompts": ("a", "A")}, "twice"),
        ({"prompts": ("set:nothing",)}, "set"),
        ({"volume_id": "vtkMRMLScalarVolumeNode99"}, "volume"),
        ({"index": 99}, "slice 99"),
        ({"index": None}, "slice"),
        ({"axis": 2}, "12"),
        ({"volume_id": flat.GetID()}, "constant"),
        ({"volume_id": holes.GetID()}, "NaN"),
        ({"volume_id": holes.GetID(), "scope": "volume"}, "NaN"),
        ({"volume_id": flat.GetID(), "scope": "volume"}, "all alike"),
        ({"scope": "range", "slice_range": (5, 2)}, "slices 5 to 2"),
        ({"window": (5.0, 5.0)}, "window"),
        ({"seed": -1}, "seed -1"),
        ({"samples": 0}, "samples"),
    ):
        with pytest.raises(InputError, match=message):
            session.run(RunRequest(**{**vars(good), **change}))
        assert session.state == "idle"
    run(session, RunRequest(**{**vars(good), "engine": "none such"}), "failed")
    assert contents(slicer_scene.scene) == before
    session.run(good)
    with pytest.raises(InputError, match="going on"):
        session.run(good)
    session.wait(30)


def test_cancel_discards_or_keeps(slicer_scene: Any, session: Session) -> None:
    array, _ = bright_box((20, 33, 41))
    volume = slicer_scene.add_volume(array, np.eye(4), "case")
    before = contents(slicer_scene.scene)
    request = RunRequest(volume.GetID(), ("bright; sleep 0.05",), scope="volume")

    def start_and_cancel(keep: bool) -> list[str]:
        session.run(request)
        while session.status.done < 6:
            session.poll()
            time.sleep(0.005)
        session.cancel(keep_finished=keep)
        assert session.state == "cancelling"
        return [event.kind for event in session.wait(30)]

    assert "cancelled" in start_and_cancel(False)
    assert contents(slicer_scene.scene) == before and not session.can_undo
    assert "finished" in start_and_cancel(True)
    (row,) = session.rows(session.segmentation(volume))
    kept = mrml_segments.segment_array(session.segmentation(volume), volume, row.mask_segment_id)
    assert kept[5].any() and not kept[-2:].any()


@pytest.mark.parametrize("removed", ["volume", "segmentation", "overlay", "scene"])
def test_nodes_removed_during_a_run(slicer_scene: Any, session: Session, removed: str) -> None:
    array, _ = bright_box()
    volume = slicer_scene.add_volume(array, np.eye(4), "case")
    request = RunRequest(volume.GetID(), ("bright",), axis=0, index=3)
    run(session, request)
    segmentation = session.segmentation(volume)
    (row,) = session.rows(segmentation)
    session.run(RunRequest(**{**vars(request), "prompts": ("bright; sleep 0.05",)}))
    scene = slicer_scene.scene
    if removed == "scene":
        session.scene_closing()
        scene.Clear(0)
        assert session.state == "idle"
        for _ in range(50):
            assert session.poll() == []
            time.sleep(0.01)
        assert not scene.GetNodesByClass("vtkMRMLSegmentationNode").GetNumberOfItems()
        return
    node = {"volume": volume, "segmentation": segmentation}.get(removed) or scene.GetNodeByID(row.saliency_node_id)
    scene.RemoveNode(node)
    ends = [event for event in session.wait(30) if event.kind in ("finished", "failed")]
    assert ends[0].kind == ("failed" if removed == "volume" else "finished"), ends[0].text
    if removed == "volume":
        assert "removed" in ends[0].text


def test_a_scene_closed_between_two_results_leaves_no_file(slicer_scene: Any, session: Session, tmp_path: Path) -> None:
    """The child has done its part by then, so nothing more comes from it."""
    array, _ = bright_box()
    volume = slicer_scene.add_volume(array, np.eye(4), "case")
    session.run(RunRequest(volume.GetID(), ("bright", "absent", "bright; again"), axis=0, index=3))
    end = time.monotonic() + 60
    while not any(event.kind == "result" for event in session.poll()):
        assert time.monotonic() < end
        session.rest()
    assert session.state == "running" and list((tmp_path / "session").iterdir())
    session.scene_closing()
    slicer_scene.scene.Clear(0)
    assert session.state == "idle" and not list((tmp_path / "session").iterdir())
    assert session.poll() == []


def test_kill_at_ten_stages_leaves_the_scene_alone(slicer_scene: Any, worker: WorkerClient, tmp_path: Path) -> None:
    """SIGKILL after 0 to 9 twentieths of a run: an error, an unchanged scene, and the next run works."""
    import os
    import signal

    array, _ = bright_box()
    volume = slicer_scene.add_volume(array, np.eye(4), "case")
    before = contents(slicer_scene.scene)
    session = Session(slicer_scene.scene, worker=worker, folder=tmp_path)
    for stage in range(10):
        session.run(RunRequest(volume.GetID(), ("bright; sleep 0.03",), scope="volume"))
        end = time.monotonic() + 0.08 * stage
        while time.monotonic() < end or worker.pid is None:
            session.poll()
            time.sleep(0.005)
        os.kill(worker.pid, signal.SIGKILL)
        events = session.wait(30)
        assert [event.kind for event in events if event.kind in ("finished", "failed")] == ["failed"], stage
        assert "unexpectedly" in events[-1].text
        assert contents(slicer_scene.scene) == before, stage
    run(session, RunRequest(volume.GetID(), ("bright",), axis=0, index=3))
    assert not list(tmp_path.iterdir()), "files of ended runs"


def random_runs(
    slicer_scene: Any,
    session: Session,
    tmp_path: Path,
    count: int,
    prompts: tuple[str, ...],
    seed: int,
    smallest: tuple[int, int, int],
    largest: tuple[int, int, int],
) -> dict[str, int]:
    """Random volumes, prompts, cancels, removed nodes and closed scenes; returns how the runs ended.

    No exception may escape, and no node and no file may be left over after any of them.
    """
    rng = np.random.default_rng(seed)
    scene = slicer_scene.scene
    ends = {"finished": 0, "failed": 0, "cancelled": 0, "closed": 0, "refused": 0}
    for number in range(count):
        shape = tuple(int(size) for size in rng.integers(smallest, largest))
        array, _ = bright_box(shape, number)
        kinds: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
            lambda a: a,
            lambda a: a.astype(np.float32),
            lambda a: np.stack([a.clip(0, 255).astype(np.uint8)] * 3, axis=-1),
            lambda a: np.zeros_like(a),
        )
        volume = slicer_scene.add_volume(
            kinds[rng.choice(4, p=(0.4, 0.3, 0.2, 0.1))](array), np.diag([*rng.uniform(0.5, 3, 3), 1]), "v"
        )
        chosen = tuple(dict.fromkeys(str(rng.choice(prompts)) for _ in range(rng.integers(1, 3))))
        scope = str(rng.choice(["slice", "range", "volume"]))
        axis = int(rng.choice(3, p=(0.8, 0.1, 0.1)))
        request = RunRequest(
            volume.GetID(),
            chosen,
            scope,
            axis=axis,
            index=int(rng.integers(shape[axis])),
            seed=number,  # type: ignore[arg-type]
        )
        try:
            session.run(request)
        except InputError:
            ends["refused"] += 1
        act = rng.integers(8)
        if session.state == "running":
            events = []
            for _ in range(int(rng.integers(20)) if act else 0):  # a cancel comes before a quick run is over
                events += session.poll()
                time.sleep(0.001)
            if act == 0:
                session.cancel(bool(rng.integers(2)))
            elif act == 1:
                remove(scene, volume)
            elif act == 2:
                session.scene_closing()
                scene.Clear(0)
                ends["closed"] += 1
            last = [event.kind for event in [*events, *session.wait(60)] if event.kind in ends]
            for kind in last:
                ends[kind] += 1
            if last in (["failed"], ["cancelled"]):
                assert not mrml_overlays.find_overlays(scene, volume) and session.segmentation(volume) is None, number
        if session.can_undo and act == 3:
            session.undo()
        if scene.IsNodePresent(volume):
            segmentation = session.segmentation(volume)
            for row in session.rows(segmentation):
                if act == 4 and row.saliency_node_id:
                    session.preview(segmentation.GetID(), row.prompt, float(rng.uniform()), None)
                    session.refine(segmentation.GetID(), row.prompt)
                    session.wait(60)
                session.decide(segmentation.GetID(), row.prompt, "rejected")
        for kind in ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode"):
            while scene.GetNumberOfNodesByClass(kind):
                remove(scene, scene.GetNthNodeByClass(0, kind))
        end = time.monotonic() + 20
        while list(tmp_path.iterdir()) and time.monotonic() < end:  # a run whose scene was closed may still be ending
            session.poll()
            time.sleep(0.005)
        assert session.state == "idle" and not list(tmp_path.iterdir()), number
        assert contents(scene) == [], number
    return ends


@pytest.mark.slow
def test_two_hundred_random_runs(slicer_scene: Any, worker: WorkerClient, tmp_path: Path) -> None:
    """With the quick engine, which also fails and dies when it is told to."""
    session = Session(slicer_scene.scene, worker=worker, folder=tmp_path)
    prompts = ("bright", "bright; sleep 0.002", "absent", "error", "nothing", "kill", "Ünïcode 🙂", "print", "x" * 300)
    ends = random_runs(slicer_scene, session, tmp_path, 200, prompts, 7, (1, 14, 14), (9, 40, 40))
    assert all(count > 1 for count in ends.values()), ends  # how many of each there are is a matter of timing
    assert sum(ends.values()) >= 200, ends
    session.close()
    assert not worker.alive


@pytest.mark.slow
def test_random_runs_with_the_lite_engine(slicer_scene: Any, lite: Any, tmp_path: Path) -> None:
    """The real engine in the real child; ``lite`` skips where its weights are not installed."""
    session = Session(slicer_scene.scene, folder=tmp_path)
    try:
        ends = random_runs(
            slicer_scene, session, tmp_path, 8, ("brain tumor", "lungs", "a cat"), 3, (1, 20, 20), (3, 90, 90)
        )
        assert ends["finished"] >= 3, ends
    finally:
        session.close()
    assert not session.worker.alive
