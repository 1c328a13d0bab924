"""Draws MedCLIPSAM.png, the module's icon: a slice of a head with a lesion, its saliency and its contour.

Run it with Pillow installed: ``python draw_icon.py``.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

SIZE, SCALE = 128, 8
BACK, SKULL, BRAIN, FOLD = "#0f2a43", "#dfe7ee", "#8ea4b8", "#6f879d"
GLOW, LESION, CONTOUR = (255, 170, 40), "#ffb02e", "#ffffff"


def box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Return a box around a centre, in the large picture's pixels."""
    return tuple(SCALE * value for value in (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def draw() -> Image.Image:
    """Return the icon, (128, 128) with transparent corners."""
    large = SIZE * SCALE
    picture = Image.new("RGBA", (large, large), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((0, 0, large - 1, large - 1), 24 * SCALE, BACK)
    pen.ellipse(box(64, 63, 84, 104), SKULL)
    pen.ellipse(box(64, 63, 72, 92), BACK)
    pen.ellipse(box(64, 63, 66, 86), BRAIN)
    pen.line([(64 * SCALE, 20 * SCALE), (64 * SCALE, 106 * SCALE)], FOLD, 3 * SCALE)
    for side in (-1, 1):  # the ventricles
        pen.chord(box(64 + side * 9, 62, 11, 34), 0, 360, FOLD)
    glow = Image.new("RGBA", picture.size, (*GLOW, 0))
    ImageDraw.Draw(glow).ellipse(box(80, 46, 40, 36), (*GLOW, 210))
    picture.alpha_composite(glow.filter(ImageFilter.GaussianBlur(7 * SCALE)))
    pen = ImageDraw.Draw(picture)
    pen.ellipse(box(80, 46, 29, 25), CONTOUR)
    pen.ellipse(box(80, 46, 22, 18), LESION)
    return picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    draw().save(Path(__file__).resolve().parents[1] / "Resources" / "Icons" / "MedCLIPSAM.png", optimize=True)
