"""The choice of engine, segmenter and preset, what a preset offers, and what Apply says where something is lacking."""

from __future__ import annotations

import dataclasses

import pytest
from panel_scenes import add_volume, texts, use_stand_in, wait_until

pytest_plugins = ["setup_fixtures"]


@pytest.fixture
def panel(world, module, monkeypatch):
    """The panel, entered, on a volume, with the packages of the engine lite installed; no child is needed."""
    from MedCLIPSAMPanel.setup_section import SetupSection

    use_stand_in(monkeypatch)
    monkeypatch.setattr(SetupSection, "ready", property(lambda self: True))
    add_volume()
    representation = module.widgetRepresentation()
    representation.enter()
    return representation.self().panel


@pytest.fixture
def small(world, monkeypatch):
    """Weights of a few bytes, so that a test can put them in their place."""
    from MedCLIPSAMLib import dependencies, weights

    if dependencies.unsatisfied(dependencies.check(["biomedclip"])):
        pytest.skip("the packages of the engine biomedclip are not installed")
    entries = tuple(dataclasses.replace(one, bytes=10, sha256=None) for one in weights._entries())
    monkeypatch.setattr(weights, "_entries", lambda: entries)

    def put(*names):
        for name in names:
            file = weights.user_folder() / weights.registry()[name].file
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"0123456789")

    return put


def items(combo):
    return [combo.itemData(number) for number in range(combo.count)]


def choose(combo, data):
    assert combo.findData(data) >= 0
    combo.setCurrentIndex(combo.findData(data))


def test_every_engine_and_segmenter_is_offered(panel):
    from MedCLIPSAMLib.engines import engine_names, segmenter_names
    from MedCLIPSAMLib.recipe import load_recipe

    ui = panel.ui
    assert [ui.engineComboBox.itemText(number) for number in range(ui.engineComboBox.count)] == engine_names()
    assert items(ui.segmenterComboBox) == ["", *segmenter_names()]
    assert ui.segmenterComboBox.currentText == "Engine's own (LiteMedSAM)"
    ui.engineComboBox.setCurrentText("biomedclip")
    assert ui.segmenterComboBox.itemText(0) == "Engine's own (SAM ViT-H)"
    assert ui.engineComboBox.toolTip.startswith(load_recipe("biomedclip").about)
    assert items(ui.presetComboBox) == ["", *load_recipe("biomedclip").presets]


def test_the_choices_become_one_text_and_come_back_from_it(panel):
    ui, engines = panel.ui, panel.segment.engines
    ui.engineComboBox.setCurrentText("biomedclip")
    choose(ui.segmenterComboBox, "medsam")
    assert engines.engine == panel.parameters.engine == "biomedclip+medsam"
    ui.engineComboBox.setCurrentText("lite")
    assert panel.parameters.engine == "lite+medsam"
    choose(ui.segmenterComboBox, "")
    assert panel.parameters.engine == "lite"
    panel.parameters.set(engine="clip-vit-b-16+sam-vit-l", preset="gradcam")  # as a scene that is loaded
    assert ui.engineComboBox.currentText == "clip-vit-b-16"
    assert ui.segmenterComboBox.currentData == "sam-vit-l"
    assert ui.presetComboBox.currentText == "GradCAM"
    assert (engines.engine, engines.preset) == ("clip-vit-b-16+sam-vit-l", "gradcam")


def test_an_engine_typed_with_its_segmenter(panel):
    ui, engines = panel.ui, panel.segment.engines
    ui.engineComboBox.setCurrentText("biomedclip+med")  # on the way
    assert engines.engine == "biomedclip+med"
    ui.engineComboBox.setCurrentText("biomedclip+medsam")
    assert ui.engineComboBox.currentText == "biomedclip+medsam"  # nobody's typing is changed
    assert ui.segmenterComboBox.currentData == "medsam"
    assert panel.parameters.engine == "biomedclip+medsam"
    choose(ui.segmenterComboBox, "sam-vit-b")
    assert ui.engineComboBox.currentText == "biomedclip"
    assert panel.parameters.engine == "biomedclip+sam-vit-b"


