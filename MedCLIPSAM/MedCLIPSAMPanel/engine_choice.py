"""The choice of engine, segmenter and preset; folders of own models are typed or chosen with the button.

What is chosen is one text, CLIP or CLIP+SEGMENTER, as the parameters and the library know it.
"""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from MedCLIPSAMLib.engines import check_choice, engine_names, segmenter_names
from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMLib.recipe import Recipe, split_engine
from MedCLIPSAMPanel import prompt_history, wording
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.settings import setSetting, setting

FOLDER_ENGINES = ("finetuned:", "weak:")
_WITHOUT_SEGMENTER = "weak:"  # an nnU-Net gives the mask by itself
_KEPT = 8
_SETTING = "EngineFolders"
_SEGMENTERS = {
    "lite-medsam": "LiteMedSAM",
    "sam-vit-h": "SAM ViT-H",
    "sam-vit-l": "SAM ViT-L",
    "sam-vit-b": "SAM ViT-B",
    "medsam": "MedSAM",
    "sam-med2d": "SAM-Med2D",
}


class EngineChoice:
    """Reads and fills ``ui.engineComboBox``, ``ui.segmenterComboBox`` and ``ui.presetComboBox``."""

    def __init__(self, ui: Any, owner: Any):
        self.ui = ui
        self.owner = owner
        self._shown: str | None = None  # the CLIP whose segmenter and presets are offered
        self._recipe: Recipe | None = None
        for name in engine_names():
            ui.engineComboBox.addItem(name)
            recipe = self._read(name)
            self._explain(ui.engineComboBox, "" if recipe is None else recipe.about)
        ui.engineComboBox.addItems(setting(_SETTING, []))
        ui.segmenterComboBox.addItem("", "")
        for name in segmenter_names():
            ui.segmenterComboBox.addItem(_SEGMENTERS.get(name, name), name)
            self._explain(ui.segmenterComboBox, name)
        menu = qt.QMenu(ui.engineFolderButton)
        menu.addAction(_("Fine-tuned CLIP…")).connect("triggered()", self.onFineTuned)
        menu.addAction(_("Weakly supervised nnU-Net…")).connect("triggered()", self.onWeak)
        ui.engineFolderButton.setMenu(menu)
        ui.engineFolderButton.popupMode = qt.QToolButton.InstantPopup
        ui.engineComboBox.connect("currentTextChanged(QString)", self.onEngineChanged)
        ui.segmenterComboBox.connect("currentIndexChanged(int)", self.onSegmenterChanged)
        ui.presetComboBox.connect("currentIndexChanged(int)", self.onPresetChanged)

    @property
    def engine(self) -> str:
        """The engine's name, such as "lite", "biomedclip+medsam" or "finetuned:/home/me/model"."""
        text, segmenter = self._text(), self.ui.segmenterComboBox.currentData
        if not text or not segmenter or text.startswith(_WITHOUT_SEGMENTER) or split_engine(text)[1] is not None:
            return text
        return f"{text}+{segmenter}"

    @property
    def preset(self) -> str | None:
        """The preset's name; None for the engine's own settings."""
        return self.ui.presetComboBox.currentData or None

    def load(self) -> None:
        """Show the parameters' engine and preset."""
        parameters = self.owner.parameters
        if self.engine != parameters.engine:
            clip, segmenter = split_engine(parameters.engine)
            self.ui.engineComboBox.setCurrentText(clip)
            self._show_segmenter(segmenter)
        self._offer()
        self.ui.presetComboBox.setCurrentIndex(max(0, self.ui.presetComboBox.findData(parameters.preset)))
        self._show_about()
        self.owner.setup.setEngine(self.engine, self.preset)

    def remember(self) -> None:
        """Keep the folder of an own model for the next time."""
        clip = split_engine(self.engine)[0]
        if clip.startswith(FOLDER_ENGINES):
            setSetting(_SETTING, list(dict.fromkeys([clip, *setting(_SETTING, [])]))[:_KEPT])
            if self.ui.engineComboBox.findText(clip) < 0:
                with self.owner.update():
                    self.ui.engineComboBox.addItem(clip)

    @guarded
    def onEngineChanged(self) -> None:
        if self.owner.updating:
            return
        typed = split_engine(self._text())[1]
        if typed in segmenter_names():  # typed as CLIP+SEGMENTER: the box beside it follows
            with self.owner.update():
                self._show_segmenter(typed)
        self._store()

    @guarded
    def onSegmenterChanged(self) -> None:
        if self.owner.updating:
            return
        clip, typed = split_engine(self._text())
        if typed is not None:
            with self.owner.update():
                self.ui.engineComboBox.setCurrentText(clip)
        self._store()

    @guarded
    def onPresetChanged(self) -> None:
        if self.owner.updating:
            return
        self._store()
        if self._recipe is not None and self.preset:
            self.owner.segment.prompts.offer(prompt_history.spoken(self._recipe.with_preset(self.preset).prompts))

    @guarded
    def onFineTuned(self) -> None:
        self._choose_folder(FOLDER_ENGINES[0], _("Folder of the fine-tuned CLIP"))

    @guarded
    def onWeak(self) -> None:
        self._choose_folder(FOLDER_ENGINES[1], _("Folder of the weakly supervised nnU-Net"))

    def _choose_folder(self, prefix: str, title: str) -> None:
        folder = qt.QFileDialog.getExistingDirectory(self.ui.engineComboBox, title)
        if folder:
            self.ui.engineComboBox.setCurrentText(prefix + folder)

    def _text(self) -> str:
        return self.ui.engineComboBox.currentText.strip()

    def _store(self) -> None:
        self._offer()
        self._show_about()
        self.owner.setup.setEngine(self.engine, self.preset)
        self.owner.store(engine=self.engine, preset=self.preset or "")

    def _read(self, clip: str) -> Recipe | None:
        """Return the recipe of a CLIP; None if there is none of that name, or not yet: it is still being typed."""
        try:
            return check_choice(clip, None, "auto")
        except MedCLIPSAMError as error:
            if clip in engine_names():
                self.owner.log(str(error))
            return None

    def _show_segmenter(self, segmenter: str | None) -> None:
        """Choose a segmenter; one that this version does not have (of a scene) is shown as it is called."""
        combo = self.ui.segmenterComboBox
        if combo.findData(segmenter or "") < 0:
            combo.addItem(segmenter, segmenter)
        combo.setCurrentIndex(combo.findData(segmenter or ""))

    def _offer(self) -> None:
        """Offer the segmenter and the presets of the chosen CLIP, where that is another one."""
        clip = split_engine(self._text())[0]
        if clip == self._shown:
            return
        self._shown, self._recipe = clip, self._read(clip)
        combo, presets = self.ui.segmenterComboBox, {}
        own = _("Engine's own")
        if self._recipe is not None:
            own += f" ({_SEGMENTERS.get(self._recipe.segmenter, self._recipe.segmenter)})"
            presets = self._recipe.presets or {}
        combo.setItemText(0, own)
        combo.setEnabled(not clip.startswith(_WITHOUT_SEGMENTER))
        combo = self.ui.presetComboBox
        with self.owner.update():
            combo.clear()
            combo.addItem(_("Engine's own settings"), "")
            for preset, settings in presets.items():
                combo.addItem(wording.title(preset), preset)
                self._explain(combo, settings.get("about", ""))

    @staticmethod
    def _explain(combo: Any, text: str) -> None:
        """Give the last entry of a box its tooltip."""
        combo.setItemData(combo.count - 1, text, qt.Qt.ToolTipRole)

    def _show_about(self) -> None:
        """Say in the tooltips of the boxes what is chosen."""
        recipe, presets = self._recipe, self.ui.presetComboBox
        known = "" if recipe is None else recipe.about
        folders = _('A fine-tuned CLIP is "finetuned:FOLDER", a weakly supervised nnU-Net "weak:FOLDER".')
        self.ui.engineComboBox.toolTip = f"{known}\n{folders}" if known else folders
        chosen = {} if recipe is None else (recipe.presets or {}).get(self.preset or "", {})
        presets.toolTip = chosen.get("about") or _(
            "Settings of the engine for a task, such as one lesion or two lungs."
        )
