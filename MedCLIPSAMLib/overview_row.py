"""One row of the overview: an image with its saliency, coarse mask, mask and entropy, drawn side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from MedCLIPSAMLib.images import resize, to_rgb
from MedCLIPSAMLib.overview_page import FAINT, INK, Page, format_number, round_length
from MedCLIPSAMLib.results import Component

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MASK, COARSE, BOX, TRUTH = "#ff2e88", "#00c2d1", "#f5c400", "#2ecc71"
MASK_OPACITY, COARSE_OPACITY, SALIENCY_OPACITY, ENTROPY_OPACITY = 0.40, 0.38, 0.62, 0.75
TITLES = ("Image", "Saliency", "Coarse mask and boxes", "Mask", "Entropy (nats)")
_LONGEST = 720  # pixels of a panel's longer side: more than is printed
_LABELLED_BOXES = 8


@dataclass
class Strip:
    """What the chart beneath a volume's row shows, per slice.

    Attributes:
        sizes: (K,) mask area.
        unit: "cm²" or "px".
        presence: (K,) in [0, 1], NaN where there is no score.
        status: K words, as in ``SliceRecord.status``.
        shown: Index of the slice that the row shows.
    """

    sizes: np.ndarray
    unit: str
    presence: np.ndarray
    status: list[str]
    shown: int


@dataclass
class Row:
    """What one row says; maps are (H, W) of the displayed plane."""

    heading: str
    image: np.ndarray
    saliency: np.ndarray
    coarse: np.ndarray
    components: tuple[Component, ...]
    mask: np.ndarray
    entropy: np.ndarray
    presence: str
    presence_colour: str
    details: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    coarse_caption: str = ""
    mask_caption: str = ""
    message: str = ""  # in the place of coarse mask, mask and entropy
    truth: np.ndarray | None = None
    strip: Strip | None = None


class PanelRow:
    """Draws a row's five panels on a page, each ``width`` x ``height`` inches in a cell of ``cell`` inches."""

    def __init__(
        self,
        page: Page,
        row: Row,
        window: tuple[float, float] | None,
        spacing: tuple[float, float] | None,
        size: tuple[float, float],
    ) -> None:
        self.page, self.row, self.spacing = page, row, spacing
        self.width, self.height = size
        full = row.image.shape[:2]
        scale = min(1.0, _LONGEST / max(full))
        self.shape = (max(1, round(full[0] * scale)), max(1, round(full[1] * scale)))
        self.scale = np.array([self.shape[1] / full[1], self.shape[0] / full[0]])
        self.full = full
        self.picture = self._shrink(to_rgb(row.image, window)) / 255

    def _shrink(self, array: np.ndarray) -> np.ndarray:
        if self.shape == self.full:
            return array.astype(np.float32)
        return resize(array, *self.shape)

    def _shrink_mask(self, mask: np.ndarray) -> np.ndarray:
        if self.shape == self.full or not mask.any():
            return np.asarray(mask, bool) if self.shape == self.full else np.zeros(self.shape, bool)
        share = resize(mask.astype(np.float32), *self.shape)
        return share > 0.5 if (share > 0.5).any() else share > 0  # a small mask must not vanish

    def draw(self, x: float, y: float, cell: float, gap: float) -> None:
        """Draw all panels with their captions; the first cell begins at (x, y)."""
        row = self.row
        left = [x + column * (cell + gap) + (cell - self.width) / 2 for column in range(5)]
        below = y + self.height
        axes = self._panel(left[0], y, self.picture)
        self._scale_bar(axes)
        height, width = row.image.shape[:2]
        self._caption(x + cell / 2, below, [f"{width} × {height} px"], cell)
        saliency = self._coloured(row.saliency, 1.0, "inferno", SALIENCY_OPACITY)
        self._panel(left[1], y, saliency)
        self._colour_bar(x + cell + gap, below, cell, "inferno", ("0", "0.5", "1"))
        if row.message:
            self._say(x + 2 * (cell + gap), y, 3 * cell + 2 * gap)
            return
        axes = self._panel(left[2], y, self._filled(row.coarse, COARSE, COARSE_OPACITY))
        self._outline(axes, row.coarse, COARSE, 1.2)
        self._boxes(axes)
        self._caption(x + 2 * (cell + gap) + cell / 2, below, row.coarse_caption.split("\n"), cell)
        axes = self._panel(left[3], y, self._filled(row.mask, MASK, MASK_OPACITY))
        self._outline(axes, row.mask, MASK, 1.5)
        if row.truth is not None:
            self._outline(axes, row.truth, TRUTH, 1.2, (0, (3.0, 3.0)))
        self._caption(x + 3 * (cell + gap) + cell / 2, below, row.mask_caption.split("\n"), cell, INK)
        entropy = self._coloured(row.entropy, float(np.log(2)), "viridis", ENTROPY_OPACITY)
        self._panel(left[4], y, entropy)
        self._colour_bar(x + 4 * (cell + gap), below, cell, "viridis", ("0", "0.35", "ln 2"))

    def _panel(self, x: float, y: float, picture: np.ndarray) -> Axes:
        axes = self.page.axes(x, y, self.width, self.height)
        axes.imshow(np.clip(picture, 0, 1), aspect="auto", interpolation="antialiased", interpolation_stage="rgba")
        axes.set_xlim(-0.5, self.shape[1] - 0.5)
        axes.set_ylim(self.shape[0] - 0.5, -0.5)
        axes.autoscale(False)
        return axes

    def _coloured(self, values: np.ndarray, top: float, name: str, opacity: float) -> np.ndarray:
        from matplotlib import colormaps

        colours = colormaps[name](np.clip(self._shrink(np.asarray(values)) / top, 0, 1))[..., :3]
        return (1 - opacity) * self.picture + opacity * colours

    def _filled(self, mask: np.ndarray, colour: str, opacity: float) -> np.ndarray:
        from matplotlib.colors import to_rgb as colour_of

        where = self._shrink_mask(mask)[..., None]
        return np.where(where, (1 - opacity) * self.picture + opacity * np.array(colour_of(colour)), self.picture)

    def _outline(
        self, axes: Axes, mask: np.ndarray, colour: str, width: float, dashes: str | tuple[float, tuple] = "solid"
    ) -> None:
        if not mask.any():
            return
        padded = np.pad(self._shrink_mask(mask).astype(np.float32), 1)
        position = [np.arange(side) - 1 for side in padded.shape]
        axes.contour(
            position[1], position[0], padded, levels=[0.5], colors=[colour], linewidths=width, linestyles=[dashes]
        )

    def _boxes(self, axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        inch = self.shape[0] / self.height  # rows per inch
        for number, component in enumerate(self.row.components):
            x0, y0, x1, y1 = np.array(component.box, float) * np.tile(self.scale, 2) - 0.5
            axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=BOX, lw=1.5))
            if number >= _LABELLED_BOXES or self.height < 0.22 or self.width < 0.35:  # no room
                continue
            above = y0 - 0.02 * inch if y0 > 0.2 * inch else min(y0 + 0.20 * inch, self.shape[0] - 0.5)
            right = x0 > 0.8 * self.shape[1]
            axes.text(
                x1 if right else x0,
                above,
                f"{component.confidence:.2f}",
                fontsize=7.5,
                color="black",
                ha="right" if right else "left",
                va="bottom",
                bbox={"facecolor": BOX, "edgecolor": "none", "pad": 1.2, "alpha": 0.92},
                clip_on=True,
            )

    def _scale_bar(self, axes: Axes) -> None:
        """Draw a bar of a round length on a dark ground in the lower right corner, where the spacing is known."""
        if self.spacing is None:
            return
        from matplotlib.patches import Rectangle

        extent = self.spacing[1] * self.full[1]  # mm
        length = round_length(0.3 * extent)
        name = f"{length:g} mm"
        part = length / extent * self.width  # inches, as all below
        ground = max(part, self.page.measure(name, 8)) + 0.12, 0.27
        if ground[0] > self.width - 0.1 or ground[1] > self.height - 0.1:
            return
        x, y = self.width - 0.06 - ground[0] / 2, self.height - 0.06
        per_inch = np.array([self.shape[1] / self.width, self.shape[0] / self.height])

        def pixels(across: float, down: float) -> tuple[float, float]:
            return tuple(np.array([across, down]) * per_inch - 0.5)

        corner = pixels(x - ground[0] / 2, y - ground[1])
        axes.add_patch(Rectangle(corner, *(np.array(ground) * per_inch), fc="black", alpha=0.55, lw=0))
        (x0, level), (x1, _) = pixels(x - part / 2, y - 0.055), pixels(x + part / 2, y - 0.055)
        axes.plot([x0, x1], [level, level], color="white", lw=2, solid_capstyle="butt")
        axes.text(*pixels(x, y - 0.085), name, color="white", fontsize=8, ha="center", va="bottom")

    def _caption(self, middle: float, below: float, lines: list[str], cell: float, colour: str = FAINT) -> None:
        for number, line in enumerate(lines):
            for fitted in self.page.fit(line, 8.5, cell):
                self.page.text(middle, below + 0.09 + 0.165 * number, fitted, 8.5, ha="center", color=colour)

    def _colour_bar(self, x: float, below: float, cell: float, name: str, ticks: tuple[str, str, str]) -> None:
        width = min(cell, max(self.width, 1.6))
        start = x + (cell - width) / 2
        axes = self.page.axes(start, below + 0.10, width, 0.09)
        axes.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=name)
        for tick, place, side in zip(ticks, (0.0, 0.5, 1.0), ("left", "center", "right"), strict=True):
            self.page.text(start + place * width, below + 0.23, tick, 7.5, ha=side, color=FAINT)

    def _say(self, x: float, y: float, width: float) -> None:
        """Put the row's message in the place of three panels."""
        height = max(self.height, 0.42)  # beneath a flat panel there is room, where the captions would be
        self.page.rectangle(x, y, width, height, fc="#f1f3f6")
        lines = self.page.fit(self.row.message, 11, width - 0.5, max(1, min(4, int(height / 0.25))))
        top = y + height / 2 - 0.115 * len(lines)
        for number, line in enumerate(lines):
            self.page.text(x + width / 2, top + 0.23 * number, line, 11, ha="center", color=FAINT)


def area_text(mask: np.ndarray, spacing: tuple[float, float] | None) -> str:
    """Return the size of a 2D mask: cm² where the spacing (row, column) in mm is known, else pixels and percent."""
    count = int(np.count_nonzero(mask))
    if spacing is None:
        return f"{count} px ({format_number(100 * count / mask.size)} %)"
    return f"{format_number(count * spacing[0] * spacing[1] / 100)} cm²"
