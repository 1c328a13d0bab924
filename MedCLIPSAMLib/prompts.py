"""Text prompts: checks, prompt ensembles, paraphrases, wording that no engine can honour, and the paper's sets P0-P5.

Source of the prompt designs: Koleilat et al., MedCLIP-SAMv2, arXiv 2409.19483, section 3.2 and Table 3. The sets that
come with the software are our own wording; those called ``paper-...`` quote the authors.
"""

from __future__ import annotations

import ast
import difflib
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.resources import resource_path

MAXIMUM_LENGTH = 2000
LLM_TEMPLATE = "Give a sentence caption that describes unique visual features of {target} in {modality}."
"""What the paper asks a language model for, to obtain the sentences of P2 and P3."""

ENSEMBLES = {"P4": "P2", "P5": "P3"}
"""Designs that take the mean of all sentences of another design."""

SET_PREFIX = "set:"
Wording = tuple[str, ...]


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
    """

    name: str
    task: str
    design: str
    prompts: tuple[str, ...]
    source: str
    modality: str = ""

    @property
    def is_ensemble(self) -> bool:
        """Whether the embeddings of all prompts are to be averaged, see :func:`ensemble_embedding`."""
        return self.design in ENSEMBLES


def check_prompt(text: str) -> str:
    """Return ``text`` without outer white space and with every run of white space as one blank.

    Raises:
        InputError: Not a string, no letter or digit in it, or longer than 2000 characters.
    """
    if not isinstance(text, str):
        raise InputError(f"the prompt is {text!r}; pass a text such as 'breast tumor'.")
    collapsed = " ".join(text.split())
    if not any(character.isalnum() for character in collapsed):
        raise InputError(f"the prompt {text[:40]!r} holds no word; describe what to segment, such as 'breast tumor'.")
    if len(collapsed) > MAXIMUM_LENGTH:
        raise InputError(
            f"the prompt has {len(collapsed)} characters, more than {MAXIMUM_LENGTH}; one or two sentences do."
        )
    return collapsed


def ensemble_embedding(embeddings: np.ndarray, *, raw: bool = False) -> np.ndarray:
    """Return one text embedding for several prompts (P4, P5): normalise, take the mean, normalise.

    Args:
        embeddings: (K, D), one row a prompt.
        raw: True takes the plain mean and normalises nothing, as the authors' program does.

    Returns:
        (D,) float32, of unit length unless ``raw``.

    Raises:
        InputError: Not (K, D) with at least one row and one column, NaN or infinite values, a row of zeros, or rows
            that cancel each other.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2 or embeddings.size == 0:
        raise InputError(f"the text embeddings have shape {embeddings.shape}; pass (K, D) with one row a prompt.")
    if not np.isfinite(embeddings).all():
        raise InputError("the text embeddings hold NaN or infinite values; check the text encoder's weights.")
    if raw:
        return embeddings.mean(axis=0).astype(np.float32)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise InputError(f"text embedding {int(lengths[:, 0].argmin())} is zero; check the text encoder's weights.")
    mean = (embeddings / lengths).mean(axis=0)
    length = np.linalg.norm(mean)
    if length < 1e-6:
        raise InputError(f"the {len(embeddings)} prompts cancel each other (their mean is zero); use fewer of them.")
    return (mean / length).astype(np.float32)


def paraphrases(prompt: str, count: int, seed: int = 0) -> list[str]:
    """Return ``count`` wordings of a prompt, the first being the prompt itself.

    The others put it into fixed templates, in an order that depends on the seed alone. When the templates run out, the
    list starts again from the prompt.

    Raises:
        InputError: ``count`` is below 1, or :func:`check_prompt` refuses the prompt.
    """
    prompt = check_prompt(prompt)
    if count < 1:
        raise InputError(f"{count} paraphrases were asked for; at least 1 is needed.")
    templates = _templates()
    order = np.random.default_rng(seed).permutation(len(templates))
    phrase = prompt.rstrip(".!? ") or prompt
    first, _, rest = phrase.partition(" ")
    if first == "A" or (first[:1].isupper() and first[1:].isalpha() and first[1:].islower()):
        phrase = f"{first.lower()} {rest}".rstrip()  # a sentence's capital letter; abbreviations such as MRI stay
    wordings = [prompt, *(templates[index].replace("{}", phrase) for index in order)]
    return [wordings[index % len(wordings)] for index in range(count)]


