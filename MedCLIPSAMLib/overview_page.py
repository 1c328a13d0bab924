"""A page for the overview: positions in inches from the top left corner, and text that is measured before it is set."""

from __future__ import annotations

import unicodedata
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from MedCLIPSAMLib.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 120
INK, FAINT, RULE, AMBER = "#1b2330", "#5f6b7a", "#d5dae1", "#9a5b00"

# DejaVu Sans comes with matplotlib; the others, where the system has one, bring the scripts that it lacks.
_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Yu Gothic",
    "Malgun Gothic",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
)


class Page:
    """A white page of ``width`` x ``height`` inches; y grows downwards."""

    def __init__(self, width: float, height: float) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.font_manager import fontManager
        except ImportError as error:
            raise InputError("The overview picture needs matplotlib; run: pip install matplotlib") from error
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        self.canvas = FigureCanvasAgg(self.figure)
        installed = {font.name for font in fontManager.ttflist}
        self.fonts = [name for name in _FONTS if name in installed]

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Return frameless axes on a rectangle of the page."""
        place = (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(place)
        axes.set_axis_off()
        return axes

    def text(self, x: float, y: float, content: str, size: float = 9, **style: Any) -> None:
        """Set ``content`` with its top left (or as ``style`` says) at (x, y); never read as mathematics."""
        style = {"color": INK, "va": "top", "ha": "left", "family": self.fonts, "parse_math": False} | style
        self.figure.text(x / self.width, 1 - y / self.height, content, fontsize=size, **style)

    def rectangle(self, x: float, y: float, width: float, height: float, **style: Any) -> None:
        """Draw a rectangle; ``style`` as matplotlib's patches take it."""
        from matplotlib.patches import Rectangle

        corner = (x / self.width, 1 - (y + height) / self.height)
        size = (width / self.width, height / self.height)
        patch = Rectangle(corner, *size, transform=self.figure.transFigure, **({"lw": 0} | style))
        self.figure.add_artist(patch)

    def measure(self, content: str, size: float, weight: str = "normal") -> float:
        """Return the width of one line of text in inches."""
        from matplotlib.font_manager import FontProperties

        font = FontProperties(family=self.fonts, size=size, weight=weight)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            return self.canvas.get_renderer().get_text_width_height_descent(content, font, False)[0] / DPI

    def fit(self, content: str, size: float, width: float, lines: int = 1, weight: str = "normal") -> list[str]:
        """Break ``content`` into at most ``lines`` lines of ``width`` inches; what is left over ends in an ellipsis."""
        rest = one_line(content)
        broken: list[str] = []
        while rest and len(broken) < lines:
            if self.measure(rest, size, weight) <= width:
                return [*broken, rest]
            last = len(broken) == lines - 1
            mark = "…" if last else ""
            low, high = 1, len(rest)  # the longest beginning that fits
            while low < high:
                middle = (low + high + 1) // 2
                if self.measure(rest[:middle].rstrip() + mark, size, weight) <= width:
                    low = middle
                else:
                    high = middle - 1
            space = rest.rfind(" ", 0, low + 1)
            cut = space if space > low // 2 else low  # a very long word is cut where the line ends
            broken.append(rest[:cut].rstrip() + mark)
            rest = rest[cut:].lstrip()
        return broken

    def save(self, file: BinaryIO) -> None:
        """Write the page as PNG."""
        with warnings.catch_warnings():  # a character that no font has is drawn as a box; nothing else can be done
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            self.figure.savefig(file, format="png", dpi=DPI, metadata={"Software": "MedCLIPSAM"})


def one_line(content: str) -> str:
    """Return ``content`` without control characters, with runs of white space as one blank."""
    kept = "".join(" " if c.isspace() else c for c in content if c.isspace() or unicodedata.category(c)[0] != "C")
    return " ".join(kept.split())


def round_length(longest: float) -> float:
    """Return the largest of 1, 2, 5 times a power of ten that is at most ``longest``."""
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9)))


def format_number(value: float) -> str:
    """Return ``value`` with three significant digits, without an exponent."""
    if value == 0 or value >= 100:
        return f"{value:.0f}"
    digits = int(np.clip(2 - np.floor(np.log10(abs(value))), 0, 6))
    return f"{value:.{digits}f}"
