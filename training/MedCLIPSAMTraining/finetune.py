"""Fine-tune a CLIP on image-caption pairs with DHN-NCE: ``python -m MedCLIPSAMTraining.finetune``, see README.md."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMLib.job_folder import EVENTS_VARIABLE
from MedCLIPSAMTraining.finetune_data import DataSettings
from MedCLIPSAMTraining.finetune_distributed import join_processes
from MedCLIPSAMTraining.finetune_run import RunOptions, run
from MedCLIPSAMTraining.finetune_settings import FinetuneSettings
from MedCLIPSAMTraining.job_link import JobLink

logger = logging.getLogger(__name__)

PROGRAM_VARIABLE = "MEDCLIPSAM_PROGRAM"
"""How the command was called, for its help."""

_PAIRS, _RUN, _OPTIMISER, _MACHINE = "Pairs", "What is trained", "Optimiser", "Machine and files"


def main(
    data: Annotated[
        Path,
        Option(
            help="CSV, TSV or JSONL with the columns file, caption and, if known, patient; or MedPix 2.0, ROCO, or "
            "webdataset shards (*.tar). Rows that a column split marks test are left out, those marked val validate.",
            rich_help_panel=_PAIRS,
        ),
    ],
    output: Annotated[Path, Option(help="Folder of the result; the engine is then finetuned:FOLDER.")],
    work: Annotated[
        Path | None,
        Option(help="Folder of checkpoints and records; a stopped run goes on there. By default OUTPUT-work."),
    ] = None,
    validation: Annotated[
        Path | None,
        Option(help="Pairs for validation, in place of DATA's val rows or a share of DATA.", rich_help_panel=_PAIRS),
    ] = None,
    validation_share: Annotated[
        float,
        Option(
            help="Part of the pairs that validates, by patient where known, if no rows are marked val.",
            rich_help_panel=_PAIRS,
        ),
    ] = FinetuneSettings.validation_share,
    root: Annotated[
        Path | None, Option(help="Folder that relative files are below; by default DATA's.", rich_help_panel=_PAIRS)
    ] = None,
    file_column: Annotated[str, Option(rich_help_panel=_PAIRS)] = "file",
    caption_column: Annotated[str, Option(rich_help_panel=_PAIRS)] = "caption",
    patient_column: Annotated[str, Option(rich_help_panel=_PAIRS)] = "patient",
    minimum_characters: Annotated[
        int, Option(help="Shorter captions are dropped (paper: 20).", rich_help_panel=_PAIRS)
    ] = FinetuneSettings.minimum_characters,
    broken_share: Annotated[
        float,
        Option(
            help="Share of all images, validation included, that may be unreadable; more stop the run.",
            rich_help_panel=_PAIRS,
        ),
    ] = DataSettings.broken_share,
    model: Annotated[
        str,
        Option(
            help="biomedclip, lite, clip-vit-b-16 (OpenAI's), or finetuned:FOLDER to go on from a result.",
            rich_help_panel=_RUN,
        ),
    ] = FinetuneSettings.model,
    loss: Annotated[
        str, Option(help="dhn-nce, hn-nce, dcl or info-nce.", rich_help_panel=_RUN)
    ] = FinetuneSettings.loss,
    temperature: Annotated[
        float, Option(help="0: the model's own, 0.1 for lite, else 0.6 (paper).", rich_help_panel=_RUN)
    ] = FinetuneSettings.temperature,
    beta: Annotated[
        float, Option(help="How much more the harder negatives weigh (paper: 0.15).", rich_help_panel=_RUN)
    ] = FinetuneSettings.beta,
    alpha: Annotated[
        float, Option(help="Weight of the positive in hn-nce.", rich_help_panel=_RUN)
    ] = FinetuneSettings.alpha,
    batch: Annotated[
        int, Option(help="Pairs contrasted with each other, over all processes (paper: 64).", rich_help_panel=_RUN)
    ] = FinetuneSettings.batch,
    locked_image_layers: Annotated[
        int, Option(help="First layers of the image tower that stay; -1: all of it.", rich_help_panel=_RUN)
    ] = FinetuneSettings.locked_image_layers,
    locked_text_layers: Annotated[
        int, Option(help="The same of the text tower.", rich_help_panel=_RUN)
    ] = FinetuneSettings.locked_text_layers,
    dropout: Annotated[
        float | None, Option(help="In BiomedCLIP's text tower; by default 0.", rich_help_panel=_RUN)
    ] = None,
    keep_patches: Annotated[
        float | None,
        Option(
            help="lite: weight of the term that keeps the patches' similarity to learnt texts; by default 30.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    epochs: Annotated[
        int, Option(help="Passes over the training pairs.", rich_help_panel=_OPTIMISER)
    ] = FinetuneSettings.epochs,
    steps: Annotated[
        int, Option(help="So many optimiser steps, whatever --epochs says; 0: no.", rich_help_panel=_OPTIMISER)
    ] = FinetuneSettings.steps,
    learning_rate: Annotated[
        float, Option(help="0: the model's own, 1e-3 for lite, else 1e-6 (paper).", rich_help_panel=_OPTIMISER)
    ] = FinetuneSettings.learning_rate,
    schedule: Annotated[
        str, Option(help="step (halved every --decay-epochs), cosine, constant.", rich_help_panel=_OPTIMISER)
    ] = FinetuneSettings.schedule,
    decay_epochs: Annotated[
        int, Option(help="Epochs after which the rate is halved.", rich_help_panel=_OPTIMISER)
    ] = FinetuneSettings.decay_epochs,
    warmup_steps: Annotated[
        int | None, Option(help="By default 5 % of the steps, 1000 at most.", rich_help_panel=_OPTIMISER)
    ] = None,
    weight_decay: Annotated[
        float | None, Option(help="By default 0.05 for lite, else 0.1.", rich_help_panel=_OPTIMISER)
    ] = None,
    clip_gradient: Annotated[
        float, Option(help="Largest norm of the gradient; 0: none.", rich_help_panel=_OPTIMISER)
    ] = FinetuneSettings.clip_gradient,
    seed: Annotated[int, Option(help="Of every draw.", rich_help_panel=_OPTIMISER)] = 0,
    device: Annotated[str, Option(help="auto, cpu, cuda, ...", rich_help_panel=_MACHINE)] = "auto",
    precision: Annotated[
        str, Option(help="auto (bfloat16 on GPUs), float32, bfloat16.", rich_help_panel=_MACHINE)
    ] = FinetuneSettings.precision,
    chunk: Annotated[
        int,
        Option(
            min=0,
            help="Pairs computed at once on a device, where the batch does not fit; the result stays that of the "
            "batch (gradient caching). 0: all.",
            rich_help_panel=_MACHINE,
        ),
    ] = 0,
    workers: Annotated[
        int, Option(min=0, help="Loader processes; 0: none.", rich_help_panel=_MACHINE)
    ] = RunOptions.workers,
    save_every: Annotated[
        int, Option(min=1, help="Steps between two checkpoints.", rich_help_panel=_MACHINE)
    ] = RunOptions.save_every,
    validate_every: Annotated[
        int, Option(min=0, help="Steps between two validations; 0: once an epoch.", rich_help_panel=_MACHINE)
    ] = RunOptions.validate_every,
    layout: Annotated[
        list[str] | None,
        Option(
            help="open_clip, training, hugging_face; may be given several times. By default all that the model has.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
    features: Annotated[
        Path | None,
        Option(help="lite: folder for the images' features, which runs may share.", rich_help_panel=_MACHINE),
    ] = None,
    tensorboard: Annotated[
        bool, Option(help="Write for TensorBoard too, if it is installed.", rich_help_panel=_MACHINE)
    ] = True,
) -> None:
    """Fine-tune a CLIP on your own images and captions with DHN-NCE.

    Start with a table with the columns file and caption:

        medclipsam finetune --data pairs.csv --model lite --output my-clip

    Then `medclipsam segment IMAGE --engine finetuned:my-clip --prompt ...`. Called again with the same options, a
    stopped run goes on where it was. Several GPUs: `medclipsam finetune --processes 4 ...`.
    """
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.INFO if first else logging.ERROR, format="%(message)s")
    if not first:
        os.environ.pop(EVENTS_VARIABLE, None)  # one process speaks for all
    with JobLink() as link:
        try:
            settings = FinetuneSettings(
                model=model,
                loss=loss,
                epochs=epochs,
                steps=steps,
                batch=batch,
                learning_rate=learning_rate,
                temperature=temperature,
                beta=beta,
                alpha=alpha,
                weight_decay=weight_decay,
                dropout=dropout,
                keep_patches=keep_patches,
                warmup_steps=warmup_steps,
                schedule=schedule,
                decay_epochs=decay_epochs,
                clip_gradient=clip_gradient,
                locked_image_layers=locked_image_layers,
                locked_text_layers=locked_text_layers,
                precision=precision,
                validation_share=validation_share,
                minimum_characters=minimum_characters,
                seed=seed,
            )
            options = RunOptions(
                output=output,
                work=work or output.with_name(output.name + "-work"),
                features=features,
                chunk=chunk,
                workers=workers,
                save_every=save_every,
                validate_every=validate_every,
                layouts=tuple(layout or ()),
                tensorboard=tensorboard,
            )
            source = DataSettings(data, validation, root, (file_column, caption_column, patient_column), broken_share)
            with join_processes(device) as processes:
                files = run(settings, source, options, processes, link)
        except MedCLIPSAMError as error:
            link.send("error", message=str(error))
            logger.error("Error: %s", error)
            raise SystemExit(2) from error
        for path in files:
            logger.info("Written: %s (%.1f MB)", path, path.stat().st_size / 1e6)


def command() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name=os.environ.get(PROGRAM_VARIABLE))


if __name__ == "__main__":
    command()
