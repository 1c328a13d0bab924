"""Prompt sets: those that come with the software (the paper's designs P0 to P5), the user's own, and files.

Source of the designs: Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483, section 3.2 and Table 3. The sets that come
with the software are our own wording; those called ``paper-...`` quote the authors. The user's own are the files
``NAME.json`` in :func:`user_sets_folder`, which may be edited by hand; none of them takes the place of a set that comes
with the software.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prompt_checks import check_prompt
from MedCLIPSAMLib.resources import resource_path
from MedCLIPSAMLib.weights import user_folder

LLM_TEMPLATE = "Give a sentence caption that describes unique visual features of {target} in {modality}."
"""What the paper asks a language model for, to obtain the sentences of P2 and P3."""

ENSEMBLES = {"P4": "P2", "P5": "P3"}
"""Designs that take the mean of all sentences of another design."""

LONGEST_NAME = 80
_OF_WINDOWS = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)  # devices, whatever the extension


@dataclass(frozen=True)
class PromptSet:
    """Prompts for one target.

    Attributes:
        name: For example "breast-ultrasound-p3-benign".
        task: "breast ultrasound", "brain mri", "chest x-ray", "chest ct"; empty when unknown.
        design: "P0" class name, "P1" class and subtype, "P2" a sentence about the class, "P3" a sentence about the
            subtype, "P4" the ensemble of all P2 and "P5" of all P3 sentences; empty when unknown.
        prompts: For P0 to P3 the first is the one to use and the others say the same; for P4 and P5 all are used.
        source: Who wrote them, and the licence.
        modality: DICOM modality: "US", "MR", "DX", "CT"; empty when unknown.
        own: Whether it is one of the user's, from :func:`user_sets_folder`.
    """

    name: str
    task: str
    design: str
    prompts: tuple[str, ...]
    source: str
    modality: str = ""
    own: bool = False

    @property
    def is_ensemble(self) -> bool:
        """Whether the embeddings of all prompts are to be averaged, see :func:`prompts.ensemble_embedding`."""
        return self.design in ENSEMBLES


def user_sets_folder() -> Path:
    """Return the folder of the user's own sets, beside that of the weights; it need not exist."""
    return user_folder().parent / "Prompts"


def prompt_sets() -> list[str]:
    """Return the names of the sets that come with the software and of the user's that can be read, sorted."""
    own = {name: file for name, file in _user_files().items() if not _fault(file)}
    return sorted(_with_ensembles(_shipped_files()) | _with_ensembles(own))


def unusable_sets() -> dict[Path, str]:
    """Return the user's files that :func:`prompt_sets` leaves out, and for each why."""
    known = {name.casefold() for name in _with_ensembles(_shipped_files())}
    found = {}
    for file in _json_files(user_sets_folder()):
        if file.stem.casefold() in known:
            found[file] = f"{file}: a set {file.stem!r} comes with the software; rename the file."
        elif reason := _fault(file):
            found[file] = reason
    return found


def load_prompt_set(name: str | Path, path: str | Path | None = None) -> PromptSet:
    """Return a prompt set by name, or from a file.

    Args:
        name: One of :func:`prompt_sets`; or the path of a ``.json`` file like those in Resources/MedCLIPSAM/Prompts.
        path: A Python file with lists of sentences, such as ``saliency_maps/text_prompts.py`` in a clone of the
            authors' repository (github.com/HealthX-Lab/MedCLIP-SAMv2); ``name`` is then the list's name. The file is
            read, never run.

    Raises:
        InputError: There is no such set or file, or the file does not hold what it should.
    """
    if path is not None:
        return _from_python(Path(path), str(name))
    name = str(name)
    if name.endswith(".json"):
        return _from_json(Path(name))
    for own, files in ((False, _shipped_files()), (True, _user_files())):
        if name in files:
            return _named(_from_json(files[name]), name, own)
        for whole, part in ENSEMBLES.items():
            file = files.get(_other_design(name, whole, part))
            if file is not None and name in _with_ensembles(files):
                return replace(_named(_from_json(file), name, own), design=whole)
    near = difflib.get_close_matches(name, prompt_sets(), n=3)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise InputError(f"there is no prompt set {name!r}; {meant}`medclipsam prompts` lists the sets.")


def check_set_name(name: str) -> str:
    """Return a name under which the user may keep a set.

    Raises:
        InputError: Not words of letters and digits joined by hyphens, longer than 80 characters, or taken by a set that
            comes with the software.
    """
    name = unicodedata.normalize("NFC", name.strip())
    if not re.fullmatch(r"[^\W_]+(?:-[^\W_]+)*", name) or len(name) > LONGEST_NAME or _OF_WINDOWS.fullmatch(name):
        raise InputError(
            f"a prompt set cannot be called {name!r}; take at most {LONGEST_NAME} letters, digits and single hyphens, "
            "such as 'liver-tumor-ct'."
        )
    if name.casefold() in {known.casefold() for known in _with_ensembles(_shipped_files())}:
        raise InputError(f"a prompt set {name!r} comes with the software; choose another name.")
    return name


