"""Simulated samples in Slicer's module Sample Data: drawn when one is asked for, without network."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import slicer

CATEGORY = "MedCLIPSAM"
SAMPLES = {
    "breast-ultrasound": "Simulated breast ultrasound",
    "chest-ct": "Simulated chest CT slice",
    "chest-xray": "Simulated chest X-ray",
    "brain-mri": "Simulated brain MRI slice",
    "brain-mri-volume": "Simulated brain MRI",
}
_NEEDS = {"brain-mri": "nilearn", "brain-mri-volume": "nilearn"}  # the package that carries the brain


def register(icons: str) -> None:
    """Register the samples that can be drawn here.

    Args:
        icons: Folder of the module's icon, shown as thumbnail.
    """
    import SampleData

    for name, title in SAMPLES.items():
        needs = _NEEDS.get(name)
        if needs and importlib.util.find_spec(needs) is None:
            continue
        SampleData.SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=title,
            thumbnailFileName=os.path.join(icons, "MedCLIPSAM.png"),
            uris=f"simulated:{name}",
            fileNames=f"{name}.nrrd",
            nodeNames=title,
            loadFiles=False,
            customDownloader=_downloader(name),
        )


def load(name: str) -> Any:
    """Draw a sample and add it to the scene.

    Args:
        name: One of ``SAMPLES``.

    Returns:
        The volume node.

    Raises:
        InputError: There is no such sample.
    """
    from MedCLIPSAMLib.samples import load_sample

    image = load_sample(name).image
    array = image.array if image.array.ndim == 3 else image.array[np.newaxis]
    volume = slicer.util.addVolumeFromArray(np.ascontiguousarray(array), ijkToRAS=image.ijk_to_ras, name=SAMPLES[name])
    display = volume.GetDisplayNode()
    if display is not None and image.window is not None:
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(*image.window)
    return volume


def _downloader(name: str) -> Callable[[Any], list[Any]]:
    def download(source: Any) -> list[Any]:
        volume = load(name)
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        return [volume]

    return download
