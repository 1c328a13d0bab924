"""What can be said of a prompt's text before any model sees it: whether it is one, and wording no engine can honour."""

from __future__ import annotations

import re

from MedCLIPSAMLib.errors import InputError

MAXIMUM_LENGTH = 2000


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
