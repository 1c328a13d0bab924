"""The background process: results, errors and cancelling; real processes throughout.

Most use the quick engine of stand_in_engine.py in the child, so that its time is not spent on models.
"""

# ruff: noqa: F401, F811 (fixtures are imported)

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stand_in_engine import StandInSegmenter
from worker_support import (
    MAPS,
    WINDOW,
    assert_gone,
    assert_tidy,
    finish,
    folder,
    make_client,
    maps,
    maps_of,
    picture,
    results,
    run,
    shared,
    slice_task,
    until,
    volume_task,
)

from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.recipe import load_recipe
from MedCLIPSAMLib.volumes import segment_volume
from MedCLIPSAMLib.worker_client import ENDS, WorkerClient

# ---- Results ---------------------------------------------------------------------------------------------------------


def test_a_slice_is_what_the_engine_gives_in_this_process(shared, folder):
    events = run(shared, slice_task(folder, "bright", "Läsion 肺 🫁", seed=3))
    engine = StandInSegmenter(load_recipe("lite"))
    engine.set_image(picture(), WINDOW)
    for number, (result, prompt) in enumerate(zip(results(events), ("bright", "Läsion 肺 🫁"), strict=True)):
        expected = engine.segment(prompt, 3)
        assert (result["prompt"], result["number"], result["seed"]) == (prompt, number, 3)
        found = maps(result)
        for name, array in {
            "mask": expected.mask,
            "coarse": expected.coarse.mask,
            "saliency": expected.saliency,
        }.items():
            np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(found["entropy"], expected.entropy)
        assert [found[name].dtype.kind for name in MAPS] == ["b", "b", "f", "f"] and expected.mask.any()
        assert result["presence"] == {"score": 0.9, "threshold": 0.5, "accepted": True} and not result["skipped"]
        assert result["threshold"] == pytest.approx(expected.coarse.threshold)
        assert result["components"][0]["box"] == list(expected.coarse.components[0].box)
        assert result["recipe"]["name"] == "lite" and result["versions"]["numpy"] == np.__version__
    assert [event["done"] for event in events if event["event"] == "progress"] == [1, 2]
    assert events[-1]["event"] == "done" and events[-1]["seconds"]["total"] > 0


