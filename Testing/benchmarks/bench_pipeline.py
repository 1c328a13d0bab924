"""How long the pipeline takes and how much memory it needs: ratios first, because they hold on any machine.

    python Testing/benchmarks/bench_pipeline.py [--quick] [--sample brain-mri]

Uses the trained lite engine, or the same models with a random alignment where that is missing; the times are alike.
Set OMP_NUM_THREADS to choose the number of threads.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing" / "Python")]

from m2ib_reference import PlainTower, full_forward_m2ib  # noqa: E402
from untrained import untrained_segmenter  # noqa: E402

from MedCLIPSAMLib.clip.lite import LiteClip  # noqa: E402
from MedCLIPSAMLib.engines import load_engine  # noqa: E402
from MedCLIPSAMLib.errors import MissingWeightsError  # noqa: E402
from MedCLIPSAMLib.medical_image import MedicalImage  # noqa: E402
from MedCLIPSAMLib.pipeline import TextSegmenter  # noqa: E402
from MedCLIPSAMLib.recipe import load_recipe  # noqa: E402
from MedCLIPSAMLib.saliency.m2ib import M2IBSettings, m2ib  # noqa: E402
from MedCLIPSAMLib.samples import load_sample  # noqa: E402
from MedCLIPSAMLib.volumes import segment_volume  # noqa: E402

PROMPTS = ("brain tumor", "a bright mass with a dark centre")
SECOND_PROMPT_TARGET = 0.35


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    value: str
    remark: str = ""


def engine() -> TextSegmenter:
    """Return the lite engine, trained where the alignment is installed."""
    try:
        return load_engine("lite", device="cpu")
    except MissingWeightsError:
        # a random map falls into many components; a trained one into one or two
        return untrained_segmenter(recipe=replace(load_recipe("lite"), name="untrained", maximum_components=1))


def forget_images(segmenter: TextSegmenter) -> None:
    """Make the next ``set_image`` encode, also an image that was seen before."""
    segmenter.segmenter.encoder._remembered.clear()


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def processor_seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def prompt_rows(
    segmenter: TextSegmenter, image: np.ndarray, window: tuple[float, float] | None, repeats: int
) -> list[Row]:
    """First prompt on an image (encoding included) against the second, and the stages of both."""
    first, second, first_saliency = [], [], []
    stages: dict[str, list[float]] = {}
    for turn in range(repeats + 1):
        segmenter._texts.clear()
        forget_images(segmenter)
        begun = time.perf_counter()
        segmenter.set_image(image, window)
        results = [segmenter.segment(PROMPTS[0], gate=False)]
        together = time.perf_counter() - begun
        again = seconds(lambda results=results: results.append(segmenter.segment(PROMPTS[1], gate=False)))
        if turn == 0:
            continue  # warm-up
        first.append(together)
        second.append(again)
        first_saliency.append(results[0].seconds["saliency"])
        for name, taken in results[1].seconds.items():
            stages.setdefault(name, []).append(taken)
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    verdict = "reached" if ratio <= SECOND_PROMPT_TARGET else "MISSED"
    boxes = len(results[1].prompts)
    return [
        Row("second prompt / first prompt", f"{ratio:.2f}", f"at most {SECOND_PROMPT_TARGET}: {verdict}"),
        Row("first prompt, with encoding", milliseconds(first)),
        Row(
            "second prompt on the same image",
            milliseconds(second),
            f"{segmenter.recipe.samples} samples, {boxes} box(es)",
        ),
        Row("  stage: saliency", milliseconds(first_saliency), "first prompt; encodes the image at further scales"),
        *(Row(f"  stage: {name}", milliseconds(taken), "second prompt") for name, taken in stages.items()),
    ]


def m2ib_rows(clip: LiteClip, image: np.ndarray, quick: bool) -> list[Row]:
    """M2IB with its caches against the whole tower at every step, on the same image with the same noise.

    In processor time: the plain form takes minutes, in which other programs would disturb the clock.
    """
    settings = M2IBSettings(layer=0, beta=0.1, steps=4 if quick else 10, copies=1 if quick else 2)
    text = clip.encode_texts([PROMPTS[0]])[0]
    plain = PlainTower(clip)
    clip.encoder._remembered.clear()
    m2ib(clip, image, text, settings=replace(settings, steps=2))  # warm-up
    rows = []
    maps = {}
    for title, features in (("whole tower", None), ("tower above the encoder", plain.encode(image))):
        plain.zero_grad(set_to_none=True)
        slow = processor_seconds(
            lambda given=features: maps.update(slow=full_forward_m2ib(plain, image, text, settings, features=given))
        )
        clip.encoder._remembered.clear()
        if features is not None:
            clip.encoder(image)  # both sides have the encoding already
        fast = processor_seconds(lambda: maps.update(fast=m2ib(clip, image, text, settings=settings)))
        difference = float(np.abs(maps["slow"] - maps["fast"]).max())
        name = f"M2IB, {title}: plain / cached"
        rows.append(
            Row(
                name,
                f"{slow / fast:.1f}",
                f"{slow:.2f} s / {fast:.2f} s of processor time; maps differ by {difference:.0e}",
            )
        )
    return rows


def import_row() -> Row:
    """Import of the library in a fresh interpreter, the best of three."""
    code = "import time; t = time.perf_counter(); import MedCLIPSAMLib; print(time.perf_counter() - t)"
    best = min(float(child([sys.executable, "-c", code])) for _ in range(3))
    return Row("import MedCLIPSAMLib", f"{1000 * best:.0f} ms", "best of three")


def memory_rows(quick: bool) -> list[Row]:
    """Peaks of two volumes that differ in the number of slices only, each in a process of its own."""
    side, counts = (128, (3, 9)) if quick else (512, (6, 24))
    command = [sys.executable, str(Path(__file__).resolve()), "--side", str(side), "--memory"]
    peaks = {count: json.loads(child([*command, str(count)])) for count in counts}
    rows = [
        Row(
            f"peak, volume {side} x {side} x {count}",
            f"{peak['arrays']:.1f} MB",
            f"arrays beside the volume; whole process {peak['process']:.0f} MB, maps on disk {peak['disk']:.0f} MB",
        )
        for count, peak in peaks.items()
    ]
    few, many = (peaks[count]["arrays"] for count in counts)
    rows.append(Row(f"peak, {counts[1]} slices / {counts[0]} slices", f"{many / few:.2f}", "1 is best: nothing grows"))
    return rows


def memory_child(count: int, side: int) -> None:
    """Segment a volume with its maps in files; print the peaks in MB as JSON."""
    segmenter = engine()
    segmenter.recipe = replace(segmenter.recipe, samples=1, maximum_components=1)
    y, x = np.mgrid[:side, :side]
    array = np.random.default_rng(0).normal(0, 30, (count, side, side)).astype(np.int16)
    for index in range(count):
        centre = side * (0.3 + 0.4 * index / count)
        array[index][(x - centre) ** 2 + (y - centre) ** 2 < (side / 8) ** 2] += 300
    matrix = np.diag([-1.0, -1.0, 4.0, 1.0])
    image = MedicalImage(array, matrix, "MR", (-200.0, 400.0), is_volume=True, path=Path("phantom"), spacing_known=True)
    segment_volume(segmenter, image, PROMPTS[:1], slice_range=(0, 0))  # warm-up
    with tempfile.TemporaryDirectory() as folder:
        gc.collect()
        tracemalloc.start()
        segment_volume(segmenter, image, PROMPTS[:1], folder=Path(folder), gate=False)
        arrays = tracemalloc.get_traced_memory()[1]
        disk = sum(path.stat().st_size for path in Path(folder).iterdir())
    print(json.dumps({"arrays": arrays / 1e6, "process": process_peak() / 1e6, "disk": disk / 1e6}))


def process_peak() -> int:
    """Return this process's peak resident memory in bytes; pages of the mapped files count as well."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss starts at the peak of the process that started this one
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def child(command: list[str]) -> str:
    """Run a command from the root and return the last line that it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.strip().splitlines()[-1]


def milliseconds(values: list[float]) -> str:
    return f"{1000 * statistics.median(values):.1f} ms"


def print_table(title: str, rows: list[Row]) -> None:
    names, values = (max(len(getattr(row, column)) for row in rows) for column in ("name", "value"))
    print(title)
    print("-" * len(title))
    for row in rows:
        print(f"{row.name:<{names}}  {row.value:>{values}}  {row.remark}".rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats and a smaller volume")
    parser.add_argument("--sample", default="brain-mri", help="a 2D sample of MedCLIPSAMLib.samples")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=512, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if arguments.memory is not None:
        memory_child(arguments.memory, arguments.side)
        return

    import torch

    sample = load_sample(arguments.sample).image
    segmenter = engine()
    segmenter.set_image(sample.array, sample.window)
    rows = [
        *prompt_rows(segmenter, sample.array, sample.window, repeats=3 if arguments.quick else 7),
        *m2ib_rows(segmenter.clip, segmenter._image, arguments.quick),
        import_row(),
        *memory_rows(arguments.quick),
    ]
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    size = " x ".join(map(str, sample.array.shape[:2]))
    print_table(
        f"{segmenter.recipe.name} engine, {arguments.sample} {size}, {torch.get_num_threads()} thread(s), load {load}",
        rows,
    )


if __name__ == "__main__":
    main()
