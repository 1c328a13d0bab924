"""Train the lite engine's image tower and text projection with DHN-NCE: ``python -m MedCLIPSAMTraining.align_lite``.

Three kinds of image-text pairs, all with the project's DHN-NCE loss (Eqs. 7-13 of the paper):

- patches clearly inside or outside a target, with a caption of the target or of its surroundings;
- whole images (CLS token), with the caption of what is in them;
- images whose tokens are partly replaced by noise (CLS token): target kept and the rest noise -> the target's caption,
  the rest kept and the target noise -> the caption of the surroundings. M2IB asks the tower exactly this question.

Captions of other targets in the batch, and texts that name nothing learnt, are the hard negatives; a caption that also
describes a region never is. LiteMedSAM's encoder and MiniLM stay frozen, and the encoder's features are computed once.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from MedCLIPSAMLib.clip.lite_tower import COARSE, FINE, LiteTower
from MedCLIPSAMLib.clip.minilm import MiniLM
from MedCLIPSAMLib.engines import choose_device
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMLib.sam.lite_encoder import LiteEncoder, LiteFeatures
from MedCLIPSAMLib.sam.lite_medsam import LiteMedSAM
from MedCLIPSAMLib.weights import verified
from MedCLIPSAMTraining.alignment_batches import Batch, BatchSource, CaptionSource, draw_patches
from MedCLIPSAMTraining.alignment_data import CHEST_CT, VIEWS, FeatureStore, find_images, half_of_subjects
from MedCLIPSAMTraining.alignment_export import export
from MedCLIPSAMTraining.job_link import JobLink
from MedCLIPSAMTraining.losses import dhn_nce_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of a run; kept in the checkpoint, and a run resumes only with the same.

    Attributes:
        steps: Optimiser steps.
        batch: Views per step.
        learning_rate: Peak of AdamW; 40 steps of warm-up, then cosine.
        weight_decay: Of AdamW.
        temperature, beta: Of DHN-NCE, both directions alike.
        noise_share: Part of every second batch that is also seen with noise tokens.
        noise_weight, image_weight: Of those two losses beside the patches'.
        views: Views per image by task, the plain one included.
        dropout: In the tower's transformer.
        half: "A" or "B" trains on that half of the subjects; "" on all.
        with_chest_ct: Also train on the chest CT slices (not for shipped weights).
        seed: Of every draw.
        width, depth: Of the tower.
    """

    steps: int = 1400
    batch: int = 24
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    temperature: float = 0.1
    beta: float = 0.15
    noise_share: float = 0.34
    noise_weight: float = 0.5
    image_weight: float = 0.15
    views: dict[str, int] = field(default_factory=lambda: dict(VIEWS))
    dropout: float = 0.1
    half: str = ""
    with_chest_ct: bool = False
    seed: int = 0
    width: int = 192
    depth: int = 4


