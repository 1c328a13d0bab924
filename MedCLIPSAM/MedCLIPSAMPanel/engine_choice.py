"""The choice of engine and preset; folders of own models are typed or chosen with the button."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from MedCLIPSAMLib.engines import engine_names
from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMLib.recipe import load_recipe
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.settings import setSetting, setting

FOLDER_ENGINES = ("finetuned:", "weak:")
_KEPT = 8
_SETTING = "EngineFolders"


class EngineChoice:
    """Reads and fills ``ui.engineComboBox`` and ``ui.presetComboBox``."""

    def __init__(self, ui: Any, owner: Any):
        self.ui = ui
        self.owner = owner
        self._presets_of: str | None = None
        ui.engineComboBox.addItems([*engine_names(), *setting(_SETTING, [])])
        menu = qt.QMenu(ui.engineFolderButton)
        menu.addAction(_("Fine-tuned CLIP…")).connect("triggered()", self.onFineTuned)
        menu.addAction(_("Weakly supervised nnU-Net…")).connect("triggered()", self.onWeak)
        ui.engineFolderButton.setMenu(menu)
        ui.engineFolderButton.popupMode = qt.QToolButton.InstantPopup
        ui.engineComboBox.connect("currentTextChanged(QString)", self.onEngineChanged)
        ui.presetComboBox.connect("currentIndexChanged(int)", self.onPresetChanged)

    @property
    def engine(self) -> str:
        """The engine's name, such as "lite" or "finetuned:/home/me/model"."""
        return self.ui.engineComboBox.currentText.strip()

    @property
    def preset(self) -> str | None:
        """The preset's name; None for the engine's own settings."""
        return self.ui.presetComboBox.currentData or None

    def load(self) -> None:
        """Show the parameters' engine and preset."""
        parameters = self.owner.parameters
        if self.engine != parameters.engine:
            self.ui.engineComboBox.setCurrentText(parameters.engine)
        self._fill_presets(parameters.engine)
        self.ui.presetComboBox.setCurrentIndex(max(0, self.ui.presetComboBox.findData(parameters.preset)))

    def remember(self) -> None:
        """Keep the folder of an own model for the next time."""
        if self.engine.startswith(FOLDER_ENGINES):
            setSetting(_SETTING, list(dict.fromkeys([self.engine, *setting(_SETTING, [])]))[:_KEPT])
            if self.ui.engineComboBox.findText(self.engine) < 0:
                self.ui.engineComboBox.addItem(self.engine)

    @guarded
    def onEngineChanged(self) -> None:
        if not self.owner.updating:
            self._fill_presets(self.engine)
            self.owner.store(engine=self.engine, preset=self.preset or "")

    @guarded
    def onPresetChanged(self) -> None:
        if not self.owner.updating:
            self.owner.store(preset=self.preset or "")

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

    def _fill_presets(self, engine: str) -> None:
        """Offer the presets of an engine; one that cannot be read offers none."""
        name = "" if engine.startswith(FOLDER_ENGINES) else engine
        if name == self._presets_of:
            return
        self._presets_of = name
        try:
            presets = sorted(load_recipe(name).presets or {}) if name in engine_names() else []
        except MedCLIPSAMError as error:
            self.owner.log(str(error))
            presets = []
        with self.owner.update():
            self.ui.presetComboBox.clear()
            self.ui.presetComboBox.addItem(_("Engine's own settings"), "")
            for preset in presets:
                words = preset.replace("-", " ")
                self.ui.presetComboBox.addItem(words[:1].upper() + words[1:], preset)
