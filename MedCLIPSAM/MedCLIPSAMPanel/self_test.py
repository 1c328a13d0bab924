"""The module's own test, as Slicer's developer menu and ``--testing`` run it. No network, no dialog, no main window."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import numpy as np
import slicer

from MedCLIPSAMLib import mrml_segments
from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMLib.samples import load_sample
from MedCLIPSAMLib.weights import locate
from MedCLIPSAMPanel import sample_data

NAMES = ("panelTest", "parametersTest", "pipelineTest")

_PACKAGES = ("torch", "torchvision", "segment_anything", "safetensors", "tokenizers")
_WEIGHTS = ("lite-alignment", "lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer")
_LEAST_DICE = 0.6


def panelTest(test: Any) -> None:
    """The panel opens, takes a volume and a prompt, and says what is missing."""
    widget = slicer.modules.medclipsam.widgetRepresentation().self()
    widget.enter()
    test.assertFalse(widget.ui.applyButton.enabled, "Apply without a volume")
    volume = sample_data.load("breast-ultrasound")
    slicer.util.setSliceViewerLayers(background=volume, fit=True)  # does nothing without a main window
    widget.enter()
    test.assertEqual(widget.ui.inputVolumeSelector.currentNodeID, volume.GetID())
    widget.ui.promptEdit.setPlainText("breast tumor\nbreast lesion")
    test.assertEqual(widget.panel.segment.prompts.lines(), ["breast tumor", "breast lesion"])
    test.assertEqual(widget.ui.applyButton.enabled, widget.panel.setup.ready)
    request = widget.panel.segment.request()
    test.assertEqual((request.scope, request.index), ("slice", 0))
    widget.exit()


def parametersTest(test: Any) -> None:
    """Parameters are kept in the scene, and are the defaults again after it was closed."""
    widget = slicer.modules.medclipsam.widgetRepresentation().self()
    widget.ui.promptEdit.setPlainText("lungs")
    widget.ui.seedSpinBox.value = 7
    test.assertEqual(widget.panel.parameters.node.GetParameter("prompts"), "lungs")
    slicer.mrmlScene.Clear()
    test.assertEqual(widget.ui.promptEdit.plainText, "")
    test.assertEqual(widget.ui.seedSpinBox.value, 0)


def pipelineTest(test: Any) -> None:
    """The lite engine finds the simulated mass; passed over, and said so, when it is not installed."""
    from MedCLIPSAM import MedCLIPSAMLogic

    missing = missingRequirements()
    if missing:
        text = f"The pipeline was not tested, only the panel. Not installed: {', '.join(missing)}."
        logging.warning(text)
        test.delayDisplay(text)
        return
    sample = load_sample("breast-ultrasound")
    volume = sample_data.load("breast-ultrasound")
    logic = MedCLIPSAMLogic()
    try:
        segmentation = logic.process(volume, sample.prompt, scope="volume", timeout=600)
        row = logic.session.rows(segmentation)[0]
        mask = mrml_segments.segment_array(segmentation, volume, row.mask_segment_id)[0]
        dice = 2 * np.count_nonzero(mask & sample.truth) / (np.count_nonzero(mask) + np.count_nonzero(sample.truth))
        test.assertGreater(dice, _LEAST_DICE)
        test.assertIsNotNone(row.saliency_node_id)
        test.assertTrue(logic.session.can_undo)
        logic.session.undo()
        test.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)
    finally:
        logic.close()


def missingRequirements() -> list[str]:
    """Return the packages and weights that the lite engine needs and that are not there."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    for name in _WEIGHTS:
        try:
            locate(name)
        except MedCLIPSAMError:
            missing.append(name)
    return missing