def wordings(prompt: str, count: int, seed: int = 0) -> list[Wording]:
    """Return ``count`` ways to say a prompt, each a tuple of texts whose embeddings are averaged.

    A free text gives its :func:`paraphrases`. ``set:NAME`` names a prompt set: an ensemble (P4, P5) gives all its
    sentences together and then each on its own, any other set the paraphrases of its first sentence.

    Raises:
        InputError: See :func:`paraphrases` and :func:`load_prompt_set`.
    """
    prompt = check_prompt(prompt)
    if not prompt.startswith(SET_PREFIX):
        return [(text,) for text in paraphrases(prompt, count, seed)]
    chosen = load_prompt_set(prompt.removeprefix(SET_PREFIX).strip())
    if not chosen.is_ensemble:
        return [(text,) for text in paraphrases(chosen.prompts[0], count, seed)]
    order = np.random.default_rng(seed).permutation(len(chosen.prompts))
    return [chosen.prompts, *((chosen.prompts[order[number % len(order)]],) for number in range(count - 1))]


def unsupported_wording(prompt: str) -> list[str]:
    """Return a sentence for each kind of wording that image-text similarity cannot honour; empty if there is none.

    Looked for: position and side, negation, and counts, sizes and comparisons. Each sentence names the words found and
    what to do instead.
    """
    warnings = []
    for pattern, meaning, remedy in _UNSUPPORTED:
        found = dict.fromkeys(match.group().lower() for match in pattern.finditer(prompt))
        if found:
            words = ", ".join(f'"{word}"' for word in found)
            warnings.append(f"{words}: the engine cannot tell {meaning}; {remedy}")
    return warnings


def prompt_sets() -> list[str]:
    """Return the names of the prompt sets that come with the software, sorted."""
    names = {path.stem for path in _folder().glob("*.json")} - {"templates"}
    own = {name for name in names if not name.startswith("paper-")}
    derived = {
        name.replace(f"-{part.lower()}", f"-{whole.lower()}") for whole, part in ENSEMBLES.items() for name in own
    }
    return sorted(names | derived)


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
    if str(name).endswith(".json"):
        return _from_json(Path(name))
    if name not in prompt_sets():
        near = difflib.get_close_matches(str(name), prompt_sets(), n=3)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(f"there is no prompt set {str(name)!r}; {meant}`medclipsam prompts` lists the sets.")
    file = _folder() / f"{name}.json"
    if file.is_file():
        return _from_json(file)
    for whole, part in ENSEMBLES.items():
        file = _folder() / f"{str(name).replace(f'-{whole.lower()}', f'-{part.lower()}')}.json"
        if file.is_file():
            return replace(_from_json(file), name=str(name), design=whole)
    raise InputError(f"the file of prompt set {str(name)!r} has gone from {_folder()}; install MedCLIPSAM again.")


def _folder() -> Path:
    return resource_path("MedCLIPSAM", "Prompts")


@lru_cache(maxsize=1)
def _templates() -> tuple[str, ...]:
    return tuple(json.loads((_folder() / "templates.json").read_text(encoding="utf-8"))["templates"])


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt file {file} cannot be read: {error}.") from error


def _from_json(file: Path) -> PromptSet:
    try:
        content = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise InputError(f"the prompt file {file} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("prompts"), list) or not content["prompts"]:
        raise InputError(f'the prompt file {file} needs a list "prompts" with at least one text.')
    texts = {
        key: str(content.get(key, default))
        for key, default in (("name", file.stem), ("task", ""), ("design", ""), ("modality", ""))
    }
    prompts = tuple(check_prompt(prompt) for prompt in content["prompts"])
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


def _words(*words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


_UNSUPPORTED = (
    (
        _words(
            "left", "right", "leftmost", "rightmost", "upper", "lower", "uppermost", "lowermost", "top", "bottom",
            "superior", "inferior", "anterior", "posterior", "medial", "lateral", "proximal", "distal",
        ),
        "sides and positions apart",
        "leave this out and keep the part you need in the result, or crop the image first.",
    ),
    (
        _words(
            "no", "not", "none", "without", "absent", "absence", "never", "free of", "negative for",
            "exclud(?:e|es|ed|ing)", "except", "ruled out", r"\w+n['’]t",
        ),
        "what is denied from what is asserted",
        "name only what is to be segmented; whether it is there at all is told by the presence score.",
    ),
    (
        _words(
            "largest", "biggest", "larger", "bigger", "smallest", "smaller", "second", "third", "two", "three", "four",
            "five", "six", "seven", "eight", "nine", "ten", "how many", "number of", r"\d+(?:[.,]\d+)?\s*(?:mm|cm|ml)",
        ),
        "sizes, counts and ranks",
        "leave this out and choose by area in the result.",
    ),
)  # fmt: skip
