"""Captions of images and regions for the lite alignment: several wordings per concept, made from labels and masks.

A *concept* is what a caption says ("malignant breast tumour"); a *region* is what the pixels show. One region can be
described by several concepts (a malignant breast tumour is also a breast tumour, and a tumour), and a caption of any
of them is never a negative of that region.
"""

from __future__ import annotations

import numpy as np

from MedCLIPSAMTraining.distractors import DISTRACTORS

_TUMOUR_FORMS = ("tumor", "tumour", "mass", "lesion", "cancer", "neoplasm")


def _with(templates: tuple[str, ...], *words: str) -> list[str]:
    return [template.format(word) for template in templates for word in words]


CONCEPTS: dict[str, list[str]] = {
    "breast tumour": [
        *_with(("breast {}", "a breast {}", "{} in the breast", "breast {} on ultrasound"), *_TUMOUR_FORMS),
        "breast nodule",
        "an ultrasound image of a breast tumor",
        "a medical breast ultrasound showing a mass suggestive of a breast tumor",
        "hypoechoic mass in a breast ultrasound",
    ],
    "malignant breast tumour": [
        *_with(("malignant breast {}", "a malignant {} of the breast"), "tumor", "tumour", "mass", "lesion"),
        "breast carcinoma",
        "invasive ductal carcinoma of the breast",
        "irregular spiculated hypoechoic mass suggestive of a malignant breast tumor",
        "a breast ultrasound showing an irregularly shaped malignant mass with posterior shadowing",
    ],
    "benign breast tumour": [
        *_with(("benign breast {}", "a benign {} of the breast"), "tumor", "tumour", "mass", "lesion"),
        "fibroadenoma of the breast",
        "well-defined oval mass suggestive of a benign breast tumor",
        "a breast ultrasound showing a round smooth benign mass",
    ],
    "normal breast tissue": [
        "normal breast tissue",
        "healthy breast tissue",
        "breast ultrasound without findings",
        "normal fat and glandular tissue of the breast",
        "a normal breast ultrasound",
    ],
    "brain tumour": [
        *_with(("brain {}", "a brain {}", "{} in the brain", "brain {} on MRI", "intracranial {}"), *_TUMOUR_FORMS),
        "glioma",
        "meningioma",
        "pituitary tumor",
        "an MRI scan of a brain tumor",
        "contrast enhancing mass in a brain MRI",
        "a medical brain MRI showing a mass suggestive of a brain tumor",
    ],
    "normal brain tissue": [
        "normal brain tissue",
        "healthy brain tissue",
        "brain MRI without findings",
        "normal white and grey matter",
        "a normal brain MRI",
    ],
    "lungs": [
        *_with(("{}", "the {}", "an image of the {}", "{} in a chest scan"), "lungs", "lung", "lung fields"),
        "both lungs",
        "pulmonary parenchyma",
        "lung tissue",
        "lung area",
        "lung lobes",
    ],
    "lungs in a chest X-ray": [
        *_with(("{} in a chest X-ray", "{} on a chest radiograph", "chest X-ray {}"), "lungs", "lung", "lung fields"),
        "a frontal chest X-ray showing the lungs",
    ],
    "lungs in a CT": [
        *_with(("{} in a CT scan", "{} on chest CT", "chest CT {}"), "lungs", "lung", "lung parenchyma"),
        "an axial CT slice showing the lungs",
    ],
    "chest wall in an X-ray": [
        "chest wall and mediastinum in an X-ray",
        "soft tissue and bones around the chest",
        "shoulders, abdomen and spine on a radiograph",
        "surroundings of the thorax in a radiograph",
    ],
    "chest wall in a CT": [
        "chest wall and mediastinum in a CT scan",
        "soft tissue, bones and mediastinum on CT",
        "muscles, fat and vertebrae on an axial CT slice",
        "surroundings of the thorax on CT",
    ],
    "tumour": ["tumor", "tumour", "mass", "lesion", "a tumor", "suspicious mass", "neoplasm"],
    "something else": list(DISTRACTORS),
}
NAMES = tuple(CONCEPTS)

# What each kind of region can be called, with how often each is drawn as its caption.
REGIONS: dict[str, dict[str, float]] = {
    "malignant breast tumour": {"breast tumour": 0.5, "malignant breast tumour": 0.4, "tumour": 0.1},
    "benign breast tumour": {"breast tumour": 0.5, "benign breast tumour": 0.4, "tumour": 0.1},
    "normal breast tissue": {"normal breast tissue": 1.0},
    "brain tumour": {"brain tumour": 0.9, "tumour": 0.1},
    "normal brain tissue": {"normal brain tissue": 1.0},
    "lungs in a chest X-ray": {"lungs": 0.6, "lungs in a chest X-ray": 0.4},
    "chest wall in an X-ray": {"chest wall in an X-ray": 1.0},
    "lungs in a CT": {"lungs": 0.6, "lungs in a CT": 0.4},
    "chest wall in a CT": {"chest wall in a CT": 1.0},
    "nothing": {"something else": 1.0},
}
REGION_NAMES = tuple(REGIONS)

# Target region and surroundings of every kind of image, by (task, label).
IMAGE_KINDS: dict[tuple[str, str], tuple[str, str]] = {
    ("breast", "malignant"): ("malignant breast tumour", "normal breast tissue"),
    ("breast", "benign"): ("benign breast tumour", "normal breast tissue"),
    ("breast", "normal"): ("benign breast tumour", "normal breast tissue"),
    ("brain", ""): ("brain tumour", "normal brain tissue"),
    ("xray", ""): ("lungs in a chest X-ray", "chest wall in an X-ray"),
    ("ct", ""): ("lungs in a CT", "chest wall in a CT"),
}


def description_matrix() -> np.ndarray:
    """Return (regions, concepts) bool: whether a caption of the concept describes the region."""
    matrix = np.zeros((len(REGION_NAMES), len(NAMES)), bool)
    for row, region in enumerate(REGION_NAMES):
        for concept in REGIONS[region]:
            matrix[row, NAMES.index(concept)] = True
    return matrix


def draw_concepts(regions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one concept index for every region index, with the probabilities of ``REGIONS``."""
    drawn = np.empty(len(regions), np.int64)
    for region in np.unique(regions):
        choices = REGIONS[REGION_NAMES[region]]
        concepts = [NAMES.index(name) for name in choices]
        rows = regions == region
        drawn[rows] = rng.choice(concepts, size=int(rows.sum()), p=list(choices.values()))
    return drawn