def test_a_segmenter_of_another_version_is_kept_and_refused_with_words(panel):
    panel.parameters.set(engine="biomedclip+sam-9")
    assert panel.segment.engines.engine == "biomedclip+sam-9"
    panel.ui.promptEdit.setPlainText("ball")
    assert not panel.ui.applyButton.enabled
    assert "'sam-9' is unknown" in panel.ui.applyButton.toolTip
    assert panel.parameters.engine == "biomedclip+sam-9"


def test_a_finetuned_folder_with_a_segmenter_is_kept_as_a_folder(panel, tmp_path):
    ui = panel.ui
    ui.engineComboBox.setCurrentText(f"finetuned:{tmp_path}")
    choose(ui.segmenterComboBox, "medsam")
    assert panel.parameters.engine == f"finetuned:{tmp_path}+medsam"
    panel.segment.engines.remember()
    assert ui.engineComboBox.findText(f"finetuned:{tmp_path}") > 0
    assert panel.parameters.engine == f"finetuned:{tmp_path}+medsam"
    ui.engineComboBox.setCurrentText("weak:/somewhere")
    assert not ui.segmenterComboBox.enabled
    assert panel.parameters.engine == "weak:/somewhere"


def test_a_preset_says_what_it_is_for(world, panel):
    from MedCLIPSAMLib.recipe import load_recipe

    ui = panel.ui
    ui.engineComboBox.setCurrentText("biomedclip")
    presets = load_recipe("biomedclip").presets
    number = ui.presetComboBox.findData("brain-mri")
    assert ui.presetComboBox.itemText(number) == "Brain MRI"
    assert ui.presetComboBox.itemText(ui.presetComboBox.findData("chest-xray")) == "Chest X-ray"
    assert ui.presetComboBox.itemData(number, world.qt.Qt.ToolTipRole) == presets["brain-mri"]["about"]
    choose(ui.presetComboBox, "brain-mri")
    assert ui.presetComboBox.toolTip == presets["brain-mri"]["about"]


def test_a_preset_offers_its_prompt_and_never_replaces_what_was_typed(panel):
    from MedCLIPSAMLib.prompts import load_prompt_set

    ui = panel.ui
    ui.engineComboBox.setCurrentText("biomedclip")
    choose(ui.presetComboBox, "breast-ultrasound")
    malignant = load_prompt_set("breast-ultrasound-p3-malignant").prompts[0]
    assert ui.promptEdit.plainText == panel.parameters.prompts == malignant
    choose(ui.presetComboBox, "brain-mri")  # nobody has touched the field: the offer is the new preset's
    assert ui.promptEdit.plainText == load_prompt_set("brain-mri-p3-glioma").prompts[0]
    choose(ui.presetComboBox, "gradcam")  # has none of its own
    assert ui.promptEdit.plainText == load_prompt_set("brain-mri-p3-glioma").prompts[0]
    ui.promptEdit.setPlainText("my own words")
    choose(ui.presetComboBox, "breast-ultrasound")
    assert ui.promptEdit.plainText == "my own words"
    panel.segment.prompts.onExamplesMenu()
    actions = ui.promptSetsButton.menu().actions()
    assert actions[0].toolTip == malignant
    assert actions[1].toolTip == load_prompt_set("breast-ultrasound-p3-benign").prompts[0]
    ui.promptEdit.setPlainText("")
    panel.parameters.set(preset="chest-ct")  # a scene that is loaded offers nothing
    assert ui.promptEdit.plainText == ""


