"""CLIP models with a vision transformer (BiomedCLIP, OpenAI's ViT-B/16) behind the common interface."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from MedCLIPSAMLib.clip.base import ImageState, TargetActivations
from MedCLIPSAMLib.clip.image_tower import ImageTower
from MedCLIPSAMLib.clip.text_tower import TextTower, padded
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.memory import MemoryGuard

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of OpenAI's CLIP; BiomedCLIP and PMC-CLIP use the same."""
REMEMBERED = 8
"""Token states that are kept, 0.6 MB each: all samples of an image start from the same one."""
_CPU_BATCH, _GPU_BATCH = 8, 64
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_Item = TypeVar("_Item")


class OpenClipModel:
    """Implements :class:`~MedCLIPSAMLib.clip.base.VisionLanguageModel`; ``image_state`` counts layers from 0 to 11.

    :meth:`finish` and :meth:`encode_input` take the batch as it comes; whoever calls them chooses it, by ``memory``.

    Attributes:
        logit_scale: The learnt factor of the cosine similarity.
        saliency_methods: All that need no training with region captions.
    """

    saliency_methods = frozenset({"m2ib", "gscorecam", "gradcam"})

    def __init__(
        self, name: str, image: ImageTower, text: TextTower, logit_scale: float, device: str, precision: str = "float32"
    ):
        """Join the towers; both are used in eval mode, without gradients for their weights.

        Args:
            name: For results and messages.
            image, text: The towers.
            logit_scale: The factor itself, not its logarithm.
            device: Where to run.
            precision: Of the image tower's matrices: "float32", "bfloat16" or "float16".

        Raises:
            InputError: Unknown precision.
        """
        dtype = as_dtype(precision)
        self.name = name
        self.logit_scale = logit_scale
        self.image = image.eval().requires_grad_(False).to(device)
        self.image.set_precision(dtype)
        self.text = text.eval().requires_grad_(False).to(device)
        self.memory = MemoryGuard(name, device, self._to_cpu)
        self._states: OrderedDict[tuple[object, ...], Tensor] = OrderedDict()

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """See :class:`VisionLanguageModel`."""
        return in_batches(self.memory, images, lambda some: self.encode_input(self._pixels(some)), "images")

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """See :class:`VisionLanguageModel`; texts of similar length are computed together."""
        return encode_texts(self.text, self.memory, prompts)

    def image_state(self, image: np.ndarray, layer: int) -> ImageState:
        """See :class:`VisionLanguageModel`."""
        depth = len(self.image.blocks)
        if not 0 <= layer < depth:
            raise InputError(f"layer {layer}: the image tower of {self.name} has layers 0 to {depth - 1}.")
        tokens = self.memory.run(lambda batch: self._tokens(image, layer))
        return ImageState(tokens, self.image.grid, self._frame(image))

    def finish(self, tokens: Tensor, layer: int) -> Tensor:
        """See :class:`VisionLanguageModel`; the last block works for the class token alone."""
        return self.image.vectors(tokens.to(self.memory.device), layer + 1)

    def activations(self, image: np.ndarray, text: Tensor) -> TargetActivations:
        """See :class:`VisionLanguageModel`; the patches' tokens as the last block's attention reads them."""
        values, gradients = self.memory.run(lambda batch: self._activations(image, text))
        return TargetActivations(values, gradients, self.image.grid, self._frame(image))

    def model_input(self, image: np.ndarray) -> tuple[Tensor, Frame]:
        """See :class:`VisionLanguageModel`; the whole image is squashed to a square."""
        return self._pixels([image]), self._frame(image)

    @torch.inference_mode()
    def encode_input(self, batch: Tensor) -> Tensor:
        """See :class:`VisionLanguageModel`."""
        return self.image.vectors(self.image.embed(batch.to(self.memory.device)))

    def patch_embeddings(self, image: np.ndarray) -> tuple[np.ndarray, Frame]:
        """Raise InputError: CLIP's training compares whole images with texts."""
        raise InputError(
            f"{self.name} was not trained with region captions, so its patches say nothing about a text: choose the "
            "saliency method m2ib, gscorecam or gradcam."
        )

    def _frame(self, image: np.ndarray) -> Frame:
        return Frame(image.shape[0], image.shape[1], self.image.size, keep_aspect=False)

    def _pixels(self, images: Sequence[np.ndarray]) -> Tensor:
        return torch.cat([squashed(image, self.image.size) for image in images]).to(self.memory.device)

    @torch.no_grad()
    def _tokens(self, image: np.ndarray, layer: int) -> Tensor:
        """Return the (1, N, C) tokens after ``layer``; those of the last few images are kept."""
        image = np.ascontiguousarray(image)
        key = (image.shape, hashlib.blake2b(image.data, digest_size=16).digest(), layer)
        if key in self._states:
            self._states.move_to_end(key)
        else:
            self._states[key] = self.image.run(self.image.embed(self._pixels([image])), 0, layer + 1)
            if len(self._states) > REMEMBERED:
                self._states.popitem(last=False)
        return self._states[key]

    def _activations(self, image: np.ndarray, text: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self._tokens(image, len(self.image.blocks) - 2)
        last = self.image.blocks[-1]
        with torch.enable_grad():
            normalised = last.norm1(tokens).detach().requires_grad_(True)
            first = tokens[:, :1] + last.attend_first(normalised)
            vector = self.image.project(first + last.perceptron(first))[0]
            (gradient,) = torch.autograd.grad(self.logit_scale * (vector @ text.to(vector)), [normalised])
        return normalised.detach()[0, 1:], gradient[0, 1:]

    def _to_cpu(self) -> None:
        self._states.clear()
        self.image.to("cpu").set_precision(torch.float32)  # half precision is slow there
        self.text.to("cpu")


def as_dtype(precision: str) -> torch.dtype:
    """Return the torch type of a precision; InputError if it is none."""
    if precision not in _PRECISIONS:
        raise InputError(f"precision {precision!r} is unknown; known: {', '.join(_PRECISIONS)}.")
    return _PRECISIONS[precision]


def squashed(image: np.ndarray, size: int) -> Tensor:
    """Return (1, 3, size, size) float32 of an (H, W) or (H, W, 3) uint8 image, as in the official preprocessing.

    Bicubic with antialiasing, rounded to 8 bit, then CLIP's mean and deviation; the sides are scaled independently, so
    that nothing of the image is cut off.
    """
    small = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    if small.ndim == 2:
        small = np.repeat(small[..., None], 3, axis=2)
    pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def in_batches(
    memory: MemoryGuard, items: Sequence[_Item], encode: Callable[[Sequence[_Item]], Tensor], kind: str
) -> np.ndarray:
    """Return ``encode`` of all items, (N, D) float32, so many at a time as the device's memory allows."""

    def work(batch: int) -> np.ndarray:
        parts = [encode(items[start : start + batch]).cpu().numpy() for start in range(0, len(items), batch)]
        return np.concatenate(parts)

    most = _CPU_BATCH if memory.device == "cpu" else _GPU_BATCH
    return memory.run(work, max(1, min(most, len(items))), kind)


@torch.inference_mode()
def encode_texts(text: TextTower, memory: MemoryGuard, prompts: Sequence[str]) -> np.ndarray:
    """Return unit vectors (N, D) float32 of prompts; those of similar length share a batch, so little is padded."""
    rows = text.tokenize(prompts)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    vectors = in_batches(
        memory, [rows[index] for index in order], lambda some: text.vectors(padded(some, memory.device)), "texts"
    )
    unsorted = np.empty_like(vectors)
    unsorted[order] = vectors
    return unsorted
