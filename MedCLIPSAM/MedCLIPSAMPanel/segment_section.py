"""The section Segment: from what the user chose to a request, and back to the widgets."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from MedCLIPSAMLib import mrml
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.session_types import RunRequest
from MedCLIPSAMPanel import views, wording
from MedCLIPSAMPanel.engine_choice import EngineChoice
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.prompt_field import PromptField
from MedCLIPSAMPanel.run_controls import RunControls
from MedCLIPSAMPanel.scope_choice import ScopeChoice


class SegmentSection:
    """Owns the parts of the section."""

    def __init__(self, ui: Any, owner: Any):
        self.ui = ui
        self.owner = owner
        self._request: RunRequest | None = None  # of the last Apply; None once something was refined after it
        self.prompts = PromptField(ui, owner)
        self.engines = EngineChoice(ui, owner)
        self.scope = ScopeChoice(ui, owner)
        modes = ((_("Automatic"), "auto"), (_("As displayed"), "display"), (_("By hand"), "manual"))
        for text, mode in modes:
            ui.windowModeComboBox.addItem(text, mode)
        self.run = RunControls(ui, owner, self)
        ui.refineButton.connect("clicked()", self.onRefine)
        ui.inputVolumeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onVolumeChanged)
        ui.outputSegmentationSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onOutputChanged)
        ui.seedSpinBox.connect("valueChanged(int)", self.onAdvancedChanged)
        ui.samplesSpinBox.connect("valueChanged(int)", self.onAdvancedChanged)
        ui.gateCheckBox.connect("toggled(bool)", self.onAdvancedChanged)
        ui.windowModeComboBox.connect("currentIndexChanged(int)", self.onAdvancedChanged)
        ui.windowRangeWidget.connect("valuesChanged(double,double)", self.onAdvancedChanged)

    # ---- Runs --------------------------------------------------------------------------------------------------

    def cannotApply(self) -> str | None:
        """Return why a run cannot be started, or None."""
        volume = self.owner.parameters.inputVolume
        if not views.isInput(volume):
            is_map = volume is not None and volume.GetAttribute("MedCLIPSAM.Kind") is not None
            return _("This is a map of MedCLIPSAM; choose an image.") if is_map else _("Choose a volume first.")
        if not self.prompts.lines():
            return _("Type what to segment first.")
        if not self.owner.setup.ready:
            return _("Install what is missing first, in the section Setup.")
        return self.owner.setup.lacks(self.engines.engine, self.engines.preset)

    def request(self) -> RunRequest:
        """Return the request that the widgets say.

        Raises:
            InputError: No volume, or the chosen view does not cut it.
        """
        parameters, volume = self.owner.parameters, self.owner.parameters.inputVolume
        if not views.isInput(volume):
            raise InputError(_("there is no input volume; choose an image that was loaded."))
        output = parameters.outputSegmentation
        return RunRequest(
            volume_id=volume.GetID(),
            prompts=tuple(self.prompts.lines()),
            segmentation_id=None if output is None else output.GetID(),
            engine=self.engines.engine,
            preset=self.engines.preset,
            device=self.owner.setup.device,
            seed=parameters.seed,
            gate=parameters.gate,
            samples=parameters.samples or None,
            window=self._window(volume),
            **self.scope.requestFields(volume),
        )

    def apply(self) -> None:
        """Start a run.

        Raises:
            MedCLIPSAMError: The request cannot be run; the message says why.
        """
        request = self.request()
        self.owner.session.run(request)
        self._request = request
        self.prompts.remember()
        self.engines.remember()
        self.owner.log(_("Run: {prompts} ({scope}).").format(prompts="; ".join(request.prompts), scope=request.scope))
        self.run.begin()
        self.owner.pollSoon()

    def canKeepFinished(self) -> bool:
        """Whether the run that goes on has finished slices that could be kept; a refinement is whole or nothing."""
        return self._request is not None and self._request.scope != "slice" and self.owner.session.status.done > 0

    @guarded
    def onRefine(self) -> None:
        self._request = None  # else Cancel asked what the last Apply would have asked

    def estimateText(self) -> str:
        """Return how long a run over several slices will take; empty on a single slice."""
        if self.owner.parameters.scope == "slice":
            return ""
        try:
            seconds = self.owner.session.estimate(self.request())
        except MedCLIPSAMError:
            return ""  # Apply says what is wrong
        if seconds is None:
            return _("Segment one slice first to learn how long this takes.")
        return _("This will take {time}.").format(time=wording.about(seconds))

    # ---- Parameters and widgets --------------------------------------------------------------------------------

    def load(self) -> None:
        """Show the parameters."""
        parameters, ui = self.owner.parameters, self.ui
        ui.inputVolumeSelector.setCurrentNode(parameters.inputVolume)
        ui.outputSegmentationSelector.setCurrentNode(parameters.outputSegmentation)
        self.prompts.load()
        self.engines.load()
        self.scope.load()
        ui.seedSpinBox.value = parameters.seed
        ui.samplesSpinBox.value = parameters.samples
        ui.gateCheckBox.checked = parameters.gate
        ui.windowModeComboBox.setCurrentIndex(ui.windowModeComboBox.findData(parameters.windowMode))
        self._show_window(parameters.inputVolume)
        self.run.refresh()

    def chooseVolume(self) -> None:
        """Choose a sensible volume where none is chosen: the one that is shown, else the only one."""
        if views.isInput(self.owner.parameters.inputVolume):
            return
        volume = views.shownVolume()
        if volume is None:
            volumes = list(views.inputs())
            volume = volumes[0] if len(volumes) == 1 else None
        if volume is not None:
            self.owner.store(inputVolume=volume)
            if self.owner.parameters.resultsSegmentation is None:
                self.owner.volumeChanged()
            self.owner.load()

    @guarded
    def onVolumeChanged(self, node: Any) -> None:
        # renaming the chosen volume makes the selector tell of it again
        if not self.owner.updating and node is not self.owner.parameters.inputVolume:
            self.owner.store(inputVolume=node, outputSegmentation=None, firstSlice=0, lastSlice=-1, plane="")
            self.owner.volumeChanged()

    @guarded
    def onOutputChanged(self, node: Any) -> None:
        if not self.owner.updating:
            self.owner.store(outputSegmentation=node)

    @guarded
    def onAdvancedChanged(self) -> None:
        if self.owner.updating:
            return
        ui, window = self.ui, self.ui.windowRangeWidget
        before = self.owner.parameters.windowMode
        self.owner.store(
            seed=ui.seedSpinBox.value,
            samples=ui.samplesSpinBox.value,
            gate=ui.gateCheckBox.checked,
            windowMode=ui.windowModeComboBox.currentData,
            windowLow=window.minimumValue,
            windowHigh=window.maximumValue,
        )
        if self.owner.parameters.windowMode != before:
            self._show_window(self.owner.parameters.inputVolume)

    def _window(self, volume: Any) -> tuple[float, float] | None:
        mode = self.owner.parameters.windowMode
        if mode == "display":
            return mrml.displayed_window(volume)
        if mode == "manual":
            return self.ui.windowRangeWidget.minimumValue, self.ui.windowRangeWidget.maximumValue
        return None

    def _show_window(self, volume: Any) -> None:
        """Offer the volume's intensities; begin with those that are displayed."""
        parameters, widget = self.owner.parameters, self.ui.windowRangeWidget
        manual = parameters.windowMode == "manual"
        self.ui.windowRangeLabel.setVisible(manual)
        widget.setVisible(manual)
        if not manual or not views.isInput(volume):
            return
        low, high = volume.GetImageData().GetScalarRange()
        chosen = (parameters.windowLow, parameters.windowHigh)
        if not low <= chosen[0] < chosen[1] <= high:
            shown = mrml.displayed_window(volume) or (low, high)
            chosen = (max(low, shown[0]), min(high, shown[1]))
        with self.owner.update():
            widget.decimals = 0 if high - low > 50 else 3
            widget.singleStep = 1.0 if high - low > 50 else (high - low) / 100
            widget.setRange(low, high)
            widget.setValues(*chosen)

    def cleanup(self) -> None:
        self.run.cleanup()
        self.prompts.cleanup()
