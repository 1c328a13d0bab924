"""Brings the panel into the state of the README's picture: two prompts on the simulated brain, with the lite engine.

    PYTHONPATH=Testing/SlicerDouble python -m slicer_double.pictures MedCLIPSAM/MedCLIPSAM.py FOLDER \
        --prepare Testing/Panel/panel_picture.py --window
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

PATIENCE = 300.0  # seconds; the models are loaded on the way


def prepare(widget: Any) -> None:
    """Run the prompts and show the saliency."""
    sys.path.append(str(Path(__file__).resolve().parent))
    import slicer
    from panel_scenes import show_in_views

    from MedCLIPSAMPanel import sample_data

    volume = sample_data.load("brain-mri")
    show_in_views(volume)
    widget.enter()
    ui, panel = widget.panel.ui, widget.panel
    ui.inputVolumeSelector.setCurrentNode(volume)
    ui.promptEdit.setPlainText("brain tumor\nlungs")
    ui.applyButton.click()
    end = time.monotonic() + PATIENCE
    while panel.session.state != "idle" or not ui.applyButton.enabled:
        slicer.app.processEvents()
        if time.monotonic() > end:
            raise TimeoutError("the run did not end")
        time.sleep(0.01)
    ui.overlayComboBox.setCurrentIndex(ui.overlayComboBox.findData("saliency"))
    ui.acceptButton.click()
    wait = time.monotonic() + 1.0  # the texts are laid out by events
    while time.monotonic() < wait:
        slicer.app.processEvents()
