"""The command `weak-predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from MedCLIPSAMLib.cli_options import (
    AxisOption,
    DeviceOption,
    SetOption,
    VerboseOption,
    parse_axis,
    parse_changes,
    parse_window,
    progress_bar,
    reported,
)


def weak_predict(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="PNG, JPEG, TIFF, NIfTI, NRRD, DICOM file or folder.")
    ],
    model: Annotated[Path, typer.Option(help="Folder of the trained network, as weak-train wrote it.")],
    output: Annotated[Path, typer.Option(help="Folder for the results.")],
    device: DeviceOption = "auto",
    axis: AxisOption = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="For a network of images: shown as black and white; the training's own window goes before.",
        ),
    ] = None,
    changes: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Predict one input with a trained checkpoint ensemble: masks, probabilities, entropy, mutual information.

    --set members=last takes the last checkpoint alone, --set mirroring=true averages over mirrored inputs, --set
    threshold=0.3 takes more than the most probable class. For many inputs: segment-cohort --engine weak:FOLDER.
    """
    with reported(verbose):
        from MedCLIPSAMLib.engines import check_choice, load_engine
        from MedCLIPSAMLib.ensemble_output import predict_to_folder
        from MedCLIPSAMLib.file_io import read_image
        from MedCLIPSAMLib.file_output import check_output_folder
        from MedCLIPSAMLib.weak_recipe import WEAK

        engine, replaced = f"{WEAK}{model}", parse_changes(changes)
        check_choice(engine, None, device).with_settings(replaced)
        shown = parse_window(window)
        image = read_image(source)
        check_output_folder(output)
        loaded = load_engine(engine, None, device, replaced)
        with progress_bar("step") as progress:
            report = predict_to_folder(loaded, image, output, window=shown, axis=parse_axis(axis), progress=progress)
    for one in report["classes"]:
        size = one["size"].get("pixels", one["size"].get("voxels"))
        unit = "voxels" if image.is_volume else "pixels"
        typer.echo(f"{one['name']}: {size} {unit}" if size else f"{one['name']}: empty")
    typer.echo(
        f"Mean entropy {report['entropy']['mean']:.4f} nats, {report['members']} checkpoint(s). Results: {output}"
    )
