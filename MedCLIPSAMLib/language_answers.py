"""From what a language model replies to sentences that serve as prompts."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.prompt_checks import check_prompt

LONGEST_SENTENCE = 400  # characters; the text encoders read 77 to 256 tokens
FEWEST_WORDS = 3
SAME = 0.9
"""Of the words of two sentences, apart from those that say little: from this share on they count as the same."""

_THOUGHT = re.compile(r".*</think(?:ing)?>|<think(?:ing)?>.*", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"^\s*```\w*\s*$", re.MULTILINE)
_MARK = re.compile(r"\s*(?:[-*•·–—▪◦]\s+|\(?\d{1,3}[.):]\)?\s+|#+\s+)")
_REMARK = re.compile(
    r"(?:sure|certainly|of course|absolutely|okay|here (?:are|is)|here['’]s|below (?:are|is)|the following|"
    r"these (?:captions|sentences)|let me know|i hope|i can|i['’]m|i am|i cannot|sorry|note|please|feel free|if you)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile('\\[?["\'“”„‘’«»`]+([^"“”„«»`]+?)["\'“”„‘’«»`]+[.,;]?')
_LITTLE = re.compile(r"(?:an?|the|of|in|on|with|and|or|is|are|as|by|to|this|that)")


def sentences(reply: str, whole: bool = True) -> list[str]:
    """Return the sentences in one reply, in its order, without numbers, quotes, markdown and remarks around them.

    Args:
        reply: Lines with or without numbers or bullets, a JSON list of texts, or one paragraph.
        whole: False where the reply was cut off, so that its last line is not to be trusted.
    """
    text = _FENCE.sub("", _THOUGHT.sub("", reply)).strip()
    listed = _of_json(text)
    if listed is None:
        lines = [line for line in text.splitlines() if line.strip()]
        lines = lines if whole else lines[:-1]
        marked = [line for line in lines if _MARK.match(line)]
        if len(marked) > 1 and 2 * len(marked) >= len(lines):
            lines = marked  # what stands around a list is not part of it
        elif len(lines) == 1:
            lines = re.split(r"(?<=[.!?])\s+(?=\S)", lines[0])
        listed = [line for line in lines if not _REMARK.match(line.strip()) and not line.rstrip().endswith(":")]
    return [clean for text in listed if (clean := _clean(text))]


def without_repetitions(candidates: Iterable[str], known: Sequence[str] = ()) -> list[str]:
    """Return ``known`` and those of ``candidates`` that say something else than all before them."""
    kept = list(known)
    heads = [_content_words(one) for one in kept]
    for candidate in candidates:
        words = _content_words(candidate)
        if not any(_alike(words, head) for head in heads):
            kept.append(candidate)
            heads.append(words)
    return kept


def _of_json(text: str) -> list[str] | None:
    """Return the texts of a JSON list, or of the one list in a JSON object; None if it is no such thing."""
    if not text.startswith(("[", "{")):
        return None
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list):
        return None
    texts = [next(iter(one.values()), None) if isinstance(one, dict) else one for one in content]
    return [one for one in texts if isinstance(one, str)]


def _clean(line: str) -> str:
    """Return one sentence as a prompt; empty if it is none."""
    # Control characters could steer a terminal, and invisible ones change a prompt unseen.
    seen = "".join(" " if unicodedata.category(one)[0] in "CZ" else one for one in line)
    text = _MARK.sub("", seen, count=1).replace("**", "").replace("__", "").strip()
    text = text.strip("*_ ")
    if quoted := _QUOTED.fullmatch(text):
        text = quoted[1]
    try:
        text = check_prompt(text)
    except InputError:
        return ""
    return text if len(text) <= LONGEST_SENTENCE and len(text.split()) >= FEWEST_WORDS else ""


def _content_words(sentence: str) -> list[str]:
    words = re.findall(r"\w+", sentence.casefold())
    return [word for word in words if not _LITTLE.fullmatch(word)] or words


def _alike(one: list[str], other: list[str]) -> bool:
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    return sorted(one) == sorted(other) or (matcher.real_quick_ratio() >= SAME and matcher.ratio() >= SAME)