def save_user_set(name: str, content: Mapping[str, Any]) -> Path:
    """Write one of the user's sets and return its file; one of that name is replaced.

    Args:
        name: See :func:`check_set_name`.
        content: As in Resources/MedCLIPSAM/Prompts; may have further keys.

    Raises:
        InputError: The name or the content cannot be used.
        OutputError: The folder cannot be written.
    """
    from MedCLIPSAMLib.file_output import check_output_folder, write_json  # numpy and Pillow

    file = user_sets_folder() / f"{check_set_name(name)}.json"
    _from_content({"name": name, **content}, file)
    check_output_folder(file.parent)
    write_json(file, {"name": name, **content})
    return file


def user_sets() -> dict[str, dict[str, Any]]:
    """Return the whole content of each of the user's sets that can be read, by name."""
    return {name: _json(file) for name, file in _user_files().items() if not _fault(file)}


def taken_names() -> dict[str, str]:
    """Return the names that a new set cannot have, by their case-folded form: of all sets, and of the user's files."""
    names = [*_with_ensembles(_shipped_files()), *_with_ensembles(_user_files())]
    return {name.casefold(): name for name in names}


# ---- Where they are --------------------------------------------------------------------------------------------------


def _json_files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    except OSError:  # a folder that may not be looked into has no sets for this user
        return []


def _shipped_files() -> dict[str, Path]:
    files = {file.stem: file for file in _json_files(resource_path("MedCLIPSAM", "Prompts"))}
    files.pop("templates", None)
    return files


def _user_files() -> dict[str, Path]:
    known = {name.casefold() for name in _with_ensembles(_shipped_files())}
    files = _json_files(user_sets_folder())
    return {file.stem: file for file in files if file.stem.casefold() not in known}


def _with_ensembles(files: Mapping[str, Path]) -> set[str]:
    """Return the names of the files, and those of the ensembles of their sentences."""
    own = [name for name in files if not name.startswith("paper-")]
    return set(files) | {_other_design(name, part, whole) for whole, part in ENSEMBLES.items() for name in own}


def _other_design(name: str, design: str, other: str) -> str:
    return name.replace(f"-{design.lower()}", f"-{other.lower()}")


def _named(loaded: PromptSet, name: str, own: bool) -> PromptSet:
    return replace(loaded, name=name, own=own)


def _fault(file: Path) -> str:
    """Return why a file is no prompt set; empty if it is one."""
    try:
        _from_json(file)
    except InputError as error:
        return str(error)
    return ""


# ---- What is in them -------------------------------------------------------------------------------------------------


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt file {file} cannot be read: {error}.") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(_read(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"the prompt file {file} is not JSON: {error}.") from error


def _from_json(file: Path) -> PromptSet:
    return _from_content(_json(file), file)


def _from_content(content: Any, file: Path) -> PromptSet:
    if not isinstance(content, dict) or not isinstance(content.get("prompts"), list) or not content["prompts"]:
        raise InputError(f'the prompt file {file} needs a list "prompts" with at least one text.')
    texts = {
        key: str(content.get(key, default))
        for key, default in (("name", file.stem), ("task", ""), ("design", ""), ("modality", ""))
    }
    try:
        prompts = tuple(check_prompt(prompt) for prompt in content["prompts"])
    except InputError as error:
        raise InputError(f"the prompt file {file}: {error}") from error
    return PromptSet(**texts, prompts=prompts, source=str(content.get("attribution", file)))


def _from_python(file: Path, name: str) -> PromptSet:
    lists: dict[str, list[str]] = {}
    try:
        statements = ast.parse(_read(file)).body
    except (SyntaxError, ValueError) as error:
        raise InputError(f"the prompt file {file} is not a Python file: {error}.") from error
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.List):
            elements = [element.value for element in statement.value.elts if isinstance(element, ast.Constant)]
            lists.update((target.id, elements) for target in statement.targets if isinstance(target, ast.Name))
    if not lists.get(name):
        raise InputError(f"{file} has no list {name!r}; it has {', '.join(lists) or 'none'}.")
    design = re.search(r"_(P[0-5])_", name)
    return PromptSet(
        name=name,
        task="",
        design=design.group(1) if design else "",
        prompts=tuple(check_prompt(prompt) for prompt in lists[name]),
        source=str(file),
    )
