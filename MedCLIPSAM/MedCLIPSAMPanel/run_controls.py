"""Apply and Cancel, the time estimate, the progress, and what a run said at its end."""

from __future__ import annotations

import html
from typing import Any

import qt
from slicer.i18n import tr as _

from MedCLIPSAMPanel import wording
from MedCLIPSAMPanel.guard import guarded, guardedQuietly

_ESTIMATE_DELAY = 400  # ms after the last change


class RunControls:
    """The lower part of the section Segment; tells ``actions`` (the section) to start and to cancel."""

    def __init__(self, ui: Any, owner: Any, actions: Any):
        self.ui = ui
        self.owner = owner
        self.actions = actions
        self._results: list[str] = []
        self._reason: str | None = None  # why no run can be started
        self._estimate_timer = qt.QTimer()
        self._estimate_timer.singleShot = True
        self._estimate_timer.interval = _ESTIMATE_DELAY
        self._estimate_timer.connect("timeout()", self.onEstimate)
        ui.applyButton.connect("clicked()", self.onApply)
        ui.keepButton.connect("clicked()", self.onKeep)
        ui.discardButton.connect("clicked()", self.onDiscard)
        ui.continueButton.connect("clicked()", self.onContinue)
        self._shortcuts = []
        for keys in ("Ctrl+Return", "Ctrl+Enter"):  # of the keyboard and of its number block
            shortcut = qt.QShortcut(qt.QKeySequence(keys), ui.segmentSection)
            shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)  # not in the Python console of the same window
            shortcut.connect("activated()", self.onShortcut)
            self._shortcuts.append(shortcut)
        for widget in (ui.progressArea, ui.keepArea, ui.presenceLabel, ui.estimateLabel):
            widget.setVisible(False)

    def refresh(self) -> None:
        """Show whether a run can be started, or cancelled."""
        button, state = self.ui.applyButton, self.owner.session.state
        if state == "idle":
            reason = self._reason = self.actions.cannotApply()
            button.text = _("Apply")
            button.setEnabled(reason is None)
            button.toolTip = reason or _("Segment what the prompts say (Ctrl+Enter).")
            if reason:
                self._show_hint(reason)
        else:
            button.text = _("Cancel") if state == "running" else _("Cancelling…")
            button.setEnabled(state == "running")
            button.toolTip = _("Stop the run.")
        self.ui.progressArea.setVisible(state != "idle")
        if state != "running":
            self.ui.keepArea.setVisible(False)
        self._estimate_timer.start()

    def lookAgain(self) -> None:
        """Notice that what was lacking has come, such as a file that was put in its place."""
        if self._reason is not None and self.actions.cannotApply() != self._reason:
            self.refresh()

    def showProgress(self) -> None:
        """Show the session's status."""
        status, bar = self.owner.session.status, self.ui.progressBar
        if status.total:
            bar.maximum = status.total
            bar.value = status.done
        elif bar.maximum:  # a moving bar while the number is not known
            bar.maximum = 0
            bar.value = 0
        text = status.text()
        self.ui.progressLabel.text = text[:1].upper() + text[1:]

    def begin(self) -> None:
        """Show that a run has begun."""
        self._results = []
        self.ui.presenceLabel.setVisible(False)
        self.showProgress()
        self.refresh()

    @property
    def hasResults(self) -> bool:
        """Whether the run has brought a result already."""
        return bool(self._results)

    def addResult(self, row: Any) -> None:
        """Show what one prompt's result needs to be known: its presence score and its warnings."""
        self._results.append(wording.presence(row.prompt, row.presence, row.presence_threshold, row.size == 0))
        self._results += wording.warnings(row)
        self._show("<br>".join(self._results))

    def end(self, text: str, failed: bool = False) -> None:
        """Show how a run ended.

        Args:
            text: What happened; empty shows what the results said alone.
            failed: Whether it is bad news.
        """
        lines = list(self._results)
        if failed:
            lines = [wording.coloured(text, wording.BAD)]
        elif text and not lines:
            lines = [html.escape(text)]
        self._show("<br>".join(lines))
        self.refresh()

    def _show(self, rich_text: str) -> None:
        self.ui.presenceLabel.text = rich_text
        self.ui.presenceLabel.setVisible(bool(rich_text))

    @guarded
    def onShortcut(self) -> None:
        if self.ui.applyButton.enabled and self.owner.session.state == "idle":
            self.actions.apply()

    @guarded
    def onApply(self) -> None:
        state = self.owner.session.state
        if state == "idle":
            self.actions.apply()
        elif state == "running":
            if self.actions.canKeepFinished():
                count = self.owner.session.status.done
                self.ui.keepLabel.text = _("Keep the {count} slices that are finished?").format(count=count)
                self.ui.keepArea.setVisible(True)
            else:
                self._cancel(keep=False)

    @guarded
    def onKeep(self) -> None:
        self._cancel(keep=True)

    @guarded
    def onDiscard(self) -> None:
        self._cancel(keep=False)

    @guarded
    def onContinue(self) -> None:
        self.ui.keepArea.setVisible(False)

    def _cancel(self, keep: bool) -> None:
        self.owner.session.cancel(keep_finished=keep)
        self.refresh()

    @guardedQuietly
    def onEstimate(self) -> None:
        text = ""
        if self.owner.session.state == "idle":
            text = self.actions.cannotApply() or self.actions.estimateText()
        self._show_hint(text)

    def _show_hint(self, text: str) -> None:
        self.ui.estimateLabel.text = text
        self.ui.estimateLabel.setVisible(bool(text))

    def cleanup(self) -> None:
        self._estimate_timer.stop()
        for shortcut in self._shortcuts:
            shortcut.setEnabled(False)
