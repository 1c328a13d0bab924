"""The module's own tests in the real 3D Slicer; the exit code is 0 when all pass, else 1.

    Slicer --testing --no-splash --no-main-window --additional-module-paths REPOSITORY/MedCLIPSAM \\
        --python-script REPOSITORY/Testing/Python/run_in_slicer.py

On Linux without a display: `xvfb-run`, or QT_QPA_PLATFORM=offscreen. For an installed extension leave the option with
the path away. Without the packages of the lite engine the pipeline itself is not run; the summary says so. CTest runs
the same tests by slicer_add_python_unittest. pytest does not collect this file.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
import unittest

try:
    import slicer
except ImportError:
    slicer = None


class InstallationTest(unittest.TestCase):
    """The module is there, whole, and opens; needs nothing but Slicer."""

    def test_module_is_registered(self) -> None:
        """The factory has read the file, and title, category and icon are set."""
        module = slicer.modules.medclipsam
        self.assertEqual(module.title, "MedCLIPSAM")
        self.assertIn("Segmentation", module.categories)
        self.assertTrue(module.contributors)
        self.assertTrue(module.acknowledgementText)
        self.assertFalse(module.icon.isNull())

    def test_library_is_the_one_of_the_module(self) -> None:
        """No other copy of the library is in the way."""
        import MedCLIPSAMLib

        folder = os.path.dirname(os.path.abspath(slicer.modules.medclipsam.path))
        roots = {folder, os.path.dirname(folder)}
        self.assertIn(os.path.dirname(os.path.dirname(os.path.abspath(MedCLIPSAMLib.__file__))), roots)

    def test_panel_opens_without_loading_torch(self) -> None:
        """The panel is set up, entered and left, and torch is not imported for it."""
        before = "torch" in sys.modules
        widget = slicer.modules.medclipsam.widgetRepresentation()
        widget.setMRMLScene(slicer.mrmlScene)
        panel = widget.self()
        panel.enter()
        slicer.app.processEvents()
        panel.exit()
        self.assertEqual("torch" in sys.modules, before)

    def test_panel_survives_scene_close(self) -> None:
        """Closing the scene three times over leaves no node and raises nothing."""
        panel = slicer.modules.medclipsam.widgetRepresentation().self()
        panel.enter()
        for _ in range(3):
            slicer.mrmlScene.Clear(0)
            slicer.app.processEvents()
        panel.exit()
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)

    def test_background_process_starts_and_ends(self) -> None:
        """The child process answers, and is gone after close."""
        from MedCLIPSAMLib.worker_client import WorkerClient

        client = WorkerClient()
        try:
            client.start()
            events, until = [], time.monotonic() + 60
            while not any(event["event"] == "ready" for event in events) and time.monotonic() < until:
                events += client.wait(1.0)
            self.assertIn("ready", [event["event"] for event in events], client.log)
        finally:
            client.close()
        self.assertFalse(client.alive)

    def test_dependencies_are_listed(self) -> None:
        """What is installed can be told by this Slicer's own Python."""
        from MedCLIPSAMLib import dependencies

        for status in dependencies.check():
            sys.stdout.write(f"  {status.dependency.requirement}: {status.state} {status.installed or ''}\n")
        self.assertIn("numpy==", dependencies.constraints())


def suite() -> unittest.TestSuite:
    """Return the tests above, and each of the module's own as a test by itself."""
    tests = unittest.TestSuite([unittest.defaultTestLoader.loadTestsFromTestCase(InstallationTest)])
    from MedCLIPSAM import MedCLIPSAMTest
    from MedCLIPSAMPanel import self_test

    methods = {f"test_{name}": getattr(self_test, name) for name in self_test.NAMES}
    own = type("MedCLIPSAMOwnTest", (MedCLIPSAMTest,), methods)
    tests.addTests(own(name) for name in methods)
    return tests


def load_tests(_loader: unittest.TestLoader, _tests: unittest.TestSuite, _pattern: str | None) -> unittest.TestSuite:
    """Give unittest's loader, which CTest comes with, the same tests."""
    return suite()


def run() -> bool:
    """Run all, print a summary, and return whether all is well."""
    unseen: list[str] = []

    def hook(kind: type[BaseException], error: BaseException, trace: object) -> None:
        unseen.append("".join(traceback.format_exception(kind, error, trace)))
        sys.stderr.write(unseen[-1])

    before, sys.excepthook = sys.excepthook, hook  # PythonQt only prints what a slot raises
    try:
        result = unittest.TextTestRunner(verbosity=2).run(suite())
        slicer.modules.medclipsam.widgetRepresentation().self().cleanup()
        gc.collect()
        slicer.app.processEvents()
    finally:
        sys.excepthook = before
    failed = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    skipped = len(result.skipped)
    for test, reason in result.skipped:
        sys.stdout.write(f"skipped {test.id()}: {reason}\n")
    for text in unseen:
        sys.stdout.write(f"raised in a slot:\n{text}\n")
    passed = result.testsRun - failed - skipped
    sys.stdout.write(f"{passed} passed, {failed + len(unseen)} failed, {skipped} skipped\n")
    return not failed and not unseen and passed > 0


def main() -> None:
    """Run as Slicer's --python-script."""
    if slicer is None or not hasattr(slicer, "app"):
        sys.exit("This runs inside 3D Slicer: Slicer --testing --no-main-window --python-script run_in_slicer.py")
    try:
        if not hasattr(slicer.modules, "medclipsam"):
            raise RuntimeError("Slicer has no module MedCLIPSAM: pass --additional-module-paths REPOSITORY/MedCLIPSAM")
        success = run()
    except Exception:  # whatever it is, Slicer must end with 1 and not wait
        traceback.print_exc()
        success = False
    slicer.util.exit(0 if success else 1)


if __name__ == "__main__":
    main()
