"""The script for the real Slicer, Testing/Python/run_in_slicer.py, run on the double: what fails here fails there."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(module):
    """The script, imported as Slicer's test runner does."""
    spec = importlib.util.spec_from_file_location("run_in_slicer", ROOT / "Testing" / "Python" / "run_in_slicer.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    return code


def test_all_of_it_passes_and_is_summed_up(script, capfd, monkeypatch):
    from MedCLIPSAMPanel import self_test

    if "MEDCLIPSAM_MODULE" not in os.environ:  # the models run when this is run from the installed tree
        monkeypatch.setattr(self_test, "NAMES", [name for name in self_test.NAMES if name != "pipelineTest"])
    assert script.run() is True
    out, err = capfd.readouterr()
    assert ", 0 failed, " in out, err
    assert "test_panelTest" in err
    assert "test_background_process_starts_and_ends" in err


def test_a_failure_or_an_exception_in_a_slot_ends_with_1(script, monkeypatch, capfd):
    import slicer

    from MedCLIPSAMPanel import self_test

    codes = []
    monkeypatch.setattr(slicer.util, "exit", codes.append)
    monkeypatch.setattr(self_test, "NAMES", ("failing",))

    def failing(test):
        try:
            raise RuntimeError("in a slot")
        except RuntimeError as error:  # as PythonQt hands it over
            sys.excepthook(type(error), error, error.__traceback__)

    monkeypatch.setattr(self_test, "failing", failing, raising=False)
    monkeypatch.setattr(script, "InstallationTest", type("Empty", (script.unittest.TestCase,), {}))
    script.main()
    assert codes == [1]
    assert "raised in a slot:" in capfd.readouterr().out
    monkeypatch.setattr(self_test, "failing", lambda test: test.fail("no"))
    script.main()
    assert codes == [1, 1]
    assert "0 passed, 1 failed, 0 skipped" in capfd.readouterr().out
    monkeypatch.setattr(self_test, "NAMES", ())
    script.main()
    assert codes == [1, 1, 1]  # nothing that ran is no success
    monkeypatch.delattr(slicer.modules, "medclipsam")
    script.main()
    assert codes == [1, 1, 1, 1]
    assert "--additional-module-paths" in capfd.readouterr().err
