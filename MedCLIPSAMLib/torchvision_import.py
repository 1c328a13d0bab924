"""Lets segment_anything and open_clip be imported when torch and torchvision come from different builds."""

from __future__ import annotations

import importlib
import logging

logger = logging.getLogger(__name__)


# Operators that torchvision's Python code refers to while it is imported; both have the schema of torchvision 0.28.
_OPERATORS = ("nms", "qnms")
_declared: list[object] = []  # a schema is withdrawn when its library object is collected


def ensure_torchvision() -> None:
    """Import torchvision, also when its compiled operators do not fit the installed torch.

    A CPU build of torch beside the CUDA build of torchvision (pip mixes them easily) fails at ``import torchvision``
    with "operator torchvision::nms does not exist", although nothing here calls a compiled operator of it. Declaring
    the operators' schemas first is enough for the Python parts to import.
    """
    import torch

    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        logger.info("torchvision's compiled operators do not fit this torch build; its Python parts are used alone.")
        library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        importlib.import_module("torchvision")
