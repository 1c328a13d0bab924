"""SAM-Med2D: Cheng et al., "SAM-Med2D", arXiv 2308.16184; its adapters are in ``vit_encoder``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.sam.interpolation import through_input
from MedCLIPSAMLib.sam.sam_family import PIXEL_MEAN, PIXEL_STD, SamFamily
from MedCLIPSAMLib.sam.vit_encoder import VIT_B, VitShape


class _Optimiser:
    """Takes the place of the optimiser in the official checkpoint, and forgets what is read into it."""

    def __setstate__(self, state: object) -> None:
        pass


def _plain(*_: object) -> dict[object, object]:
    return {}


# torch asks for objects by the name that they have in the file
_Optimiser.__module__, _Optimiser.__name__, _Optimiser.__qualname__ = "torch.optim.adam", "Adam", "Adam"
_plain.__module__, _plain.__name__, _plain.__qualname__ = "collections", "defaultdict", "defaultdict"
IN_THE_FILE = (_Optimiser, _plain, dict)
"""Stand-ins for what the official checkpoint holds beside the weights: the object of the optimiser that made them."""


class SamMed2D(SamFamily):
    """A SAM ViT-B with adapters at 256 x 256, with the conventions of its own predictor.

    The colours are normalised and the image is squashed to 256 x 256 by nearest neighbours. Of its three masks the one
    with the highest score is taken: the single mask was not trained.
    """

    prompt_kinds = frozenset({"boxes", "points", "both"})
    trained_kinds = frozenset({"boxes", "points"})
    masks_per_prompt = 3
    image_size = 256
    keep_aspect = False
    adapter = True
    best_of_candidates = True

    def __init__(self, state: Mapping[str, Tensor], shape: VitShape = VIT_B, **settings: Any):
        """Build the model; for the arguments see :class:`SamFamily`."""
        super().__init__("SAM-Med2D", state, shape, **settings)

    def _input(self, image: np.ndarray, frame: Frame) -> np.ndarray:
        rows, columns = nearest(frame.height, self.image_size), nearest(frame.width, self.image_size)
        chosen = image[rows[:, None], columns]
        return (chosen.reshape(*chosen.shape[:2], -1) - PIXEL_MEAN) / PIXEL_STD

    def _restore(self, planes: np.ndarray, frame: Frame) -> np.ndarray:
        rows = through_input(planes.shape[1], self.image_size, self.image_size, frame.height)
        columns = through_input(planes.shape[2], self.image_size, self.image_size, frame.width)
        return rows @ planes @ columns.T


def nearest(source: int, target: int) -> np.ndarray:
    """Return for each of ``target`` pixels the one of ``source`` that OpenCV's INTER_NEAREST takes."""
    step = 1 / (target / source)  # in this order, since the last digit decides between two pixels
    return np.minimum(np.floor(np.arange(target) * step).astype(int), source - 1)
