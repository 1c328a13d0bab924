"""The command line: reads the options, reports progress and errors, and leaves the work to the library."""

from __future__ import annotations

import logging
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from MedCLIPSAMLib.errors import CancelledError, InputError, MedCLIPSAMError
from MedCLIPSAMLib.reporting import RESEARCH_NOTE, VERSION, summary_table

# The library's errors are messages for the user; a traceback would print the values of local variables.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"MedCLIPSAM: medical image segmentation from a text prompt. {RESEARCH_NOTE}",
)
weights_app = typer.Typer(
    no_args_is_help=True, help="The engines' weight files: which there are, and whether they are whole."
)
app.add_typer(weights_app, name="weights")

EngineOption = Annotated[str, typer.Option(help="Which CLIP, which SAM; see `medclipsam engines`.")]
PresetOption = Annotated[str | None, typer.Option(help="Settings for a task; see `medclipsam engines`.")]
SeedOption = Annotated[int, typer.Option(help="0 or more; the same seed gives the same result.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
NoGateOption = Annotated[bool, typer.Option("--no-gate", help="Segment also where the target seems to be absent.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show log messages, and the traceback of errors.")]


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 2 an error that the message explains, 130 interrupted, 143 terminated."""
    signal.signal(signal.SIGTERM, _terminate)  # so that `timeout` and batch systems leave nothing half-written either
    app(prog_name="medclipsam")
    raise SystemExit(0)


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(143)


@contextmanager
def _reported(verbose: bool) -> Iterator[None]:
    """Turn the library's errors into one line on stderr and an exit status."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr
    )
    try:
        yield
    except (KeyboardInterrupt, CancelledError) as error:
        typer.echo("Interrupted; nothing was written.", err=True)
        raise typer.Exit(130) from error
    except MedCLIPSAMError as error:
        if verbose:
            logging.getLogger(__name__).exception("The run failed.")
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


@contextmanager
def _progress_bar(unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback (done, in all) that draws a bar on stderr where that is a terminal."""
    from tqdm import tqdm

    bar = tqdm(unit=unit, file=sys.stderr, disable=None, leave=False)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    with bar:
        yield show


def parse_axis(text: str | None) -> int | str | None:
    """Return "axial", "coronal", "sagittal" or an array axis from the option's text; others are checked later."""
    return int(text) if text is not None and text in ("0", "1", "2") else text


def parse_slices(text: str | None) -> tuple[int, int] | None:
    """Return (first, last) from "FIRST:LAST".

    Raises:
        InputError: Another text.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text)
    if not match:
        raise InputError(f"--slices {text!r}: pass FIRST:LAST, for example 40:80; counted from 0, both included.")
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise InputError(f"--slices {text}: the first lies after the last; did you mean {last}:{first}?")
    return first, last


def parse_window(text: str | None) -> tuple[float, float] | None:
    """Return (lower, upper) from "LOW,HIGH".

    Raises:
        InputError: Another text, or numbers that are not finite.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"--window {text!r}: pass LOW,HIGH, for example --window=-1000,400.")
    return low, high


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"medclipsam {VERSION}")
        raise typer.Exit()


