"""What a user does in the section Train, for the tests of its entries."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from panel_scenes import wait_until

PATIENCE = 240.0  # seconds; torch is imported several times on what may be a busy machine

_PATHS = ("data", "validation")
_CHOICES = ("model", "loss", "plans", "configuration", "device")
_TEXTS = ("prompt", "engine", "learning_rate", "temperature", "beta")


@contextmanager
def training_panel(module: Any, entry: str) -> Iterator[Any]:
    """Open the section Train at an entry, with nothing remembered; every job is ended afterwards."""
    import qt

    qt.QSettings().clear()
    panel = shown(module, entry)
    yield panel
    store = panel.logic.jobStore
    for job in store.jobs():
        job.cancel()
    wait_until(lambda: all(job.state not in ("waiting", "running") for job in store.jobs()), PATIENCE)


def shown(module: Any, entry: str) -> Any:
    """Return the panel, entered, with the section Train open at an entry."""
    representation = module.widgetRepresentation()
    panel = representation.self().panel
    panel.ui.trainSection.collapsed = False
    representation.enter()
    panel.ui.jobComboBox.setCurrentIndex(panel.ui.jobComboBox.findData(entry))
    return panel


def fill(panel: Any, **values: Any) -> None:
    """Put values into the form, by the name of their option."""
    for name, value in values.items():
        widget = panel.ui.jobFieldsArea.findChild("QWidget", f"jobField_{name}")
        if name in _PATHS:
            widget.currentPath = str(value)
        elif name in _CHOICES:
            widget.setCurrentIndex(widget.findData(value))
        elif name in _TEXTS:
            widget.text = str(value)
        else:
            widget.value = value


def started(panel: Any) -> Any:
    """Press Start; return the job."""
    panel.ui.startJobButton.click()
    jobs = panel.logic.jobStore.jobs()
    assert jobs, panel.ui.logEdit.plainText
    return jobs[0]
