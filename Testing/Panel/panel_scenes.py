"""What several panel tests need: volumes, waiting, and the quick stand-in engine in the real child process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ENGINE_FOLDER = Path(__file__).resolve().parents[1] / "Python"  # of stand_in_engine.py


def use_stand_in(monkeypatch: Any) -> None:
    """Let the child process take the stand-in engine."""
    path = os.pathsep.join([str(ENGINE_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("MEDCLIPSAM_WORKER_ENGINE", "stand_in_engine:load")
    monkeypatch.setenv("PYTHONPATH", path)


def add_volume(shape: tuple[int, ...] = (6, 48, 40), name: str = "CT", colour: bool = False) -> Any:
    """Add a volume with a bright ball in its middle."""
    import slicer

    grid = np.meshgrid(*(np.linspace(-1, 1, size) if size > 1 else np.zeros(1) for size in shape), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in grid))
    array = np.where(distance < 0.5, 200, 20).astype(np.int16)
    array += np.random.default_rng(0).integers(0, 20, shape, np.int16)
    kind = "vtkMRMLVectorVolumeNode" if colour else "vtkMRMLScalarVolumeNode"
    if colour:
        array = np.stack([array] * 3, axis=-1).astype(np.uint8)
    volume = slicer.util.addVolumeFromArray(array, name=name, nodeClassName=kind)
    volume.SetSpacing(0.8, 0.8, 2.5)
    volume.CreateDefaultDisplayNodes()
    return volume


def wait_until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    """Run the event loop until a condition holds."""
    import slicer

    end = time.monotonic() + seconds
    while not condition():
        slicer.app.processEvents()
        if time.monotonic() > end:
            raise AssertionError(f"not so within {seconds:g} s")
        time.sleep(0.005)
    slicer.app.processEvents()


def show_in_views(volume: Any) -> None:
    """Show a volume in all slice views, and let these cut it in its middle."""
    import slicer

    slicer.util.setSliceViewerLayers(background=volume)
    bounds = [0.0] * 6
    volume.GetRASBounds(bounds)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSlice(*(sum(bounds[number : number + 2]) / 2 for number in (0, 2, 4)))


def open_panel(monkeypatch: Any, tmp_path: Path, module: Any) -> Any:
    """Open the panel on a volume that the slice views show, with the quick engine and as if everything was installed.

    The volume is ``panel.volume``.
    """
    import qt

    use_stand_in(monkeypatch)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    qt.QSettings().clear()
    volume = add_volume()
    show_in_views(volume)
    representation = module.widgetRepresentation()
    panel = representation.self().panel
    monkeypatch.setattr(type(panel.setup), "ready", property(lambda self: True))
    monkeypatch.setattr(type(panel.setup), "lacks", lambda self, engine, preset: None)
    representation.enter()
    panel.volume = volume
    return panel


def run(panel: Any, prompts: str, scope: str = "slice") -> None:
    """Type prompts and press Apply; wait for the end."""
    panel.ui.promptEdit.setPlainText(prompts)
    panel.ui.scopeComboBox.setCurrentIndex(panel.ui.scopeComboBox.findData(scope))
    panel.ui.applyButton.click()
    assert panel.ui.applyButton.text == "Cancel"
    wait_until(lambda: panel.session.state == "idle")


def texts(table: Any, column: int) -> list[str]:
    """Return the texts of a table's column."""
    return [table.item(row, column).text() for row in range(table.rowCount)]
