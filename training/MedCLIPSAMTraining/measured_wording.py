"""Sentences about what was measured on a mask: place, size, shape, number, symmetry, each in several wordings.

Left and right, top and bottom are those of the image as one sees it, not the patient's. Per cent are of the image's
area, height or width. The limits of the words follow the spread in the train splits of the four data sets (quartiles
and tenths), so that no word fits nearly everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from MedCLIPSAMTraining.mask_measures import Part

SIZES = ((0.005, "tiny"), (0.02, "small"), (0.08, "medium-sized"), (0.2, "large"), (1.01, "very large"))
"""Upper limits of the share of the image."""
ROWS = (
    (0.25, "near the top", "top"),
    (0.42, "in the upper half", "upper"),
    (0.58, "at mid height", ""),
    (0.75, "in the lower half", "lower"),
    (1.01, "near the bottom", "bottom"),
)
COLUMNS = (
    (0.30, "at the far left", "far left"),
    (0.43, "on the left", "left"),
    (0.57, "in the middle", ""),
    (0.70, "on the right", "right"),
    (1.01, "at the far right", "far right"),
)
SLOPES = ((30.0, "flat"), (60.0, "oblique"), (91.0, "upright"))
"""Upper limits of the long axis' angle to the horizontal, in degrees."""
ROUND = 0.65  # eccentricity below which a shape has no long axis to speak of: the short one is 0.76 of the long one
ELONGATED = 0.92  # above: the short axis is under 0.4 of the long one
IRREGULAR_SOLIDITY, IRREGULAR_COMPACTNESS = 0.85, 0.55
LOBULATED_SOLIDITY, LOBULATED_COMPACTNESS = 0.93, 0.75  # of the compactness that an ellipse so long has
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}

_MODALITIES = {
    "breast": ("breast ultrasound", "ultrasound image of the breast", "sonogram of the breast"),
    "brain": ("contrast-enhanced T1 brain MRI", "MRI slice of the brain", "brain MRI"),
    "flair": ("FLAIR brain MRI", "FLAIR slice of the brain", "FLAIR MRI of the brain"),
    "xray": ("chest X-ray", "frontal chest radiograph", "radiograph of the chest"),
    "ct": ("axial chest CT slice", "CT slice of the chest", "chest CT"),
}
_FINDINGS = {
    ("breast", "benign"): ("benign breast tumour", "benign breast mass", "benign lesion of the breast"),
    ("breast", "malignant"): ("malignant breast tumour", "malignant breast mass", "breast cancer"),
    ("brain", ""): ("brain tumour", "enhancing brain mass", "intracranial tumour", "brain lesion"),
    ("flair", ""): ("brain tumour", "brain glioma", "intracranial tumour", "brain lesion"),
}
_NORMAL = (
    "normal {modality} without a mass.",
    "{modality}: no tumour, normal tissue.",
    "{modality} of healthy tissue, nothing found.",
)
_LESION = (
    "{modality} with a {size}, {shape} {finding} {place} of the image; it covers {share} of the area.",
    "{shape} {finding} {place} of the image, {size}: {share} of the area on {modality}.",
    "{finding} on {modality}: {shape}, {size}, {wide} of the width and {high} of the height, {place}.",
    "{modality}, {corner}: {size} {finding} of {shape} shape, {share} of the image, {wide} wide and {high} high.",
    "{finding} taking {share} of this {modality}. It is {shape} and lies {place}.",
    "Seen on {modality}: {finding}, {shape}; place: {corner}; size: {size}, {share}, {high} high, {wide} wide.",
)
_LUNG_STATES = {
    "normal": ("normal {modality}", "{modality} without findings", "healthy lungs on {modality}"),
    "tuberculosis": ("{modality} with tuberculosis", "{modality}, signs of tuberculosis", "tuberculous {modality}"),
    "": ("{modality}", "lungs on {modality}", "both lungs in a {modality}"),
}
_LUNGS = (
    "{state}: the lungs cover {share} of the image, {left} on its left and {right} on its right; {balance}.",
    "{state}. Lung fields of {left} (left side of the image) and {right} (right side), {balance}; {reach}.",
    "{state}; {balance}: {right} on the right of the image, {left} on the left. {reach}.",
    "{state}, lungs {share} of the area, {build}, {balance}; {reach}.",
)
_JOINED = (
    "{state}: one joined lung region of {share} of the image, {shape}; {reach}.",
    "{state}, the lungs are joined, {shape}, and cover {share} of the area. {reach}.",
)


