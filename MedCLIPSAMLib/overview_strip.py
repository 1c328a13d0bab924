"""The small chart beneath a volume's row: mask area and presence score over the slices, gated slices shaded."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from MedCLIPSAMLib.overview_page import FAINT, INK, RULE, Page
from MedCLIPSAMLib.overview_row import MASK, Strip

STRIP_HEIGHT = 1.18  # inches, with its legend and tick labels
PRESENCE, GATED, OUTSIDE = "#2456a6", "#c9cfd8", "#eceff3"
_SHADES = {"skipped by the gate": GATED, "outside the range": OUTSIDE, "blank": OUTSIDE}


def draw_strip(page: Page, strip: Strip, x: float, y: float, width: float) -> None:
    """Draw the chart into ``width`` x :data:`STRIP_HEIGHT` inches at (x, y)."""
    side = 0.42  # for tick labels
    _legend(page, strip, x + side, y)
    count = len(strip.sizes)
    axes = page.axes(x + side, y + 0.22, width - 2 * side, 0.66)
    axes.set_axis_on()
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    number = np.arange(count)  # from 0, as in result.json, --slices and 3D Slicer
    for status, shade in _SHADES.items():
        for start, stop in _runs(np.array([one == status for one in strip.status])):
            axes.axvspan(start - 0.5, stop - 0.5, color=shade, lw=0)
    edges = np.arange(count + 1) - 0.5
    axes.stairs(strip.sizes, edges, fill=True, color=MASK, alpha=0.55)
    top = float(strip.sizes.max()) if strip.sizes.any() else 1.0
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(0, 1.12 * top)
    axes.axvline(strip.shown, color=INK, lw=1.0, ls=(0, (2, 2)))
    style = {"labelsize": 7.5, "labelcolor": FAINT, "color": RULE, "length": 2.5, "pad": 2}
    axes.tick_params(**style)
    axes.set_yticks([0, top], ["0", f"{top:.3g}" if strip.sizes.any() else ""])
    step = max(1, int(np.ceil(count / 12)))
    axes.set_xticks(range(0, count, step))
    if np.isfinite(strip.presence).any():
        second = axes.twinx()
        for edge in ("top", "right", "left", "bottom"):
            second.spines[edge].set_visible(False)
        second.plot(number, strip.presence, color=PRESENCE, lw=1.4, marker="o", ms=2.4 if count <= 80 else 0)
        second.set_ylim(0, 1.12)
        second.tick_params(**style)
        second.set_yticks([0, 1], ["0", "1"])


def _runs(where: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of every run of True."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], where, [False]]).astype(int)))
    yield from zip(change[::2].tolist(), change[1::2].tolist(), strict=True)


def _legend(page: Page, strip: Strip, x: float, y: float) -> None:
    entries = [(MASK, f"mask area ({strip.unit})", 0.11)]
    if np.isfinite(strip.presence).any():
        entries.append((PRESENCE, "presence score (right)", 0.03))
    if "skipped by the gate" in strip.status:
        entries.append((GATED, "skipped by the gate", 0.11))
    if {"outside the range", "blank"} & set(strip.status):
        entries.append((OUTSIDE, "outside the range or blank", 0.11))
    page.text(x, y, "Per slice, from 0", 8.5, color=INK, weight="bold")
    x += page.measure("Per slice, from 0", 8.5, "bold") + 0.22
    for colour, label, thick in entries:
        page.rectangle(x, y + 0.075 - thick / 2, 0.16, thick, fc=colour)
        page.text(x + 0.22, y, label, 8.5, color=FAINT)
        x += 0.22 + page.measure(label, 8.5) + 0.24
    page.text(x, y, f"dashed: slice {strip.shown}, shown above", 8.5, color=FAINT)
