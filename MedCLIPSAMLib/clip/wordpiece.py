"""BERT's tokenizer from a tokenizer.json or a vocab.txt, without padding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from MedCLIPSAMLib.errors import InputError

logger = logging.getLogger(__name__)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class WordPiece:
    """Text -> token ids of an uncased BERT, cut to the text tower's length."""

    def __init__(self, path: Path, maximum: int):
        """Load a tokenizer.

        Args:
            path: A tokenizer.json, or a vocab.txt with one entry a line.
            maximum: Tokens that the text tower reads, [CLS] and [SEP] among them.

        Raises:
            InputError: The file is not a BERT tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path)) if path.suffix == ".json" else _from_vocabulary(path)
        except Exception as error:  # the Rust library raises nothing more specific
            raise InputError(f"{path} is not a tokenizer.json or a vocab.txt: {error}") from error
        missing = [token for token in _SPECIAL if tokenizer.token_to_id(token) is None]
        if missing or tokenizer.token_to_id("[PAD]") != 0:
            raise InputError(
                f"{path} is not BiomedBERT's tokenizer: "
                + (f"{', '.join(missing)} is not in it." if missing else "[PAD] does not have the id 0.")
            )
        tokenizer.enable_truncation(maximum)
        tokenizer.no_padding()
        self.size = tokenizer.get_vocab_size()
        self._tokenizer = tokenizer
        self._maximum = maximum

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, of different lengths."""
        encodings = self._tokenizer.encode_batch(list(texts))
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.overflowing:
                logger.warning("A text is cut to %d tokens: %.60s...", self._maximum, text)
        return [encoding.ids for encoding in encodings]


def _from_vocabulary(path: Path) -> Tokenizer:
    words = path.read_text(encoding="utf-8").splitlines()
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens([token for token in (*_SPECIAL, "[MASK]") if token in vocabulary])
    return tokenizer
