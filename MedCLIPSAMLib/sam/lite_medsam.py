"""LiteMedSAM behind the :class:`~MedCLIPSAMLib.sam.base.PromptableSegmenter` interface.

Ma et al., "Segment Anything in Medical Images", Nature Communications 15:654, 2024 (LiteMedSAM: its light variant).
The prompt encoder and mask decoder are those of segment_anything (Kirillov et al., ICCV 2023).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.results import VisualPrompts
from MedCLIPSAMLib.sam.lite_encoder import GRID, LiteEncoder, LiteFeatures
from MedCLIPSAMLib.sam.tiny_vit import TinyViT
from MedCLIPSAMLib.torchvision_import import ensure_torchvision

DECODER_BATCH = 16


class LiteMedSAM:
    """LiteMedSAM with the official pre- and post-processing; it takes points, but was trained for boxes alone."""

    name = "LiteMedSAM"
    prompt_kinds = frozenset({"boxes"})

    def __init__(self, checkpoint: Path, device: torch.device | str = "cpu"):
        """Load ``checkpoint`` (lite_medsam.pth) with ``weights_only=True``; every key must match."""
        ensure_torchvision()
        from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

        self.device = torch.device(device)
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

        self.encoder = LiteEncoder(part("image_encoder."), self.device)
        self.prompt_encoder = PromptEncoder(256, (GRID, GRID), (TinyViT.image_size,) * 2, mask_in_chans=16)
        transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        self.mask_decoder = MaskDecoder(transformer_dim=256, transformer=transformer)
        for name in ("prompt_encoder", "mask_decoder"):
            module = getattr(self, name)
            module.load_state_dict(part(name + "."))
            module.eval().requires_grad_(False).to(self.device)
        self._features: LiteFeatures | None = None

    def set_image(self, image: np.ndarray) -> None:
        """See :meth:`PromptableSegmenter.set_image`."""
        self._features = self.encoder(image)

    @torch.inference_mode()
    def predict(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`PromptableSegmenter.predict`; all rows are decoded together, sixteen at a time."""
        if self._features is None:
            raise InputError("LiteMedSAM has no image: call set_image first.")
        if len(prompts) == 0:
            raise InputError("LiteMedSAM was given no prompts: the coarse mask is empty.")
        logits, scores = [], []
        for start in range(0, len(prompts), DECODER_BATCH):
            plane, score = self._decode(prompts, slice(start, start + DECODER_BATCH))
            logits.append(plane)
            scores.append(score)
        return np.concatenate(logits), np.concatenate(scores)

    def _decode(self, prompts: VisualPrompts, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        frame = self._features.frame
        boxes = points = None
        if prompts.boxes is not None:
            # The official code truncates the scaled box to whole pixels.
            scaled = np.trunc(frame.scale_boxes(prompts.boxes[rows]))
            boxes = torch.from_numpy(scaled).to(self.device)
        if prompts.points is not None:
            coordinates = torch.from_numpy(frame.scale_points(prompts.points[rows])).to(self.device)
            points = (coordinates, torch.from_numpy(prompts.point_labels[rows]).to(self.device))
        sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
        masks, score = self.mask_decoder(
            image_embeddings=self._features.embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        planes = masks[:, 0].float().cpu().numpy()
        return np.stack([frame.restore(plane) for plane in planes]), score[:, 0].float().cpu().numpy()
