"""The double with a main window. Its file name makes ``conftest`` install it so."""

from __future__ import annotations

import numpy as np
import slicer


def test_slice_views_are_real(scene):
    manager = slicer.app.layoutManager()
    assert manager.sliceViewNames() == ("Red", "Yellow", "Green")
    volume = slicer.util.addVolumeFromArray(np.zeros((10, 20, 30), np.int16))
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    red = manager.sliceWidget("Red")
    assert red.mrmlSliceCompositeNode().GetBackgroundVolumeID() == volume.GetID()
    red.mrmlSliceNode().SetSliceOffset(3)
    assert red.sliceLogic().GetSliceOffset() == 3
    assert slicer.app.applicationLogic().GetSliceLogic(red.mrmlSliceNode()) is red.sliceLogic()


def test_modules_are_chosen_in_the_main_window():
    slicer.util.selectModule("SegmentEditor")
    assert slicer.util.selectedModule() == "SegmentEditor"
