"""Segmentations side by side: which columns there are, and that masks are drawn where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compared_discs import invoke, make_compared
from drawn_discs import ThresholdSegmenter
from PIL import Image

from MedCLIPSAMLib.cases import Case, find_cases, read_mask
from MedCLIPSAMLib.comparison_figure import FigureRow, write_comparison_figure
from MedCLIPSAMLib.comparison_sources import figure_rows, shown_cases
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prediction import Prediction
from MedCLIPSAMLib.reliability_diagram import write_reliability_diagram

pytest.importorskip("surface_distance", reason="surface-distance is not installed (extra 'evaluate')")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    return make_compared(tmp_path_factory.mktemp("compared"))


def colours(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_figure_command(evaluated, tmp_path) -> None:
    """Two sources, one of masks alone: the picture has a column for each, and grows by its rows."""
    shown = ("--show", f"zero-shot={evaluated / 'threshold.json'}", "--show", f"small={evaluated / 'eroded'}")
    data = (evaluated / "data", "--split", "test")
    sizes = {}
    for rows in (1, 3):
        status, text = invoke("figure", *data, *shown, "--rows", rows, "--output", tmp_path / f"{rows}.png")
        assert status == 0, text
        sizes[rows] = colours(tmp_path / f"{rows}.png").shape
    assert sizes[3][1] == sizes[1][1] and sizes[3][0] > 2 * sizes[1][0]
    alone = tmp_path / "alone.png"
    status, text = invoke("figure", *data, *shown[2:], "--case", "dim_01.png", "--output", alone)
    assert status == 0, text
    assert colours(alone).shape[1] < 0.6 * sizes[1][1], "no coarse mask, no entropy, one source: three columns"
    status, text = invoke("figure", *data, *shown[2:], "--case", "absent.png", "--output", alone)
    assert status == 2 and "'absent.png' is not among the 17 images" in text
    status, text = invoke("figure", *data, "--show", "no-such", "--output", alone)
    assert status == 2 and "(--prompt TEXT)" in text
    status, text = invoke("figure", *data, "--show", "no-such", "--prompt", "disc", "--output", alone)
    assert status == 2 and "neither a folder of predictions nor a report nor an engine" in text


def test_figure_shows_masks_where_they_are(tmp_path) -> None:
    """The mask's colour fills as large a share of its panel as the mask of the image; the reference is outlined."""
    image = np.full((120, 160), 60, np.uint8)
    image[0, 0] = 61
    mask, truth = np.zeros((2, 120, 160), bool)
    mask[20:80, 30:110] = truth[40:100, 50:130] = True
    row = FigureRow("a.png", image, truth, {"one": Prediction(mask)})
    write_comparison_figure(tmp_path / "figure.png", [row], title="$a_b$ <title>")
    picture = colours(tmp_path / "figure.png")
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    filled = (red > green + 60) & (blue > green + 15)  # of the mask
    panel = (abs(picture - picture[..., :1]).max(axis=2) < 12) & (abs(red - 60) < 12)  # of the image's grey
    share = filled.sum() / (panel[:, : picture.shape[1] // 3].sum())
    assert share == pytest.approx(mask.mean(), rel=0.12)
    rows, columns = np.nonzero(filled)
    assert columns.min() > picture.shape[1] / 3 and columns.max() < picture.shape[1] * 2 / 3
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(80 / 60, rel=0.05)
    greenish = (green > red + 60) & (green > blue + 30)
    assert greenish[:, picture.shape[1] // 3 : 2 * picture.shape[1] // 3].any()


def test_figures_that_cannot_be_drawn(tmp_path) -> None:
    image, mask = np.arange(1200, dtype=np.uint16).reshape(30, 40), np.zeros((30, 40), bool)
    with pytest.raises(InputError, match="no image to show"):
        write_comparison_figure(tmp_path / "a.png", [])
    rows = [FigureRow("a", image, mask, {name: Prediction(mask)}) for name in ("one", "two")]
    with pytest.raises(InputError, match=r"columns \['two'\], the first row \['one'\]"):
        write_comparison_figure(tmp_path / "a.png", rows)
    with pytest.raises(InputError, match=r"the mask of one has shape \(5, 6\)"):
        write_comparison_figure(tmp_path / "a.png", [FigureRow("a", image, mask, {"one": Prediction(mask[:5, :6])})])
    with pytest.raises(InputError, match="no probability was judged"):
        write_reliability_diagram(tmp_path / "a.png", {"a": {"datasets": {"x": {}}}})
    assert not list(tmp_path.iterdir())


def test_cases_of_a_figure_are_spread_over_those_with_a_target(evaluated) -> None:
    cases = find_cases(evaluated / "data", "test")
    assert [case.file for case in shown_cases(cases, (), 3)] == ["bright_00.png", "bright_04.png", "dim_00.png"]
    assert len(shown_cases(cases, (), 99)) == 13
    empty: list[Case] = [case for case in cases if not read_mask(case.mask_path).any()]
    with pytest.raises(InputError, match="none of the 4 images has a target"):
        shown_cases(empty, (), 2)
    with pytest.raises(InputError, match="rows 0"):
        shown_cases(cases, (), 0)


def test_figure_runs_engines(evaluated) -> None:
    """An engine in the place of a folder gives what its kept predictions give."""
    cases = shown_cases(find_cases(evaluated / "data", "test"), (), 2)
    loaded = []

    def load(*arguments: object) -> ThresholdSegmenter:
        loaded.append(arguments)
        return ThresholdSegmenter()

    settings = {"preset": "p", "device": "cpu", "seed": 0}
    sources = ["lite", f"kept={evaluated / 'threshold'}"]
    for row, case in zip(figure_rows(sources, cases, "a bright disc", settings, load=load), cases, strict=True):
        assert row.label == case.file
        engine, kept = row.predictions["lite"], row.predictions["kept"]
        assert np.array_equal(engine.mask, kept.mask) and np.array_equal(engine.coarse, kept.coarse)
        assert np.array_equal(engine.entropy, kept.entropy)
    assert loaded == [("lite", "p", "cpu")]
    with pytest.raises(InputError, match="two columns are called 'lite'"):
        figure_rows(["lite", "lite"], cases, "a bright disc", settings, load=load)