def test_a_volume_is_what_the_library_gives_and_the_time_left_is_told(shared, folder):
    task = volume_task(folder, "bright", "absent", slice_range=[1, 4], seed=2)
    events = run(shared, task)
    matrix = np.asarray(task["ijk_to_ras"])
    image = MedicalImage(np.load(folder / "volume.npy"), matrix, None, None, True, Path("x"), True)
    engine = StandInSegmenter(load_recipe("lite"))
    expected = segment_volume(engine, image, ["bright", "absent"], axis=0, slice_range=(1, 4), window=WINDOW, seed=2)
    for result, whole in zip(results(events), expected, strict=True):
        for name, array in maps(result).items():
            np.testing.assert_array_equal(array, getattr(whole, name))
        assert [one["status"] for one in result["slices"]] == [one.status for one in whole.slices]
    first, second = results(events)
    assert first["presence"]["accepted"] and not second["presence"]["accepted"] and second["warnings"]
    steps = [event for event in events if event["event"] == "progress"]
    assert [(step["done"], step["total"]) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[0]["seconds_left"] is None and steps[1]["seconds_left"] > 0 and steps[3]["seconds_left"] == 0
    assert_tidy(folder / "results")


def test_colour_volumes_and_a_skipped_slice(shared, folder):
    np.save(folder / "volume.npy", np.repeat(np.load(folder / "volume.npy")[..., None], 3, axis=3).astype(np.uint8))
    (result,) = results(run(shared, volume_task(folder)))
    assert maps(result)["mask"].shape == (5, 48, 64) and maps(result)["mask"].any()
    (skipped,) = results(run(shared, slice_task(folder, "absent")))
    assert skipped["skipped"] and not maps(skipped)["coarse"].any() and maps(skipped)["saliency"].any()
    assert skipped["components"] == []
    (anyway,) = results(run(shared, slice_task(folder, "absent", gate=False)))
    assert not anyway["skipped"] and maps(anyway)["mask"].any() and anyway["recipe"]["gate"] is False


def test_refining_follows_the_threshold(shared, folder):
    (result,) = results(run(shared, slice_task(folder)))
    saliency = result["files"]["saliency"]
    again = slice_task(folder, task="refine_slice", saliency=saliency, prompt="bright")
    low, high = (results(run(shared, {**again, "threshold": value})) for value in (0.2, 0.9))
    assert set(low[0]["files"]) == {"mask", "coarse", "entropy"} and low[0]["prompt"] == "bright"
    assert maps(low[0])["coarse"].sum() > maps(high[0])["coarse"].sum() > 0

    (whole,) = results(run(shared, volume_task(folder)))
    task = volume_task(folder, task="refine_volume", saliency=whole["files"]["saliency"], indices=[1, 3], threshold=0.2)
    (refined,) = results(run(shared, task))
    found = maps(refined)
    assert [plane.any() for plane in found["coarse"]] == [False, True, False, True, False]
    assert found["coarse"][1].sum() >= maps(whole)["coarse"][1].sum()
    assert set(refined["files"]) == {"mask", "coarse", "entropy"}
    assert_tidy(folder / "results")


def test_settings_change_the_recipe_and_load_nothing(shared, folder):
    run(shared, slice_task(folder))
    pid = shared.pid
    presets = sorted(load_recipe("lite").presets or {})
    for changes in ({"samples": 2}, {"gate": False}, {"preset": presets[0]}, {}):
        events = run(shared, slice_task(folder, **changes))
        (result,) = results(events)
        recipe = load_recipe("lite").with_preset(changes.get("preset"))
        assert result["recipe"]["samples"] == changes.get("samples", recipe.samples)
        assert result["recipe"]["gate"] == changes.get("gate", recipe.gate)
        assert result["saliency_method"] == recipe.saliency
        assert "loading engine" not in [event.get("stage") for event in events]
    assert shared.pid == pid
    told = run(shared, {"task": "load", "engine": f"finetuned:{folder}", "device": "cpu"})
    assert [event.get("stage") for event in told] == ["loading engine", None]
    assert told[-1]["device"] == "cpu" and told[-1]["device_name"] and "memory_free" in told[-1]


# ---- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "part"),
    [
        ({"prompts": ["error"]}, "InternalError", "ValueError: injected)"),
        ({"prompts": ["input error"]}, "InputError", "injected: pass something else."),
        ({"prompts": ["out of memory"]}, "DeviceMemoryError", "smaller model"),
        ({"prompts": []}, "InputError", "no prompt"),
        ({"prompts": ["word " * 200_000]}, "InputError", "2000"),
        ({"prompts": ["\ud800 surrogate"], "task": "nonsense"}, "InputError", "nonsense"),
        ({"engine": "unknown"}, "InputError", "unknown"),
        ({"preset": "unknown"}, "InputError", "unknown"),
        ({"samples": 0}, "InputError", "samples is 0"),
        ({"window": [5.0, 5.0]}, "InputError", "window"),
        ({"array": "/not/there.npy"}, "InputError", "/not/there.npy"),
        ({"array": __file__}, "InputError", "cannot be read"),
        ({"folder": __file__}, "OutputError", "cannot be written"),
        ({"folder": None}, "InputError", "'folder'"),
        ({"task": "segment_volume"}, "InputError", "ijk_to_ras"),
        ({"task": "refine_slice"}, "InputError", "saliency"),
    ],
)
def test_an_error_has_a_kind_and_a_message_and_the_child_goes_on(shared, folder, changes, kind, part):
    run(shared, {"task": "load"})
    pid = shared.pid
    began = time.monotonic()
    identity = shared.submit(slice_task(folder) | changes)
    assert time.monotonic() - began < 0.5  # also a megabyte is handed over at once
    end = finish(shared, identity)[-1]
    assert (end["event"], end["kind"]) == ("error", kind) and part in end["message"]
    assert results(run(shared, slice_task(folder))) and shared.pid == pid
    assert_tidy(folder / "results")


def test_a_spoiled_gpu_gets_a_new_process(make_client, folder):
    client = make_client()
    bad, waiting = client.submit(slice_task(folder, "cuda error")), client.submit(slice_task(folder))
    events = until(client, lambda event: event.get("id") == waiting and event["event"] in ENDS)
    ends = {event["id"]: event["event"] for event in events if event["event"] in ENDS}
    assert ends == {bad: "error", waiting: "done"}  # what had not begun is none the wiser
    assert [event["event"] for event in events].count("ready") == 2


def test_printing_disturbs_nothing(shared, folder):
    events = run(shared, slice_task(folder, "print"))
    assert len(results(events)) == 1 and events[-1]["event"] == "done"
    until_logged = time.monotonic() + 20
    while not {"below Python", "to stderr", "from a child"} <= set(shared.log) and time.monotonic() < until_logged:
        shared.poll()
    assert {"below Python", "to stderr", "from a child", '{"event": "done", "id": 1}'} <= set(shared.log)


# ---- Cancelling ------------------------------------------------------------------------------------------------------


