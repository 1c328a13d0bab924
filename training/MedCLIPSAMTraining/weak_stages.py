"""The work folder of a weakly supervised training: its stages, of which each is done once, and how far all are.

::

    WORK/
      run.json         the settings
      lock             held while a run works here
      stages/          NAME.json of every stage that is done, with what it found
      cohort/          unless an existing cohort is used
      excluded.csv     the cases that are left out, with the reason
      nnunet/          nnU-Net's raw, preprocessed and results, and nnunet.log, all that it said
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_output import check_output_folder, write_json
from MedCLIPSAMLib.job_folder import FileLock
from MedCLIPSAMTraining.job_link import JobLink
from MedCLIPSAMTraining.nnunet_environment import NnunetFolders
from MedCLIPSAMTraining.pseudo_selection import EXCLUDED_FILE
from MedCLIPSAMTraining.weak_settings import WeakSettings, difference

logger = logging.getLogger(__name__)

FORMAT = 1
LOCK_PATIENCE = 15.0
"""Seconds; processes of a run that was killed notice it within about five."""
SHARES = {"cohort": 200, "labels": 20, "prepare": 80, "train": 680, "model": 20}
"""Of the whole work, in thousandths; for the progress, which is for people."""
DECIDED = {
    "rules": "labels",
    "configuration": "labels",
    "plans": "prepare",
    "schedule": "prepare",
    "folds": "prepare",
}
"""The first stage that a setting decides; those that are not listed decide the cohort."""
_BETWEEN_LINES = 60.0  # seconds, where there is no terminal


class WeakWork:
    """The files of one run.

    Attributes:
        path: The folder.
        nnunet: nnU-Net's folders in it.
    """

    def __init__(self, path: Path, settings: WeakSettings):
        """Take the folder for this run.

        Raises:
            InputError: Another run works there, or one with other settings has.
            OutputError: It cannot be written.
        """
        self.path = check_output_folder(path).absolute()
        self.nnunet = NnunetFolders(self.path / "nnunet")
        self._stack = ExitStack()
        lock = FileLock(self.path / "lock")
        if not lock.acquire(patience=LOCK_PATIENCE):
            raise InputError(f"another run works in {self.path}; wait for its end, or pass another --work.")
        self._stack.callback(lock.release)
        try:
            self._claim(settings)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> WeakWork:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def cohort(self) -> Path:
        """The cohort that this run makes."""
        return self.path / "cohort"

    @property
    def excluded(self) -> Path:
        """The list of cases that are left out."""
        return self.path / EXCLUDED_FILE

    def _claim(self, settings: WeakSettings) -> None:
        path, now = self.path / "run.json", settings.as_dict()
        before = _read(path)
        # A setting may still change while no stage that it decides is done; a cohort that was begun looks after itself.
        done = {file.stem.partition("-")[0] for file in (self.path / "stages").glob("*.json")}
        if before is not None and done and before.get("format") != FORMAT:
            raise InputError(f"{path} is not of this version; choose another --work folder.")
        order = list(SHARES)
        last = max((order.index(stage) for stage in done & SHARES.keys()), default=-1)
        fixed = {name for name in now if order.index(DECIDED.get(name, "cohort")) <= last}
        old = (before or {}).get("settings", {})
        if found := difference({name: old.get(name) for name in fixed}, {name: now[name] for name in fixed}):
            cohort = f", with --cohort {self.cohort} in place of --data" if "cohort" in done else ""
            raise InputError(
                f"{self.path} belongs to a run with {'; '.join(found[:3])}; choose another --work folder{cohort}, or "
                "delete this one."
            )
        write_json(path, {"format": FORMAT, "settings": now})

    def stage(self, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Do a stage, unless it is done.

        Args:
            name: Of the stage.
            work: Does it; returns what is to be remembered, in JSON's types.

        Returns:
            What it returned, now or then.
        """
        path = self.path / "stages" / f"{name}.json"
        found = _read(path)
        if found is None:
            found = dict(work())
            path.parent.mkdir(exist_ok=True)
            write_json(path, found)  # last: whoever ends the work before does the stage again
        return json.loads(json.dumps(found))

    def done(self, name: str) -> bool:
        """Whether a stage is done."""
        return self.found(name) is not None

    def found(self, name: str) -> dict[str, Any] | None:
        """Return what a stage found, None if it is not done."""
        return _read(self.path / "stages" / f"{name}.json")

    def again(self, name: str) -> None:
        """Let a stage be done once more."""
        (self.path / "stages" / f"{name}.json").unlink(missing_ok=True)


class Course:
    """Tells how far the whole work is, and looks whether it is to stop.

    A supervisor is sent events; at a shell there is a bar, and in a file one line a minute.
    """

    def __init__(self, link: JobLink):
        self._link = link
        self._last = (0, sum(SHARES.values()), "")
        self._stack = ExitStack()
        self._bar: tqdm | None = None
        self._said = ("", 0.0)

    def __enter__(self) -> Course:
        if not self._link.active and sys.stderr.isatty():
            form = "{percentage:3.0f}%|{bar:30}| {desc} [{elapsed}]"
            self._bar = tqdm(total=sum(SHARES.values()), bar_format=form, mininterval=0.2, leave=False)
            self._stack.enter_context(self._bar)
            self._stack.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tell(self, stage: str, done: float, total: float, text: str) -> None:
        """Tell how far a stage is.

        Args:
            stage: A key of :data:`SHARES`.
            done, total: Of the stage, in any unit; total 0 for its beginning.
            text: One line for the user.

        Raises:
            SystemExit: It is to stop, and nothing is being saved.
        """
        before = 0
        for name, share in SHARES.items():
            if name == stage:
                before += int(share * min(1.0, done / total)) if total else 0
                break
            before += share
        self._last = (before, sum(SHARES.values()), text)
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(before - self._bar.n)
        elif not self._link.active and (stage != self._said[0] or time.monotonic() - self._said[1] >= _BETWEEN_LINES):
            self._said = (stage, time.monotonic())
            logger.info("%s", text)
        self._link.progress(*self._last)

    def beat(self) -> None:
        """Look whether it is to stop."""
        self._link.progress(*self._last)


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON file's content, None where it is missing.

    Raises:
        InputError: It is damaged.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete the work folder and start again.") from error
    return content
