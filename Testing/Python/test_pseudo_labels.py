"""Pseudo-labels: which cases are taken, what is written for nnU-Net, and folds by patient."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation
from weak_sets import block, write_images, write_volumes

from MedCLIPSAMLib.cases import read_mask
from MedCLIPSAMLib.cohort import run_cohort
from MedCLIPSAMLib.cohort_rows import read_table, write_table
from MedCLIPSAMLib.cohort_table import CohortCase, CohortResult, read_cohort
from MedCLIPSAMLib.cohort_worker import release_engine
from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.medical_image import MedicalImage, matrix_of
from MedCLIPSAMTraining.pseudo_cases import (
    PseudoLabelledCase,
    TrueLabelledCase,
    find_mask,
    merge_masks,
    one_kind,
    onto_grid,
)
from MedCLIPSAMTraining.pseudo_folds import patient_folds
from MedCLIPSAMTraining.pseudo_labels import DATASET, dataset_json, set_geometry, write_raw_dataset
from MedCLIPSAMTraining.pseudo_selection import check_enough, select, write_excluded
from MedCLIPSAMTraining.weak_labels import make_labels, source_digest
from MedCLIPSAMTraining.weak_settings import SelectionRules, WeakSettings

PROMPT, OTHER = "bright spot", "second; absent"


class Drawn:
    """A case that is in memory."""

    def __init__(self, name: str, array: np.ndarray, labels: np.ndarray, **changes):
        matrix = changes.pop("matrix", np.eye(4))
        settings = {"modality": None, "window": None, "is_volume": labels.ndim == 3} | changes
        self.name, self.patient, self.kind = name, None, "volume" if settings["is_volume"] else "image"
        self._image = MedicalImage(array, matrix, path=Path(name), spacing_known=True, **settings)
        self._labels = labels.astype(np.uint8)

    def read(self) -> tuple[MedicalImage, np.ndarray]:
        return self._image, self._labels


@pytest.fixture(scope="module")
def cohort_folder(tmp_path_factory) -> Path:
    """A cohort of six images, one of them broken, with one prompt that finds something and one that the gate skips."""
    folder = tmp_path_factory.mktemp("cohort")
    images = write_images(folder / "images", 6)
    whole = (images / "image_5.png").read_bytes()
    (images / "image_5.png").write_bytes(whole[: len(whole) // 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDCLIPSAM_WORKER_ENGINE", "stand_in_engine:load")
        run_cohort(images, [PROMPT, OTHER], folder / "cohort", workers=1, device="cpu")
        release_engine()
    return folder / "cohort"


def reasons(cases: list[CohortCase], prompts: list[str], **rules) -> tuple[list[str], dict[str, str]]:
    kept, excluded = select(cases, prompts, SelectionRules(**rules))
    return [case.name for case in kept], {one.case: one.reason for one in excluded}


def test_selection_of_a_real_cohort(cohort_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "reviewed"
    shutil.copytree(cohort_folder, folder)
    with (folder / "cohort.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["prompt"] == PROMPT]
    names = [row["case"] for row in rows]
    good = {row["case"]: float(row["entropy"]) for row in rows if row["status"] == "done"}
    (folder / "rejected.txt").write_text(f"# by a person\n{names[0]}\n", encoding="utf-8")
    cases = read_cohort(folder).cases
    kept, left_out = reasons(cases, [PROMPT, OTHER])
    assert left_out == {names[0]: "rejected", names[5]: "failed"} and kept == names[1:5]
    entropies = sorted(good[name] for name in kept)
    limit = (entropies[1] + entropies[2]) / 2
    kept, left_out = reasons(cases, [PROMPT], maximum_entropy=limit)
    assert {name for name, reason in left_out.items() if reason == "high entropy"} == {
        name for name in names[1:5] if good[name] > limit
    }
    assert len(kept) == 2
    sure = {row["case"]: float(row["confidence"]) for row in rows if row["status"] == "done"}
    limit = sorted(sure[name] for name in names[1:5])[-1]
    kept, left_out = reasons(cases, [PROMPT], minimum_confidence=limit)
    assert kept == [name for name in names[1:5] if sure[name] >= limit] and "low confidence" in left_out.values()
    kept, left_out = reasons(cases, [OTHER])
    assert not kept and Counter(left_out.values()) == {"skipped by the gate": 4, "rejected": 1, "failed": 1}
    with pytest.raises(InputError, match="has no prompt 'liver'"):
        reasons(cases, ["liver"])


def result(prompt: str, **values) -> CohortResult:
    settings = {"status": "done", "reason": None, "presence": None, "skipped": False, "confidence": 0.8}
    return CohortResult(prompt, **{**settings, "entropy": 0.2, "mask_share": 0.1, **values})


def case(*results: CohortResult) -> list[CohortCase]:
    return [CohortCase("one", Path("one.png"), None, "image", Path("one"), results, False)]


def test_a_cohort_is_another_one_only_when_the_choice_changes(cohort_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cohort"
    shutil.copytree(cohort_folder, folder)
    settings = WeakSettings(folder)
    before = source_digest(settings, folder)
    rows = read_table(folder)
    write_table(folder, [replace(row, seconds=99.0) for row in rows])
    (folder / "rejected.txt").write_text("# nobody\r\n")
    assert source_digest(settings, folder) == before
    (folder / "rejected.txt").write_text(rows[0].case)
    rejected = source_digest(settings, folder)
    (folder / "rejected.txt").unlink()
    write_table(folder, [replace(rows[0], entropy=0.5), *rows[1:]])
    assert len({before, rejected, source_digest(settings, folder)}) == 3


def test_selection_among_several_prompts() -> None:
    nothing = result("b", mask_share=0.0)
    assert reasons(case(result("a"), nothing), ["a", "b"])[0] == ["one"]
    assert reasons(case(result("a"), nothing), ["b"])[1] == {"one": "no mask"}
    # A finding that is not trusted would become background if the case were taken for the other prompt's sake.
    doubtful = result("b", entropy=0.6)
    assert reasons(case(result("a"), doubtful), ["a", "b"], maximum_entropy=0.5)[1] == {"one": "high entropy"}
    # What found nothing has no confidence and no say.
    silent = result("b", mask_share=0.0, confidence=None, entropy=0.69)
    assert reasons(case(result("a"), silent), ["a", "b"], minimum_confidence=0.5, maximum_entropy=0.5)[0] == ["one"]
    assert reasons(case(result("a", confidence=None)), ["a"], minimum_confidence=0.1)[1] == {"one": "low confidence"}
    assert reasons(case(result("a", status="pending")), ["a"])[1] == {"one": "not segmented yet"}


def test_too_few_are_told_with_the_reasons(tmp_path: Path) -> None:
    _, excluded = select(
        case(result("a", status="failed", reason="it is, they say, broken\n")), ["a"], SelectionRules()
    )
    with pytest.raises(InputError, match=r"2 of 3 cases are left .* \(left out: 1 failed\); pass more images"):
        check_enough(2, excluded)
    check_enough(3, excluded)
    write_excluded(tmp_path / "excluded.csv", excluded)
    with (tmp_path / "excluded.csv").open(newline="", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    assert row == {"case": "one", "prompt": "a", "reason": "failed", "detail": "it is, they say, broken\n"}


def test_overlap_goes_to_the_higher_probability() -> None:
    rng = np.random.default_rng(3)
    probability = rng.uniform(0.001, 0.999, (3, 30, 40))
    probability[1, :5] = probability[0, :5]  # equal ones: the first prompt
    entropy = -(probability * np.log(probability) + (1 - probability) * np.log(1 - probability))
    labels = merge_masks(
        {label: probability[label - 1] > 0.5 for label in (3, 1, 2)},
        {label: entropy[label - 1].astype(np.float32) for label in (1, 2, 3)},
        (30, 40),
    )
    expected = np.where((probability > 0.5).any(axis=0), np.argmax(probability, axis=0) + 1, 0)
    np.testing.assert_array_equal(labels, expected)
    with pytest.raises(InputError, match=r"shape \(4, 4\), the image \(5, 4\)"):
        merge_masks({1: np.ones((4, 4), bool)}, {}, (5, 4))


def test_a_cohort_becomes_png(cohort_folder: Path, tmp_path: Path) -> None:
    cohort = read_cohort(cohort_folder)
    chosen, _ = select(cohort.cases, [PROMPT], SelectionRules())
    steps = []
    made = write_raw_dataset(
        tmp_path,
        [PseudoLabelledCase(one, (PROMPT,)) for one in chosen],
        [PROMPT],
        progress=lambda done, total: steps.append((done, total)),
    )
    assert made.kind == "image" and made.channels == 1 and steps == [(number, 5) for number in range(5)]
    folder, total = tmp_path / DATASET, 0
    content = json.loads((folder / "dataset.json").read_text("utf-8"))
    assert content["numTraining"] == 5 == len(content["dataset"]) and content["labels"] == {"background": 0, PROMPT: 1}
    reader = pytest.importorskip("nnunetv2.imageio.natural_image_reader_writer").NaturalImage2DIO()
    for one in chosen:
        entry = content["dataset"][one.name]
        pixels, properties = reader.read_images([str(folder / entry["images"][0])])
        labels, _ = reader.read_seg(str(folder / entry["label"]))
        np.testing.assert_array_equal(pixels[0, 0], np.asarray(Image.open(one.source)))
        np.testing.assert_array_equal(labels[0, 0] == 1, one.mask(PROMPT))
        assert set(np.unique(labels)) == {0, 1} and properties["spacing"] == (999, 1, 1)
        total += int(labels.sum())
    assert made.pixels == {1: total} and total > 500
    assert "dataset" not in dataset_json(made, [PROMPT], paths=False), "names of cases are not for the trained model"


def test_windows_and_colour(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros((20, 24), bool)
    labels[5:9, 5:9] = True
    deep = rng.integers(-1000, 3000, (20, 24)).astype(np.int16)
    colour = rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)
    cases = [
        Drawn("deep", deep, labels, window=(0.0, 500.0)),
        Drawn("colour", colour, labels),
        Drawn("grey-in-colour", np.repeat(colour[..., :1], 3, axis=2), labels),
    ]
    made = write_raw_dataset(tmp_path, cases, ["a"])
    images = tmp_path / DATASET / "imagesTr"
    assert made.channels == 3 and sorted(one.name for one in images.iterdir()) == sorted(
        f"{one.name}_0000.png" for one in cases
    )
    shown = np.asarray(Image.open(images / "deep_0000.png"))
    expected = np.rint(np.clip(deep.astype(float), 0, 500) * 255 / 500)
    assert shown.shape == (20, 24, 3) and np.abs(shown - expected[..., None]).max() <= 1  # rounding of a half
    np.testing.assert_array_equal(np.asarray(Image.open(images / "colour_0000.png")), colour)
    made = write_raw_dataset(tmp_path, cases[:1], ["a"], window=(-1000.0, 3000.0))
    assert made.channels == 1 and not (images / "colour_0000.png").exists(), "written anew"
    assert np.asarray(Image.open(images / "deep_0000.png")).std() > 60


def test_volumes_keep_values_and_geometry(tmp_path: Path) -> None:
    sources = sorted(write_volumes(tmp_path / "volumes", 2).iterdir())
    cases, truths = [], []
    for path in sources:
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        truths.append(array > 40)
        cases.append(Drawn(path.name[:8], array, truths[-1], matrix=matrix_of(image), modality="CT"))
    made = write_raw_dataset(tmp_path, cases, ["tube"])
    content = json.loads((tmp_path / DATASET / "dataset.json").read_text("utf-8"))
    assert made.kind == "volume" and content["channel_names"] == {"0": "CT"} and content["file_ending"] == ".nii.gz"
    reader = pytest.importorskip("nnunetv2.imageio.simpleitk_reader_writer").SimpleITKIO()
    for path, one, truth in zip(sources, cases, truths, strict=True):
        entry = content["dataset"][one.name]
        pixels, properties = reader.read_images([str(tmp_path / DATASET / entry["images"][0])])
        labels, of_labels = reader.read_seg(str(tmp_path / DATASET / entry["label"]))
        source = sitk.ReadImage(str(path))
        np.testing.assert_array_equal(pixels[0], sitk.GetArrayFromImage(source))
        np.testing.assert_array_equal(labels[0], truth)
        for name in ("spacing", "origin", "direction"):
            expected = getattr(source, f"Get{name.capitalize()}")()
            np.testing.assert_allclose(properties["sitk_stuff"][name], expected, atol=1e-5)
            np.testing.assert_array_equal(properties["sitk_stuff"][name], of_labels["sitk_stuff"][name])


def test_a_sheared_stack_can_be_written(tmp_path: Path) -> None:
    matrix = np.diag([0.8, 0.7, 2.0, 1.0])
    matrix[1, 2] = 0.9  # a tilted gantry
    array = block(np.random.default_rng(0))
    write_raw_dataset(tmp_path, [Drawn("tilted", array, array > 40, matrix=matrix)], ["tube"])
    volume = sitk.ReadImage(str(tmp_path / DATASET / "imagesTr" / "tilted_0000.nii.gz"))
    np.testing.assert_allclose(volume.GetSpacing(), [0.8, 0.7, np.hypot(2.0, 0.9)], rtol=1e-5)
    axes = np.reshape(volume.GetDirection(), (3, 3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-5)
    straight = sitk.Image(4, 4, 4, sitk.sitkUInt8)
    set_geometry(straight, np.diag([-2.0, 3.0, 4.0, 1.0]))
    np.testing.assert_allclose(np.reshape(straight.GetDirection(), (3, 3)), np.diag([1, -1, 1]), atol=1e-12)


def test_what_cannot_be_used_is_left_out_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = np.arange(400, dtype=np.uint8).reshape(20, 20) % 250, np.eye(20, dtype=bool)
    good, empty = Drawn("good", image, labels), Drawn("empty", image, ~labels & labels)
    broken = Drawn("broken", image, labels)
    broken.read = lambda: (_ for _ in ()).throw(InputError("broken.png is damaged."))
    made = write_raw_dataset(tmp_path, [good, empty, broken], ["a"])
    assert list(made.patients) == ["good"]
    assert [(one.case, one.reason) for one in made.unreadable] == [("empty", "no mask"), ("broken", "unreadable")]
    assert list(write_raw_dataset(tmp_path, [good, empty], ["a"], empty=True).patients) == ["good", "empty"]
    with pytest.raises(InputError, match=r"none of the 1 cases .* broken.png is damaged"):
        write_raw_dataset(tmp_path, [broken], ["a"])
    with pytest.raises(InputError, match="1 images and 1 volumes"):
        write_raw_dataset(tmp_path, [good, Drawn("deep", image[None], labels[None])], ["a"])
    assert one_kind([]) == "image"

    def full(self, file, **_):
        file.write(b"part of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_raw_dataset(tmp_path, [good], ["a"])
    assert not list((tmp_path / DATASET).rglob("*.png")) and not (tmp_path / DATASET / "dataset.json").exists()


def test_true_masks(tmp_path: Path) -> None:
    images, masks = tmp_path / "images", tmp_path / "masks"
    write_images(images / "a", 2, masks / "a")
    (masks / "a" / "image_1.png").rename(masks / "image_1.PNG".lower())  # without its folder
    assert find_mask(masks, Path("a/image_0.jpg")) == masks / "a" / "image_0.png", "another kind of file"
    assert find_mask(masks, Path("a/image_1.png")) == masks / "image_1.png"
    assert find_mask(masks, Path("a/image_2.png")) is None
    assert find_mask(masks, Path("a/image_0.dcm")) == masks / "a" / "image_0.png"
    # of an image that lies elsewhere the name counts: its path would lead back to the image itself
    for elsewhere in (Path("../images/a/image_1.png"), images / "a" / "image_1.png"):
        assert find_mask(masks, elsewhere) == masks / "image_1.png"
    assert find_mask(masks, images / "a" / "image_0.png") is None
    source, mask = images / "a" / "image_0.png", masks / "a" / "image_0.png"

    def read(classes: int) -> np.ndarray:
        return TrueLabelledCase("one", None, source, (), mask, classes).read()[1]

    assert set(np.unique(read(1))) == {0, 1} and (read(1) == (np.asarray(Image.open(mask)) > 0)).all()
    with pytest.raises(InputError, match="values from 0 to 255; with 2 prompts the masks must hold 0 to 2"):
        read(2)
    Image.fromarray(np.asarray(Image.open(mask)) // 127).save(mask)
    assert set(np.unique(read(2))) == {0, 2}
    grey_edge = np.zeros((48, 56), np.uint8)
    grey_edge[10:20, 10:20], grey_edge[9, 10:20] = 250, 12
    Image.fromarray(grey_edge).save(mask)
    assert (read(1) == read_mask(mask)).all() and read(1).sum() == 100, "as the evaluation reads it"
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(mask)
    with pytest.raises(InputError, match=r"shape \(9, 9\), its image \(48, 56\)"):
        read(1)


def _oblique() -> np.ndarray:
    turned = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turned * (0.7, 0.9, 2.5), (-31.0, 12.5, 80.0)
    return matrix


def test_masks_stored_in_another_order_come_back_onto_the_image() -> None:
    shape, image_to_ras = (5, 6, 7), _oblique()
    truth = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            # an independent way to the same: each axis of the stored array is an axis of the image, maybe backwards
            stored = truth.transpose(2, 1, 0).transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
            from_stored = np.zeros((4, 4))
            from_stored[3, 3] = 1
            for axis, (of_image, sign) in enumerate(zip(order, signs, strict=True)):
                from_stored[of_image, axis] = sign
                from_stored[of_image, 3] = 0 if sign > 0 else shape[::-1][of_image] - 1
            found = onto_grid(stored.transpose(2, 1, 0), image_to_ras @ from_stored, shape, image_to_ras)
            assert found.dtype == np.uint8 and (found == truth).all(), (order, signs)


def test_masks_cut_to_their_labels_are_put_in_place_and_foreign_ones_refused() -> None:
    shape, image_to_ras = (5, 6, 7), _oblique()
    truth = np.zeros(shape, np.uint8)
    truth[1:4, 2:5, 3:6] = 1
    cut_to_ras = image_to_ras @ np.array([[1, 0, 0, 3], [0, 1, 0, 2], [0, 0, 1, 1], [0, 0, 0, 1.0]])
    assert (onto_grid(truth[1:, 2:, 3:], cut_to_ras, shape, image_to_ras) == truth).all()
    padded_to_ras = image_to_ras @ np.array([[1, 0, 0, -1], [0, 1, 0, -2], [0, 0, 1, -1], [0, 0, 0, 1.0]])
    padded = np.pad(truth, ((1, 1), (2, 2), (1, 1)))
    assert (onto_grid(padded, padded_to_ras, shape, image_to_ras) == truth).all()
    padded[0, 0, 0] = 1
    with pytest.raises(InputError, match="outside of its image"):
        onto_grid(padded, padded_to_ras, shape, image_to_ras)
    nudged, stretched = image_to_ras.copy(), image_to_ras @ np.diag([1.1, 1, 1, 1])
    nudged[:3, 3] += 0.4 * image_to_ras[:3, 0]
    for other in (nudged, stretched, np.eye(4)):
        with pytest.raises(InputError, match="does not lie on the voxels"):
            onto_grid(truth, other, shape, image_to_ras)


@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd"])
def test_a_flipped_volume_mask_is_read_in_place(tmp_path: Path, ending: str) -> None:
    values = np.random.default_rng(1).normal(100, 20, (6, 40, 36)).astype(np.float32)
    truth = np.zeros(values.shape, np.uint8)
    truth[1:3, 5:20, 8:16] = 1
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((0.8, 0.8, 3.0))
    sitk.WriteImage(image, str(tmp_path / "volume.nii.gz"))
    mask = sitk.GetImageFromArray(truth)
    mask.CopyInformation(image)
    sitk.WriteImage(sitk.Flip(mask, (False, True, True)), str(tmp_path / f"mask{ending}"))
    case = TrueLabelledCase("one", None, tmp_path / "volume.nii.gz", (), tmp_path / f"mask{ending}", 1)
    assert (case.read()[1] == truth).all()


def test_a_mask_belongs_to_one_image(tmp_path: Path) -> None:
    for kind in ("benign", "malignant"):
        write_images(tmp_path / "data" / kind, 2, tmp_path / "masks")
    settings = WeakSettings(tmp_path / "data", masks=tmp_path / "masks", prompts=("a",))
    with pytest.raises(InputError, match=r"would be the mask of 'benign/image_0\.png' and of 'malignant/image_0\.png'"):
        make_labels(settings, tmp_path, tmp_path / "raw", tmp_path / "excluded.csv", lambda done, total: None)


def test_a_blank_image_is_left_out(tmp_path: Path) -> None:
    write_images(tmp_path / "data", 4, tmp_path / "masks")
    Image.fromarray(np.full((48, 56), 7, np.uint16)).save(tmp_path / "data" / "image_0.png")
    settings = WeakSettings(tmp_path / "data", masks=tmp_path / "masks", prompts=("a",))
    found = make_labels(settings, tmp_path, tmp_path / "raw", tmp_path / "excluded.csv", lambda done, total: None)
    assert len(found["patients"]) == 3 and found["excluded"] == {"unreadable": 1}


@pytest.mark.parametrize("seed", range(5))
def test_folds_keep_patients_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, 17)
    patients = {f"p{number}-{index}": f"p{number}" for number, size in enumerate(sizes) for index in range(size)}
    patients |= {f"alone{number}": None if number % 2 else "" for number in range(4)}
    folds = patient_folds(patients, 5, seed)
    validated = Counter(name for fold in folds for name in fold["val"])
    assert validated == Counter(dict.fromkeys(patients, 1)), "each case validates once"
    for fold in folds:
        assert sorted([*fold["train"], *fold["val"]]) == sorted(patients)
        known = {patients[name] for name in fold["train"] if patients[name]}
        assert not known & {patients[name] for name in fold["val"] if patients[name]}
    counts = [len(fold["val"]) for fold in folds]
    assert max(counts) - min(counts) <= max(sizes)
    assert patient_folds(patients, 5, seed) == folds != patient_folds(patients, 5, seed + 1)
    assert len(patient_folds({"a": "1", "b": "1", "c": "2"}, 5)) == 2
    assert patient_folds({"a": "1", "b": "1"}, 5) == []
