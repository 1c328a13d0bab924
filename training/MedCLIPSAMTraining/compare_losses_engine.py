"""Engines of many fine-tuned alignments, one after the other, that encode every test image once between them.

LiteMedSAM's encoder is frozen, so what it makes of an image is the same for all alignments; encoding is most of the
work of an evaluation on a CPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from MedCLIPSAMLib.clip.lite import LiteClip
from MedCLIPSAMLib.engines import load_engine
from MedCLIPSAMLib.pipeline import TextSegmenter
from MedCLIPSAMLib.sam.embedding_cache import content_digest
from MedCLIPSAMLib.sam.lite_encoder import LiteEncoder, LiteFeatures


class KeptEncoder:
    """A :class:`LiteEncoder` that forgets nothing: 7 MB an image, on the device."""

    def __init__(self, encoder: LiteEncoder) -> None:
        """Take over an encoder."""
        self._encoder = encoder
        self._kept: dict[str, LiteFeatures] = {}
        encoder.follow(lambda device: self._kept.clear())  # when it moves, they lie on the wrong device

    def __getattr__(self, name: str) -> object:
        return getattr(self._encoder, name)

    def __call__(self, image: np.ndarray) -> LiteFeatures:
        """See :class:`LiteEncoder`."""
        key = content_digest(image)
        if key not in self._kept:
            self._kept[key] = self._encoder(image)
        return self._kept[key]


class EngineSource:
    """Gives out engines of the lite kind, with one sample and the presence gate off: a fine-tuned one is not calibrated
    for it."""

    def __init__(self, device: str) -> None:
        """Load nothing yet; ``device`` as for :func:`load_engine`."""
        self._device = device
        self._first: TextSegmenter | None = None

    def __call__(self, name: str) -> TextSegmenter:
        """Return the engine "lite" or "finetuned:FOLDER".

        Raises:
            InputError, MissingWeightsError, ChecksumError: See :func:`load_engine`.
        """
        engine = load_engine(name, device=self._device)
        recipe = replace(engine.recipe, gate=False, samples=1)
        if self._first is None:
            engine.segmenter.encoder = KeptEncoder(engine.segmenter.encoder)
            self._first = engine
        shared = self._first.segmenter
        clip = LiteClip(shared.encoder, self._first.clip.text, engine.clip.tower)
        return TextSegmenter(clip, shared, recipe, None, engine.device, engine.weights)
