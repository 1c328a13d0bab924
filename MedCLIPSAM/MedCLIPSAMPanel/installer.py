"""Installs what is missing, after showing the list and asking once; only ever when the user has asked for it.

PyTorch comes from the extension PyTorch, which knows the build for the graphics card; the rest from pip, with Slicer's
own packages held at their versions. Both generations of Slicer's functions are served: ``slicer.packaging`` (from 5.11)
and ``slicer.util.pip_install`` alone (5.10). In a hospital without internet: ``PIP_NO_INDEX`` and ``PIP_FIND_LINKS``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import qt
import slicer
from slicer.i18n import tr as _

from MedCLIPSAMLib import dependencies, pip_failure
from MedCLIPSAMLib.dependencies import Dependency
from MedCLIPSAMLib.errors import MedCLIPSAMError
from MedCLIPSAMPanel.install_wording import plan
from MedCLIPSAMPanel.settings import setSetting, setting

REQUESTER = "MedCLIPSAM"
EXTENSION = "PyTorch"
PENDING = "pendingInstall"  # setting: the time, and the groups to install after a restart
PENDING_SECONDS = 3600  # a restart that took longer was not ours
_PIP_OPTIONS = ("--disable-pip-version-check", "--no-input", "--prefer-binary")

Outcome = Literal["nothing to do", "installed", "declined", "restarting"]


class InstallError(MedCLIPSAMError):
    """The installation failed; what was installed before is kept."""


class Installer:
    """One installation; on the main thread only.

    Args:
        report: Called with a line for the user, the steps done and all steps.
    """

    def __init__(self, report: Callable[[str, int, int], None] | None = None) -> None:
        self._report = report or (lambda text, done, total: logging.info(text))

    def install(self, names: Sequence[str], asked: bool = False) -> Outcome:
        """Install what is missing of the named groups of packages.

        Args:
            names: See :func:`dependencies.groups`.
            asked: The user has agreed already, before a restart.

        Raises:
            MedCLIPSAMError: With cause and remedy.
        """
        if threading.current_thread() is not threading.main_thread():
            raise InstallError("Packages can only be installed from the main thread.")
        wanted = dependencies.unsatisfied(dependencies.check(names))
        if not wanted:
            return "nothing to do"
        if slicer.app.testingEnabled():
            logging.info("Nothing is installed in testing mode: %s", ", ".join(one.requirement for one in wanted))
            return "declined"
        dependencies.check_folder(wanted)
        ofPyTorch = [one for one in wanted if one.source == "pytorch"]
        logic = self._pytorchLogic() if ofPyTorch else None
        inUse = any(one.name in sys.modules and dependencies.versions((one.name,)) for one in ofPyTorch)
        restart = inUse or bool(ofPyTorch and logic is None)
        if not asked:
            text, details = plan(wanted, restart, logic is None and bool(ofPyTorch))
            if not slicer.util.confirmOkCancelDisplay(text, REQUESTER, detailedText=details):
                return "declined"
        if restart:
            if asked:
                raise InstallError(self._extensionRemedy() if logic is None else self._inUseRemedy())
            return self._restartFirst(names, extensionMissing=logic is None)
        self._installAll(wanted, logic)
        self._tellAfterwards(names)
        return "installed"

    def _installAll(self, wanted: Sequence[Dependency], logic: Any) -> None:
        bundled, before = dependencies.versions(), _allVersions()
        steps = [
            (source, [one for one in wanted if one.source == source])
            for source in ("pytorch", "pip", "carrier")
            if any(one.source == source for one in wanted)
        ]
        for done, (source, some) in enumerate(steps):
            self._report(_("Installing {names}").format(names=", ".join(one.name for one in some)), done, len(steps))
            with self._explained(some), tempfile.TemporaryDirectory(prefix="medclipsam-") as folder:
                if source == "pytorch":
                    self._installPyTorch(logic, some)
                elif source == "pip":
                    constraints = Path(folder) / "constraints.txt"
                    constraints.write_text(dependencies.constraints(), encoding="utf-8")
                    _pip([*_PIP_OPTIONS, *(one.requirement for one in some)], constraints)
                else:
                    lines = Path(folder) / "requirements.txt"
                    lines.write_text("".join(one.line + "\n" for one in some), encoding="utf-8")
                    _pip([*_PIP_OPTIONS, "--no-deps", "--require-hashes", "-r", str(lines)])
            importlib.invalidate_caches()
        self._report(_("Checking what was installed"), len(steps), len(steps))
        changed = {name: new for name, new in dependencies.versions().items() if bundled.get(name, new) != new}
        if changed:
            logging.warning("Packages of Slicer were changed by the installation: %s", changed)
        if _changedWhileLoaded(before) and slicer.util.confirmYesNoDisplay(
            _("Packages that are in use were replaced. Restart Slicer now? Save your work first if you have not."),
            REQUESTER,
        ):
            slicer.util.restart()

    def _tellAfterwards(self, names: Sequence[str]) -> None:
        """Look at the result anew: what pip says is not proof."""
        left = [status for status in dependencies.check(names) if status.state != "ok"]
        if left:
            lines = "\n".join(f"{status.dependency.requirement}: {status.message}" for status in left)
            advice = _("Restart Slicer; if that does not help, uninstall these packages and install again.")
            raise InstallError("\n".join((_("These packages still do not fit after the installation:"), lines, advice)))

    # ---- PyTorch ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _pytorchLogic() -> Any:
        """Return the logic of the extension PyTorch, or None without that extension."""
        try:
            PyTorchUtils = importlib.import_module("PyTorchUtils")
        except ImportError:
            return None
        return PyTorchUtils.PyTorchUtilsLogic()

    @staticmethod
    def _installPyTorch(logic: Any, wanted: Sequence[Dependency]) -> None:
        if any(dependencies.versions((one.name,)) for one in wanted):
            logic.uninstallTorch()  # the extension keeps an installed one, whatever its version
        known = {one.name: one.requirement[len(one.name) :] for one in dependencies.dependencies(["segmentation"])}
        logic.installTorch(
            askConfirmation=False,
            torchVersionRequirement=known["torch"],
            torchvisionVersionRequirement=known["torchvision"],
        )

    def _restartFirst(self, names: Sequence[str], extensionMissing: bool) -> Outcome:
        """Install the extension PyTorch where it is missing, and restart; the rest goes on after that."""
        if extensionMissing:
            self._report(_("Installing the extension PyTorch"), 0, 1)
            manager = _extensionsManager()
            if manager is None:
                raise InstallError(self._extensionRemedy())
            manager.interactive = False  # the user has agreed already
            if not manager.installExtensionFromServer(EXTENSION, False):
                raise InstallError(self._extensionRemedy())
        setSetting(PENDING, " ".join((str(int(time.time())), *names)))
        qt.QSettings().sync()
        slicer.util.restart()
        return "restarting"

    @staticmethod
    def _extensionRemedy() -> str:
        return _(
            "The extension PyTorch is needed and could not be installed. Open View > Extensions Manager, install "
            "PyTorch, restart Slicer, and press Install again. Without internet: download the extension's package for "
            "this Slicer on another computer and install it there with 'Install from file'."
        )

    @staticmethod
    def _inUseRemedy() -> str:
        return _(
            "PyTorch must be replaced by another version, but another extension loads it as soon as Slicer starts. "
            "Disable that extension in the Extensions Manager, restart Slicer, and press Install again."
        )

    # ---- Failures --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _explained(self, wanted: Sequence[Dependency]) -> Iterator[None]:
        """Turn a failure of pip into a message with its remedy; pip's output is seen on the way to the console."""
        tee = _Tee(sys.stdout)
        qt.QApplication.setOverrideCursor(qt.Qt.WaitCursor)
        try:
            with contextlib.redirect_stdout(tee):
                yield
        except (subprocess.CalledProcessError, RuntimeError, OSError, ImportError, ValueError) as error:
            names = ", ".join(one.name for one in wanted)
            reason = pip_failure.explain("\n".join((tee.text(), str(error))))
            logging.exception("Installing %s failed", names)
            raise InstallError(_("{names} could not be installed. ").format(names=names) + reason) from error
        finally:
            qt.QApplication.restoreOverrideCursor()


