"""A quick engine without torch for tests of everything around the pipeline: what is bright is the target.

The background process takes it in place of the real ones with MEDCLIPSAM_WORKER_ENGINE=stand_in_engine:load and this
folder on PYTHONPATH (see :func:`worker_environment`). Orders in the prompt steer it; several are joined with ";":

    sleep 0.5     each of its four stages takes that long, and asks between them whether it is cancelled
    hang 5        begins with a sleep in which it does not ask
    kill, exit    the process ends by SIGKILL, or with exit code 7; "kill 3" at the third call with this prompt
    error, input error, out of memory, cuda error      raised; a number as for "kill"
    absent        the presence score is low, so that the gate skips it
    nothing       the map is constant, so that there is nothing to segment
    print         writes to stdout and stderr, from Python and from below it
    grandchild    starts a process that sleeps for a minute; its pid is a warning of the result
    slow writing 0.5   the entropy map takes that long to be written

All other words mean nothing. Loading and encoding take MEDCLIPSAM_STAND_IN_LOADING and ..._ENCODING seconds.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedCLIPSAMLib.engines import engine_names
from MedCLIPSAMLib.errors import CancelledError, InputError
from MedCLIPSAMLib.images import check_image, to_uint8
from MedCLIPSAMLib.presence import UNCALIBRATED, PresenceCalibration
from MedCLIPSAMLib.prompts import check_prompt
from MedCLIPSAMLib.recipe import Recipe, load_recipe
from MedCLIPSAMLib.results import CoarseMask, Presence, PromptResult, VisualPrompts

LOADING, ENCODING = "MEDCLIPSAM_STAND_IN_LOADING", "MEDCLIPSAM_STAND_IN_ENCODING"
_ORDER = re.compile(
    r"(sleep|hang|kill|exit|error|input error|out of memory|cuda error|absent|nothing|print|grandchild|slow writing)"
    r"(?: ([0-9.]+))?"
)


def worker_environment(**variables: str) -> dict[str, str]:
    """Return what makes a :class:`~MedCLIPSAMLib.worker_client.WorkerClient` use this engine."""
    folder = str(Path(__file__).resolve().parent)
    path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"MEDCLIPSAM_WORKER_ENGINE": "stand_in_engine:load", "PYTHONPATH": path, **variables}


def load(name: str = "lite", preset: str | None = None, device: str = "auto") -> StandInSegmenter:
    """Stand in for :func:`MedCLIPSAMLib.engines.load_engine`."""
    time.sleep(float(os.environ.get(LOADING, 0)))
    if ":" not in name and name not in engine_names():
        raise InputError(f"engine {name!r} is unknown; known: {', '.join(engine_names())}.")
    return StandInSegmenter(load_recipe("lite").with_preset(preset), name)


class StandInSegmenter:
    """Has the surface of :class:`MedCLIPSAMLib.pipeline.TextSegmenter` that tasks and volumes use."""

    def __init__(self, recipe: Recipe, name: str = "lite"):
        """Take the recipe for its coarse mask and its gate."""
        self.recipe = recipe
        self.name = name
        self.calibration = PresenceCalibration((1.0, 1.0, 1.0), 0.0, 0.5)
        self.device = "cpu"
        self.weights = ()
        self._image: np.ndarray | None = None
        self._calls: Counter[str] = Counter()

    def set_image(self, image: np.ndarray, window: tuple[float, float] | None = None) -> None:
        """See ``TextSegmenter``."""
        time.sleep(float(os.environ.get(ENCODING, 0)))
        self._image = to_uint8(check_image(image), window)

    def presence(self, prompt: str) -> float | None:
        """Return 0.1 for "absent", else 0.9."""
        return 0.1 if "absent" in orders(prompt) else 0.9

    def segment(
        self,
        prompt: str,
        seed: int = 0,
        *,
        gate: bool | None = None,
        presence_score: float | None = None,
        whole_volume: bool = False,
        cancelled: Callable[[], bool] | None = None,
        stage: Callable[[str], None] | None = None,
    ) -> PromptResult:
        """See ``TextSegmenter``; the bright pixels, disturbed by nothing."""
        prompt = check_prompt(prompt)
        todo = orders(prompt)
        self._calls[prompt] += 1
        warnings = _grandchild(todo)
        seconds = self._work(todo, cancelled, stage)
        _misbehave(todo, self._calls[prompt])
        score = self.presence(prompt) if presence_score is None else presence_score
        presence = self.calibration.presence(score, whole_volume)
        skipped = not presence.accepted and (self.recipe.gate if gate is None else gate)
        saliency = np.zeros(self._grey().shape, np.float32) if "nothing" in todo else self._saliency()
        result = self._finish(prompt, saliency, self.recipe.coarse_mask(saliency), presence, skipped, seed)
        if "slow writing" in todo:
            result.entropy = SlowArray(result.entropy, todo["slow writing"])
        result.seconds, result.warnings = seconds, warnings
        return result

    def refine(
        self,
        saliency: np.ndarray,
        *,
        prompt: str = "",
        threshold: float | str | None = None,
        minimum_confidence: float | None = None,
        seed: int = 0,
        cancelled: Callable[[], bool] | None = None,
        stage: Callable[[str], None] | None = None,
    ) -> PromptResult:
        """See ``TextSegmenter``; the mask follows the coarse mask."""
        if saliency.shape != self._grey().shape:
            raise InputError(f"the saliency map has shape {saliency.shape}, the image {self._grey().shape}.")
        todo = orders(prompt)
        self._calls[prompt] += 1
        warnings = _grandchild(todo)
        seconds = self._work(todo, cancelled, stage)
        _misbehave(todo, self._calls[prompt])
        coarse = self.recipe.coarse_mask(saliency, threshold, minimum_confidence)
        result = self._finish(prompt, saliency, coarse, UNCALIBRATED, False, seed)
        result.seconds, result.warnings = seconds, warnings
        return result

    def _grey(self) -> np.ndarray:
        if self._image is None:
            raise InputError("there is no image: call set_image before segment.")
        return self._image if self._image.ndim == 2 else self._image.mean(axis=2)

    def _saliency(self) -> np.ndarray:
        smooth = ndimage.gaussian_filter(self._grey().astype(np.float32), 1.0)
        low, high = float(smooth.min()), float(smooth.max())
        return ((smooth - low) / max(high - low, 1e-6)).astype(np.float32)

    def _work(
        self,
        todo: dict[str, float],
        cancelled: Callable[[], bool] | None,
        tell: Callable[[str], None] | None,
    ) -> dict[str, float]:
        seconds = {}
        time.sleep(todo.get("hang", 0.0))
        for stage in ("presence", "saliency", "coarse mask", "mask"):
            if cancelled is not None and cancelled():
                raise CancelledError("The run was cancelled.")
            if tell is not None:
                tell(stage)
            time.sleep(todo.get("sleep", 0.0))
            seconds[stage] = todo.get("sleep", 0.0)
        return seconds

    def _finish(
        self, prompt: str, saliency: np.ndarray, coarse: CoarseMask, presence: Presence, skipped: bool, seed: int
    ) -> PromptResult:
        # The mask is the coarse mask without its rim, where the probability falls off.
        inner = ndimage.gaussian_filter(coarse.mask.astype(np.float32), 1.0)
        probability = np.zeros_like(inner) if skipped else inner
        certain = np.clip(probability, 1e-7, 1 - 1e-7)
        entropy = -(certain * np.log(certain) + (1 - certain) * np.log(1 - certain))
        boxes = np.array([one.box for one in coarse.components], np.float32).reshape(-1, 4)
        return PromptResult(
            prompt=prompt,
            saliency=saliency,
            coarse=coarse,
            prompts=VisualPrompts(boxes=boxes),
            probability=probability,
            mask=probability > 0.5,
            entropy=entropy.astype(np.float32),
            mutual_information=np.zeros_like(inner),
            presence=presence,
            skipped=skipped,
            saliency_method=self.recipe.saliency,
            seed=seed,
        )


class SlowArray:
    """An array that takes a while to be had, so that a test can look at what is half written."""

    def __init__(self, array: np.ndarray, seconds: float):
        """Wrap ``array``."""
        self.array = array
        self.seconds = seconds

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        time.sleep(self.seconds)
        return self.array


def orders(prompt: str) -> dict[str, float]:
    """Return the orders in a prompt with their numbers, 1 where there is none."""
    found = {}
    for part in prompt.split(";"):
        if match := _ORDER.fullmatch(part.strip()):
            found[match[1]] = float(match[2] or 1)
    return found


def _misbehave(todo: dict[str, float], call: int) -> None:
    if todo.get("kill") == call:
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        time.sleep(10)
    if todo.get("exit") == call:
        os._exit(7)
    for order, error in {
        "error": ValueError("injected\nwith a second line"),
        "input error": InputError("injected: pass something else."),
        "out of memory": MemoryError(),
        "cuda error": RuntimeError("CUDA error: device-side assert triggered"),
    }.items():
        if todo.get(order) == call:
            raise error
    if "print" in todo:
        print('{"event": "done", "id": 1}', flush=True)
        os.write(1, b"below Python\n")
        sys.stderr.write("to stderr\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)


def _grandchild(todo: dict[str, float]) -> list[str]:
    if "grandchild" not in todo:
        return []
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    return [f"grandchild {sleeper.pid}"]
