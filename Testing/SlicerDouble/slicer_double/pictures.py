"""Pictures of a module's panel at several scales, each in a process of its own.

    python -m slicer_double.pictures MedCLIPSAM/MedCLIPSAM.py docs/ --scales 1 1.5 --prepare fill.py --window

``--prepare`` names a Python file with a function ``prepare(widget)``, which brings the panel into the state to be
shown. Nothing may go wrong on the way: slots that raise and Qt's warnings end it with an error.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

SETTLING = 0.8  # seconds in which timers of the panel may act


def take(module: Path, target: Path, width: int, prepare: Path | None, main_window: bool) -> None:
    """Take one picture at this process's scale."""
    import slicer_double

    slicer_double.install(main_window=main_window)
    import slicer

    loaded = slicer_double.load_module(str(module))
    panel = loaded.widgetRepresentation()
    panel.enter()
    if prepare is not None:
        runpy.run_path(str(prepare))["prepare"](panel.self())
    for _ in range(2):  # a panel may fit its parts to its width, which it has only once it is shown
        slicer_double.save_picture(panel, target, width)
        end = time.monotonic() + SETTLING
        while time.monotonic() < end:
            slicer.app.processEvents()
    slicer_double.unload_module(loaded.name)
    slicer_double.check()


def main(arguments: list[str]) -> None:
    """Take the pictures; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--width", type=int, default=460, help="of the panel, in points")
    parser.add_argument("--prepare", type=Path)
    parser.add_argument("--window", action="store_true", help="with a main window and slice views")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)  # the picture to take in this process
    chosen = parser.parse_args(arguments)
    if chosen.here:
        take(chosen.module, chosen.here, chosen.width, chosen.prepare, chosen.window)
        return
    chosen.folder.mkdir(parents=True, exist_ok=True)
    for scale in chosen.scales:
        target = chosen.folder / f"{chosen.module.stem}_{round(scale * 100)}.png"
        command = [sys.executable, "-m", "slicer_double.pictures", *arguments, "--here", str(target)]
        path = os.pathsep.join((str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")))
        environment = {**os.environ, "QT_SCALE_FACTOR": str(scale), "PYTHONPATH": path}
        subprocess.run(command, check=True, env=environment)
        sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
