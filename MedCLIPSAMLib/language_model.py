"""Prompts by a language model: the paper's question to a model of the user's choice, kept as a prompt set.

Off unless the user names a server and a model. As a program, ``python -m MedCLIPSAMLib.language_model``, it serves the
panel. It reads one JSON line from stdin: target, modality, endpoint, model, and optionally count, name, again; the key
is in the environment variable MEDCLIPSAM_LLM_KEY. It reports events as in event_lines.py: ``progress`` with done and
total in sentences, then ``done`` with name, path, prompts and asked (False where the answers were stored), or ``error``
with kind and message. It ends when its stdin closes.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.event_lines import CHUNK, EventWriter, LineSplitter, parse_line, take_stdout
from MedCLIPSAMLib.language_answers import sentences, without_repetitions
from MedCLIPSAMLib.language_http import LanguageModelError, key_of_environment, post
from MedCLIPSAMLib.language_question import DEFAULT_COUNT, Question
from MedCLIPSAMLib.prompt_sets import (
    LLM_TEMPLATE,
    LONGEST_NAME,
    PromptSet,
    check_set_name,
    load_prompt_set,
    save_user_set,
    taken_names,
    user_sets,
    user_sets_folder,
)

logger = logging.getLogger(__name__)

ROUNDS = 3
"""The same question is sent up to this often where a reply holds too few sentences."""

Progress = Callable[[int, int], None]
_writing = threading.Lock()  # held while a file is written, so that the panel's child does not end in the middle


def ask(
    question: Question,
    *,
    key: str | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> list[str]:
    """Ask the model and return up to ``question.count`` sentences: cleaned, checked, none twice.

    Args:
        question: What and where.
        key: None takes the environment variable MEDCLIPSAM_LLM_KEY, or none.
        progress: Called with the number of sentences so far and in all.
        cancelled: Asked between requests.

    Raises:
        InputError, CancelledError, LanguageModelError: See :func:`language_http.post`; and LanguageModelError if no
            sentence came.
    """
    key = key_of_environment() if key is None else key
    found: list[str] = []
    for _ in range(ROUNDS):
        before = len(found)
        reply = post(question, key, cancelled)
        found = without_repetitions(sentences(reply.text, reply.whole), found)[: question.count]
        if progress is not None:
            progress(len(found), question.count)
        if len(found) in (before, question.count):  # a model that has nothing new to say is not asked again
            break
    if not found:
        raise LanguageModelError(
            f"{question.model} replied without a sentence that could serve as a prompt; ask again, or another model."
        )
    return found


def stored_name(question: Question) -> str | None:
    """Return the name of the user's set that holds this model's answers to this question; None if it was not asked."""
    return next((name for name, content in user_sets().items() if _answers(content, question)), None)


def set_name(question: Question, name: str | None = None) -> str:
    """Return the name under which the answers are to be kept.

    Args:
        question: The question.
        name: The user's wish; None takes the set that holds the answers already, or makes a new name of target and
            modality.

    Raises:
        InputError: The wish is no proper name, or is taken by another set.
    """
    taken = taken_names()
    if name is not None:
        name = check_set_name(name)
        known = taken.get(name.casefold())
        if known is not None and not _answers(user_sets().get(known, {}), question):
            raise InputError(
                f"there is another prompt set {known!r} in {user_sets_folder()}; choose another name or delete that."
            )
        return known or name
    if stored := stored_name(question):
        return stored
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFC", f"{question.target} {question.modality}").lower())
    base = "-".join(dict.fromkeys(words))[: LONGEST_NAME - 4].rstrip("-") or "prompts"
    names = (base if number == 1 else f"{base}-{number}" for number in range(1, 1000))
    return check_set_name(next(one for one in names if one.casefold() not in taken))


def is_stored(question: Question, again: bool = False) -> bool:
    """Return whether :func:`write_set` has the answers already, so that nothing will be sent."""
    return not again and stored_name(question) is not None


def write_set(
    question: Question,
    *,
    name: str | None = None,
    again: bool = False,
    key: str | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> PromptSet:
    """Ask the model, keep its sentences as one of the user's prompt sets, and return that.

    The set is an ensemble: ``set:NAME`` takes the mean of all its sentences (design P4 of the paper), since no one of a
    model's sentences is better than the others before somebody has looked at them. The file may be edited by hand; with
    ``"design": "P2"`` its first sentence alone is used. Where the same question was put to the same model before, the
    stored answers are taken, with what was edited in them, and nothing is sent.

    Args:
        question: What and where.
        name: Of the set; None: see :func:`set_name`.
        again: Ask although the answers are stored; they are replaced.
        key, progress, cancelled: See :func:`ask`.

    Raises:
        InputError, CancelledError, LanguageModelError: See :func:`ask` and :func:`set_name`.
        OutputError: The set cannot be written.
    """
    chosen = set_name(question, name)  # a name that cannot be used is told before the model is paid for
    if not again and chosen in user_sets():
        return load_prompt_set(chosen)
    stored = None if again else stored_name(question)
    if stored is None:
        content = _content(question, ask(question, key=key, progress=progress, cancelled=cancelled))
    else:
        content = {entry: value for entry, value in user_sets()[stored].items() if entry != "name"}
    with _writing:
        save_user_set(chosen, content)
    return load_prompt_set(chosen)


def _content(question: Question, found: list[str]) -> dict[str, Any]:
    date = datetime.now(UTC).date().isoformat()
    return {
        "task": question.modality.lower(),
        "design": "P4",
        "prompts": found,
        "attribution": (
            f"written by the language model {question.model} at {question.host} on {date}, after the question of "
            "Koleilat et al., arXiv 2409.19483; not checked by anybody"
        ),
        "request": {
            "template": LLM_TEMPLATE,
            "target": question.target,
            "modality": question.modality,
            "count": question.count,
            "model": question.model,
            "endpoint": question.endpoint,
            "text": question.text,
            "date": date,
        },
    }


def _answers(content: Mapping[str, Any], question: Question) -> bool:
    """Return whether a set holds this model's answers to this question."""
    request = content.get("request")
    wanted = {"text": question.text, "model": question.model, "endpoint": question.endpoint}
    return isinstance(request, Mapping) and all(request.get(name) == value for name, value in wanted.items())