@app.command()
def segment(
    source: Annotated[
        Path | None, typer.Argument(metavar="IMAGE_OR_VOLUME", help="PNG, JPEG, TIFF, DICOM, NRRD, NIfTI or MetaImage.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="What to segment, or set:NAME, see `medclipsam prompts`; may be given several times."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    sample: Annotated[str | None, typer.Option(help="A sample instead of a file; see `medclipsam samples`.")] = None,
    engine: EngineOption = "lite",
    preset: PresetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    axis: Annotated[str | None, typer.Option(help="Volumes: axial, coronal, sagittal, or array axis 0, 1, 2.")] = None,
    slices: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Volumes: only these; the first is 0.")
    ] = None,
    window: Annotated[str | None, typer.Option(metavar="LOW,HIGH", help="Intensities shown black and white.")] = None,
    no_gate: NoGateOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment one image or volume from a text prompt; writes masks, maps, an overview and result.json into a folder."""
    from MedCLIPSAMLib import segment_job

    with _reported(verbose):
        if output is None:
            raise InputError("there is no output folder; pass --output DIR.")
        if (source is None) == (sample is None):
            raise InputError("pass either an image or volume, or --sample NAME.")
        prompts = list(prompt or ())
        if sample is None:
            given, truth, notice = source, None, None
        else:
            from MedCLIPSAMLib.samples import load_sample

            loaded = load_sample(sample)
            given, truth, notice = loaded.image, loaded.truth, loaded.notice
            prompts = prompts or [loaded.prompt]
        request = segment_job.make_request(
            given,
            prompts,
            output,
            axis=parse_axis(axis),
            slice_range=parse_slices(slices),
            window=parse_window(window),
            engine=engine,
            preset=preset,
            device=device,
            seed=seed,
            gate=not no_gate,
            truth=truth,
            notice=notice,
        )
        with _progress_bar("slice" if request.image.is_volume else "prompt") as progress:
            reports = segment_job.run(request, progress=progress)
    typer.echo(summary_table(reports))
    if notice:
        typer.echo(f"Note: {notice.split(chr(10))[0]} (the whole notice is in result.json)", err=True)
    for warning in dict.fromkeys(text for report in reports for text in report["warnings"]):
        typer.echo(f"Note: {warning}", err=True)
    typer.echo(f"Look at: {request.output / segment_job.OVERVIEW_FILE}")
    typer.echo(RESEARCH_NOTE)


@app.command()
def evaluate(
    data_dir: Annotated[Path, typer.Argument(help="Folder with images/ and masks/, or SPLIT/images and SPLIT/masks.")],
    prompt: Annotated[str, typer.Option(help="What to segment.")],
    output: Annotated[Path, typer.Option(help="The report to write, JSON.")],
    split: Annotated[str | None, typer.Option(help="test, val, ...; none for a folder without splits.")] = None,
    engine: EngineOption = "lite",
    preset: PresetOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    limit: Annotated[int | None, typer.Option(help="At most this many images, spread over the folder.")] = None,
    no_gate: NoGateOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment a folder of images and compare with the reference masks: DSC, NSD, presence, uncertainty."""
    from MedCLIPSAMLib import evaluation
    from MedCLIPSAMLib.engines import check_choice
    from MedCLIPSAMLib.file_output import check_output_folder, write_json
    from MedCLIPSAMLib.prompts import check_prompt, wordings
    from MedCLIPSAMLib.segment_job import load_segmenter

    with _reported(verbose):
        prompt = check_prompt(prompt)
        wordings(prompt, 1)  # raises for an unknown prompt set
        check_choice(engine, preset, device)
        if seed < 0:
            raise InputError(f"seed {seed}: it must be 0 or more.")
        if limit is not None and limit < 1:
            raise InputError(f"--limit {limit}: it must be 1 or more.")
        cases = evaluation.find_cases(data_dir, split)
        if output.is_dir():
            raise InputError(
                f"{output} is a folder; pass the name of the report, for example {output / 'report.json'}."
            )
        check_output_folder(output.parent)
        segmenter = load_segmenter(engine, preset, device, gate=not no_gate)
        with _progress_bar("image") as progress:
            report = evaluation.evaluate(segmenter, cases, prompt, seed=seed, progress=progress, limit=limit)
        write_json(output, report)
    typer.echo(evaluation.report_table(report))
    typer.echo(f"Report: {output}")


@app.command()
def samples() -> None:
    """List the samples that come with the installation."""
    with _reported(False):
        from MedCLIPSAMLib.samples import sample_names

        for name in sample_names():
            typer.echo(name)


@app.command()
def engines() -> None:
    """List the engines and their presets, with a sentence on each."""
    with _reported(False):
        from MedCLIPSAMLib.engines import engine_names
        from MedCLIPSAMLib.recipe import load_recipe

        for name in engine_names():
            recipe = load_recipe(name)
            typer.echo(f"{name}  {recipe.about}".rstrip())
            for preset, changes in (recipe.presets or {}).items():
                typer.echo(f"    --preset {preset:<14}  {changes.get('about', '')}".rstrip())


@app.command()
def prompts() -> None:
    """List the prompt sets by task; --prompt set:NAME takes one."""
    with _reported(False):
        from MedCLIPSAMLib.prompts import load_prompt_set, prompt_sets

        tasks: dict[str, list[str]] = {}
        for name in prompt_sets():
            tasks.setdefault(load_prompt_set(name).task or "other", []).append(name)
        for task, names in tasks.items():
            typer.echo(task)
            for name in names:
                typer.echo(f"    set:{name}")


@weights_app.command("list")
def weights_list() -> None:
    """List the known weight files: size, licence, where they are."""
    with _reported(False):
        from MedCLIPSAMLib import weights

        for name, weight in weights.registry().items():
            try:
                place = str(weights.locate(name))
            except MedCLIPSAMError:
                place = "not installed"
            size = f"{weight.bytes / 1e6:.1f} MB" if weight.bytes else "size unknown"
            typer.echo(f"{name}  ({size}, {weight.licence}; for {', '.join(weight.used_by)})\n    {place}")


@weights_app.command("verify")
def weights_verify(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Only this folder; else all places.")] = None,
) -> None:
    """Read every weight file and compare its SHA-256; exit status 2 if one is damaged."""
    with _reported(False):
        from MedCLIPSAMLib import weights

        found = weights.verify(folder)
    for one in found:
        typer.echo(f"{one.status:<12}  {one.name}  {one.path or ''}".rstrip())
        if one.message:
            typer.echo(f"    {one.message}")
    if any(one.status in ("wrong size", "wrong hash") for one in found):
        raise typer.Exit(2)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def test() -> None:
    """The tests are run by the script at the root of a checkout."""
    typer.echo("The tests are run from a checkout: ./medclipsam test", err=True)
    raise typer.Exit(2)
