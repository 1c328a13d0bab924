"""nnU-Net's plans, with the schedule of the training, and shrunken where there is no GPU."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.cyclical_schedule import PLANS_KEY, CyclicalSettings

NAMES = {"default": "MedCLIPSAMPlans", "small": "MedCLIPSAMSmallPlans"}
"""Plans identifiers; nnU-Net's own are left alone."""

SMALL_SIDES = {2: 192, 3: 64}
"""Longest side, in pixels, of a median case in small plans, by the network's dimensions."""
SMALL_FEATURES = {2: (16, 32, 64, 128, 128), 3: (8, 16, 32, 64, 64)}
"""Channels of the stages; nnU-Net begins with 32 and goes to 512 (2D) or 320 (3D)."""
SMALL_BATCH = {2: 8, 3: 2}
_LEAST_EDGE = 4  # of the coarsest feature map, as nnU-Net's

Topology = Callable[[Sequence[float], Sequence[int], int, int], tuple[Any, Any, Any, Any, Any]]
"""nnU-Net's ``get_pool_and_conv_props``: strides, kernels and patch that go with a spacing and a size."""


def finished_plans(
    plans: dict[str, Any], configuration: str, size: str, schedule: CyclicalSettings, topology: Topology
) -> dict[str, Any]:
    """Return the plans that are trained with.

    Args:
        plans: As nnU-Net's planner made them.
        configuration: "2d" or "3d_fullres"; the others are dropped.
        size: "default" or "small".
        schedule: Written into the plans, where the trainer reads it.
        topology: See :data:`Topology`.

    Raises:
        InputError: The data has no such configuration (3d_fullres of 2D images).
    """
    if configuration not in plans["configurations"]:
        known = ", ".join(plans["configurations"])
        raise InputError(f"configuration {configuration!r} does not fit the data, which has {known}; choose one.")
    plans = copy.deepcopy(plans)
    name = NAMES[size]
    chosen = plans["configurations"][configuration]
    if size == "small":
        chosen = small_configuration(chosen, topology)
    chosen["data_identifier"] = f"{name}_{configuration}"
    plans |= {"plans_name": name, "configurations": {configuration: chosen}, PLANS_KEY: schedule.to_plans()}
    return plans


def small_configuration(configuration: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """Return a configuration that a CPU can train.

    The images are resampled so that a median one is at most 192 pixels (3D: 64 voxels) long, the patch covers it
    whole, and the network is an nnU-Net with fewer stages and channels. Predictions are resampled back as always. So
    fine structures are lost first; for them take the default plans and a GPU.

    Args:
        configuration: Of the default plans.
        topology: See :data:`Topology`.
    """
    configuration = copy.deepcopy(configuration)
    spacing = [float(one) for one in configuration["spacing"]]
    median = [float(one) for one in configuration["median_image_size_in_voxels"]][-len(spacing) :]
    dimensions = len(spacing)
    extent = [size * step for size, step in zip(median, spacing, strict=True)]
    side = SMALL_SIDES[dimensions]
    coarse = max((length / side for length, count in zip(extent, median, strict=True) if count > side), default=0.0)
    spacing = [max(step, coarse) for step in spacing]
    size = [max(1, math.ceil(length / step)) for length, step in zip(extent, spacing, strict=True)]
    features = SMALL_FEATURES[dimensions]
    size = [max(one, _LEAST_EDGE) for one in size] if dimensions == 2 else size
    _, strides, kernels, patch, _ = topology(spacing, size, _LEAST_EDGE, len(features) - 1)
    stages = len(strides)
    network = configuration["architecture"]["arch_kwargs"]
    network |= {
        "n_stages": stages,
        "features_per_stage": list(features[:stages]),
        "kernel_sizes": _plain(kernels),
        "strides": _plain(strides),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
    configuration |= {
        "spacing": spacing,
        "median_image_size_in_voxels": [float(one) for one in size],
        "patch_size": [int(one) for one in patch],
        "batch_size": max(2, min(int(configuration["batch_size"]), SMALL_BATCH[dimensions])),
    }
    return configuration


def _plain(value: Any) -> Any:
    """Return nested sequences of numbers as lists of int."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else int(value)