# ---- The child process of the panel ----------------------------------------------------------------------------------


def main() -> int:
    """Serve one request from stdin; see the module's description."""
    writer = take_stdout()
    try:
        line = _first_line()
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
        _serve(parse_line(line), writer)
    except MedCLIPSAMError as error:
        writer.send("error", kind=type(error).__name__, message=str(error))
    except Exception as error:  # the panel must hear of it, whatever it was
        logger.exception("The request failed.")
        writer.send("error", kind=type(error).__name__, message=f"Asking failed unexpectedly: {type(error).__name__}.")
    else:
        return 0
    return 1


def _serve(request: Mapping[str, Any] | None, writer: EventWriter) -> None:
    names = ("target", "modality", "endpoint", "model")
    if request is None or not all(isinstance(request.get(name), str) for name in names):
        raise InputError(f"the request must be one JSON line with {', '.join(names)}.")
    question = Question(*(request[name] for name in names), count=request.get("count", DEFAULT_COUNT))
    again = bool(request.get("again"))
    stored = is_stored(question, again)
    written = write_set(
        question,
        name=request.get("name") or None,
        again=again,
        progress=lambda done, total: writer.send("progress", done=done, total=total),
    )
    file = user_sets_folder() / f"{written.name}.json"
    writer.send("done", name=written.name, path=file, prompts=written.prompts, asked=not stored)


def _first_line() -> bytes:
    """Read stdin up to a line feed, past Python's own buffer: its lock, held by a thread, would spoil the exit."""
    splitter = LineSplitter()
    while piece := os.read(0, CHUNK):
        for line in splitter.feed(piece):
            return line
    return splitter.last()


def _end_with_stdin() -> None:
    while os.read(0, CHUNK):
        pass
    with _writing:
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
