"""Dense conditional random field on a saliency map: the coarse mask of MedCLIP-SAM, the first paper.

Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011;
Koleilat et al., MedCLIP-SAM, arXiv 2403.20253. The inference is the optional package pydensecrf2, which pip compiles
while it installs it; inside 3D Slicer there is usually no compiler, and without the package the step is not offered.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np

from MedCLIPSAMLib.coarse import check_saliency
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import to_rgb

SMALLEST = 1e-8
"""Added to a probability before its logarithm."""

TEMPERATURE = 1.05
GAUSSIAN_WEIGHT, BILATERAL_WEIGHT = 3, 5
ITERATIONS = 1


@dataclass(frozen=True)
class CRFSettings:
    """The kernels' widths; the defaults are those of MedCLIP-SAM's program.

    Attributes:
        gaussian: Of the kernel that looks at positions, in pixels.
        bilateral: Of the kernel that looks at positions and colours, in pixels.
        colour: Of the same kernel, in grey levels of 256.
    """

    gaussian: float = 3.0
    bilateral: float = 60.0
    colour: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < np.inf:
                raise InputError(f"the CRF's width {name} is {value}; it must be a number above 0.")


MEDCLIP_SAM_V2 = CRFSettings(gaussian=5.0, bilateral=5.0, colour=3.0)
"""The widths in the program of MedCLIP-SAMv2, where the step is an option."""


def is_available() -> bool:
    """Whether pydensecrf2 is installed."""
    return importlib.util.find_spec("pydensecrf") is not None


def dense_crf(saliency: np.ndarray, image: np.ndarray, *, settings: CRFSettings | None = None) -> np.ndarray:
    """Return the foreground that a two-class dense CRF finds.

    With p the saliency, the energies of a pixel are -log(1 - p) / (1.05 sigmoid(1 - p)) for the background and
    -log(p) / (1.05 sigmoid(p)) for the foreground; one mean-field step with a Gaussian (weight 3) and a bilateral
    kernel (weight 5) follows. The authors' program reads p from an 8-bit picture; here it is not rounded.

    Args:
        saliency: (H, W) in [0, 1].
        image: (H, W) or (H, W, 3) uint8, whose edges the bilateral kernel respects.
        settings: The kernels' widths; None for MedCLIP-SAM's.

    Returns:
        (H, W) bool.

    Raises:
        InputError: pydensecrf2 is not installed, or a map or image that does not fit.
    """
    if not is_available():
        raise InputError(
            "the CRF needs the package pydensecrf2, which is not installed; `pip install pydensecrf2` (it needs a "
            "C++ compiler), or choose the threshold 'otsu'."
        )
    from pydensecrf.densecrf import DenseCRF2D

    saliency = check_saliency(saliency).astype(np.float64)
    if image.shape[:2] != saliency.shape or image.dtype != np.uint8:
        raise InputError(
            f"the CRF's image has shape {image.shape} and type {image.dtype}; the saliency {saliency.shape} needs one "
            "of its own size, in uint8."
        )
    settings = settings or CRFSettings()
    height, width = saliency.shape
    field = DenseCRF2D(width, height, 2)
    field.setUnaryEnergy(np.stack([_energy(1 - saliency), _energy(saliency)]).reshape(2, -1).astype(np.float32))
    field.addPairwiseGaussian(sxy=settings.gaussian, compat=GAUSSIAN_WEIGHT)
    field.addPairwiseBilateral(
        sxy=settings.bilateral,
        srgb=settings.colour,
        rgbim=np.ascontiguousarray(to_rgb(image, (0.0, 255.0))),
        compat=BILATERAL_WEIGHT,
    )
    background, foreground = np.asarray(field.inference(ITERATIONS)).reshape(2, height, width)
    return foreground > background


def _energy(probability: np.ndarray) -> np.ndarray:
    return -np.log(probability + SMALLEST) * (1 + np.exp(-probability)) / TEMPERATURE
