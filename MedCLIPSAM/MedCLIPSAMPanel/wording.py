"""Texts that several sections show: sizes, scores, and what a presence score means."""

from __future__ import annotations

import html
import math
from typing import Any

from slicer.i18n import tr as _

GOOD, DOUBTFUL, BAD = "#2e9e4f", "#c77700", "#d64545"  # readable on a light and on a dark background
_SPELLED = {
    "ct": "CT",
    "mri": "MRI",
    "xray": "X-ray",
    "m2ib": "M2IB",
    "gscorecam": "gScoreCAM",
    "gradcam": "GradCAM",
    "medclip": "MedCLIP",
    "sam": "SAM",
}
_MARGIN = 0.1  # a score this close to its threshold is no clear answer


def score(value: float | None) -> str:
    """Return a number in [0, 1] for a table; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.2f}"


def title(name: str) -> str:
    """Return the name of a task or a preset for a person: "Brain MRI" for "brain-mri"; "Other" where it has none."""
    words = name.replace("x-ray", "xray").replace("-", " ").split() or [_("other")]
    spelled = [_SPELLED.get(word, word) for word in words]
    if words[0] not in _SPELLED:
        spelled[0] = spelled[0][:1].upper() + spelled[0][1:]
    return " ".join(spelled)


def size(value: float, unit: str) -> str:
    """Return a volume or an area with three significant digits, such as "12.3 mL"."""
    if value == 0:
        return _("empty")
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value < 100 else 0
    return f"{value:.{min(digits, 4)}f} {unit}"


def seconds(value: float) -> str:
    """Return a computing time, such as "0.8 s" or "3:05"."""
    if value < 100:
        return f"{value:.1f} s"
    return f"{int(value // 60)}:{round(value % 60) % 60:02d}"


def about(value: float) -> str:
    """Return an estimated time in words, such as "about 3 min"."""
    if value < 90:
        return _("about {count} s").format(count=max(1, round(value)))
    if value < 5400:
        return _("about {count} min").format(count=round(value / 60))
    return _("about {count} h").format(count=f"{value / 3600:.1f}")


def presenceColour(value: float | None, threshold: float | None) -> str | None:
    """Return the colour of a presence score; None where the engine has no calibration."""
    if value is None or threshold is None:
        return None
    if value < threshold:
        return BAD
    return GOOD if value >= min(1.0, threshold + _MARGIN) else DOUBTFUL


def presence(prompt: str, value: float | None, threshold: float | None, empty: bool = False) -> str:
    """Return a line of rich text that says whether the prompt's target seems to be in the image.

    Args:
        prompt: As typed.
        value, threshold: The score, and from where on it counts as present; None without calibration.
        empty: Whether the mask is empty.
    """
    colour = presenceColour(value, threshold)
    if colour is None:
        text, colour = _("not known (this engine cannot tell whether the target is there)"), "gray"
    elif colour == BAD:
        found = _("nothing was segmented") if empty else _("do not trust the mask without looking")
        text = _("seems to be absent ({score}): {found}").format(score=score(value), found=found)
    elif colour == DOUBTFUL:
        text = _("perhaps there ({score}): look closely").format(score=score(value))
    else:
        text = _("seems to be there ({score})").format(score=score(value))
    return coloured(f"“{prompt}” {text}.", colour)


def warnings(row: Any) -> list[str]:
    """Return a result's warnings as lines of rich text, without the one that :func:`presence` puts in its own words."""
    absent = f'"{row.prompt}" does not seem to be in this image'
    return [coloured(text, DOUBTFUL) for text in row.warnings if not text.startswith(absent)]


def coloured(text: str, colour: str) -> str:
    """Return plain text as a line of rich text with a coloured mark."""
    return f'<span style="color:{colour}">●</span> {html.escape(text)}'
