"""What SAM, MedSAM and SAM-Med2D have in common; they differ in how an image gets in and a mask gets out.

Kirillov et al., "Segment Anything", ICCV 2023. The prompt encoder and the mask decoder are those of segment_anything;
they always run in float32, because they are cheap.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.images import Frame
from MedCLIPSAMLib.memory import MemoryGuard
from MedCLIPSAMLib.results import VisualPrompts
from MedCLIPSAMLib.sam.checkpoint import load_parts
from MedCLIPSAMLib.sam.embedding_cache import EmbeddingCache, content_digest, shared_cache
from MedCLIPSAMLib.sam.prompt_rows import DECODER_BATCH, check_prompts, equal_rows
from MedCLIPSAMLib.sam.vit_encoder import CHANNELS, PATCH, VitEncoder, VitShape
from MedCLIPSAMLib.torchvision_import import ensure_torchvision

PRECISIONS = ("float32", "bfloat16", "float16")
GPU_BATCH = 4
PIXEL_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
PIXEL_STD = np.array([58.395, 57.12, 57.375], np.float32)


class SamFamily(ABC):
    """Implements :class:`~MedCLIPSAMLib.sam.base.PromptableSegmenter` around a ViT encoder.

    Attributes:
        image_size: Side of the model's input in pixels.
        keep_aspect: See :class:`~MedCLIPSAMLib.images.Frame`.
        adapter: Whether the encoder's blocks have adapters.
        best_of_candidates: :meth:`predict` takes the best of all candidates, and not the mask that the decoder makes
            for prompts without ambiguity, because the model was trained so.
    """

    name: str
    prompt_kinds: ClassVar[frozenset[str]]
    trained_kinds: ClassVar[frozenset[str]]
    masks_per_prompt: ClassVar[int]
    image_size: ClassVar[int] = 1024
    keep_aspect: ClassVar[bool] = True
    adapter: ClassVar[bool] = False
    best_of_candidates: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        state: Mapping[str, Tensor],
        shape: VitShape,
        *,
        identity: str,
        device: str = "cpu",
        precision: str = "float32",
        cache: EmbeddingCache | None = None,
    ):
        """Build the model around the tensors of ``state``, which it keeps.

        Args:
            name: For results and messages.
            state: See :func:`~MedCLIPSAMLib.sam.checkpoint.read_checkpoint`.
            shape: Of the encoder.
            identity: Tells these weights from all others in the cache.
            device: Where to run.
            precision: "float32", "bfloat16" or "float16": that of the encoder's large products.
            cache: For the image embeddings; None for the one of this process.

        Raises:
            InputError: The weights are another model's, or the precision is unknown.
        """
        if precision not in PRECISIONS:
            raise InputError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}.")
        ensure_torchvision()
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        self.name = name
        side = self.image_size // PATCH
        with torch.device("meta"):  # no time for initial values, no memory but that of the checkpoint
            self.encoder = VitEncoder(shape, self.image_size, self.adapter)
            self.prompt_encoder = PromptEncoder(CHANNELS, (side, side), (self.image_size,) * 2, mask_in_chans=16)
            transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8)
            self.mask_decoder = MaskDecoder(transformer_dim=CHANNELS, transformer=transformer)
        parts = {
            "image_encoder": self.encoder,
            "prompt_encoder": self.prompt_encoder,
            "mask_decoder": self.mask_decoder,
        }
        load_parts(parts, state, name)
        self.encoder.cast(getattr(torch, precision))
        self._move(device)
        self.memory = MemoryGuard(name, device, self._to_cpu)
        self._cache = shared_cache() if cache is None else cache
        self._identity = f"{identity} {precision}"
        self._embedding: Tensor | None = None
        self._frame: Frame | None = None

    @abstractmethod
    def _input(self, image: np.ndarray, frame: Frame) -> np.ndarray:
        """Return the model's input (S, S, 3) or, for three equal channels, (S, S) float32 from an image of uint8."""

    @abstractmethod
    def _restore(self, planes: np.ndarray, frame: Frame) -> np.ndarray:
        """Return logits (N, H, W) float32 in the image's pixels from the decoder's (N, S / 4, S / 4)."""

    @property
    def batch(self) -> int:
        """See :class:`PromptableSegmenter`: a CPU gains nothing from several images at a time."""
        return 1 if self.memory.device in ("cpu", "mps") else GPU_BATCH

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """See :meth:`PromptableSegmenter.prepare`; never more than the cache can hold."""
        room = self._cache.capacity(4 * CHANNELS * (self.image_size // PATCH) ** 2)
        wanted = {content_digest(image): image for image in images[:room]}

        def work(batch: int) -> None:
            missing = [entry for entry in wanted.items() if self._key(entry[0]) not in self._cache]
            for start in range(0, len(missing), batch):
                digests, some = zip(*missing[start : start + batch], strict=True)
                for digest, embedding in zip(digests, self._encode(some), strict=True):
                    self._cache.put(self._key(digest), embedding)

        self.memory.run(work, self.batch, "encoder")

    def set_image(self, image: np.ndarray) -> None:
        """See :meth:`PromptableSegmenter.set_image`; an image that was encoded before is taken from the cache."""
        self._embedding = None  # should this fail, prompts must not be answered on the image before
        digest = content_digest(image)
        embedding = self._cache.get(self._key(digest))
        if embedding is None:
            embedding = self.memory.run(lambda _: self._encode([image])[0], 1, "encoder")
            self._cache.put(self._key(digest), embedding)
        self._frame = self._frame_of(image)
        self._embedding = torch.tensor(embedding[None], device=self.memory.device)

    def predict(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`PromptableSegmenter.predict`; all rows are decoded together, sixteen at a time."""
        logits, scores = self._answer(prompts, candidates=False)
        return logits[:, 0], scores[:, 0]

    def predict_candidates(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`PromptableSegmenter.predict_candidates`."""
        if self.masks_per_prompt == 1:
            raise InputError(f"{self.name} gives a single mask for each prompt; there is nothing to choose from.")
        return self._answer(prompts, candidates=True)

    def _answer(self, prompts: VisualPrompts, candidates: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return logits (N, M, H, W) and scores (N, M), M = 1 without ``candidates``."""
        if self._embedding is None:
            raise InputError(f"{self.name} has no image: call set_image first.")
        check_prompts(prompts, self.name, self.prompt_kinds)
        number = self.masks_per_prompt if candidates else 1
        frame = self._frame
        logits = np.empty((len(prompts), number, frame.height, frame.width), np.float32)
        scores = np.empty((len(prompts), number), np.float32)

        def work(batch: int) -> None:
            for rows, points, labels in equal_rows(prompts, batch):
                boxes = None if prompts.boxes is None else prompts.boxes[rows]
                low, quality = self._decode(boxes, points, labels, candidates)
                restored = self._restore(low.reshape(-1, *low.shape[2:]), frame)
                logits[rows] = restored.reshape(len(rows), number, *restored.shape[1:])
                scores[rows] = quality

        self.memory.run(work, DECODER_BATCH, "decoder")
        return logits, scores

    @torch.inference_mode()
    def _encode(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return (B, 256, S / 16, S / 16) float32."""
        inputs = torch.zeros((len(images), 3, self.image_size, self.image_size))
        for row, image in zip(inputs, images, strict=True):
            placed = torch.from_numpy(self._input(image, self._frame_of(image)))
            row.copy_(placed if placed.ndim == 2 else placed.permute(2, 0, 1))
        return self.encoder(inputs.to(self.memory.device)).cpu().numpy()

    @torch.inference_mode()
    def _decode(
        self, boxes: np.ndarray | None, points: np.ndarray | None, labels: np.ndarray | None, candidates: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the decoder's own logits (n, M, S / 4, S / 4) and scores (n, M) for n prompts in image pixels."""
        device = self.memory.device
        if boxes is not None:
            boxes = torch.from_numpy(self._frame.scale_boxes(boxes)).to(device)
        if points is not None:
            points = torch.from_numpy(self._frame.scale_points(points)).to(device), torch.from_numpy(labels).to(device)
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
        masks, scores = self.mask_decoder(
            image_embeddings=self._embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=candidates or self.best_of_candidates,
        )
        if self.best_of_candidates and not candidates:
            best = scores.argmax(dim=1, keepdim=True)
            masks = masks.take_along_dim(best[..., None, None], dim=1)
            scores = scores.take_along_dim(best, dim=1)
        return masks.cpu().numpy(), scores.cpu().numpy()

    def _frame_of(self, image: np.ndarray) -> Frame:
        return Frame(image.shape[0], image.shape[1], self.image_size, self.keep_aspect)

    def _key(self, digest: str) -> str:
        # Devices differ in the last digits, and a run on one must not depend on what another has computed.
        return f"{self._identity} {self.memory.device} {digest}"

    def _move(self, device: str) -> None:
        for part in (self.encoder, self.prompt_encoder, self.mask_decoder):
            part.to(device)

    def _to_cpu(self) -> None:
        self._move("cpu")
        self.encoder.float()  # half precision is slow there
        if self._embedding is not None:
            self._embedding = self._embedding.cpu()