def describe(task: str, label: str, parts: Sequence[Part], rng: np.random.Generator) -> str:
    """Return one sentence or two about an image.

    Args:
        task: "breast", "brain" (T1 with contrast agent), "flair" (brain, without), "xray" or "ct".
        label: "benign", "malignant", "normal", "tuberculosis" or "", as the data set has it for this task.
        parts: From :func:`MedCLIPSAMTraining.mask_measures.parts_of`.
        rng: Draws the wording; it never decides about what is said to be where, or how large it is.
    """
    words = {"modality": _draw(_MODALITIES[task], rng)}
    if not parts:
        text = _draw(_NORMAL, rng).format(**words)
    elif task in ("xray", "ct"):
        text = _lungs(label, parts, words, rng)
    else:
        text = _lesion(task, label, parts, words, rng)
    return text[0].upper() + text[1:]


def shape_of(part: Part) -> str:
    """Return "irregular", "lobulated", "round", "oval" or "elongated", after the direction of a long axis."""
    compactness = part.compactness / _ellipse_compactness(part.eccentricity)
    if part.solidity < IRREGULAR_SOLIDITY or compactness < IRREGULAR_COMPACTNESS:
        outline = "irregular"
    elif part.solidity < LOBULATED_SOLIDITY or compactness < LOBULATED_COMPACTNESS:
        outline = "lobulated"
    elif part.eccentricity < ROUND:
        return "round"
    else:
        outline = "elongated" if part.eccentricity > ELONGATED else "oval"
    return outline if part.eccentricity < ROUND else f"{_limit(SLOPES, part.axis)} {outline}"


def percent(share: float) -> str:
    """Return a share as rounded per cent, with one decimal below 2 %."""
    value = 100 * share
    return f"{value:.1f} %" if value < 2 else f"{value:.0f} %"


def _ellipse_compactness(eccentricity: float) -> float:
    """Return 4 pi area / perimeter^2 of an ellipse; its perimeter by Ramanujan's second formula."""
    short = math.sqrt(max(1e-6, 1 - eccentricity**2))  # the long half axis is 1
    h = ((1 - short) / (1 + short)) ** 2
    around = math.pi * (1 + short) * (1 + 3 * h / (10 + math.sqrt(4 - 3 * h)))
    return 4 * math.pi * math.pi * short / around**2


def _lesion(task: str, label: str, parts: Sequence[Part], words: dict[str, str], rng: np.random.Generator) -> str:
    largest = parts[0]
    row, short_row = _limits(ROWS, largest.row)
    column, short_column = _limits(COLUMNS, largest.column)
    words |= {
        "finding": _draw(_FINDINGS[task, label if task == "breast" else ""], rng),
        "size": _limit(SIZES, largest.area),
        "shape": shape_of(largest),
        "place": f"{row}, {column}",
        "corner": " ".join(filter(None, (short_row, short_column))) or "centre",
        "share": percent(largest.area),
        "wide": percent(largest.width),
        "high": percent(largest.height),
    }
    text = _draw(_LESION, rng).format(**words)
    if len(parts) > 1:
        count = NUMBERS.get(len(parts), str(len(parts)))
        row, column = _limits(ROWS, parts[1].row)[0], _limits(COLUMNS, parts[1].column)[0]
        text += f" The largest of {count}; the second, {percent(parts[1].area)}, {row}, {column}."
    return text


def _lungs(label: str, parts: Sequence[Part], words: dict[str, str], rng: np.random.Generator) -> str:
    shown = parts[:2]
    top = min(part.top for part in shown)
    bottom = max(part.top + part.height for part in shown)
    words |= {
        "state": _draw(_LUNG_STATES.get(label, _LUNG_STATES[""]), rng).format(**words),
        "share": percent(sum(part.area for part in shown)),
        "reach": f"they reach from {percent(top)} to {percent(bottom)} of the height",
    }
    if len(shown) == 1:
        shape = "irregular" if shown[0].solidity < 0.6 else "broad" if shown[0].width > 0.7 else "compact"
        return _draw(_JOINED, rng).format(shape=shape, **words).replace(". they", ". They")
    left, right = sorted(shown, key=lambda part: part.column)
    words |= {"left": percent(left.area), "right": percent(right.area), "balance": _balance(left, right)}
    words["build"] = "narrow and tall" if left.width + right.width < 0.8 * (left.height + right.height) / 2 else "broad"
    return _draw(_LUNGS, rng).format(**words).replace(". they", ". They")


def _balance(left: Part, right: Part) -> str:
    ratio = min(left.area, right.area) / max(left.area, right.area)
    if ratio > 0.93:
        return "both of about equal size"
    degree = "slightly" if ratio > 0.8 else "clearly"
    return f"the one on the {'left' if left.area < right.area else 'right'} is {degree} smaller"


def _draw(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _limits(table: Sequence[tuple[float, str, str]], value: float) -> tuple[str, str]:
    return next((long, short) for limit, long, short in table if value < limit)


def _limit(table: Sequence[tuple[float, str]], value: float) -> str:
    return next(word for limit, word in table if value < limit)
