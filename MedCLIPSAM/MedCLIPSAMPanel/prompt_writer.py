"""The window in which a language model is asked for prompts; what leaves the computer is shown, and confirmed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedCLIPSAMLib import language_http, language_model, prompt_sets
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.language_child import LanguageChild
from MedCLIPSAMLib.language_question import DEFAULT_COUNT, KEY_VARIABLE, LARGEST_COUNT, Question
from MedCLIPSAMLib.prompts import SET_PREFIX
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.settings import setSetting, setting

_ENDPOINT, _MODEL = "LanguageEndpoint", "LanguageModel"  # settings; the key is never one
_INTERVAL = 100  # ms between two looks at the child process


class PromptWriter:
    """A window of its own that can stay open; nothing is sent unless its button is pressed and the question confirmed.

    Args:
        owner: The panel; ``showError`` of it is used.
        offer: Called with "set:NAME" when the user takes the written set.
        written: Called when there is a new set or a changed one.
    """

    def __init__(self, owner: Any, offer: Callable[[str], None], written: Callable[[], None] | None = None) -> None:
        self.owner = owner
        self._offer, self._written = offer, written
        self._child: LanguageChild | None = None
        self._set = ""
        self._timer = qt.QTimer()
        self._timer.interval = _INTERVAL
        self._timer.connect("timeout()", self.onPoll)
        self._build()
        self._update()

    # ---- For the panel -------------------------------------------------------------------------------------------

    def show(self, target: str = "") -> None:
        """Open the window, or bring it to the front.

        Args:
            target: A phrase for the target where none was typed yet, such as the prompt.
        """
        if target and not self.target.text.strip():
            self.target.text = target
        self._update()
        self.dialog.show()
        self.dialog.raise_()
        self.dialog.activateWindow()

    def cleanup(self) -> None:
        """Close the window and end a request that is under way."""
        self._stop()
        self._timer.disconnect("timeout()", self.onPoll)
        self.dialog.hide()
        self.dialog.deleteLater()

    # ---- Widgets -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.dialog = qt.QDialog(slicer.util.mainWindow())
        self.dialog.windowTitle = _("Prompts by a language model")
        self.dialog.objectName = "promptWriter"
        self.dialog.connect("finished(int)", self.onFinished)
        column = qt.QVBoxLayout(self.dialog)
        form = qt.QFormLayout()
        form.setFieldGrowthPolicy(qt.QFormLayout.AllNonFixedFieldsGrow)
        column.addLayout(form)
        self.target = self._line(form, _("Target:"), "breast tumor", _("What is to be segmented: a short phrase."))
        self.modality = self._line(form, _("Images:"), "breast ultrasound", _("Kind of images: a short phrase."))
        tip = _("Base address of an OpenAI-compatible server: https, or http on this computer.")
        self.endpoint = self._line(form, _("Server:"), "http://localhost:11434/v1", tip)
        self.model = self._line(form, _("Model:"), "llama3.2", _("The model, as the server calls it."))
        tip = _("Sent to the server above and kept nowhere. Left empty: the environment variable {name}, if it is set.")
        self.key = self._line(form, _("Key:"), _("none"), tip.format(name=KEY_VARIABLE))
        self.key.echoMode = qt.QLineEdit.Password
        self.endpoint.text, self.model.text = setting(_ENDPOINT, ""), setting(_MODEL, "")
        self.count = qt.QSpinBox()
        self.count.minimum, self.count.maximum, self.count.value = 1, LARGEST_COUNT, DEFAULT_COUNT
        self.count.toolTip = _("How many sentences are wanted.")
        self.count.connect("valueChanged(int)", self.onEdited)
        form.addRow(_("Sentences:"), self.count)
        self.again = qt.QCheckBox(_("Ask anew although the answers are stored"))
        self.again.toolTip = _("The stored sentences, with what was edited in them, are replaced.")
        self.again.connect("toggled(bool)", self.onEdited)
        form.addRow("", self.again)
        column.addWidget(qt.QLabel(_("This is sent, and nothing else; no image and no file:")))
        self.outgoing = self._text(column, _("The request to the letter, but for the key."))
        self.status = qt.QLabel()
        self.status.wordWrap = True
        column.addWidget(self.status)
        self.sentences = self._text(column, _("The sentences; they can be edited in the set's file."))
        self.sentences.visible = False
        self._buttons(column)
        self.dialog.resize(560, 520)

    def _line(self, form: Any, label: str, example: str, tip: str) -> Any:
        edit = qt.QLineEdit()
        edit.placeholderText = example
        edit.toolTip = tip
        edit.connect("textChanged(QString)", self.onEdited)
        form.addRow(label, edit)
        return edit

    @staticmethod
    def _text(column: Any, tip: str) -> Any:
        edit = qt.QPlainTextEdit()
        edit.readOnly = True
        edit.toolTip = tip
        column.addWidget(edit)
        return edit

    def _buttons(self, column: Any) -> None:
        row = qt.QHBoxLayout()
        column.addLayout(row)
        row.addStretch(1)
        self.askButton = self._button(row, _("Ask..."), "", self.onAsk)
        tip = _("Put the set into the prompt field: the mean of all its sentences is used.")
        self.useButton = self._button(row, _("Use"), tip, self.onUse)
        self.editButton = self._button(row, _("Edit"), _("Open the set's file."), self.onEdit)
        self.closeButton = self._button(row, _("Close"), _("Close the window; a request is cancelled."), self.onClose)

    @staticmethod
    def _button(row: Any, text: str, tip: str, slot: Callable[[], None]) -> Any:
        button = qt.QPushButton(text)
        button.toolTip = tip
        button.autoDefault = False  # Enter in a line must not send anything
        button.connect("clicked()", slot)
        row.addWidget(button)
        return button

    # ---- What is shown -------------------------------------------------------------------------------------------

    def _question(self) -> Question:
        texts = (edit.text for edit in (self.target, self.modality, self.endpoint, self.model))
        return Question(*texts, count=self.count.value)

    def _key(self) -> str | None:
        return language_http.checked_key(self.key.text) or language_http.key_of_environment()

    def _update(self) -> None:
        """Show what would be sent, or why nothing can be."""
        running = self._child is not None
        for widget in (self.target, self.modality, self.endpoint, self.model, self.key, self.count):
            widget.enabled = not running
        reason, shown, stored = "", "", None
        try:
            question = self._question()
            shown = question.outgoing(self._key() is not None)
            stored = language_model.stored_name(question)
        except InputError as error:
            blank = not all(edit.text.strip() for edit in (self.target, self.modality, self.endpoint, self.model))
            reason = _("Fill in the target, the kind of images, the server and the model.") if blank else str(error)
        asks = not reason and (stored is None or self.again.checked)
        if asks and language_http.offline():
            reason = language_http.OFFLINE_MESSAGE
        self.again.enabled = stored is not None and not running
        if self.outgoing.plainText != shown:
            self.outgoing.setPlainText(shown)
        self.askButton.enabled = running or not reason
        self.askButton.text = _("Cancel") if running else _("Ask...") if asks or reason else _("Show stored")
        self.askButton.toolTip = reason or _("You are asked once more before anything is sent.")
        if not running:
            self.status.text = reason or ("" if asks else _("The answers are stored; nothing will be sent."))
        self.sentences.visible = bool(self._set)
        self.useButton.enabled = self.editButton.enabled = bool(self._set) and not running

    @guarded
    def onEdited(self) -> None:
        self._set = ""  # it belongs to another question
        self._update()

    # ---- Asking --------------------------------------------------------------------------------------------------

    @guarded
    def onAsk(self) -> None:
        """Ask, after the user has agreed to the very text; or cancel."""
        if self._child is not None:
            self.status.text = _("Cancelling...")
            self._child.cancel()
            return
        question, again = self._question(), self.again.checked
        if not language_model.is_stored(question, again) and not self._agreed(question):
            return
        setSetting(_ENDPOINT, question.endpoint)
        setSetting(_MODEL, question.model)
        self._set = ""
        try:
            self._child = LanguageChild(question, key=self.key.text, again=again)
        except OSError as error:
            raise MedCLIPSAMError(_("The request could not be started ({reason}).").format(reason=error)) from error
        self.status.text = _("Waiting for {model}...").format(model=question.model)
        self._timer.start()
        self._update()

    def _agreed(self, question: Question) -> bool:
        place = _("goes to a server on this computer") if question.stays_here else _("leaves this computer")
        text = _(
            "This text {place}, up to {times} times, and again where the server is busy; nothing else does:"
        ).format(place=place, times=language_model.ROUNDS)
        shown = question.outgoing(self._key() is not None)
        return bool(slicer.util.confirmOkCancelDisplay(f"{text}\n\n{shown}", "MedCLIPSAM"))

    @guarded
    def onPoll(self) -> None:
        if self._child is None:
            self._timer.stop()
            return
        for event in self._child.poll():
            self._handle(event)

    def _handle(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            text = _("{done} of {total} sentences")
            self.status.text = text.format(done=event.get("done"), total=event.get("total"))
            return
        self._stop()
        if event["event"] == "done":
            self._show(event)
            return
        self._update()
        if event["event"] == "cancelled":
            self.status.text = _("Cancelled; nothing was stored.")
        else:
            self.status.text = str(event.get("message"))
            raise MedCLIPSAMError(str(event.get("message")))

    def _show(self, event: dict[str, Any]) -> None:
        self._set, found = str(event["name"]), event["prompts"]
        self.again.checked = False
        self._set = str(event["name"])  # unchecking has cleared it
        self.sentences.setPlainText("\n".join(found))
        self._update()
        text = _("Stored as {name}: {count} sentences. Look at them before you use them.")
        self.status.text = text.format(name=f"{SET_PREFIX}{self._set}", count=len(found))
        if self._written is not None:
            self._written()

    def _stop(self) -> None:
        """End the child process, which has nothing more to say."""
        self._timer.stop()
        child, self._child = self._child, None
        if child is not None:
            child.close()

    # ---- Afterwards ----------------------------------------------------------------------------------------------

    @guarded
    def onUse(self) -> None:
        self._offer(f"{SET_PREFIX}{self._set}")
        self.dialog.accept()

    @guarded
    def onEdit(self) -> None:
        file = prompt_sets.user_sets_folder() / f"{self._set}.json"
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(file)))

    @guarded
    def onClose(self) -> None:
        self.dialog.reject()

    @guarded
    def onFinished(self) -> None:
        """The window was closed, in whatever way."""
        self._stop()
        self.key.text = ""
        self._update()
