"""The prompt field: one prompt per line, completion of the current line, menus of recent and example prompts."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from MedCLIPSAMLib.prompts import SET_PREFIX
from MedCLIPSAMPanel import prompt_history, wording
from MedCLIPSAMPanel.guard import guarded

_SHORT = 64  # characters of a menu entry
_PHRASE = 40  # characters of a prompt that may be a target's name
_LEAST = 2  # characters of a line before completions are offered


class PromptField:
    """Reads and fills ``ui.promptEdit``."""

    def __init__(self, ui: Any, owner: Any):
        self.ui = ui
        self.owner = owner
        self._examples: dict[str, list[str]] | None = None
        self._preset_prompts: list[str] = []
        self._offered = ""  # what offer() has put into the field
        self._writer: Any = None  # the window PromptWriter, once it was asked for
        self._completer: Any = None
        self._chosen = ""  # the completion that the arrow keys have reached
        self._blocks = 1
        self._menus = []
        for button, fill in ((ui.promptHistoryButton, self.onHistoryMenu), (ui.promptSetsButton, self.onExamplesMenu)):
            menu = qt.QMenu(button)
            menu.connect("aboutToShow()", fill)
            button.setMenu(menu)
            self._menus.append(menu)
        ui.promptEdit.connect("textChanged()", self.onTextChanged)

    def cleanup(self) -> None:
        """Close the window of the language model."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.cleanup()

    def lines(self) -> list[str]:
        """Return the prompts: the lines that are not blank, without outer white space."""
        return [line.strip() for line in self.ui.promptEdit.plainText.splitlines() if line.strip()]

    def load(self) -> None:
        """Show the parameters' prompts."""
        text = self.owner.parameters.prompts
        if self.ui.promptEdit.plainText != text:
            self.ui.promptEdit.setPlainText(text)

    def remember(self) -> None:
        """Keep the prompts in the history, as they were run."""
        prompt_history.remember(self.lines(), self.owner.parameters)
        self._completer = None  # made anew with the new history when it is needed

    def add(self, prompt: str) -> None:
        """Put a prompt into the current line if that is blank, else into a new last line."""
        lines = self.ui.promptEdit.plainText.splitlines()
        filled = [line for line in lines if line.strip()]
        if prompt not in filled:
            self.ui.promptEdit.setPlainText("\n".join([*filled, prompt]))

    def offer(self, prompts: list[str]) -> None:
        """Put the first of a preset's prompts into the field, but never in place of what was typed there.

        One that was put there before, for another preset, is replaced. The menu Examples begins with all of them.

        Args:
            prompts: As they are to be shown; may be empty.
        """
        if prompts != self._preset_prompts:
            self._preset_prompts, self._examples = prompts, None
        if prompts and self.lines() in ([], [self._offered]):
            self._offered = prompts[0]
            self.ui.promptEdit.setPlainText(prompts[0])

    @guarded
    def onTextChanged(self) -> None:
        if self.owner.updating:
            return
        if self._took_completion():
            return
        self.owner.store(prompts=self.ui.promptEdit.plainText)
        self.owner.promptEdited()
        self._complete()

    def _took_completion(self) -> bool:
        """Turn a line break typed while a completion was highlighted into that completion.

        The completer hands every key to the field first, and the field takes Enter for itself.
        """
        blocks, before = self.ui.promptEdit.blockCount, self._blocks
        self._blocks = blocks
        if blocks != before + 1 or not self._chosen or self._completer is None:
            return False
        if not self._completer.popup().visible:
            return False
        chosen, self._chosen = self._chosen, ""
        self._completer.popup().hide()
        cursor = self.ui.promptEdit.textCursor()
        with self.owner.update():
            cursor.deletePreviousChar()  # the line break
            self.ui.promptEdit.setTextCursor(cursor)
        self.onCompleted(chosen)
        return True

    def _complete(self) -> None:
        """Offer completions of the current line."""
        edit = self.ui.promptEdit
        self._chosen = ""
        if not edit.hasFocus():
            return
        line = edit.textCursor().block().text().strip()
        if len(line) < _LEAST:
            if self._completer is not None:
                self._completer.popup().hide()
            return
        if self._completer is None:
            self._completer = self._make_completer()
        self._completer.completionPrefix = line
        count = self._completer.completionCount()
        if count == 0 or (count == 1 and self._completer.currentCompletion() == line):
            self._completer.popup().hide()
            return
        place = edit.cursorRect()
        self._completer.complete(qt.QRect(0, place.top(), max(120, edit.width - 8), place.height()))

    def _make_completer(self) -> Any:
        completer = qt.QCompleter(prompt_history.completions(self.owner.parameters))
        completer.caseSensitivity = qt.Qt.CaseInsensitive
        completer.filterMode = qt.Qt.MatchContains
        completer.maxVisibleItems = 8
        completer.setWidget(self.ui.promptEdit)
        completer.connect("activated(QString)", self.onCompleted)
        completer.connect("highlighted(QString)", self.onHighlighted)
        return completer

    @guarded
    def onHighlighted(self, text: str) -> None:
        self._chosen = text

    @guarded
    def onCompleted(self, text: str) -> None:
        """Replace the current line."""
        self._chosen = ""
        edit = self.ui.promptEdit
        lines = edit.plainText.split("\n")
        number = min(edit.textCursor().blockNumber(), len(lines) - 1)
        lines[number] = text
        with self.owner.update():
            edit.setPlainText("\n".join(lines))
            cursor = edit.textCursor()
            cursor.setPosition(sum(len(line) + 1 for line in lines[: number + 1]) - 1)
            edit.setTextCursor(cursor)
        self._blocks = edit.blockCount
        self.owner.store(prompts=edit.plainText)
        self.owner.promptEdited()

    @guarded
    def onHistoryMenu(self) -> None:
        menu = self._menus[0]
        menu.clear()
        entries = prompt_history.recent(self.owner.parameters)
        for text in entries:
            self._add_action(menu, text)
        if entries:
            menu.addSeparator()
            menu.addAction(_("Forget these")).connect("triggered()", self.onForget)
        else:
            menu.addAction(_("No prompt was used yet")).enabled = False

    @guarded
    def onExamplesMenu(self) -> None:
        if self._examples is not None:
            return
        self._examples = prompt_history.examples()
        self._menus[1].clear()
        self._menus[1].toolTipsVisible = True
        for text in self._preset_prompts:
            self._add_action(self._menus[1], text)
        if self._preset_prompts:
            self._menus[1].addSeparator()
        for task, entries in self._examples.items():
            menu = self._menus[1].addMenu(wording.title(task))
            menu.toolTipsVisible = True
            for text in entries:
                self._add_action(menu, text)
        self._menus[1].addSeparator()
        self._menus[1].addAction(_("Write with a language model…")).connect("triggered()", self.onWrite)

    @guarded
    def onWrite(self) -> None:
        """Open the window in which a language model is asked for prompts."""
        if self._writer is None:
            from MedCLIPSAMPanel.prompt_writer import PromptWriter

            self._writer = PromptWriter(self.owner, self.add, self._forget_sets)
        first = next(iter(self.lines()), "")
        phrase = len(first) <= _PHRASE and not first.startswith(SET_PREFIX)
        self._writer.show(first if phrase else "")

    def _forget_sets(self) -> None:
        """Read the prompt sets anew the next time: there is a new one."""
        self._examples = self._completer = None

    def _add_action(self, menu: Any, text: str) -> None:
        short = text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"
        action = menu.addAction(short.replace("&", "&&"))
        action.toolTip = text
        action.connect("triggered()", lambda: self.onChosen(text))

    @guarded
    def onChosen(self, text: str) -> None:
        self.add(text)

    @guarded
    def onForget(self) -> None:
        prompt_history.forget(self.owner.parameters)
        self._completer = None
