"""Several segmentations of the same images side by side, as in the paper's Fig. 4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import replacing
from MedCLIPSAMLib.images import resize, to_rgb
from MedCLIPSAMLib.metrics import dsc
from MedCLIPSAMLib.overview_page import FAINT, INK, Page
from MedCLIPSAMLib.overview_row import COARSE, MASK, TRUTH
from MedCLIPSAMLib.prediction import Prediction

_MARGIN, _GAP, _CELL, _TALLEST, _CAPTION = 0.35, 0.10, 1.75, 2.2, 0.36
_LONGEST = 480  # pixels of a panel's longer side
_OPACITY = 0.38
_LN2 = math.log(2)


@dataclass(frozen=True)
class FigureRow:
    """One image of the figure.

    Attributes:
        label: Its name.
        image: (H, W) or (H, W, 3).
        truth: (H, W) bool, the reference.
        predictions: By the name of their column, the same names in every row.
        window: Intensities shown black and white; None as in :func:`MedCLIPSAMLib.images.robust_window`.
    """

    label: str
    image: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, Prediction]
    window: tuple[float, float] | None = None


def write_comparison_figure(path: str | Path, rows: Sequence[FigureRow], title: str = "") -> None:
    """Draw image, coarse mask, every prediction's mask, reference and entropy, one row per image.

    The coarse mask is that of the first prediction that has one, the entropy that of the last; a column that no
    prediction fills is left out. The reference is outlined in every mask, with the Dice coefficient beneath.

    Args:
        path: The PNG to write.
        rows: At least one.
        title: For example the prompt.

    Raises:
        InputError: No rows, different columns, a mask of another size than its image; matplotlib is not installed.
        OutputError: Not writable.
    """
    if not rows:
        raise InputError("there is no image to show.")
    names = list(rows[0].predictions)
    for row in rows:
        if list(row.predictions) != names:
            raise InputError(f"{row.label} has the columns {list(row.predictions)}, the first row {names}.")
        for name, one in row.predictions.items():
            if one.mask.shape != row.image.shape[:2]:
                raise InputError(
                    f"{row.label}: the mask of {name} has shape {one.mask.shape}, the image {row.image.shape[:2]}."
                )
    coarse = next((name for name in names if all(row.predictions[name].coarse is not None for row in rows)), None)
    doubted = [name for name in names if all(row.predictions[name].entropy is not None for row in rows)]
    columns = ["Image", *(["Coarse"] if coarse else []), *names, "Truth"]
    columns += [f"Entropy, {doubted[-1]}"] if doubted and len(names) > 1 else ["Entropy"] if doubted else []
    sizes = [_panel_size(row.image.shape) for row in rows]
    head, foot = (0.52 if title else 0.12), 0.36
    page = Page(
        2 * _MARGIN + len(columns) * _CELL + (len(columns) - 1) * _GAP,
        _MARGIN + head + sum(height + _CAPTION for _, height in sizes) + foot,
    )
    left = [_MARGIN + number * (_CELL + _GAP) for number in range(len(columns))]
    if title:
        page.text(_MARGIN, 0.28, page.fit(title, 12, page.width - 2 * _MARGIN, 1, "bold")[0], 12, weight="bold")
    for x, column in zip(left, columns, strict=True):
        heading = page.fit(column, 9.5, _CELL, 1, "bold")[0]
        page.text(x + _CELL / 2, _MARGIN + head - 0.06, heading, 9.5, ha="center", va="bottom", weight="bold")
    y = _MARGIN + head
    top = _entropy_top(rows, doubted)
    for row, size in zip(rows, sizes, strict=True):
        _RowPanels(page, row, size, left, y).draw(coarse, names, doubted[-1] if doubted else None, top)
        y += size[1] + _CAPTION
    page.text(_MARGIN, y + 0.08, "dashed: outline of the reference", 7.5, color=TRUTH, weight="bold")
    if doubted:
        _colour_bar(page, left[-1], y + 0.02, top)
    with replacing(path) as file:
        page.save(file)


class _RowPanels:
    """Draws one row's panels from the left."""

    def __init__(self, page: Page, row: FigureRow, size: tuple[float, float], left: Sequence[float], y: float) -> None:
        self.page, self.row, self.size, self.left, self.y = page, row, size, list(left), y
        full = row.image.shape[:2]
        scale = min(1.0, _LONGEST / max(full))
        self.shape = tuple(max(1, round(side * scale)) for side in full)
        self.picture = self._shrink(to_rgb(row.image, row.window)).astype(np.float32) / 255

    def draw(self, coarse: str | None, names: Sequence[str], doubted: str | None, top: float) -> None:
        row = self.row
        self._panel(self.picture, row.label, FAINT)
        if coarse is not None:
            self._mask(row.predictions[coarse], row.predictions[coarse].coarse, COARSE)
        for name in names:
            self._mask(row.predictions[name], row.predictions[name].mask, MASK)
        axes = self._panel(self._filled(row.truth, TRUTH), "reference" if row.truth.any() else "no target")
        self._outline(axes, row.truth, TRUTH)
        if doubted is not None:
            from matplotlib import colormaps

            entropy = row.predictions[doubted].entropy
            colours = colormaps["viridis"](np.clip(self._shrink(np.asarray(entropy, np.float32)) / top, 0, 1))[..., :3]
            self._panel(0.2 * self.picture + 0.8 * colours, f"largest {float(np.max(entropy)):.2f} nats")

    def _mask(self, prediction: Prediction, mask: np.ndarray, colour: str) -> None:
        score = dsc(mask, self.row.truth)
        caption = (
            ("empty, as it should be" if not mask.any() else "no target") if math.isnan(score) else f"DSC {score:.3f}"
        )
        if prediction.skipped:
            caption += ", skipped"
        axes = self._panel(self._filled(mask, colour), caption, INK)
        self._outline(axes, mask, colour)
        self._outline(axes, self.row.truth, TRUTH, (0, (2.5, 2.5)))

    def _panel(self, picture: np.ndarray, caption: str, colour: str = FAINT):
        width, height = self.size
        x = self.left.pop(0)
        axes = self.page.axes(x + (_CELL - width) / 2, self.y, width, height)
        axes.imshow(np.clip(picture, 0, 1), aspect="auto", interpolation="antialiased", interpolation_stage="rgba")
        axes.set_xlim(-0.5, self.shape[1] - 0.5)
        axes.set_ylim(self.shape[0] - 0.5, -0.5)
        axes.autoscale(False)
        for line in self.page.fit(caption, 8, _CELL):
            self.page.text(x + _CELL / 2, self.y + height + 0.06, line, 8, ha="center", color=colour)
        return axes

    def _shrink(self, array: np.ndarray) -> np.ndarray:
        return array if self.shape == array.shape[:2] else resize(array, *self.shape)

    def _shrink_mask(self, mask: np.ndarray) -> np.ndarray:
        share = self._shrink(mask.astype(np.float32))
        return share > 0.5 if (share > 0.5).any() else share > 0  # a small mask must not vanish

    def _filled(self, mask: np.ndarray, colour: str) -> np.ndarray:
        from matplotlib.colors import to_rgb as colour_of

        where = self._shrink_mask(mask)[..., None]
        return np.where(where, (1 - _OPACITY) * self.picture + _OPACITY * np.array(colour_of(colour)), self.picture)

    def _outline(self, axes, mask: np.ndarray, colour: str, dashes: str | tuple[float, tuple] = "solid") -> None:
        if mask.any():
            padded = np.pad(self._shrink_mask(mask).astype(np.float32), 1)
            rows, columns = (np.arange(side) - 1 for side in padded.shape)
            axes.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=1.2, linestyles=[dashes])


def _panel_size(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return width and height in inches of a picture of this shape in a cell."""
    ratio = shape[0] / shape[1]
    return min(_CELL, _TALLEST / ratio), min(_TALLEST, _CELL * ratio)


def _entropy_top(rows: Sequence[FigureRow], doubted: Sequence[str]) -> float:
    """Return where the colours of the entropy end: ln 2, or higher where several classes go beyond."""
    if not doubted:
        return _LN2
    highest = max(float(np.max(row.predictions[doubted[-1]].entropy)) for row in rows)
    return _LN2 if highest <= _LN2 + 1e-4 else highest


def _colour_bar(page: Page, x: float, y: float, top: float) -> None:
    axes = page.axes(x, y, _CELL, 0.08)
    axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap="viridis")
    last = "ln 2 nats" if top == _LN2 else f"{top:.2f} nats"
    for tick, place, side in (("0", 0.0, "left"), (last, 1.0, "right")):
        page.text(x + place * _CELL, y + 0.11, tick, 7.5, ha=side, color=FAINT)
