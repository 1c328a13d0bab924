"""What the tests of downloads do again and again."""

from __future__ import annotations

import os
import sys
import threading

from panel_scenes import ENGINE_FOLDER, texts

sys.path.append(str(ENGINE_FOLDER))

from file_server import Faults

SIZE = 3_000_000  # bytes of every file


def choose(section, name):
    table = section.ui.weightsTable
    table.selectRow(texts(table, 0).index(name))


def state(section, name):
    table = section.ui.weightsTable
    return table.item(texts(table, 0).index(name), 2).text()


def press(world, section, button="downloadWeightsButton"):
    """Press a button and agree."""
    world.dialogs.answer(world.qt.QMessageBox.Ok)
    getattr(section.ui, button).click()


def idle(section):
    return not section.weights.downloads.active


def half(server):
    """Let the next answer stop in its middle until the returned event is set."""
    go_on = threading.Event()
    server.faults = [Faults(wait=go_on)]
    server.half.clear()
    return go_on


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
