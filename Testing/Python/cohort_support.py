"""A counting stand-in engine for cohorts, drawn inputs, and what is to be equal between two runs."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from stand_in_engine import StandInSegmenter
from stand_in_engine import load as load_stand_in

from MedCLIPSAMLib.results import PromptResult

COUNT = "MEDCLIPSAM_TEST_COUNT"
ENGINE = "cohort_support:load"


class CountingSegmenter(StandInSegmenter):
    """The stand-in engine; every finished image leaves a line in the file that ``COUNT`` names.

    The top left pixel of an image steers it: 250 ends the process, 251 is an error.
    """

    def set_image(self, image: np.ndarray, window: tuple[float, float] | None = None) -> None:
        """Take an image, and note which one."""
        super().set_image(image, window)
        self.content = f"{int(np.asarray(image, np.int64).sum())}-{np.asarray(image).flat[1]}"
        self.order = int(np.asarray(image).flat[0])

    def segment(self, prompt: str, *arguments: object, **options: object) -> PromptResult:
        """Segment and count."""
        if self.order == 250:
            os._exit(9)
        if self.order == 251:
            raise ValueError("injected")
        result = super().segment(prompt, *arguments, **options)
        _note(os.environ.get(COUNT), f"{self.content} {prompt}\n")
        return result


def load(name: str = "lite", preset: str | None = None, device: str = "auto") -> CountingSegmenter:
    """Stand in for :func:`MedCLIPSAMLib.engines.load_engine`, which notes the process."""
    found = load_stand_in(name, preset, device)
    spare_the_disk()
    _note(os.environ.get(COUNT), f"loaded {os.getpid()}\n")
    return CountingSegmenter(found.recipe, found.name)


def spare_the_disk() -> None:
    """Leave out of this process what takes long thousands of times: a killed process loses nothing without fsync."""
    os.fsync = lambda descriptor: None


def counted(path: Path) -> Counter[str]:
    """Return how often each image and prompt was finished."""
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line for line in lines if not line.startswith("loaded"))


def loaded(path: Path) -> list[int]:
    """Return the processes that loaded the engine, one for each time."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("loaded")]


def draw_inputs(folder: Path, count: int, side: int = 24) -> Path:
    """Draw ``count`` grey pictures with a bright disc; no two are alike."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:side, :side]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        row, column = rng.uniform(side / 3, side * 2 / 3, 2)
        disc = (x - column) ** 2 + (y - row) ** 2 < (side / rng.uniform(4, 7)) ** 2
        picture = np.where(disc, 200, 40 + rng.normal(0, 8, disc.shape)).clip(0, 249).astype(np.uint8)
        picture[0, :2] = 0, number % 256
        picture[-1, -1] = number // 256
        Image.fromarray(picture).save(folder / f"image {number:04d}.png")
    return folder


def outputs(cohort: Path) -> dict[str, bytes]:
    """Return the masks, maps and thumbnails of a cohort by path, which are the same for every run."""
    kinds = (".png", ".nrrd", ".jpg")
    return {
        path.relative_to(cohort).as_posix(): path.read_bytes()
        for path in sorted(cohort.rglob("*"))
        if path.name.endswith(kinds) and path.is_file()
    }


def leftovers(cohort: Path) -> list[str]:
    """Return what no finished run leaves behind."""
    return [path.name for path in cohort.rglob("*") if path.name.startswith(".partial-") or path.name == "attempts.txt"]


def _note(path: str | None, line: str) -> None:
    if path:
        with open(path, "a", encoding="utf-8") as file:  # one short line is appended at once or not at all
            file.write(line)


if __name__ == "__main__":  # `segment-cohort` as a program of its own, which the tests kill
    import typer

    from MedCLIPSAMLib.cli_cohort import segment_cohort

    if COUNT in os.environ:
        spare_the_disk()
    typer.run(segment_cohort)
