"""The paper's cleaning of captions: special characters out, white space tidied, short captions dropped.

MedCLIP-SAMv2, section 4.1 (data): "special characters" is not defined there, so the pattern is a setting that everyone
can see. Duplicates stay in the set and are counted; :class:`~pair_batches.BatchPlan` keeps them out of one batch.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMTraining.pair_index import PairIndex
from MedCLIPSAMTraining.text_column import TextBuilder

SPECIAL = r"""[^A-Za-z0-9\s.,;:%()/+\-'"]"""
_CHUNK = 16_384
_SIMPLE = str.maketrans("‐‑‒–—−×‘’‚“”„µ", "------x'''\"\"\"u")


@dataclass(frozen=True)
class CleaningSettings:
    """How captions are cleaned.

    Attributes:
        special: Regular expression of what becomes a space.
        simplify: Before that, write what has a plain form plainly: é as e, a long dash as -, × as x. Without it the
            default pattern cuts "Sjögren" into two words.
        shortest: Captions with fewer characters than this, once they are clean, are dropped.
        drop_repeated: Also drop a pair whose image and caption an earlier pair has.
    """

    special: str = SPECIAL
    simplify: bool = True
    shortest: int = 20
    drop_repeated: bool = False


@dataclass(frozen=True)
class CleaningReport:
    """What cleaning did, in numbers of pairs.

    Attributes:
        read: Before.
        kept: After.
        too_short: Dropped for their length, the empty ones included.
        empty: Of these, how many had nothing left.
        changed: Kept with another caption than before.
        repeated_captions: Kept pairs whose caption an earlier one has.
        repeated_images: Kept pairs whose image an earlier one has.
        repeated_pairs: Pairs whose image and caption an earlier one has, kept or dropped as the settings say.
        most_alike: Kept pairs that share the most frequent caption.
        settings: The settings.
    """

    read: int
    kept: int
    too_short: int
    empty: int
    changed: int
    repeated_captions: int
    repeated_images: int
    repeated_pairs: int
    most_alike: int
    settings: CleaningSettings

    def as_dict(self) -> dict[str, object]:
        """Return it for a JSON file."""
        return asdict(self)

    def text(self) -> str:
        """Return it as two sentences without any caption."""
        repeated = "dropped" if self.settings.drop_repeated else "kept"
        return (
            f"{self.kept} of {self.read} pairs kept; {self.too_short} captions under {self.settings.shortest} "
            f"characters dropped ({self.empty} empty), {self.changed} changed by cleaning. {self.repeated_captions} "
            f"captions and {self.repeated_images} images occur again ({self.repeated_pairs} with both the same: "
            f"{repeated}); the most frequent caption occurs {self.most_alike} times."
        )


def clean_caption(caption: str, settings: CleaningSettings = CleaningSettings()) -> str:
    """Return one caption cleaned, of whatever length."""
    return _clean(caption, _pattern(settings), settings.simplify)


def clean(index: PairIndex, settings: CleaningSettings = CleaningSettings()) -> tuple[PairIndex, CleaningReport]:
    """Clean all captions and drop the pairs that the settings exclude.

    Returns:
        The index of the kept pairs, in order, and what was done.

    Raises:
        InputError: The pattern is no regular expression, or no pair is left.
    """
    pattern, simplify = _pattern(settings), settings.simplify
    builder, changed, done = TextBuilder(), np.zeros(len(index), bool), 0
    lengths = np.zeros(len(index), np.int32)
    captions = iter(index.captions)
    while part := list(islice(captions, _CHUNK)):
        cleaned = [_clean(caption, pattern, simplify) for caption in part]
        changed[done : done + len(part)] = [before != after for before, after in zip(part, cleaned, strict=True)]
        lengths[done : done + len(part)] = [len(caption) for caption in cleaned]
        builder.add(cleaned)
        done += len(part)
    long = lengths >= settings.shortest
    empty = int((lengths == 0).sum())
    kept = index.with_captions(builder.column()).take(np.flatnonzero(long))
    changed = changed[long]
    again = _seen_before(kept.caption_keys, kept.image_keys)
    if settings.drop_repeated:
        kept, changed = kept.take(np.flatnonzero(~again)), changed[~again]
    if not len(kept):
        raise InputError(
            f"no pair is left of {len(index)}: all captions have fewer than {settings.shortest} characters; is it the "
            "right column, and is the shortest length right?"
        )
    _, counts = np.unique(kept.caption_keys, return_counts=True)
    return kept, CleaningReport(
        read=len(index),
        kept=len(kept),
        too_short=int((~long).sum()),
        empty=empty,
        changed=int(changed.sum()),
        repeated_captions=len(kept) - len(counts),
        repeated_images=len(kept) - len(np.unique(kept.image_keys)),
        repeated_pairs=int(again.sum()),
        most_alike=int(counts.max()),
        settings=settings,
    )


def _pattern(settings: CleaningSettings) -> re.Pattern[str]:
    try:
        return re.compile(settings.special)
    except re.error as error:
        raise InputError(f"{settings.special!r} is no regular expression ({error}).") from error


def _clean(caption: str, pattern: re.Pattern[str], simplify: bool) -> str:
    if simplify and not caption.isascii():
        caption = unicodedata.normalize("NFKD", caption.translate(_SIMPLE))
        caption = "".join(letter for letter in caption if not unicodedata.combining(letter))
    return " ".join(pattern.sub(" ", caption).split())


def _seen_before(*keys: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether an earlier row has the same keys."""
    order = np.lexsort(keys)  # stable, so equal rows stay in order
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    again = np.zeros(len(order), bool)
    again[order[1:]] = same
    return again