def test_apply_says_which_weights_are_missing_and_notices_when_they_come(panel, small):
    ui = panel.ui
    ui.promptEdit.setPlainText("ball")
    ui.engineComboBox.setCurrentText("biomedclip")
    choose(ui.segmenterComboBox, "medsam")
    reason = ui.applyButton.toolTip
    assert not ui.applyButton.enabled
    for words in ("biomedclip+medsam needs", "biomedclip-tokenizer", "medsam", "in all", "Setup"):
        assert words in reason
    assert "sam-vit-h" not in reason
    assert ui.estimateLabel.text == reason
    assert texts(ui.weightsTable, 0)[:3] == ["biomedclip", "biomedclip-tokenizer", "medsam"]
    small("biomedclip", "biomedclip-tokenizer")
    wait_until(lambda: "biomedclip+medsam needs weights that are not there: medsam" in ui.applyButton.toolTip, 20)
    small("medsam")  # put in its place by hand: nobody presses anything
    wait_until(lambda: ui.applyButton.enabled, 20)


def test_apply_says_which_packages_are_missing_and_setup_checks_them(world, panel, small, lacking):
    small("biomedclip", "biomedclip-tokenizer", "medsam")
    lacking("open_clip_torch", "timm")
    ui, setup = panel.ui, panel.setup
    setup.refresh()
    ui.promptEdit.setPlainText("ball")
    assert ui.applyButton.enabled
    ui.engineComboBox.setCurrentText("biomedclip+medsam")
    assert not ui.applyButton.enabled
    for words in ("open_clip_torch, timm", "Setup", "Engine biomedclip"):
        assert words in ui.applyButton.toolTip
    row = texts(ui.requirementsTable, 0).index("open_clip_torch")
    assert ui.requirementsTable.item(row, 0).checkState() == world.qt.Qt.Checked
    assert ui.installButton.enabled
    assert "2 more packages" in ui.installStatusLabel.text
    lacking()
    setup.refresh()
    panel.setupChanged()
    assert ui.applyButton.enabled


def test_a_preset_whose_package_is_missing_is_said(panel, small, monkeypatch):
    from MedCLIPSAMLib import crf

    monkeypatch.setattr(crf, "is_available", lambda: False)
    small("biomedclip", "biomedclip-tokenizer", "sam-vit-h")
    ui = panel.ui
    ui.promptEdit.setPlainText("ball")
    ui.engineComboBox.setCurrentText("biomedclip")
    assert ui.applyButton.enabled
    choose(ui.presetComboBox, "medclip-sam-v1")
    assert not ui.applyButton.enabled
    assert "pydensecrf2" in ui.applyButton.toolTip


def test_models_that_lack_something_are_not_loaded_ahead(panel, small, monkeypatch):
    loaded = []
    small("lite-medsam", "minilm-l6-v2", "minilm-l6-v2-tokenizer")
    monkeypatch.setattr(panel.session, "warm_up", lambda *wanted: loaded.append(wanted[:2]))
    ui = panel.ui
    ui.engineComboBox.setCurrentText("biomedclip")
    ui.promptEdit.setPlainText("ball")
    assert loaded == []
    ui.engineComboBox.setCurrentText("lite")
    ui.promptEdit.setPlainText("ball b")
    assert loaded == [("lite", None)]


def test_the_language_models_window_is_opened_from_the_examples(panel):
    ui, prompts = panel.ui, panel.segment.prompts
    ui.promptEdit.setPlainText("breast tumor")
    prompts.onExamplesMenu()
    action = ui.promptSetsButton.menu().actions()[-1]
    assert action.text.startswith("Write with a language model")
    action.trigger()
    writer = prompts._writer
    assert writer.target.text == "breast tumor"
    writer._offer("set:chest-ct-p4")  # as its button Use does
    assert prompts.lines() == ["breast tumor", "set:chest-ct-p4"]
    writer._written()
    prompts.onExamplesMenu()
    assert ui.promptSetsButton.menu().actions()[-1].text.startswith("Write with a language model")
    panel.segment.cleanup()
    assert prompts._writer is None
