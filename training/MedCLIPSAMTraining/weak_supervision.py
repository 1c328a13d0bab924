"""Train an nnU-Net without masks: ``python -m MedCLIPSAMTraining.weak_supervision``, see README.md."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from MedCLIPSAMLib.cli_options import parse_changes, parse_window
from MedCLIPSAMLib.errors import InputError, MedCLIPSAMError
from MedCLIPSAMTraining.cyclical_schedule import CyclicalSettings
from MedCLIPSAMTraining.job_link import JobLink
from MedCLIPSAMTraining.weak_run import run
from MedCLIPSAMTraining.weak_settings import ALL, SelectionRules, WeakOptions, WeakSettings

logger = logging.getLogger(__name__)

PROGRAM_VARIABLE = "MEDCLIPSAM_PROGRAM"
"""How the command was called, for its help."""

_LABELS, _NETWORK, _MACHINE = "Pseudo-labels", "Network and schedule", "Machine and files"


def main(
    output: Annotated[Path, Option(help="Folder of the result; the engine is then weak:FOLDER.")],
    data: Annotated[
        Path | None,
        Option(help="Folder of images, volumes or DICOM; a list .csv with file and patient; or a cohort folder."),
    ] = None,
    prompt: Annotated[
        list[str] | None, Option(help="What to segment; several are the classes of one network, in this order.")
    ] = None,
    cohort: Annotated[
        Path | None,
        Option(help="In place of DATA: a cohort of segment-cohort, with its rejected.txt.", rich_help_panel=_LABELS),
    ] = None,
    masks: Annotated[
        Path | None,
        Option(
            help="True masks of the same names in place of a cohort, to compare with full supervision; with several "
            "prompts their values are 1, 2, ...",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    engine: Annotated[str, Option(help="Segments the images.", rich_help_panel=_LABELS)] = WeakSettings.engine,
    preset: Annotated[str | None, Option(help="Of the engine.", rich_help_panel=_LABELS)] = None,
    changes: Annotated[
        list[str] | None,
        Option("--set", metavar="NAME=VALUE", help="Replace a setting of the engine.", rich_help_panel=_LABELS),
    ] = None,
    window: Annotated[
        str | None,
        Option(metavar="LOW,HIGH", help="Intensities shown as black and white.", rich_help_panel=_LABELS),
    ] = None,
    min_confidence: Annotated[
        float, Option(help="Leave cases below it out, 0 to 1 (Eqs 18, 19).", rich_help_panel=_LABELS)
    ] = SelectionRules.minimum_confidence,
    max_entropy: Annotated[
        float, Option(help="Leave cases above it out; mean entropy in nats, 0: none.", rich_help_panel=_LABELS)
    ] = 0.0,
    configuration: Annotated[
        str, Option(help="nnU-Net's: 2d, or 3d_fullres for volumes.", rich_help_panel=_NETWORK)
    ] = WeakSettings.configuration,
    plans: Annotated[
        str, Option(help="default (a GPU), small (a CPU: coarser images, smaller network).", rich_help_panel=_NETWORK)
    ] = WeakSettings.plans,
    fold: Annotated[
        list[str] | None,
        Option(help="all (default), or 0 to 4 to keep a fifth of the patients apart.", rich_help_panel=_NETWORK),
    ] = None,
    epochs: Annotated[
        int, Option(help="Of all cycles together (paper: 600).", rich_help_panel=_NETWORK)
    ] = CyclicalSettings.epochs,
    cycles: Annotated[
        int, Option(help="The learning rate restarts in each (paper: 3).", rich_help_panel=_NETWORK)
    ] = CyclicalSettings.cycles,
    checkpoints: Annotated[
        int, Option(help="Kept of each cycle for the ensemble (paper: 10).", rich_help_panel=_NETWORK)
    ] = CyclicalSettings.kept_per_cycle,
    iterations: Annotated[int, Option(help="Batches of an epoch; 0: nnU-Net's 250.", rich_help_panel=_NETWORK)] = 0,
    restart_rate: Annotated[
        float, Option(help="Learning rate of a cycle's first epoch.", rich_help_panel=_NETWORK)
    ] = CyclicalSettings.restart_rate,
    seed: Annotated[int, Option(help="Of every draw.", rich_help_panel=_MACHINE)] = 0,
    device: Annotated[str, Option(help="auto, cpu, cuda, ...", rich_help_panel=_MACHINE)] = WeakOptions.device,
    workers: Annotated[
        int | None,
        Option(help="Processes that segment, preprocess and augment. By default as fits.", rich_help_panel=_MACHINE),
    ] = None,
    work: Annotated[
        Path | None,
        Option(
            help="Folder of the stages; a stopped run goes on there. By default OUTPUT-work.", rich_help_panel=_MACHINE
        ),
    ] = None,
) -> None:
    """Segment unlabelled images with a prompt and train an nnU-Net on the result.

        medclipsam weak-train --data images --prompt "breast tumor" --output my-model

    Then `medclipsam segment IMAGE --engine weak:my-model --prompt "breast tumor" --output result`. Called again with
    the same options, a stopped run goes on where it was. Without a GPU: --plans small --epochs 60 --iterations 50.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with JobLink() as link:
        try:
            if (data is None) == (cohort is None):
                raise InputError("pass either --data, a folder of images, or --cohort, one that is segmented.")
            if cohort is not None and masks is not None:
                raise InputError("--masks goes with --data, the folder of the images, and not with --cohort.")
            schedule = CyclicalSettings(
                epochs=epochs,
                cycles=cycles,
                kept_per_cycle=checkpoints,
                iterations=iterations or None,
                validation_iterations=min(50, max(1, iterations // 5)) if iterations else None,
                restart_rate=restart_rate,
                seed=seed,
            )
            settings = WeakSettings(
                data=(data or cohort or Path()).expanduser().absolute(),
                masks=None if masks is None else masks.expanduser().absolute(),
                prompts=tuple(prompt or ()),
                engine=engine,
                preset=preset,
                changes=parse_changes(changes),
                window=parse_window(window),
                rules=SelectionRules(min_confidence, max_entropy or None),
                configuration=configuration,
                plans=plans,
                folds=tuple(fold or (ALL,)),
                schedule=schedule,
                seed=seed,
            )
            if cohort is not None and not (settings.data / "cohort.json").is_file():
                raise InputError(f"{cohort} is no cohort; make one with segment-cohort.")
            whole = output.expanduser().absolute()
            options = WeakOptions(
                output=whole,
                work=(work.expanduser().absolute() if work else whole.with_name(whole.name + "-work")),
                device=device,
                workers=workers,
            )
            model = run(settings, options, link)
        except MedCLIPSAMError as error:
            link.send("error", message=str(error))
            logger.error("Error: %s", error)
            raise SystemExit(2) from error
        logger.info("Written: %s. The engine is weak:%s", model, model)


def command() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name=os.environ.get(PROGRAM_VARIABLE))


if __name__ == "__main__":
    command()