def test_cancelling_a_slice_and_a_waiting_task(shared, folder):
    run(shared, {"task": "load"})
    pid = shared.pid
    first, second = shared.submit(slice_task(folder, "sleep 0.2")), shared.submit(slice_task(folder))
    third = shared.submit(slice_task(folder, "a third one"))
    until(shared, lambda event: event.get("stage") == "segmenting")
    shared.cancel(second)
    assert [event["event"] for event in finish(shared, second, 0.5)] == [
        "cancelled"
    ]  # at once, not when its turn comes
    shared.cancel(first)
    shared.cancel(first)
    events = until(shared, lambda event: event.get("id") == third and event["event"] in ENDS)
    assert [event["event"] for event in events if event.get("id") == first and event["event"] in ENDS] == ["cancelled"]
    assert events[-1]["event"] == "done" and shared.pid == pid
    shared.cancel(first)
    shared.cancel(12345)
    assert not results(events[:1]) and shared.poll() == []


@pytest.mark.parametrize("keep", [True, False])
def test_cancelling_a_volume_keeps_the_finished_slices_or_none(shared, folder, keep):
    identity = shared.submit(volume_task(folder, "sleep 0.04"))
    until(shared, lambda event: event.get("done") == 2)
    shared.cancel(identity, keep=keep)
    events = finish(shared, identity)
    if keep:
        (result,) = results(events)
        assert events[-1]["event"] == "done" and events[-1]["kept"]
        statuses = [one["status"] for one in result["slices"]]
        assert statuses[:2] == ["segmented"] * 2 and statuses[-1] == "outside the range"
        mask = maps(result)["mask"]
        assert mask[0].any() and mask[1].any() and not mask[-1].any()
    else:
        assert [event["event"] for event in events if event["event"] != "progress"] == ["cancelled"]
        assert list((folder / "results").iterdir()) == []
    assert_tidy(folder / "results")


def test_keeping_nothing_is_a_plain_cancel(shared, folder):
    identity = shared.submit(volume_task(folder, "sleep 0.1"))
    until(shared, lambda event: event.get("stage") == "slice")
    shared.cancel(identity, keep=True)
    assert finish(shared, identity)[-1]["event"] == "cancelled"


def test_who_does_not_listen_is_ended_and_the_waiting_go_on(make_client, folder):
    client = make_client(grace=0.3)
    hanging, waiting = client.submit(slice_task(folder, "hang 60; grandchild")), client.submit(slice_task(folder))
    until(client, lambda event: event.get("stage") == "segmenting")
    group = client.pid
    began = time.monotonic()
    client.cancel(hanging)
    events = finish(client, hanging)
    assert events[-1]["event"] == "cancelled" and 0.3 <= time.monotonic() - began < 10
    assert_gone(group)
    assert finish(client, waiting)[-1]["event"] == "done" and client.pid != group
    assert_tidy(folder / "results")


# ---- The real engine -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_lite_engine_gives_the_same_bits_in_the_child(lite, folder):
    y, x = np.mgrid[:160, :192]
    image = (40 + 30 * np.sin(x / 9) + 120 * ((x - 90) ** 2 + (y - 70) ** 2 < 700)).astype(np.int16)
    np.save(folder / "slice.npy", image)
    np.save(folder / "volume.npy", np.stack([image, image]))
    engine = TextSegmenter(lite.clip, lite.segmenter, replace(lite.recipe, samples=2, gate=False), lite.calibration)
    settings = {"samples": 2, "gate": False, "device": "cpu", "seed": 5}
    client = WorkerClient()
    try:
        (result,) = results(finish(client, client.submit(slice_task(folder, "brain tumor", **settings)), 400.0))
        engine.set_image(image, WINDOW)
        expected = engine.segment("brain tumor", 5)
        assert expected.mask.any()
        for name, array in maps_of(expected).items():
            np.testing.assert_array_equal(maps(result)[name], array)

        task = volume_task(folder, "brain tumor", **settings)
        (whole,) = results(finish(client, client.submit(task), 400.0))
        plain = MedicalImage(np.stack([image, image]), np.asarray(task["ijk_to_ras"]), None, None, True, folder, True)
        (expected_volume,) = segment_volume(engine, plain, ["brain tumor"], axis=0, window=WINDOW, seed=5)
        for name, array in maps(whole).items():
            np.testing.assert_array_equal(array, getattr(expected_volume, name))

        refining = slice_task(folder, task="refine_slice", saliency=result["files"]["saliency"], **settings)
        (refined,) = results(finish(client, client.submit(refining | {"threshold": 0.6}), 400.0))
        again = engine.refine(expected.saliency, threshold=0.6, seed=5)
        for name in ("mask", "coarse", "entropy"):
            np.testing.assert_array_equal(maps(refined)[name], maps_of(again)[name])
    finally:
        client.close()