class Trainer:
    """One run: model, optimiser and random state, which are saved together and resume to the same numbers."""

    def __init__(self, settings: AlignmentSettings, source: BatchSource, captions: CaptionSource, device: torch.device):
        self.settings = settings
        self.source = source
        self.captions = captions
        self.device = device
        torch.manual_seed(settings.seed)
        self.rng = np.random.default_rng(settings.seed)
        self.tower = LiteTower(settings.width, settings.depth, settings.width // 32, dropout=settings.dropout)
        self._standardise()
        self.tower.to(self.device).train()
        self.optimiser = torch.optim.AdamW(
            self.tower.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step = 0

    def _standardise(self) -> None:
        """Fix the features' mean and scale from 200 random plain training views."""
        plain = [view for views in self.source.by_task.values() for view in views if view[1] == 0]
        chosen = self.rng.choice(len(plain), min(200, len(plain)), replace=False)
        store = self.source.store
        sample = np.concatenate([store.tokens[0][plain[index][0]][::16] for index in chosen]).astype(np.float32)
        self.tower.feature_mean.copy_(torch.from_numpy(sample.mean(axis=0)))
        self.tower.feature_scale.copy_(torch.from_numpy(1 / (sample.std(axis=0) + 1e-3)))

    def train_step(self) -> dict[str, float]:
        """Do one step and return its losses."""
        settings = self.settings
        torch.manual_seed(
            1_000_003 * settings.seed + self.step
        )  # dropout's draws are then those of the step, resumed or not
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        batch = self.source.draw(settings.batch, self.rng)
        if self.rng.random() < 0.5:
            batch = _mirror(batch)
        features = self.tower.normalise(batch.features.to(self.device))
        tokens = self.tower.coarse_tokens(features)
        transformed = self.tower.transform(self.tower.with_position(tokens))
        patches = self.tower.patch_vectors(features, transformed).flatten(1, 2)

        losses = {
            "patch": self._patch_loss(batch, patches),
            "image": self._image_loss(batch, transformed),
            # Every second step is enough: this loss falls fast, and takes a third of a step's time.
            "noise": self._noise_loss(batch, tokens) if self.step % 2 == 0 else patches.new_zeros(()),
        }
        total = losses["patch"] + settings.image_weight * losses["image"] + settings.noise_weight * losses["noise"]
        self.optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.tower.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in losses.items()}

    def _learning_rate(self) -> float:
        progress = self.step / self.settings.steps
        cosine = 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * progress))
        return float(self.settings.learning_rate * min(1.0, (self.step + 1) / 40) * cosine)

    def _patch_loss(self, batch: Batch, patches: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.tower.text_vectors(self.captions.plain(batch.kinds[:, 0]).to(self.device))
            similarity = (patches @ targets[:, :, None])[..., 0].cpu()
        rows, chosen, regions = draw_patches(batch, similarity, self.rng)
        return self._loss(patches[rows.to(self.device), chosen.to(self.device)], regions)

    def _image_loss(self, batch: Batch, transformed: Tensor) -> Tensor:
        has_target = batch.masks.flatten(1).amax(dim=1).numpy() > 0.5
        regions = np.where(has_target, batch.kinds[:, 0], batch.kinds[:, 1])
        return self._loss(self.tower.image_vectors(transformed), regions)

    def _noise_loss(self, batch: Batch, tokens: Tensor) -> Tensor:
        """Replace the tokens of the target's surroundings, and of the target, by noise, with a random remainder."""
        coarse = functional.avg_pool2d(batch.masks[:, None], FINE // COARSE)[:, 0].flatten(1)
        rows = torch.where(coarse.amax(dim=1) > 0.5)[0][: max(2, round(self.settings.noise_share * len(coarse)))]
        if len(rows) == 0:
            return tokens.new_zeros(())
        keep = (coarse[rows] > 0.15).float()
        if self.rng.random() < 0.5:
            keep = functional.max_pool2d(keep.view(-1, 1, COARSE, COARSE), 3, 1, 1).flatten(1)
        rest = torch.from_numpy(self.rng.uniform(0, 0.3, (len(rows), 1)).astype(np.float32))
        target = keep * (1 - rest) + (1 - keep) * rest
        share = torch.cat([target, 1 - target])[..., None].to(self.device)
        twice = tokens[rows.to(self.device)].repeat(2, 1, 1)
        noise = torch.from_numpy(self.rng.standard_normal(twice.shape, np.float32)).to(self.device)
        disturbed = share * twice + (1 - share) * noise
        vectors = self.tower.image_vectors(self.tower.transform(self.tower.with_position(disturbed)))
        kinds = batch.kinds[rows.numpy()]
        return self._loss(vectors, np.concatenate([kinds[:, 0], kinds[:, 1]]))

    def _loss(self, vectors: Tensor, regions: np.ndarray) -> Tensor:
        """DHN-NCE of vectors against captions drawn for their regions, with texts that name nothing learnt."""
        embeddings, same = self.captions.draw(regions, self.rng)
        texts = self.tower.text_vectors(embeddings.to(self.device))
        absent = functional.normalize(self.tower.absent, dim=0).expand(len(texts) - len(vectors), -1)
        return dhn_nce_loss(
            torch.cat([vectors, absent]),
            texts,
            temperature=self.settings.temperature,
            beta1=self.settings.beta,
            beta2=self.settings.beta,
            same_caption=same.to(self.device),
        )

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs; the file is replaced only when it is whole."""
        state = {
            "settings": asdict(self.settings),
            "step": self.step,
            "tower": self.tower.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
        }
        temporary = path.with_suffix(".part")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def resume(self, path: Path) -> None:
        """Continue from :meth:`save`.

        Raises:
            InputError: The checkpoint belongs to a run with other settings.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise InputError(f"{path} was made with other settings; choose another --work folder or delete it.")
        self.tower.load_state_dict(state["tower"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rng.bit_generator.state = json.loads(state["rng"])
        self.step = state["step"]


def _mirror(batch: Batch) -> Batch:
    """Swap left and right on the feature grid."""
    features = batch.features.unflatten(1, (FINE, FINE)).flip(2).flatten(1, 2)
    return Batch(features, batch.masks.flip(2), batch.valid.flip(2), batch.kinds)


def train(
    data: Path,
    work: Path,
    settings: AlignmentSettings,
    encoder: LiteEncoder,
    text: MiniLM,
    save_every: int = 50,
    link: JobLink | None = None,
) -> tuple[Trainer, FeatureStore]:
    """Compute missing features, then train, from the last checkpoint in ``work`` if there is one.

    Asked to stop through ``link``, it ends its step, saves and leaves by :class:`SystemExit`.
    """
    link = link or JobLink()
    images = find_images(data)
    store = FeatureStore(work / "features", images, max(settings.views.values()))
    allowed = [
        image for image in images if image.split == "train" and (settings.with_chest_ct or image.source != CHEST_CT)
    ]
    if settings.half:
        allowed = half_of_subjects(allowed, settings.half)
    chosen = {id(image) for image in allowed}
    training = [index for index, image in enumerate(images) if id(image) in chosen]
    views = [
        (index, variant)
        for variant in range(max(settings.views.values()))
        for index in training
        if variant < settings.views[images[index].task]
    ]
    validation = [(index, 0) for index, image in enumerate(images) if image.split == "val"]
    wanted = validation + views
    missing = sum(not store.done[variant][index] for index, variant in wanted)
    seen = itertools.count(1)

    def encode(image: np.ndarray) -> LiteFeatures:
        features = encoder(image)
        link.progress(next(seen), missing, "Features of the images")
        return features

    store.fill(encode, wanted)
    trainer = Trainer(settings, BatchSource(store, views), CaptionSource(text.encode), encoder.device)
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        trainer.resume(checkpoint)
    log = work / "losses.csv"
    start = time.perf_counter()
    with (
        log.open("a", newline="", encoding="utf-8") as file,
        tqdm(total=settings.steps, desc="Aligning") as bar,
        link.saving(),
    ):
        writer = csv.writer(file)
        bar.update(trainer.step)
        while trainer.step < settings.steps:
            losses = trainer.train_step()
            bar.update()
            bar.set_postfix({name: f"{value:.2f}" for name, value in losses.items()})
            writer.writerow([trainer.step, *losses.values(), round(time.perf_counter() - start, 1)])
            link.progress(trainer.step, settings.steps, f"Steps; loss of the patches {losses['patch']:.3f}")
            stopping = link.stop_code is not None
            if stopping or trainer.step % save_every == 0 or trainer.step == settings.steps:
                trainer.save(checkpoint)
                file.flush()
            if stopping:
                link.leave()
    return trainer, store


def main(
    data: Annotated[Path, typer.Option(help="Folder with the four data sets and volumes/.")],
    output: Annotated[Path, typer.Option(help="The safetensors file to write.")],
    work: Annotated[Path, typer.Option(help="Folder for features and checkpoints; a stopped run goes on there.")],
    half: Annotated[str, typer.Option(help='"A" or "B": train on half of the subjects only.')] = "",
    with_chest_ct: Annotated[bool, typer.Option(help="Also train on the chest CT slices (not for sharing).")] = False,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = AlignmentSettings.steps,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Train the lite alignment and write it with its calibration of the presence score."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = AlignmentSettings(steps=steps, half=half, with_chest_ct=with_chest_ct, seed=seed)
    with JobLink() as link:
        try:
            encoder = LiteMedSAM(verified("lite-medsam"), choose_device(device)).encoder
            text = MiniLM(verified("minilm-l6-v2"), verified("minilm-l6-v2-tokenizer"))
            trainer, store = train(data, work, settings, encoder, text, link=link)
            link.progress(steps, steps, "Calibration of the presence score")
            calibration = export(trainer.tower, asdict(settings), store.images, output, encoder, text)
        except MedCLIPSAMError as error:
            link.send("error", message=str(error))
            logger.error("Error: %s", error)
            raise SystemExit(2) from error
        logger.info("Presence calibration: %s", calibration)
        logger.info("Written: %s (%.1f MB)", output, output.stat().st_size / 1e6)


if __name__ == "__main__":
    typer.run(main)
