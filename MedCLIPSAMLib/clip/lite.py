"""The lite engine's vision-language model: LiteMedSAM's frozen encoder, MiniLM, and the trained alignment on top."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from MedCLIPSAMLib.clip.base import ImageState, TargetActivations
from MedCLIPSAMLib.clip.lite_tower import COARSE, LiteTower
from MedCLIPSAMLib.clip.minilm import MiniLM
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.sam.lite_encoder import REMEMBERED, LiteEncoder, LiteFeatures, model_input

CARD = "lite-alignment"
"""The only entry of the file's metadata: safetensors writes several in random order, and the hash would change."""


class LiteClip:
    """Implements :class:`~MedCLIPSAMLib.clip.base.VisionLanguageModel`; layer 0 is the tower's input tokens.

    Attributes:
        memory: The encoder's, which takes this model along when it moves.
        logit_scale: The factor of the cosine similarity in training, one over its temperature.
    """

    name = "lite alignment"
    saliency_methods = frozenset({"patch_similarity", "m2ib", "gscorecam", "gradcam"})

    def __init__(self, encoder: LiteEncoder, text: MiniLM, tower: LiteTower, logit_scale: float = 10.0):
        """Join the parts.

        Args:
            encoder: Shared with the segmenter, so that an image is encoded once for both.
            text: Sentence embeddings.
            tower: The trained alignment; used in eval mode, in float32, on the encoder's device.
            logit_scale: See the class; the default is that of ``MedCLIPSAMTraining.align_lite``.
        """
        self.encoder = encoder
        self.text = text.to(encoder.device)
        self.tower = tower.float().eval().requires_grad_(False).to(encoder.device)
        self.logit_scale = logit_scale
        self.memory = encoder.memory
        encoder.follow(self._move)
        self._remembered: OrderedDict[int, tuple[LiteFeatures, Tensor, np.ndarray]] = OrderedDict()

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """See :class:`VisionLanguageModel`."""

        def vectors(image: np.ndarray) -> np.ndarray:  # off the device at once, which a later image may have to leave
            return self.tower.image_vectors(self._run(image)[1]).cpu().numpy()

        return np.concatenate([self.memory.run(lambda _, image=image: vectors(image)) for image in images])

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """See :class:`VisionLanguageModel`."""
        with torch.inference_mode():
            embeddings = torch.from_numpy(self.text.encode(prompts)).to(self.encoder.device)
            return self.tower.text_vectors(embeddings).cpu().numpy()

    def image_state(self, image: np.ndarray, layer: int) -> ImageState:
        """See :class:`VisionLanguageModel`; layer 0 gives the tokens without CLS and position."""
        depth = len(self.tower.blocks)
        if not 0 <= layer < depth:
            raise InputError(f"layer {layer}: the lite image tower has layers 0 to {depth - 1}.")
        frame, tokens = self.memory.run(lambda _: self._tokens(image, layer))
        return ImageState(tokens, (COARSE, COARSE), frame)

    def finish(self, tokens: Tensor, layer: int) -> Tensor:
        """See :class:`VisionLanguageModel`; the last block works for the CLS token alone."""
        tokens = tokens.to(self.encoder.device)
        if layer == 0:
            tokens = self.tower.with_position(tokens)
        *middle, last = self.tower.blocks[layer:]
        for block in middle:
            tokens = block(tokens)
        return self.tower.image_vectors(_cls_only(last, tokens, last.norm1(tokens)))

    def activations(self, image: np.ndarray, text: Tensor) -> TargetActivations:
        """See :class:`VisionLanguageModel`."""
        frame, values, gradients = self.memory.run(lambda _: self._activations(image, text))
        return TargetActivations(values, gradients, (COARSE, COARSE), frame)

    def model_input(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """See :class:`VisionLanguageModel`: LiteMedSAM's input, with values in [0, 1]."""
        placed, frame = model_input(image)
        return torch.from_numpy(placed).permute(2, 0, 1)[None].to(self.encoder.device), frame

    @torch.inference_mode()
    def encode_input(self, batch: Tensor) -> Tensor:
        """See :class:`VisionLanguageModel`."""
        _, features = self.encoder.features(batch)
        return self.finish(self.tower.coarse_tokens(self.tower.normalise(features)), 0)

    def patch_embeddings(self, image: np.ndarray) -> tuple[np.ndarray, Frame]:
        """See :class:`VisionLanguageModel`: (32, 32, D)."""
        frame, _, patches = self.memory.run(lambda _: self._run(image))
        return patches, frame

    def absent_vector(self) -> np.ndarray:
        """Return the unit vector (D,) that texts naming nothing learnt are drawn to."""
        return torch.nn.functional.normalize(self.tower.absent, dim=0).cpu().numpy()

    def _move(self, device: torch.device) -> None:
        self._remembered.clear()
        self.text.to(device)
        self.tower.to(device)

    def _features(self, image: np.ndarray) -> Tensor:
        # A clone, because M2IB differentiates a function of the tokens and inference tensors forbid that.
        return self.encoder(image).tokens.clone()

    @torch.no_grad()
    def _tokens(self, image: np.ndarray, layer: int) -> tuple[Frame, Tensor]:
        """Return the frame, and the tokens that enter block ``layer``; for 0 without CLS and position."""
        tokens = self.tower.coarse_tokens(self.tower.normalise(self._features(image)))
        if layer:
            tokens = self.tower.with_position(tokens)
            for block in self.tower.blocks[:layer]:
                tokens = block(tokens)
        return self.encoder(image).frame, tokens

    def _activations(self, image: np.ndarray, text: Tensor) -> tuple[Frame, Tensor, Tensor]:
        layer = len(self.tower.blocks) - 1
        frame, tokens = self._tokens(image, layer)
        last = self.tower.blocks[-1]
        with torch.enable_grad():
            if layer == 0:
                tokens = self.tower.with_position(tokens)
            normalised = last.norm1(tokens).detach().requires_grad_(True)
            vector = self.tower.image_vectors(_cls_only(last, tokens, normalised))[0]
            (gradient,) = torch.autograd.grad(self.logit_scale * (vector @ text.to(vector)), [normalised])
        return frame, normalised.detach()[0, 1:], gradient[0, 1:]

    @torch.no_grad()
    def _run(self, image: np.ndarray) -> tuple[Frame, Tensor, np.ndarray]:
        """Return frame, transformed tokens and patch vectors; those of the last few images are kept."""
        encoded = self.encoder(image)
        key = id(encoded)  # the entry holds the object, so its id is not given to another one
        if key not in self._remembered:
            features = self.tower.normalise(encoded.tokens.clone())
            tokens = self.tower.transform(self.tower.with_position(self.tower.coarse_tokens(features)))
            patches = self.tower.patch_vectors(features, tokens)[0].cpu().numpy()
            self._remembered[key] = (encoded, tokens, patches)
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        _, tokens, patches = self._remembered[key]
        return encoded.frame, tokens, patches


def _cls_only(block: torch.nn.TransformerEncoderLayer, tokens: Tensor, normalised: Tensor) -> Tensor:
    """Run one pre-norm block for the first token only: the others are read as keys and values and not computed."""
    query = normalised[:, :1]
    first = tokens[:, :1] + block.self_attn(query, normalised, normalised, need_weights=False)[0]
    return first + block.linear2(block.activation(block.linear1(block.norm2(first))))


def read_card(path: Path) -> dict[str, Any]:
    """Return what an alignment says of itself: "tower" and "training" settings, and "presence", its calibration.

    Raises:
        InputError: The file is not a lite alignment.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})[CARD])
    except KeyError as error:
        raise InputError(f"{path} is not a lite alignment: its metadata has no entry {CARD!r}.") from error
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error


def load_tower(path: Path) -> LiteTower:
    """Load a tower from a safetensors file, see :func:`read_card`.

    Raises:
        InputError: The file is not a lite alignment.
    """
    tower = LiteTower(**read_card(path)["tower"])
    tower.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return tower
