"""LiteMedSAM behind the :class:`~MedCLIPSAMLib.sam.base.PromptableSegmenter` interface.

Ma et al., "Segment Anything in Medical Images", Nature Communications 15:654, 2024 (LiteMedSAM: its light variant).
The prompt encoder and mask decoder are those of segment_anything (Kirillov et al., ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.memory import MemoryGuard
from MedCLIPSAMLib.results import VisualPrompts
from MedCLIPSAMLib.sam.checkpoint import read_checkpoint
from MedCLIPSAMLib.sam.lite_encoder import GRID, LiteEncoder, LiteFeatures
from MedCLIPSAMLib.sam.prompt_rows import DECODER_BATCH, check_prompts, equal_rows
from MedCLIPSAMLib.sam.tiny_vit import TinyViT
from MedCLIPSAMLib.torchvision_import import ensure_torchvision


class LiteMedSAM:
    """LiteMedSAM with the official pre- and post-processing; it takes points, but was trained for boxes alone."""

    name = "LiteMedSAM"
    prompt_kinds = frozenset({"boxes", "points", "both"})
    trained_kinds = frozenset({"boxes"})
    masks_per_prompt = 1
    batch = 1  # its encoder is quick, and the presence score has usually run it before

    def __init__(self, checkpoint: Path, device: torch.device | str = "cpu"):
        """Load ``checkpoint`` (lite_medsam.pth) with ``weights_only=True``; every key must match."""
        ensure_torchvision()
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        device = torch.device(device)
        state = read_checkpoint(checkpoint)

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

        self.encoder = LiteEncoder(part("image_encoder."), device)
        self.prompt_encoder = PromptEncoder(256, (GRID, GRID), (TinyViT.image_size,) * 2, mask_in_chans=16)
        transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        self.mask_decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
        for name in ("prompt_encoder", "mask_decoder"):
            module = getattr(self, name)
            module.load_state_dict(part(name + "."))
            module.eval().requires_grad_(False).to(device)
        self.encoder.follow(self._move)
        self._features: LiteFeatures | None = None

    @property
    def memory(self) -> MemoryGuard:
        """The encoder's, because all that share it must be on one device."""
        return self.encoder.memory

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.encoder.device

    def prepare(self, images: Sequence[np.ndarray]) -> None:
        """See :meth:`PromptableSegmenter.prepare`: nothing, since ``batch`` is 1."""

    def set_image(self, image: np.ndarray) -> None:
        """See :meth:`PromptableSegmenter.set_image`."""
        self._features = None  # should this fail, prompts must not be answered on the image before
        self._features = self.encoder(image)

    def predict(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`PromptableSegmenter.predict`; all rows are decoded together, sixteen at a time."""
        if self._features is None:
            raise InputError("LiteMedSAM has no image: call set_image first.")
        check_prompts(prompts, self.name, self.prompt_kinds)
        frame = self._features.frame
        logits = np.empty((len(prompts), frame.height, frame.width), np.float32)
        scores = np.empty(len(prompts), np.float32)

        def work(batch: int) -> None:
            for rows, points, labels in equal_rows(prompts, batch):
                boxes = None if prompts.boxes is None else prompts.boxes[rows]
                planes, scores[rows] = self._decode(boxes, points, labels)
                for row, plane in zip(rows, planes, strict=True):
                    logits[row] = frame.restore(plane)

        self.memory.run(work, DECODER_BATCH, "decoder")
        return logits, scores

    def predict_candidates(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`PromptableSegmenter.predict_candidates`: always refused."""
        raise InputError(f"{self.name} gives a single mask for each prompt; there is nothing to choose from.")

    @torch.inference_mode()
    def _decode(
        self, boxes: np.ndarray | None, points: np.ndarray | None, labels: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the decoder's own logits (n, 256, 256) and scores (n,) for n prompts in image pixels."""
        frame = self._features.frame
        if boxes is not None:
            # The official code truncates the scaled box to whole pixels.
            boxes = torch.from_numpy(np.trunc(frame.scale_boxes(boxes))).to(self.device)
        if points is not None:
            scaled = torch.from_numpy(frame.scale_points(points)).to(self.device)
            points = scaled, torch.from_numpy(labels).to(self.device)
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
        masks, score = self.mask_decoder(
            image_embeddings=self._features.embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks[:, 0].cpu().numpy(), score[:, 0].cpu().numpy()

    def _move(self, device: torch.device) -> None:
        self.prompt_encoder.to(device)
        self.mask_decoder.to(device)
        if self._features is not None:
            embedding, tokens = self._features.embedding.to(device), self._features.tokens.to(device)
            self._features = replace(self._features, embedding=embedding, tokens=tokens)
