"""Drawn discs with reference masks, and a real (if simple) segmenter that finds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from MedCLIPSAMLib.images import to_uint8
from MedCLIPSAMLib.results import CoarseMask, Component, Presence, PromptResult, VisualPrompts


@dataclass
class ThresholdRecipe:
    name: str = "threshold"


class BoxThreshold:
    """A segmenter: inside a box, pixels brighter than the middle between the box's extremes are foreground."""

    def set_image(self, image: np.ndarray) -> None:
        self.image = ndimage.gaussian_filter(image.astype(np.float32), 1)

    def predict(self, prompts: VisualPrompts) -> tuple[np.ndarray, np.ndarray]:
        logits = np.full((len(prompts), *self.image.shape), -10, np.float32)
        for row, (x0, y0, x1, y1) in zip(logits, prompts.boxes.astype(int), strict=True):
            inside = self.image[y0:y1, x0:x1]
            row[y0:y1, x0:x1] = (inside - (inside.min() + inside.max()) / 2) / 10
        return logits, np.ones(len(prompts), np.float32)


class ThresholdSegmenter:
    """Brightness is the saliency; its components' boxes go to :class:`BoxThreshold`; dark images are gated."""

    def __init__(self, calibrated: bool = True):
        self.recipe = ThresholdRecipe()
        self.segmenter = BoxThreshold()
        self.calibrated = calibrated

    def set_image(self, image: np.ndarray, window: tuple[float, float] | None = None) -> None:
        self.image = to_uint8(image, window)

    def encode(self) -> None:
        self.segmenter.set_image(self.image)

    def segment(self, prompt: str, seed: int = 0) -> PromptResult:
        saliency = ndimage.gaussian_filter(self.image.astype(np.float32) / 255, 3)
        score = float(saliency.max())
        skipped = self.calibrated and score < 0.4
        labels, count = ndimage.label((saliency > 0.45) & (not skipped))
        components = tuple(
            Component((x.start, y.start, x.stop, y.stop), int((labels == i + 1).sum()), 1.0)
            for i, (y, x) in enumerate(ndimage.find_objects(labels))
        )
        boxes = np.array([component.box for component in components], np.float32).reshape(-1, 4)
        boxes = np.maximum(boxes + np.array([-4, -4, 4, 4], np.float32), 0)
        probability = np.zeros(saliency.shape, np.float32)
        if count:
            self.encode()
            probability = (1 / (1 + np.exp(-self.segmenter.predict(VisualPrompts(boxes=boxes))[0]))).max(axis=0)
        certain = np.clip(probability, 1e-6, 1 - 1e-6)
        entropy = -(certain * np.log(certain) + (1 - certain) * np.log1p(-certain))
        return PromptResult(
            prompt=prompt,
            saliency=saliency,
            coarse=CoarseMask(labels > 0, 0.45, components, labels.astype(np.int32)),
            prompts=VisualPrompts(boxes=boxes),
            probability=probability,
            mask=probability > 0.5,
            entropy=entropy.astype(np.float32),
            mutual_information=np.zeros_like(entropy),
            presence=Presence(score if self.calibrated else None, 0.4 if self.calibrated else None, not skipped),
            skipped=skipped,
            saliency_method="brightness",
            seed=seed,
        )


def draw(path: Path, seed: int, bright: float, target: bool) -> None:
    """Save a noisy disc as ``path``, and its mask in the folder beside."""
    random = np.random.default_rng(seed)
    height, width = 96, 112
    rows, columns = np.mgrid[:height, :width]
    centre = random.uniform(30, 60, 2)
    radius = random.uniform(8, 20)
    disc = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
    image = 30 + bright * disc * target + random.normal(0, 40, disc.shape)
    Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(path)
    Image.fromarray(np.uint8(disc * target * 255)).save(path.parent.parent / "masks" / path.name)


def make_discs(folder: Path) -> Path:
    """Two data sets in one split: "bright" (8 discs, 4 images without) and "dim" (5 discs, one too dark to pass)."""
    for part in ("images", "masks"):
        (folder / "test" / part).mkdir(parents=True)
    rows = ["file,split,dataset"]
    for number in range(12):
        draw(folder / f"test/images/bright_{number:02}.png", number, 190, target=number < 8)
        rows.append(f"bright_{number:02}.png,test,bright")
    for number, bright in enumerate((120, 130, 140, 150, 5)):
        draw(folder / f"test/images/dim_{number:02}.png", 50 + number, bright, target=True)
        rows.append(f"dim_{number:02}.png,test,dim")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