def resumePendingInstall() -> None:
    """Go on with an installation that had to restart Slicer; to be called when the application has started."""
    pending = setting(PENDING, "")
    if not pending or slicer.app.testingEnabled():
        return
    setSetting(PENDING, None)  # first of all, so that nothing can make Slicer restart again and again
    began, *names = pending.split()
    if not began.isdecimal() or time.time() - int(began) > PENDING_SECONDS:
        return
    try:
        Installer(lambda text, done, total: slicer.util.showStatusMessage(f"{REQUESTER}: {text}", 0)).install(
            names, True
        )
    except MedCLIPSAMError as error:
        slicer.util.errorDisplay(str(error), REQUESTER)
    else:
        slicer.util.showStatusMessage(_("MedCLIPSAM: the packages are installed."), 5000)


def _extensionsManager() -> Any:
    """Return the Extensions Manager's model; None in a Slicer that was built without."""
    model = getattr(slicer.app, "extensionsManagerModel", None)
    return None if model is None else model()


def _pip(arguments: list[str], constraints: Path | None = None) -> None:
    """Run ``pip install`` by the function that this Slicer has."""
    try:
        packaging = importlib.import_module("slicer.packaging")
    except ImportError:  # Slicer 5.10: without a progress dialog
        slicer.util.pip_install([*arguments, *(("-c", str(constraints)) if constraints else ())])
        return
    if packaging.isPipInstallInProgress():
        raise InstallError(_("Another installation is running in the background. Wait for it to end, then try again."))
    packaging.pip_install(arguments, constraints=constraints, requester=REQUESTER)


def _allVersions() -> dict[str, str]:
    found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions()}
    return {name: version for name, version in found.items() if name}  # one whose removal failed has no name


def _changedWhileLoaded(before: dict[str, str]) -> bool:
    """Return whether a package was replaced of which this process still runs the old version."""
    now = _allVersions()
    return any(
        now.get(name, version) != version and name.replace("-", "_") in sys.modules for name, version in before.items()
    )


class _Tee:
    """A stream that passes on what is printed, and keeps the last of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._kept: list[str] = []

    def write(self, text: str) -> int:
        self._kept = [*self._kept[-2000:], text]
        if self._stream is not None:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if hasattr(self._stream, "flush"):
            self._stream.flush()

    def text(self) -> str:
        return "".join(self._kept)
