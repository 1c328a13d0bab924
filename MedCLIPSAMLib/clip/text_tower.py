"""Text towers: token ids -> unit vectors, without computing any padding that is not needed.

Their weights stay in single precision on every device: texts are few, and their vectors are reused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from MedCLIPSAMLib.clip.transformer_block import TransformerBlock
from MedCLIPSAMLib.clip.wordpiece import WordPiece


def padded(rows: Sequence[Sequence[int]], device: str) -> Tensor:
    """Return token ids as (N, longest), padded with 0."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)


class BertTower(nn.Module):
    """open_clip's ``HFTextEncoder``: a BERT, of which the first token's last state is projected."""

    def __init__(self, encoder: nn.Module, tokenizer: WordPiece):
        """Join encoder and tokenizer."""
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, unpadded; cleaned as open_clip does (ftfy, HTML entities, white space)."""
        from open_clip.tokenizer import basic_clean, whitespace_clean

        return self.tokenizer([whitespace_clean(basic_clean(text)) for text in texts])

    def vectors(self, ids: Tensor) -> Tensor:
        """(N, T) ids, padded with 0 -> unit vectors (N, D); the encoder masks the padding itself."""
        return functional.normalize(self.encoder(ids), dim=-1)


class ClipTextTower(nn.Module):
    """The text transformer of OpenAI's CLIP inside an open_clip model.

    Its attention is causal and the vector is read at the end token, so what comes after that token never counts and
    need not be computed.
    """

    def __init__(self, clip: nn.Module):
        """Take over the text parts of ``clip``, an ``open_clip.CLIP``; shares its weights."""
        super().__init__()
        from open_clip.tokenizer import SimpleTokenizer

        self.tokenizer = SimpleTokenizer(context_length=clip.context_length)
        self.words, self.position = clip.token_embedding, clip.positional_embedding
        self.blocks = nn.ModuleList(TransformerBlock.of(block) for block in clip.transformer.resblocks)
        self.norm, self.projection = clip.ln_final, clip.text_projection

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, unpadded."""
        rows = self.tokenizer(list(texts))
        ends = rows.argmax(dim=1)  # the end token has the highest id
        return [row[: end + 1].tolist() for row, end in zip(rows, ends.tolist(), strict=True)]

    def vectors(self, ids: Tensor) -> Tensor:
        """(N, T) ids, padded with 0 -> unit vectors (N, D)."""
        tokens = self.words(ids) + self.position[: ids.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, causal=True)
        ends = self.norm(tokens[torch.arange(len(ids), device=ids.device), ids.argmax(dim=1)])
        return functional.normalize(ends @ self.projection, dim=-1)


TextTower = BertTower | ClipTextTower
