"""From a request and a scene to a task for the child: everything that can be wrong is found here, before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedCLIPSAMLib import mrml
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.geometry import SliceGeometry
from MedCLIPSAMLib.images import MINIMUM_SIDE, check_finite, check_image, robust_window
from MedCLIPSAMLib.prompts import check_prompt, wordings
from MedCLIPSAMLib.session_types import RunRequest

WINDOW_SAMPLE = 1_000_000  # values that tell the percentiles of a volume well enough, and quickly


@dataclass(frozen=True)
class PreparedRun:
    """A checked request with its geometry.

    Attributes:
        request: With prompts stripped.
        volume: The volume's name, for messages.
        matrix: (4, 4) IJK to RAS.
        geometry: How slices are taken.
        index: The slice in slice mode, else None.
        slice_range: (first, last) in the other modes, else None.
        window: Intensities that become black and white.
    """

    request: RunRequest
    volume: str
    matrix: np.ndarray
    geometry: SliceGeometry
    index: int | None
    slice_range: tuple[int, int] | None
    window: tuple[float, float]

    @property
    def slice_count(self) -> int:
        """Number of slices that the run segments."""
        return 1 if self.slice_range is None else self.slice_range[1] - self.slice_range[0] + 1

    @property
    def scope(self) -> str:
        """The scope in words, for the results table."""
        if self.slice_range is None:
            return f"slice {self.index}"
        first, last = self.slice_range
        return "volume" if self.slice_count == self.geometry.count else f"slices {first} to {last}"

    def common(self) -> dict[str, Any]:
        """Return the parameters that all tasks share."""
        request = self.request
        return {
            "engine": request.engine,
            "preset": request.preset,
            "device": request.device,
            "seed": request.seed,
            "window": list(self.window),
            "samples": request.samples,
        }


def need_volume(scene: Any, volume_id: str) -> Any:
    """Return the volume node.

    Raises:
        InputError: It is not in the scene (any more), or it has no image.
    """
    volume = scene.GetNodeByID(volume_id) if volume_id else None
    if volume is None:
        raise InputError("there is no input volume; choose one (it may have been removed from the scene).")
    if volume.GetImageData() is None or min(volume.GetImageData().GetDimensions()) < 1:
        raise InputError(f"the volume {volume.GetName()!r} holds no image; choose another one.")
    return volume


def slice_count(scene: Any, request: RunRequest) -> int:
    """Return how many slices a request asks for, without reading a voxel.

    Raises:
        InputError: No such volume, slice or range.
    """
    volume = need_volume(scene, request.volume_id)
    geometry = SliceGeometry.of(mrml.volume_shape(volume), mrml.ijk_to_ras(volume), request.axis)
    _, slice_range = _slices(request, geometry)
    return 1 if slice_range is None else slice_range[1] - slice_range[0] + 1


def prepare(scene: Any, request: RunRequest, window: tuple[float, float] | None = None) -> PreparedRun:
    """Check a request.

    Args:
        scene: The MRML scene.
        request: See :class:`RunRequest`.
        window: Taken where the request names none; None computes it.

    Raises:
        InputError: Unusable prompts, volume, slice, range or settings.
    """
    prompts = tuple(check_prompt(prompt) for prompt in request.prompts)
    if not prompts:
        raise InputError("there is no prompt; type what to segment, one prompt per line.")
    for number, prompt in enumerate(prompts):
        wordings(prompt, 1)  # raises for an unknown prompt set
        if prompt.lower() in (other.lower() for other in prompts[:number]):
            raise InputError(f"the prompt {prompt!r} is given twice; leave one of the two out.")
    if request.seed < 0:
        raise InputError(f"seed {request.seed}: it must be 0 or more.")
    if request.samples is not None and request.samples < 1:
        raise InputError(f"samples is {request.samples}; it must be at least 1.")
    volume = need_volume(scene, request.volume_id)
    view, matrix = mrml.volume_view(volume), mrml.ijk_to_ras(volume)
    geometry = SliceGeometry.of(view.shape[:3], matrix, request.axis)
    if min(geometry.plane_shape) < MINIMUM_SIDE:
        height, width = geometry.plane_shape
        raise InputError(
            f"{geometry.plane_name} slices of this volume are {width} x {height} pixels; at least "
            f"{MINIMUM_SIDE} x {MINIMUM_SIDE} are needed. Choose another view."
        )
    index, slice_range = _slices(request, geometry)
    if index is not None:
        check_image(geometry.extract(view, index), f"slice {index}")
    else:
        check_finite(view, "the volume")
    window = request.window or window or automatic_window(view)
    if not window[1] > window[0]:
        raise InputError(
            f"the window {window[0]:g} to {window[1]:g} shows nothing: the upper intensity must be above the lower one "
            "(in a volume whose voxels are all alike there is nothing to segment)."
        )
    prepared = RunRequest(**{**vars(request), "prompts": prompts})
    return PreparedRun(prepared, volume.GetName() or "volume", matrix, geometry, index, slice_range, window)


def _slices(request: RunRequest, geometry: SliceGeometry) -> tuple[int | None, tuple[int, int] | None]:
    last = geometry.count - 1
    if request.scope == "slice":
        if request.axis is None or request.index is None:
            raise InputError("no slice was chosen; show the volume in a slice view, or segment the whole volume.")
        if not 0 <= request.index <= last:
            raise InputError(f"the view does not show a slice of this volume (slice {request.index} of 0 to {last}).")
        return int(request.index), None
    if request.scope == "volume":
        return None, (0, last)
    if request.scope != "range":
        raise InputError(f"scope {request.scope!r}: choose slice, range or volume.")
    first, final = request.slice_range or (0, last)
    if not 0 <= first <= final <= last:
        raise InputError(
            f"slices {first} to {final} do not lie in the volume; along the {geometry.plane_name} axis it has slices "
            f"0 to {last}."
        )
    return None, (int(first), int(final))


def automatic_window(view: np.ndarray) -> tuple[float, float]:
    """Return robust percentiles of a volume, from a regular part of its voxels."""
    step = max(1, round((view.size / WINDOW_SAMPLE) ** (1 / 3)))
    window = robust_window(view[::step, ::step, ::step])
    return window if window[1] > window[0] else robust_window(view)


def write_array(folder: Path, name: str, array: np.ndarray) -> str:
    """Write an array for the child, and return its path."""
    path = folder / f"{name}.npy"
    np.save(path, array)
    return str(path)
