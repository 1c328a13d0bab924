"""PMC-CLIP, for image-text retrieval alone: its image tower is a ResNet, which has no tokens.

Lin et al., "PMC-CLIP: Contrastive Language-Image Pre-training using Biomedical Documents", MICCAI 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from MedCLIPSAMLib.clip.base import ImageState, TargetActivations
from MedCLIPSAMLib.clip.biomedclip import load_strictly
from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, read_safely
from MedCLIPSAMLib.clip.open_clip_import import import_open_clip
from MedCLIPSAMLib.clip.open_clip_model import as_dtype, encode_texts, in_batches, squashed
from MedCLIPSAMLib.clip.wordpiece import WordPiece
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.memory import MemoryGuard
from MedCLIPSAMLib.resources import resource_path

SIZE, CONTEXT, WIDTH = 224, 77, 768
LOGIT_SCALE = 83.86  # exp(4.4292), learnt


class PmcClip:
    """Implements ``encode_images`` and ``encode_texts`` of the interface; the rest raises InputError."""

    name = "PMC-CLIP"
    saliency_methods: frozenset[str] = frozenset()
    logit_scale = LOGIT_SCALE

    def __init__(self, image: nn.Module, text: PmcTextTower, device: str, precision: str = "float32"):
        """Join the towers.

        Args:
            image: ResNet, (B, 3, 224, 224) -> (B, 768).
            text: Token ids -> unit vectors.
            device: Where to run.
            precision: Of the image tower: "float32", "bfloat16" or "float16".
        """
        self._dtype = as_dtype(precision)
        self.image = image.eval().requires_grad_(False).to(device, self._dtype)
        self.text = text.eval().requires_grad_(False).to(device)
        self.memory = MemoryGuard(self.name, device, self._to_cpu)

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """See :class:`VisionLanguageModel`."""

        def encode(some: Sequence[np.ndarray]) -> Tensor:
            return self.encode_input(torch.cat([squashed(image, SIZE) for image in some]))

        return in_batches(self.memory, images, encode, "images")

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """See :class:`VisionLanguageModel`."""
        return encode_texts(self.text, self.memory, prompts)

    def model_input(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """See :class:`VisionLanguageModel`."""
        frame = Frame(image.shape[0], image.shape[1], SIZE, keep_aspect=False)
        return squashed(image, SIZE).to(self.memory.device), frame

    @torch.inference_mode()
    def encode_input(self, batch: Tensor) -> Tensor:
        """See :class:`VisionLanguageModel`."""
        return functional.normalize(self.image(batch.to(self.memory.device, self._dtype)).float(), dim=-1)

    def image_state(self, image: np.ndarray, layer: int) -> ImageState:
        """Raise InputError."""
        self._refuse()

    def finish(self, tokens: Tensor, layer: int) -> Tensor:
        """Raise InputError."""
        self._refuse()

    def activations(self, image: np.ndarray, text: Tensor) -> TargetActivations:
        """Raise InputError."""
        self._refuse()

    def patch_embeddings(self, image: np.ndarray) -> tuple[np.ndarray, Frame]:
        """Raise InputError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(
            "PMC-CLIP's image tower is a ResNet without tokens, so it has no saliency here; it serves retrieval. For a "
            "mask choose the engine biomedclip, clip-vit-b-16 or lite."
        )

    def _to_cpu(self) -> None:
        self._dtype = torch.float32
        self.image.to("cpu", self._dtype)
        self.text.to("cpu")


class PmcTextTower(nn.Module):
    """BiomedBERT with its pooler, and a projection."""

    def __init__(self, bert: nn.Module, projection: Tensor, tokenizer: WordPiece):
        """Join the parts; ``projection`` is (768, 768)."""
        super().__init__()
        self.bert, self.tokenize = bert, tokenizer
        self.projection = nn.Parameter(projection, requires_grad=False)

    def vectors(self, ids: Tensor) -> Tensor:
        """(N, T) ids, padded with 0 -> unit vectors (N, 768)."""
        pooled = self.bert(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
        return functional.normalize(pooled @ self.projection, dim=-1)


def load_pmc_clip(
    image: Path, text: Path, projection: Path, tokenizer: Path, device: str, precision: str = "float32"
) -> PmcClip:
    """Load PMC-CLIP.

    Args:
        image, text, projection: ``image_encoder(resnet50).pth``, ``text_encoder.pth``, ``text_projection_layer.pth``.
        tokenizer: BiomedBERT's tokenizer.json or vocab.txt.
        device: torch's name of it.
        precision: See :class:`PmcClip`.

    Raises:
        InputError: A file is not what its name says, or a package is not installed.
    """
    import_open_clip(PmcClip.name)
    from open_clip.modified_resnet import ModifiedResNet
    from transformers import AutoConfig, BertModel

    tokens = WordPiece(tokenizer, CONTEXT)
    config = AutoConfig.from_pretrained(resource_path("MedCLIPSAM", "Models", "biomedbert", "config.json").parent)
    with torch.random.fork_rng(devices=[]):
        towers = {
            image: ModifiedResNet([3, 4, 6, 3], output_dim=WIDTH, heads=8, image_size=SIZE, width=64),
            text: BertModel(config),
        }
    for path, module in towers.items():
        state = read_checkpoint(path)
        state = {key: value for key, value in state.items() if not key.endswith(".position_ids")}
        try:
            load_strictly(module, state, "PMC-CLIP")
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return PmcClip(towers[image], PmcTextTower(towers[text], _matrix(projection), tokens), device, precision)


def _matrix(path: Path) -> Tensor:
    """Return the (768, 768) projection; the file holds that matrix alone."""
    content = read_safely(path)
    if not isinstance(content, Tensor) or content.shape != (WIDTH, WIDTH):
        found = tuple(content.shape) if isinstance(content, Tensor) else type(content).__name__
        raise InputError(f"{path} holds {found} and not a {WIDTH} x {WIDTH} matrix.")
    return content.detach().float()
