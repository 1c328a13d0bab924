"""The overview picture: what it shows is where it should be, nothing overlaps, and a failed write leaves nothing."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from MedCLIPSAMLib.errors import InputError, OutputError
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.overview import write_overview, write_volume_overview
from MedCLIPSAMLib.overview_page import Page, round_length
from MedCLIPSAMLib.results import (
    CoarseMask,
    Component,
    Presence,
    PromptResult,
    SliceRecord,
    VisualPrompts,
    VolumeResult,
)

LONG = "a spiculated hypoechoic mass with posterior acoustic shadowing and angular margins " * 6


def disc(shape: tuple[int, int], radius: float = 0.25, centre: tuple[float, float] = (0.45, 0.4)) -> np.ndarray:
    rows, columns = np.indices(shape)
    dy, dx = (rows + 0.5) / shape[0] - centre[0], (columns + 0.5) / shape[1] - centre[1]
    return np.hypot(dy, dx) < radius


def grey(shape: tuple[int, int]) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 6, shape)
    return np.clip(70 + 70 * disc(shape) + noise, 0, 255).astype(np.uint8)


def make_result(mask: np.ndarray, prompt: str = "tumour", skipped: bool = False, **other: object) -> PromptResult:
    rows, columns = np.nonzero(mask)
    box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    components = () if skipped else (Component(box, int(mask.sum()), 0.83),)
    mask = mask & (not skipped)
    flat = np.zeros(mask.shape, np.float32)
    entropy = flat + np.float32(0.1)
    result = PromptResult(
        prompt=prompt,
        saliency=np.where(mask, 0.9, 0.1).astype(np.float32),
        coarse=CoarseMask(mask, 0.5, components, mask.astype(np.int32)),
        prompts=VisualPrompts(),
        probability=mask.astype(np.float32),
        mask=mask,
        entropy=entropy,
        mutual_information=flat,
        presence=Presence(0.1 if skipped else 0.9, 0.5, not skipped),
        skipped=skipped,
        saliency_method="patch_similarity",
        seed=3,
    )
    for name, value in other.items():
        setattr(result, name, value)
    return result


def make_volume(count: int = 9) -> tuple[MedicalImage, VolumeResult]:
    sizes = np.clip(0.3 - 0.09 * np.abs(np.arange(count) - 5), 0, None)
    mask = np.stack([disc((60, 80), size) for size in sizes])
    records = [
        SliceRecord(k, "segmented" if mask[k].any() else "skipped by the gate", float(0.2 + 2 * sizes[k]))
        for k in range(count)
    ]
    result = VolumeResult(
        "tumour", 0, mask * np.float32(0.8), mask, mask, np.full(mask.shape, 0.1, np.float32), records, "m2ib", 0
    )
    array = np.stack([grey((60, 80)).astype(np.int16)] * count)
    image = MedicalImage(array, np.diag([-1.0, -1.0, 5.0, 1.0]), "MR", (0.0, 255.0), True, Path("head.nrrd"), True)
    return image, result


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Page]:
    """The pages as they are saved, so that their texts can be measured."""
    kept: list[Page] = []
    save = Page.save

    def save_and_keep(self: Page, file: object) -> None:
        kept.append(self)
        save(self, file)

    monkeypatch.setattr(Page, "save", save_and_keep)
    return kept


def check_texts(page: Page) -> list[str]:
    """Fail when two texts overlap or one leaves the page; return all texts."""
    renderer = page.canvas.get_renderer()
    texts = [
        text for text in page.figure.findobj(match=lambda a: type(a).__name__ == "Text") if text.get_text().strip()
    ]
    texts = [text for text in texts if text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    width, height = page.figure.bbox.width, page.figure.bbox.height
    for content, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{content!r} leaves the page"
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or down <= 1.5, f"{one!r} overlaps {other!r}"
    return [content for content, _ in boxes]


def close_to(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) <= tolerance).all(axis=-1)


def test_mask_colour_appears_where_the_mask_is(tmp_path: Path, pages: list[Page]) -> None:
    shape = (100, 150)
    image = np.full(shape, 100, np.uint8)
    image[0, 0] = 101
    mask = disc(shape, 0.3, (0.4, 0.6))
    write_overview(tmp_path / "o.png", image, make_result(mask))
    picture = np.asarray(Image.open(tmp_path / "o.png").convert("RGB"))
    panels = [axes for axes in pages[0].figure.axes if axes.get_position().height * pages[0].height > 0.5]
    assert len(panels) == 5
    expected = tuple(round(0.6 * 100 + 0.4 * channel) for channel in (0xFF, 0x2E, 0x88))
    box = panels[3].get_position()
    height, width = picture.shape[:2]
    area = picture[
        round((1 - box.y1) * height) : round((1 - box.y0) * height), round(box.x0 * width) : round(box.x1 * width)
    ]
    found = close_to(area, expected)
    rows, columns = (np.arange(size) * n // size for size, n in zip(found.shape, shape, strict=True))
    wanted = mask[np.ix_(rows, columns)]
    overlap = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
    assert overlap > 0.93  # the outline covers the rest
    assert not close_to(picture[: round((1 - box.y1) * height)], expected, 3).any()


@pytest.mark.parametrize("shape", [(64, 64), (300, 60), (60, 300), (20, 1500), (1500, 20), (16, 16)])
@pytest.mark.parametrize("spacing", [None, (0.4, 0.4), (2.0, 0.02)])
def test_texts_never_overlap(
    tmp_path: Path, pages: list[Page], shape: tuple[int, int], spacing: tuple[float, float] | None
) -> None:
    mask = disc(shape)
    results = [
        make_result(mask, LONG, warnings=[LONG, "second warning"]),
        make_result(mask, "skipped", skipped=True),
        make_result(mask, presence=Presence(None, None, True)),
    ]
    write_overview(
        tmp_path / "o.png",
        grey(shape),
        results,
        title=LONG,
        engine="lite",
        pixel_spacing=spacing,
        truth=disc(shape, 0.3),
    )
    texts = check_texts(pages[0])
    assert any("Skipped" in text for text in texts)
    assert any(text.endswith("…") for text in texts)
    assert any("not calibrated" in text for text in texts)
    with Image.open(tmp_path / "o.png") as picture:
        size = np.array(picture.size)
    assert (np.abs(size - np.array([pages[0].width, pages[0].height]) * 120) <= 1).all()
    assert (size < 4000).all()


@pytest.mark.parametrize("count", [1, 6])
def test_one_row_per_prompt(tmp_path: Path, pages: list[Page], count: int) -> None:
    mask = disc((90, 120))
    prompts = [f"prompt number {n}" for n in range(count)]
    began = time.perf_counter()
    write_overview(tmp_path / "o.png", grey((90, 120)), [make_result(mask, prompt) for prompt in prompts])
    assert time.perf_counter() - began < 10  # about 1 s on an idle core
    texts = check_texts(pages[0])
    assert [text for text in texts if text.startswith("prompt number")] == prompts
    assert texts.count("Entropy (nats)") == count


@pytest.mark.parametrize(
    "prompt", ["Tumör $x^2$ $broken", "опухоль", "乳腺肿瘤", "a\tb\nc\x07", "اختبار", "🧠", "x" * 900]
)
def test_any_prompt_can_be_drawn(tmp_path: Path, pages: list[Page], prompt: str) -> None:
    write_overview(tmp_path / "o.png", grey((64, 64)), make_result(disc((64, 64)), prompt))
    texts = check_texts(pages[0])
    assert not any(set("\t\n\x07") & set(text) for text in texts)


def test_sizes_follow_the_spacing_and_dice_is_told(tmp_path: Path, pages: list[Page]) -> None:
    mask = np.zeros((100, 100), bool)
    mask[20:60, 20:70] = True  # 2000 pixels of 0.5 x 0.5 mm: 5 cm²
    truth = np.zeros_like(mask)
    truth[20:60, 20:45] = True  # half of it: 2 * 1000 / 3000
    write_overview(tmp_path / "a.png", grey((100, 100)), make_result(mask), pixel_spacing=(0.5, 0.5), truth=truth)
    write_overview(tmp_path / "b.png", grey((100, 100)), make_result(mask))
    known, unknown = check_texts(pages[0]), check_texts(pages[1])
    assert "5.00 cm²" in known and "DSC 0.667" in known and "10 mm" in known
    assert "2000 px (20.0 %)" in unknown and not any("mm" in text for text in unknown)


def test_scale_bar_is_as_long_as_it_says(tmp_path: Path, pages: list[Page]) -> None:
    write_overview(tmp_path / "o.png", grey((80, 100)), make_result(disc((80, 100))), pixel_spacing=(1.0, 0.5))
    (line,) = next(axes.lines for axes in pages[0].figure.axes if axes.lines)
    x = line.get_xdata()
    assert "10 mm" in check_texts(pages[0])
    assert (x[1] - x[0]) * 0.5 == pytest.approx(10)


def test_large_image_and_small_mask(tmp_path: Path, pages: list[Page]) -> None:
    mask = np.zeros((1800, 2400), bool)
    mask[900:903, 1000:1003] = True  # less than one pixel of the panel
    write_overview(tmp_path / "o.png", grey(mask.shape), make_result(mask))
    picture = np.asarray(Image.open(tmp_path / "o.png").convert("RGB"))
    assert close_to(picture, (0xFF, 0x2E, 0x88), 60)[200:].any()
    box = pages[0].figure.axes[2].patches or pages[0].figure.axes[3].patches
    assert box


def test_colour_image(tmp_path: Path) -> None:
    image = np.repeat(grey((64, 64))[..., None], 3, axis=2)
    image[..., 2] = 0
    write_overview(tmp_path / "o.png", image, make_result(disc((64, 64))))
    assert (tmp_path / "o.png").stat().st_size > 10_000


def test_volume_shows_the_largest_slice_and_the_chart(tmp_path: Path, pages: list[Page]) -> None:
    image, result = make_volume()
    write_volume_overview(tmp_path / "v.png", image, result, engine="lite", truth=result.mask)
    texts = check_texts(pages[0])
    assert any("slice 5 of 0 to 8, axial" in text for text in texts)
    assert "head.nrrd" in texts
    voxels = np.count_nonzero(result.mask)
    assert any(f"{voxels * 5 / 1000:.3g} mL in all" in text for text in texts)
    assert "DSC 1.000 (volume)" in texts
    assert any("slices skipped by the gate" in text for text in texts)


def test_volume_without_any_mask_shows_the_middle(tmp_path: Path, pages: list[Page]) -> None:
    image, result = make_volume()
    result.mask = np.zeros_like(result.mask)
    for record in result.slices:
        record.status = "skipped by the gate"
        record.presence = None
    write_volume_overview(tmp_path / "v.png", image, [result, result])
    texts = check_texts(pages[0])
    assert any("slice 4 of 0 to 8" in text for text in texts)
    assert any("not segmented: skipped by the gate" in text for text in texts)


def test_volume_slice_is_shown_as_models_see_it(tmp_path: Path, pages: list[Page]) -> None:
    """A volume stored upside down gives the same panels."""
    image, result = make_volume()
    write_volume_overview(tmp_path / "a.png", image, result)
    matrix = image.ijk_to_ras.copy()
    matrix[1, 1], matrix[1, 3] = 1.0, -59.0
    image.array, image.ijk_to_ras = image.array[:, ::-1], matrix
    for name in ("saliency", "coarse", "mask", "entropy"):
        setattr(result, name, getattr(result, name)[:, ::-1])
    write_volume_overview(tmp_path / "b.png", image, result)
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("a.png", "b.png"))
    assert np.array_equal(first, second)


def test_nothing_is_left_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "o.png").write_bytes(b"before")

    def fail(self: Page, file: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Page, "save", fail)
    with pytest.raises(OutputError):
        write_overview(tmp_path / "o.png", grey((64, 64)), make_result(disc((64, 64))))
    assert [path.name for path in tmp_path.iterdir()] == ["o.png"]
    assert (tmp_path / "o.png").read_bytes() == b"before"


def test_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        write_overview(tmp_path / "no" / "o.png", grey((64, 64)), make_result(disc((64, 64))))


def test_wrong_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        write_overview(tmp_path / "o.png", grey((64, 64)), [])
    with pytest.raises(InputError, match=r"\(64, 64\).*\(64, 65\)"):
        write_overview(tmp_path / "o.png", grey((64, 65)), make_result(disc((64, 64))))
    assert not list(tmp_path.iterdir())


def test_same_input_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_overview(tmp_path / name, grey((64, 64)), make_result(disc((64, 64))))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_matplotlib_is_loaded_late_and_pyplot_never(tmp_path: Path) -> None:
    """pyplot would keep every figure and may open a window."""
    code = (
        "import sys, MedCLIPSAMLib.overview, MedCLIPSAMLib.overview_page as page\n"
        "early = 'matplotlib' in sys.modules\n"
        "page.Page(3, 2).save(open(sys.argv[1], 'wb'))\n"
        "sys.exit(early or 'matplotlib.pyplot' in sys.modules or 'matplotlib' not in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "o.png")], cwd=root, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("longest", "expected"), [(72, 50), (50, 50), (49.9, 20), (1, 1), (0.3, 0.2), (0.0099, 0.005)])
def test_round_length(longest: float, expected: float) -> None:
    assert round_length(longest) == pytest.approx(expected)
