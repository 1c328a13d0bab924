"""MedCLIPSAM: text-prompted segmentation with saliency and uncertainty, as a module of 3D Slicer.

Everything but the shells that Slicer asks for lives in MedCLIPSAMPanel (the panel) and MedCLIPSAMLib (the method).
"""

import logging
import os
import sys

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


def _root():
    """Return the folder with MedCLIPSAMLib and Resources: beside this file when installed, above it in a checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    for folder in (here, os.path.dirname(here)):
        if os.path.isfile(os.path.join(folder, "MedCLIPSAMLib", "__init__.py")):
            return folder
    raise ImportError(f"MedCLIPSAMLib is not beside {here}; install the extension MedCLIPSAM again.")


_ROOT = _root()
for _folder in (os.path.dirname(os.path.abspath(__file__)), _ROOT):
    if _folder not in sys.path:
        sys.path.append(_folder)  # at the end: the root of a checkout holds names that others use as well


def _resource(name):
    return os.path.join(_ROOT, "Resources", name)


class MedCLIPSAM(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = "MedCLIPSAM"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["MedCLIPSAM contributors"]
        self.parent.icon = qt.QIcon(_resource("Icons/MedCLIPSAM.png"))
        self.parent.helpText = _(
            "<p>Type what to find in a medical image; get a mask, and a map of where that mask is uncertain. "
            "Choose a volume, type one prompt per line, and press Apply (Ctrl+Enter).</p>"
            "<p>For research only. Not a medical device: check every result before relying on it.</p>"
        )
        self.parent.acknowledgementText = _(
            "<p>The method is that of Koleilat T, Asgariandehkordi H, Rivaz H, Xiao Y. <i>MedCLIP-SAMv2: Towards "
            "universal text-driven medical image segmentation</i>. "
            '<a href="https://arxiv.org/abs/2409.19483">arXiv 2409.19483</a>. '
            "Please cite that paper when you publish results.</p>"
            "<p>Licences of the models' weights are listed in the section Setup. Research use only.</p>"
        )
        slicer.app.connect("startupCompleted()", onStartupCompleted)

    def resourcePath(self, filename):
        """Return the path of a file below Resources, which may lie beside this file or above it."""
        return _resource(filename)


def onStartupCompleted():
    """Offer the samples, and go on with an installation that had to restart Slicer."""
    registerSampleData()
    from MedCLIPSAMPanel import installer

    installer.resumePendingInstall()


def registerSampleData():
    """Offer the simulated samples in the module Sample Data; nothing is drawn before one is asked for."""
    from MedCLIPSAMPanel import sample_data

    sample_data.register(_resource("Icons"))


class MedCLIPSAMWidget(ScriptedLoadableModuleWidget):
    """The panel; its parts are in MedCLIPSAMPanel."""

    def __init__(self, parent=None):
        self.logic = None
        self.panel = None
        self.ui = None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        """Build the panel; needs neither a main window nor slice views, and starts no process."""
        ScriptedLoadableModuleWidget.setup(self)
        from MedCLIPSAMPanel.panel import Panel

        widget = slicer.util.loadUI(self.resourcePath("UI/MedCLIPSAM.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = MedCLIPSAMLogic()
        self.panel = Panel(self.ui, self.logic)
        slicer.app.connect("aboutToQuit()", self.cleanup)

    def enter(self):
        """The user opens the module."""
        if self.panel is not None:
            self.panel.enter()

    def exit(self):
        """The user opens another module."""
        if self.panel is not None:
            self.panel.exit()

    def cleanup(self):
        """Stop everything, the child process included; may be called more than once."""
        if self.panel is not None:
            panel, self.panel = self.panel, None
            panel.cleanup()
            slicer.app.disconnect("aboutToQuit()", self.cleanup)

    def resourcePath(self, filename):
        """Return the path of a file below Resources."""
        return _resource(filename)

    def onReload(self):
        """Reload this file and, unlike Slicer itself, the library and the panel's parts as well."""
        self.cleanup()
        for name in [name for name in sys.modules if name.split(".")[0] in ("MedCLIPSAMLib", "MedCLIPSAMPanel")]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class MedCLIPSAMLogic(ScriptedLoadableModuleLogic):
    """The module without its panel; also for scripts.

    Example::

        from MedCLIPSAM import MedCLIPSAMLogic

        logic = MedCLIPSAMLogic()
        segmentation = logic.process(slicer.util.getNode("MRBrainTumor1"), ["brain tumor"], preset="single-lesion")
        for row in logic.session.rows(segmentation):
            print(row.prompt, row.size, row.unit, row.presence)
        logic.close()
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self._session = None

    @property
    def session(self):
        """The session on the application's scene; made when it is first asked for, without starting a process."""
        if self._session is None:
            from MedCLIPSAMLib.session import Session

            self._session = Session(slicer.mrmlScene)
        return self._session

    @property
    def jobStore(self):
        """The training jobs of this user."""
        from MedCLIPSAMLib.jobs import JobStore
        from MedCLIPSAMLib.weights import user_folder

        return JobStore(user_folder().parent / "trainings")

    def process(self, inputVolume, prompts, outputSegmentation=None, scope="volume", timeout=24 * 3600.0, **settings):
        """Segment a volume and wait for the result.

        :param inputVolume: scalar or vector volume node.
        :param prompts: a text, or several; each becomes two segments, "<prompt>" and "<prompt> (coarse)".
        :param outputSegmentation: segmentation node; None takes the volume's own and makes it when it is missing.
        :param scope: "volume"; "range" with ``slice_range=(first, last)``; "slice" with ``axis`` and ``index``.
        :param timeout: seconds.
        :param settings: ``engine``, ``preset``, ``device``, ``seed``, ``gate``, ``samples``, ``window``, ``axis``,
            ``index``, ``slice_range``; see :class:`MedCLIPSAMLib.session_types.RunRequest`.
        :return: the segmentation node; saliency and entropy are volumes of their own in the scene.
        :raises MedCLIPSAMError: the request cannot be used or the run failed; the scene is then as it was.
        """
        from MedCLIPSAMLib.errors import MedCLIPSAMError
        from MedCLIPSAMLib.session_types import RunRequest

        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        output = None if outputSegmentation is None else outputSegmentation.GetID()
        request = RunRequest(
            volume_id=inputVolume.GetID(), prompts=texts, scope=scope, segmentation_id=output, **settings
        )
        self.session.run(request)
        end = self.session.wait(timeout)[-1]
        if end.kind != "finished":
            raise MedCLIPSAMError(end.text)
        logging.info(end.text)
        return slicer.mrmlScene.GetNodeByID(end.data["segmentation_id"])

    def close(self):
        """End the child process; the logic can be used again afterwards."""
        if self._session is not None:
            session, self._session = self._session, None
            session.close()


class MedCLIPSAMTest(ScriptedLoadableModuleTest):
    """The module's own test; runs the real pipeline when what it needs is installed."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        from MedCLIPSAMPanel import self_test

        for name in self_test.NAMES:
            self.setUp()
            self.delayDisplay(f"MedCLIPSAM: {name}")
            getattr(self_test, name)(self)
        self.delayDisplay("MedCLIPSAM: all tests passed")
