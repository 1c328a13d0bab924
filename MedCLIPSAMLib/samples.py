"""Samples to try the pipeline on: simulated images whose truth is known, made at run time and always the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.medical_image import MedicalImage

Drawn = tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[float, float], str]
"""((image, truth, IJK-to-RAS matrix), window, notice)."""

SIMULATED = "Simulated image: no patient, no scanner. Truth known by construction. For trying out the software only."


@dataclass(frozen=True)
class Sample:
    """An image with its truth.

    Attributes:
        name: As in :func:`sample_names`.
        image: As if read from a file; ``path`` is the name. int16 (MR, CT in HU), uint8 (US) or uint16 (DX).
        truth: bool, same shape as ``image.array``.
        prompt: The text prompt to start with.
        notice: Origin and copyright, to be shown with the image.
    """

    name: str
    image: MedicalImage
    truth: np.ndarray
    prompt: str
    notice: str

    @property
    def is_volume(self) -> bool:
        return self.image.is_volume


def sample_names() -> list[str]:
    """Return the names that :func:`load_sample` knows."""
    return list(_SAMPLES)


def load_sample(name: str) -> Sample:
    """Return the sample called ``name``; the same arrays every time.

    * ``brain-mri``, ``brain-mri-volume``: contrast-enhanced T1 head with a simulated tumour. The brain is the ICBM 152
      average read from the installed package nilearn; ``notice`` reproduces its terms. Truth: rim and necrosis.
    * ``breast-ultrasound``: B-mode image with an irregular hypoechoic mass. Truth: the mass.
    * ``chest-ct``: axial slice in HU. Truth: both lungs without large vessels.
    * ``chest-xray``: frontal film. Truth: both lung fields without the parts behind the heart and the diaphragm.

    Raises:
        InputError: No such sample, or nilearn is needed and not installed.
    """
    if name not in _SAMPLES:
        raise InputError(f"There is no sample {name!r}; the samples are: {', '.join(_SAMPLES)}.")
    draw, modality, prompt = _SAMPLES[name]
    (array, truth, matrix), window, notice = draw()
    image = MedicalImage(
        array=array,
        ijk_to_ras=matrix,
        modality=modality,
        window=window,
        is_volume=array.ndim == 3,
        path=Path(name),
        spacing_known=True,
    )
    return Sample(name=name, image=image, truth=truth, prompt=prompt, notice=notice)


def _brain_slice() -> Drawn:
    from MedCLIPSAMLib.phantoms import brain_mri

    return brain_mri.slice_image(seed=7), brain_mri.WINDOW, brain_mri.NOTICE


def _brain_volume() -> Drawn:
    from MedCLIPSAMLib.phantoms import brain_mri

    return brain_mri.volume_image(seed=7), brain_mri.WINDOW, brain_mri.NOTICE


def _breast() -> Drawn:
    from MedCLIPSAMLib.phantoms import breast_ultrasound

    return breast_ultrasound.breast_image(seed=4), (0.0, 255.0), SIMULATED


def _chest_ct() -> Drawn:
    from MedCLIPSAMLib.phantoms import chest_ct

    return chest_ct.chest_slice(seed=6), chest_ct.WINDOW, SIMULATED


def _chest_xray() -> Drawn:
    from MedCLIPSAMLib.phantoms import chest_xray

    return chest_xray.chest_film(seed=3), chest_xray.WINDOW, SIMULATED


_SAMPLES: dict[str, tuple[Callable[[], Drawn], str, str]] = {
    "brain-mri": (_brain_slice, "MR", "brain tumor"),
    "brain-mri-volume": (_brain_volume, "MR", "brain tumor"),
    "breast-ultrasound": (_breast, "US", "breast tumor"),
    "chest-ct": (_chest_ct, "CT", "lungs"),
    "chest-xray": (_chest_xray, "DX", "lungs"),
}
