"""Which SNOMED CT code and colour a text prompt's target has, as far as known; as Slicer serialises them."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from MedCLIPSAMLib.resources import resource_path

Colour = tuple[float, float, float]
_NEGATIONS = {"no", "without", "not", "absent"}


@dataclass(frozen=True)
class Terminology:
    """What a prompt's target is called.

    Attributes:
        entry: "context~category~type~modifier~anatomic context~region~modifier", each code "scheme^value^meaning", as
            Slicer's Terminologies module reads it; None when no code is known.
        colour: RGB, each 0 to 1.
    """

    entry: str | None
    colour: Colour


def terminology_for(prompt: str) -> Terminology:
    """Return code and colour of a prompt's target.

    A finding ("tumor", "cyst", ...) is coded as such, in the region that the prompt names; otherwise an organ is coded
    as anatomy. A finding that the prompt denies ("no tumor") does not count. Prompts without a known target get no code
    and a colour from a small palette, always the same one for the same prompt.
    """
    table = _table()
    words = _words(prompt)
    anatomy = _first(table["anatomy"], words)
    finding = None if words & _NEGATIONS else _first(table["findings"], words)
    if finding is not None:
        region = _first(table["anatomy"], {finding.get("region", "")}) or anatomy
        entry = _entry(table, "Morphologically Altered Structure", finding, region=region)
        return Terminology(entry, _colour(finding))
    if anatomy is not None:
        pair = "lungs" in re.findall(r"\w+", prompt.casefold()) and anatomy["meaning"] == "Lung"
        return Terminology(_entry(table, "Anatomical Structure", anatomy, both_sides=pair), _colour(anatomy))
    palette = table["palette"]
    number = zlib.crc32(" ".join(sorted(words)).encode()) % len(palette)
    return Terminology(None, _rgb(palette[number]))


def coarse_colour(colour: Colour) -> Colour:
    """Return the lighter colour in which the coarse mask stands beside a mask of ``colour``."""
    red, green, blue = (0.45 + 0.55 * channel for channel in colour)
    return red, green, blue


def _entry(
    table: dict[str, Any],
    category: str,
    target: dict[str, Any],
    *,
    region: dict[str, Any] | None = None,
    both_sides: bool = False,
) -> str:
    none = "^^"
    return "~".join(
        (
            table["contexts"]["type"],
            f"SCT^{table['categories'][category]}^{category}",
            _code(target),
            f"SCT^{table['both_sides']}^Right and left" if both_sides else none,
            table["contexts"]["region"],
            none if region is None else _code(region),
            none,
        )
    )


def _code(target: dict[str, Any]) -> str:
    return f"SCT^{target['code']}^{target['meaning']}"


def _colour(target: dict[str, Any]) -> Colour:
    return _rgb(target["colour"])


def _rgb(values: list[int]) -> Colour:
    red, green, blue = (value / 255 for value in values)
    return red, green, blue


def _first(targets: list[dict[str, Any]], words: set[str]) -> dict[str, Any] | None:
    return next((one for one in targets if any(set(text.split()) <= words for text in one["words"])), None)


def _words(prompt: str) -> set[str]:
    """Return a prompt's words in American spelling and in the singular, as the table has them."""
    words = re.findall(r"\w+", prompt.casefold())
    words = [
        word.replace("tumour", "tumor").replace("oedema", "edema").replace("haemorrhag", "hemorrhag") for word in words
    ]
    return {*words, *(word[:-1] for word in words if word.endswith("s") and len(word) > 4)}


@cache
def _table() -> dict[str, Any]:
    return json.loads(resource_path("MedCLIPSAM", "terminology.json").read_text(encoding="utf-8"))
