"""What `segment` is asked to do, checked: everything that can be wrong is found before a model is loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from MedCLIPSAMLib.engines import check_choice
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.file_output import check_output_folder
from MedCLIPSAMLib.geometry import SliceGeometry
from MedCLIPSAMLib.images import check_image, robust_window
from MedCLIPSAMLib.medical_image import MedicalImage
from MedCLIPSAMLib.prompts import check_prompt, wordings
from MedCLIPSAMLib.weak_recipe import WeakRecipe


@dataclass(frozen=True)
class SegmentRequest:
    """A checked request; make it with :func:`make_request`.

    Attributes:
        image: The input.
        prompts: One or more texts, without outer white space.
        output: Folder for the results; it exists and can be written to.
        engine, preset, device: As for :func:`MedCLIPSAMLib.engines.load_engine`.
        seed: The run's seed.
        axis: Array axis of a volume along which slices are taken; None for a 2D image.
        slice_range: (first, last) slice of a volume, from 0, both included; None for all.
        window: Intensities shown as black and white.
        gate: False segments also where the engine says that the target is not there; a setting of the engine, so it
            has no effect on one that is passed to :func:`MedCLIPSAMLib.segment_job.run`.
        changes: Settings of the recipe that are replaced, see :meth:`MedCLIPSAMLib.recipe.Recipe.with_settings`; as
            ``gate``, without effect on an engine that is passed to ``run``.
        truth: bool, the reference mask of a sample, shown in the overview.
        notice: Origin and terms of the input, kept in ``result.json``; None for a user's own.
        overview: Whether to draw ``overview.png``, which takes longer than segmenting a small image.
        reading_seconds: How long reading the input took.
        output_is_new: The folder was made for this request; a run that fails takes it away again.
    """

    image: MedicalImage
    prompts: tuple[str, ...]
    output: Path
    engine: str = "lite"
    preset: str | None = None
    device: str = "auto"
    seed: int = 0
    axis: int | None = None
    slice_range: tuple[int, int] | None = None
    window: tuple[float, float] | None = None
    gate: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)
    truth: np.ndarray | None = None
    notice: str | None = None
    overview: bool = True
    reading_seconds: float = 0.0
    output_is_new: bool = False

    @property
    def label(self) -> str:
        """The engine, with its preset and replaced settings, as a person reads it."""
        changes = [f"{name} {value}" for name, value in self.changes.items()]
        return ", ".join([self.engine, *([f"preset {self.preset}"] if self.preset else []), *changes])

    @property
    def recipe_changes(self) -> dict[str, Any]:
        """``changes``, and the gate switched off where it is."""
        return {**self.changes, **({} if self.gate else {"gate": False})}


def make_request(
    source: str | Path | MedicalImage,
    prompts: Sequence[str],
    output: str | Path,
    *,
    axis: int | str | None = None,
    slice_range: tuple[int, int] | None = None,
    window: tuple[float, float] | None = None,
    **settings: Any,
) -> SegmentRequest:
    """Check a request and read its input; loads no model.

    Args:
        source: A file or DICOM folder, or an image in memory.
        prompts: One or more texts, no two the same; none for the first of the preset's own.
        output: Folder for the results; created where it does not exist.
        axis: Array axis 0, 1 or 2, or "axial", "coronal", "sagittal"; None for the axis of acquisition.
        slice_range: (first, last), from 0, both included.
        window: (lower, upper) intensity; None takes the file's own, else a robust one.
        settings: The other attributes of :class:`SegmentRequest`.

    Raises:
        InputError: Anything wrong with the prompts, the input or the settings.
        OutputError: The output folder cannot be written to.
    """
    recipe = check_choice(settings.get("engine", "lite"), settings.get("preset"), settings.get("device", "auto"))
    recipe.with_settings(settings.get("changes") or {})  # raises for an unknown one
    if (seed := settings.get("seed", 0)) < 0:
        raise InputError(f"seed {seed}: it must be 0 or more.")
    if slice_range is not None and slice_range[0] > slice_range[1]:
        first, last = slice_range
        raise InputError(f"slices {first}:{last}: the first lies after the last; did you mean {last}:{first}?")
    checked = tuple(check_prompt(prompt) for prompt in prompts or recipe.prompts[:1])
    for prompt in checked:
        wordings(prompt, 1)  # raises for an unknown prompt set
        if isinstance(recipe, WeakRecipe):
            recipe.class_of(prompt)  # raises for one that the network has not learnt
    if not checked:
        raise InputError("there is no prompt; say what to segment: --prompt TEXT, for example --prompt 'breast tumor'.")
    if twice := [prompt for number, prompt in enumerate(checked) if prompt.lower() in map(str.lower, checked[:number])]:
        raise InputError(f"the prompt {twice[0]!r} is given twice; leave one of the two out.")
    if window is not None and not window[1] > window[0]:
        raise InputError(f"window ({window[0]:g}, {window[1]:g}): the upper intensity must be above the lower one.")
    began = time.perf_counter()
    image = source if isinstance(source, MedicalImage) else read_image(source)
    if not image.is_volume:
        check_image(image.array, str(image.path.name))
        if axis is not None or slice_range is not None:
            raise InputError(f"{image.path.name} is a 2D image; an axis or a slice range is for volumes only.")
        array_axis = None
    else:
        geometry = SliceGeometry.of(image.array.shape, image.ijk_to_ras, axis)
        array_axis = geometry.axis
        first, last = slice_range or (0, geometry.count - 1)
        if not 0 <= first <= last < geometry.count:
            raise InputError(
                f"slices {first}:{last} do not lie in the volume; along the {geometry.plane_name} axis it has "
                f"slices 0:{geometry.count - 1}."
            )
    reading_seconds = time.perf_counter() - began
    output_is_new = not Path(output).exists()
    return SegmentRequest(
        image=image,
        prompts=checked,
        output=check_output_folder(output),
        axis=array_axis,
        slice_range=slice_range,
        # a trained network knows one window only
        window=getattr(recipe, "window", None) or window or image.window or robust_window(image.array),
        reading_seconds=reading_seconds,
        output_is_new=output_is_new,
        **settings,
    )
