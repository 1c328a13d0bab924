"""The panel as a whole: the sections, the parameters, the timer that brings results in, and the scene's events."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMPanel.guard import guarded, guardedQuietly
from MedCLIPSAMPanel.log_section import LogSection
from MedCLIPSAMPanel.parameters import PanelParameters
from MedCLIPSAMPanel.results_section import ResultsSection
from MedCLIPSAMPanel.segment_section import SegmentSection
from MedCLIPSAMPanel.train_section import TrainSection

logger = logging.getLogger(__name__)

RUNNING_INTERVAL = 30  # ms
IDLE_INTERVAL = 300  # ms; the views are looked at as often


class Panel(VTKObservationMixin):
    """Everything behind the widgets of ``MedCLIPSAM.ui``. The sections see it as ``owner``.

    Attributes:
        session: Of the logic; starts the child process when it is first needed.
        parameters: Of the scene's parameter node.
        setup: The section Setup: what is installed, and the device.
    """

    def __init__(self, ui: Any, logic: Any, setup: Any = None, descriptions: list[Any] | None = None):
        """Connect the widgets.

        Args:
            ui: The named widgets of the .ui file.
            logic: Gives the session, the parameter node and the store of training jobs.
            setup: Makes the section Setup from ``(ui, owner)``; None takes the real one.
            descriptions: Of training jobs; None takes those that there are.
        """
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self.logic = logic
        self.session = logic.session
        self._updates = 0
        self._storing = False
        self._warmed: tuple[str, str | None, str] | None = None
        self.entered = False
        self.segment: SegmentSection | None = None  # until all that it looks at is there
        self.parameters = PanelParameters(logic.getParameterNode())
        self.logSection = LogSection(ui, self)
        if setup is None:
            from MedCLIPSAMPanel.setup_section import SetupSection as setup
        if descriptions is None:
            from MedCLIPSAMLib.job_descriptions import descriptions as known_descriptions

            descriptions = known_descriptions()
        self.setup = setup(ui, self)
        with self.update():
            self.segment = SegmentSection(ui, self)
            self.results = ResultsSection(ui, self)
        self.train = TrainSection(ui, self, logic.jobStore, descriptions)
        self._timer = qt.QTimer()
        self._timer.interval = IDLE_INTERVAL
        self._timer.connect("timeout()", self.onPoll)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self._observe_parameters()
        self.load()
        self._timer.start()

    # ---- What the module's widget calls --------------------------------------------------------------------------

    @guarded
    def enter(self) -> None:
        """The module is shown."""
        self.entered = True
        self.setup.refresh()
        if not self.setup.ready:
            self.ui.setupSection.collapsed = False
        self._observe_parameters()
        self.load()
        self.segment.chooseVolume()
        self.train.enter()

    @guarded
    def exit(self) -> None:
        """Another module is shown; a run goes on."""
        self.entered = False
        self.train.exit()

    def cleanup(self) -> None:
        """Stop timers, observers and the child process; idempotent."""
        self._timer.stop()
        self.removeObservers()
        try:
            for part in (self.segment, self.results, self.train, self.setup, self.logSection):
                part.cleanup()
        finally:
            self.logic.close()  # also where a widget is gone already: the child process must not stay

    # ---- What the sections call ----------------------------------------------------------------------------------

    @property
    def updating(self) -> bool:
        """Whether widgets are being filled, so that their signals mean nothing."""
        return self._updates > 0

    @contextmanager
    def update(self) -> Iterator[None]:
        """Fill widgets without their signals being taken for the user's."""
        self._updates += 1
        try:
            yield
        finally:
            self._updates -= 1

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Change the parameter node without filling the widgets from it again."""
        was, self._storing = self._storing, True
        try:
            yield
        finally:
            self._storing = was

    def store(self, **values: Any) -> None:
        """Keep what the user chose in the parameter node."""
        with self.storing():
            self.parameters.set(**values)
        self.segment.run.refresh()

    def load(self) -> None:
        """Show the parameters in all sections."""
        with self.update():
            self.segment.load()
            self.results.load()

    def log(self, text: str) -> None:
        """Add a line to the log section."""
        self.logSection.add(text)

    def showError(self, error: Exception) -> None:
        """Tell the user that something that he asked for went wrong."""
        text = self._error_text(error)
        slicer.util.errorDisplay(text, windowTitle="MedCLIPSAM")
        self._raise_in_tests(error)

    def logError(self, error: Exception) -> None:
        """Keep in the log that something went wrong that nobody asked for."""
        slicer.util.showStatusMessage(self._error_text(error), 5000)
        self._raise_in_tests(error)

    def promptEdited(self) -> None:
        """Load the models while the user is still typing, so that the first run does not wait for them."""
        wanted = (self.segment.engines.engine, self.segment.engines.preset, self.setup.device)
        ready = self.setup.ready and self.parameters.inputVolume is not None and self.session.state == "idle"
        if not ready or wanted == self._warmed or self.setup.lacks(*wanted[:2]) is not None:
            return
        if self.session.warm_up(*wanted):
            self._warmed = wanted

    def volumeChanged(self) -> None:
        """Another input volume was chosen: show what belongs to it."""
        volume = self.parameters.inputVolume
        self.store(resultsSegmentation=None if volume is None else self.session.segmentation(volume))
        self.load()

    def setupChanged(self) -> None:
        """Something was installed or removed, or another device chosen."""
        self._warmed = None
        if self.segment is not None:
            self.segment.run.refresh()

    def runStarted(self) -> None:
        """A run began in another section than Segment."""
        self.segment.run.begin()
        self.results.refreshRows()
        self.pollSoon()

    def pollSoon(self) -> None:
        """Look for results often; back to seldom when there are none to come."""
        self._timer.interval = RUNNING_INTERVAL

    # ---- Timer ---------------------------------------------------------------------------------------------------

    @guardedQuietly
    def onPoll(self) -> None:
        """Bring results in; when nothing runs, look at which slice the views show."""
        self.logSection.drain()
        for event in self.session.poll():
            self._handle(event)
        if self.session.state != "idle":
            self.segment.run.showProgress()
        elif self._timer.interval != IDLE_INTERVAL:
            self._timer.interval = IDLE_INTERVAL
        elif self.entered:
            if self.parameters.inputVolume is None:
                self.segment.chooseVolume()  # one that was loaded while the panel is open
            self.segment.run.lookAgain()
            self.results.table.fit()
            if self.parameters.scope == "slice":
                self.segment.scope.refreshInfo()

    def _handle(self, event: Any) -> None:
        if event.kind == "result":
            segmentation = slicer.mrmlScene.GetNodeByID(event.data["segmentation_id"])
            self.results.show(segmentation, "" if self.segment.run.hasResults else event.data["prompt"])
            row = self.results.rowOf(event.data["prompt"])
            if row is not None:
                self.segment.run.addResult(row)
        elif event.kind in ("finished", "cancelled", "failed"):
            self.segment.run.end(event.text, failed=event.kind == "failed")
            self.results.refresh()
            if event.kind == "finished":
                self.ui.resultsSection.collapsed = False
        elif event.kind == "device":
            self.setup.showDevice(event.data)
            self.log(_("The models are loaded ({device}).").format(device=event.text))
        if event.text and event.kind not in ("progress", "device"):
            self.log(event.text)

    # ---- Scene ---------------------------------------------------------------------------------------------------

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """Drop everything that belongs to the scene; a run is cancelled."""
        self._updates += 1  # until the scene is closed: what selectors say now means nothing
        self.session.scene_closing()
        self.results.forget()

    @guardedQuietly
    def onSceneEndClose(self, caller: Any, event: Any) -> None:
        """Begin anew with the defaults."""
        self._updates = 0
        self._observe_parameters()
        self.segment.run.end("")
        self.load()

    def onSceneStartImport(self, caller: Any, event: Any) -> None:
        """Nodes come one by one now: what selectors say means nothing."""
        self._updates += 1

    @guardedQuietly
    def onSceneEndImport(self, caller: Any, event: Any) -> None:
        """Show what the scene brought with it."""
        self._updates = max(0, self._updates - 1)
        self._observe_parameters()
        self.load()

    @guardedQuietly
    def onParametersModified(self, caller: Any, event: Any) -> None:
        """Somebody else changed the parameters, such as a script or a scene that is loaded."""
        if not self._storing and not self.updating:
            self.load()

    def _observe_parameters(self) -> None:
        """Follow the scene's parameter node, which closing or loading a scene may replace."""
        node = self.logic.getParameterNode()
        if not self.hasObserver(node, vtk.vtkCommand.ModifiedEvent, self.onParametersModified):
            if self.parameters.node is not node:
                self.removeObserver(self.parameters.node, vtk.vtkCommand.ModifiedEvent, self.onParametersModified)
            self.parameters = PanelParameters(node)
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self.onParametersModified)

    # ---- Errors --------------------------------------------------------------------------------------------------

    def _error_text(self, error: Exception) -> str:
        text = str(error) or type(error).__name__
        text = text[:1].upper() + text[1:]
        if isinstance(error, MedCLIPSAMError):
            self.log(text)
            return text
        logger.error("Unexpected error in the panel", exc_info=error)
        self.log(f"{type(error).__name__}: {text}")
        return _("Unexpected error ({kind}): {text}\nThe error log has the details.").format(
            kind=type(error).__name__, text=text
        )

    def _raise_in_tests(self, error: Exception) -> None:
        """Let a self-test see what a slot raised, as slicer.util.tryWithErrorDisplay does."""
        if slicer.app.testingEnabled() and not isinstance(error, MedCLIPSAMError):
            raise error
