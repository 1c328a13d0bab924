"""The typed parameters, on real parameter nodes: types, damaged values, save and load, scene close."""

from __future__ import annotations

import pytest


@pytest.fixture
def parameters(scene, module):
    from MedCLIPSAM import MedCLIPSAMLogic
    from MedCLIPSAMPanel.parameters import PanelParameters

    return PanelParameters(MedCLIPSAMLogic().getParameterNode())


def test_values_keep_their_type(parameters):
    parameters.set(
        prompts="brain tumor\nlungs", seed=7, gate=False, overlayOpacity=0.1, promptHistory=("a, b", "ü\n", '"'),
        scope="range",
    )  # fmt: skip
    assert parameters.prompts == "brain tumor\nlungs"
    assert parameters.seed == 7 and isinstance(parameters.seed, int)
    assert parameters.gate is False
    assert parameters.overlayOpacity == 0.1
    assert parameters.promptHistory == ("a, b", "ü\n", '"')
    assert parameters.scope == "range"


def test_defaults_and_damaged_values(parameters):
    from MedCLIPSAMPanel.parameters import PanelParameters

    for name, text in {
        "seed": "many", "gate": "perhaps", "promptHistory": "{", "scope": "everywhere", "overlayOpacity": "",
    }.items():  # fmt: skip
        parameters.node.SetParameter(name, text)
        assert getattr(parameters, name) == getattr(PanelParameters, name).default


def test_unknown_names_are_refused(parameters):
    with pytest.raises(AttributeError, match="seeds"):
        parameters.set(seeds=3)


def test_several_changes_are_one_event(parameters):
    import vtk

    events = []
    tag = parameters.node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: events.append(1))
    parameters.set(seed=1, samples=2, gate=False)
    parameters.node.RemoveObserver(tag)
    assert len(events) == 1


def test_saved_and_loaded_with_other_ids(scene, parameters, tmp_path):
    import slicer

    from MedCLIPSAMPanel.parameters import PanelParameters

    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    parameters.set(prompts='lungs & <b>"air"</b>; ü\nsecond', seed=5, inputVolume=volume)
    path = str(tmp_path / "scene.mrml")
    scene.SetURL(path)
    assert scene.Commit(path)
    scene.Clear(0)
    assert parameters.prompts == "" and parameters.inputVolume is None

    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "in the way")  # so that ids change at import
    scene.SetURL(path)
    assert scene.Import()
    from MedCLIPSAM import MedCLIPSAMLogic

    again = PanelParameters(MedCLIPSAMLogic().getParameterNode())
    assert again.prompts == 'lungs & <b>"air"</b>; ü\nsecond'
    assert again.seed == 5
    assert again.inputVolume is not None and again.inputVolume.GetName() == "CT"
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == 1


def test_removed_node_is_none(scene, parameters):
    segmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    parameters.outputSegmentation = segmentation
    assert parameters.outputSegmentation is segmentation
    scene.RemoveNode(segmentation)
    assert parameters.outputSegmentation is None


def test_node_of_another_kind_is_none(scene, parameters):
    parameters.node.SetNodeReferenceID("inputVolume", scene.AddNewNodeByClass("vtkMRMLSegmentationNode").GetID())
    assert parameters.inputVolume is None
