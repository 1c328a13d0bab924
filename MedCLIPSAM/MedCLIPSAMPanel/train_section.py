"""The section Train: forms from job descriptions, and the jobs of this computer, found again after every restart."""

from __future__ import annotations

import html
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedCLIPSAMPanel import wording
from MedCLIPSAMPanel.guard import guarded, guardedQuietly
from MedCLIPSAMPanel.job_form_view import JobFormView
from MedCLIPSAMPanel.settings import setSetting, setting

_REFRESH = 1000  # ms
_LOG_LINES = 200
_SETTING = "TrainingsSeen"


class TrainSection:
    """Shows the jobs of ``store``; nothing of them is kept here, so closing the panel changes nothing."""

    def __init__(self, ui: Any, owner: Any, store: Any, descriptions: list[Any]):
        self.ui = ui
        self.owner = owner
        self.store = store
        self._descriptions = descriptions
        self._form: JobFormView | None = None
        self._jobs: list[Any] = []
        self._shown_log = ""
        for one in descriptions:
            ui.jobComboBox.addItem(one.title, one.name)
        available = [number for number, one in enumerate(descriptions) if one.unavailable() is None]
        ui.jobComboBox.setCurrentIndex(available[0] if available else 0)
        layout = qt.QVBoxLayout(ui.jobFieldsArea)
        layout.setContentsMargins(0, 0, 0, 0)
        table = ui.jobsTable
        table.columnCount = 4
        table.setHorizontalHeaderLabels([_("Training"), _("State"), _("Progress"), _("Time")])
        table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        for column in (1, 2, 3):
            table.horizontalHeader().setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        table.verticalHeader().setVisible(False)
        ui.jobComboBox.connect("currentIndexChanged(int)", self.onDescription)
        ui.startJobButton.connect("clicked()", self.onStart)
        ui.cancelJobButton.connect("clicked()", self.onCancel)
        ui.resumeJobButton.connect("clicked()", self.onResume)
        ui.removeJobButton.connect("clicked()", self.onRemove)
        ui.openJobFolderButton.connect("clicked()", self.onOpenFolder)
        ui.jobsTable.connect("itemSelectionChanged()", self.onChosen)
        ui.trainSection.connect("contentsCollapsed(bool)", self.onCollapsed)
        self._timer = qt.QTimer()
        self._timer.interval = _REFRESH
        self._timer.connect("timeout()", self.onTimer)
        self.onDescription()
        self.refresh()

    # ---- What the timer and the sections above call --------------------------------------------------------------

    def enter(self) -> None:
        """Follow the jobs while the module is shown."""
        self.refresh()
        self._timer.start()

    def exit(self) -> None:
        """Stop following; the jobs go on."""
        self._timer.stop()

    def refresh(self) -> None:
        """Read the jobs anew."""
        chosen = self._chosen()
        self._jobs = self.store.jobs()
        with self.owner.update():
            self.ui.jobsTable.rowCount = len(self._jobs)
            for number, job in enumerate(self._jobs):
                progress = job.progress
                done = f"{progress.done} / {progress.total}" if progress.total else ""
                cells = (job.title, _state_text(job.state), done, wording.seconds(job.seconds))
                for column, text in enumerate(cells):
                    self._set_cell(number, column, text)
            ids = [job.id for job in self._jobs]
            if self._jobs:
                self.ui.jobsTable.selectRow(ids.index(chosen.id) if chosen is not None and chosen.id in ids else 0)
        self._show_chosen()
        self._tell_ends()

    # ---- Slots ---------------------------------------------------------------------------------------------------

    @guardedQuietly
    def onTimer(self) -> None:
        if not self.ui.trainSection.collapsed or any(job.state == "running" for job in self._jobs):
            self.refresh()

    @guarded
    def onCollapsed(self, collapsed: bool) -> None:
        if not collapsed:
            self.refresh()

    @guarded
    def onDescription(self) -> None:
        """Show the form of the chosen job, or why it cannot be started."""
        description = self._description()
        if self._form is not None:
            self._form.widget.setParent(None)
            self._form.widget.deleteLater()
            self._form = None
        if description is None:
            return
        reason = description.unavailable()
        lines = [html.escape(description.help), *([wording.coloured(reason, wording.DOUBTFUL)] if reason else [])]
        self.ui.jobHelpLabel.text = "<br>".join(lines)
        self.ui.startJobButton.setEnabled(reason is None)
        self.ui.startJobButton.toolTip = reason or _("Start in the background; it goes on when Slicer is closed.")
        self._form = JobFormView(description)
        self._form.widget.setEnabled(reason is None)
        self.ui.jobFieldsArea.layout().addWidget(self._form.widget)

    @guarded
    def onStart(self) -> None:
        description = self._description()
        if description is None or self._form is None:
            return
        job = self.store.start(description, self._form.values())
        self.owner.log(_("Training {id} was started in {folder}.").format(id=job.id, folder=job.folder))
        self.refresh()
        self._choose(job.id)

    @guarded
    def onCancel(self) -> None:
        job = self._chosen()
        if job is not None:
            job.cancel()
            self.refresh()

    @guarded
    def onResume(self) -> None:
        job = self._chosen()
        if job is not None:
            job.resume()
            self.refresh()

    @guarded
    def onRemove(self) -> None:
        job = self._chosen()
        if job is None:
            return
        text = _("Remove the training {id} and all its files, its trained model included?").format(id=job.id)
        if slicer.util.confirmOkCancelDisplay(text, _("Remove training")):
            self.store.remove(job.id)
            self.refresh()

    @guarded
    def onOpenFolder(self) -> None:
        job = self._chosen()
        if job is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(job.folder)))

    @guarded
    def onChosen(self) -> None:
        if not self.owner.updating:
            self._show_chosen()

    # ---- Inner parts ---------------------------------------------------------------------------------------------

    def _description(self) -> Any:
        number = self.ui.jobComboBox.currentIndex
        return self._descriptions[number] if 0 <= number < len(self._descriptions) else None

    def _chosen(self) -> Any:
        number = self.ui.jobsTable.currentRow() if self.ui.jobsTable.rowCount else -1
        return self._jobs[number] if 0 <= number < len(self._jobs) else None

    def _choose(self, job_id: str) -> None:
        for number, job in enumerate(self._jobs):
            if job.id == job_id:
                self.ui.jobsTable.selectRow(number)

    def _set_cell(self, row: int, column: int, text: str) -> None:
        item = self.ui.jobsTable.item(row, column)
        if item is None:
            self.ui.jobsTable.setItem(row, column, qt.QTableWidgetItem(text))
        elif item.text() != text:
            item.setText(text)
        if column == 0 and item is None:
            self.ui.jobsTable.item(row, 0).setToolTip(text)

    def _show_chosen(self) -> None:
        ui, job = self.ui, self._chosen()
        for widget in (ui.jobsTable, ui.jobLogEdit, ui.cancelJobButton, ui.resumeJobButton, ui.removeJobButton):
            widget.setVisible(job is not None)
        ui.openJobFolderButton.setVisible(job is not None)
        ui.jobStateLabel.setVisible(job is not None)
        state = "" if job is None else job.state
        ui.jobProgressBar.setVisible(state in ("waiting", "running"))
        if job is None:
            return
        progress = job.progress
        ui.jobProgressBar.maximum = progress.total
        ui.jobProgressBar.value = progress.done
        words = [_state_text(state), progress.text, job.error]
        ui.jobStateLabel.text = ". ".join(word.strip().rstrip(".") for word in words if word.strip()) + "."
        ui.cancelJobButton.setEnabled(state in ("waiting", "running"))
        ui.resumeJobButton.setEnabled(job.resumable)
        ui.removeJobButton.setEnabled(state not in ("waiting", "running"))
        text = "\n".join(job.log_tail(_LOG_LINES))
        if text != self._shown_log:  # leaves the user's scrolling alone while nothing is new
            self._shown_log = text
            ui.jobLogEdit.setPlainText(text)
            bar = ui.jobLogEdit.verticalScrollBar()
            bar.setValue(bar.maximum)

    def _tell_ends(self) -> None:
        """Log once how each job ended, also one that ended while Slicer was closed."""
        known = setting(_SETTING, [])
        ended = {job.id: job for job in self._jobs if job.state in ("finished", "failed", "lost")}
        for job_id, job in ended.items():
            if job_id not in known:
                words = f"{_state_text(job.state)}. {job.error}".strip()
                self.owner.log(_("Training {id}: {state}").format(id=job_id, state=words))
        if set(known) != set(ended):
            setSetting(_SETTING, list(ended) or None)

    def cleanup(self) -> None:
        self._timer.stop()


def _state_text(state: str) -> str:
    return {
        "waiting": _("Waiting for the GPU"),
        "running": _("Running"),
        "finished": _("Finished"),
        "failed": _("Failed"),
        "cancelled": _("Cancelled"),
        "lost": _("Lost"),
    }.get(state, state)
