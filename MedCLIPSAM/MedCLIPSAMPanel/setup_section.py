"""The section Setup: packages, weights, offline folder, device. Nothing is installed unless its button is pressed."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from MedCLIPSAMLib import dependencies
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.weights import OFFLINE_VARIABLE
from MedCLIPSAMPanel import wording
from MedCLIPSAMPanel.engine_needs import NeedsLookout, lackText
from MedCLIPSAMPanel.guard import guarded
from MedCLIPSAMPanel.install_wording import amount, amounts
from MedCLIPSAMPanel.installer import Installer
from MedCLIPSAMPanel.settings import setSetting, setting
from MedCLIPSAMPanel.weights_table import WeightsTable

_OFFLINE, _DEVICE = "offlineFolder", "device"  # settings
_STATES = {
    "ok": ("✓", wording.GOOD),
    "missing": (_("missing"), wording.BAD),
    "wrong version": (_("wrong version"), wording.BAD),
    "damaged": (_("damaged"), wording.BAD),
}


class SetupSection:
    """Fills the section and answers what the other sections ask of it.

    Args:
        ui: The widgets of MedCLIPSAM.ui.
        owner: The panel; the section uses ``session``, ``setupChanged``, ``pollSoon`` and ``showError`` of it.
    """

    def __init__(self, ui: Any, owner: Any) -> None:
        self.ui, self.owner = ui, owner
        self._statuses: list[dependencies.Status] = []
        self._installing = False
        self._outerOffline = os.environ.get(OFFLINE_VARIABLE)
        self._asked: tuple[Any, ...] = ()  # engine, preset and device whose loading the device's label speaks of
        self._waiting = False  # to ask, for the end of a loading that somebody else began
        self._engine: tuple[str, str | None] = ("lite", None)
        self._needs = NeedsLookout()
        self._fillDevices()
        self._fillHeaders()
        ui.installProgressBar.visible = False
        ui.offlineFolderPath.currentPath = setting(_OFFLINE, "")
        self._useOfflineFolder(setting(_OFFLINE, ""))
        self.weights = WeightsTable(ui, owner, self._weightsChanged)
        self.refresh()
        ui.installButton.connect("clicked()", self.onInstall)
        ui.requirementsTable.connect("itemChanged(QTableWidgetItem*)", self.onGroupChecked)
        ui.offlineFolderPath.connect("currentPathChanged(QString)", self.onOfflineFolderChanged)
        ui.deviceComboBox.connect("currentIndexChanged(int)", self.onDeviceChanged)
        ui.setupSection.connect("contentsCollapsed(bool)", self.onCollapsed)

    # ---- For the panel -----------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether everything is installed that segmenting needs, as the last :meth:`refresh` found it."""
        return all(status.state == "ok" or status.dependency.group.optional for status in self._statuses)

    @property
    def device(self) -> str:
        """The chosen device: "auto", "cpu", "cuda" or "mps"."""
        return str(self.ui.deviceComboBox.currentData or "auto")

    def lacks(self, engine: str, preset: str | None) -> str | None:
        """Return what an engine lacks beyond what :attr:`ready` speaks of, with the remedy; None if nothing."""
        return lackText(engine, self._needs.look(engine, preset))

    def setEngine(self, engine: str, preset: str | None) -> None:
        """Tell what is chosen: its weights are shown first, its packages are checked to be installed."""
        changed, self._engine = self._engine[0] != engine, (engine, preset)
        found = self._needs.look(engine, preset)
        self.weights.setNeeded(found.weights)
        if changed and found.packages:
            self._checkGroup(found.group)
        self._updateInstallButton()

    def refresh(self) -> None:
        """Look anew at what is installed and which weights are there."""
        self._needs.forget()
        self._statuses = dependencies.check()
        self._fillRequirements()
        self._updateInstallButton()
        self.weights.refresh()

    def showDevice(self, data: dict[str, Any]) -> None:
        """Show the device that the background process uses, if it is the one that is chosen.

        Args:
            data: The child's answer to the task "load": device, device_name, memory_free, memory_total in bytes; and
                "asked", the choice that it was loaded for.
        """
        if data.get("asked", self.device) != self.device:
            self._askAgain()
            return
        self._waiting = False
        text = _("In use: {name}").format(name=data.get("device_name") or data.get("device") or "?")
        free, total = data.get("memory_free"), data.get("memory_total")
        if total:
            text += _(", {total} memory").format(total=amount(total / 1e6))
            if free is not None:
                text += _(", {free} of it free").format(free=amount(free / 1e6))
        self.ui.deviceLabel.text = text

    def cleanup(self) -> None:
        """Stop what goes on and give the environment back."""
        self.weights.cleanup()
        self._setOfflineVariable(self._outerOffline)

    def _weightsChanged(self) -> None:
        self._needs.forget()
        self.owner.setupChanged()

    # ---- Packages ----------------------------------------------------------------------------------------------

    def _fillHeaders(self) -> None:
        table = self.ui.requirementsTable
        table.columnCount = 4
        table.setHorizontalHeaderLabels([_("Package"), _("Status"), _("Download"), _("For")])
        header = table.horizontalHeader()
        for column in range(3):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setStretchLastSection(True)
        table.verticalHeader().setVisible(False)

    def _fillRequirements(self) -> None:
        table, chosen = self.ui.requirementsTable, self._chosenGroups()
        table.blockSignals(True)
        table.rowCount = len(self._statuses)
        shown = set()
        for row, status in enumerate(self._statuses):
            one, group = status.dependency, status.dependency.group
            text, colour = _STATES[status.state]
            if group.optional and status.state == "missing":
                text, colour = _("not installed"), wording.DOUBTFUL
            if status.state == "ok" and status.installed:
                text += f" {status.installed}"
            purpose = f"{group.title}: {one.purpose}" if group.optional else one.purpose
            cells = (one.name, text, "" if status.state == "ok" else amounts(one), purpose)
            for column, cell in enumerate(cells):
                item = qt.QTableWidgetItem(cell)
                item.setToolTip(status.message or cells[3])
                table.setItem(row, column, item)
            table.item(row, 1).setForeground(qt.QBrush(qt.QColor(colour)))
            first = table.item(row, 0)
            if group.optional and group.name not in shown and self._isMissing(group.name):
                shown.add(group.name)
                first.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
                first.setCheckState(qt.Qt.Checked if group.name in chosen else qt.Qt.Unchecked)
                first.setToolTip(_("Check it to install it as well: {group}").format(group=group.title))
            else:
                first.setFlags(qt.Qt.ItemIsEnabled)
        table.setColumnHidden(2, all(one.state == "ok" for one in self._statuses))
        table.resizeRowsToContents()
        table.blockSignals(False)

    def _isMissing(self, group: str) -> bool:
        return any(one.state != "ok" for one in self._statuses if one.dependency.group.name == group)

    def _chosenGroups(self) -> list[str]:
        """Return the groups to install: the required ones, and those of the optional ones that are checked."""
        table, names = self.ui.requirementsTable, []
        for group in dependencies.groups():
            rows = [row for row, one in enumerate(self._statuses) if one.dependency.group.name == group.name]
            items = [table.item(row, 0) for row in rows if row < table.rowCount]
            if not group.optional or any(item is not None and item.checkState() == qt.Qt.Checked for item in items):
                names.append(group.name)
        return names

    def _checkGroup(self, name: str | None) -> None:
        """Check the box of an optional group, as the user could do himself."""
        for row, status in enumerate(self._statuses):
            item = self.ui.requirementsTable.item(row, 0)
            if status.dependency.group.name == name and item.flags() & qt.Qt.ItemIsUserCheckable:
                item.setCheckState(qt.Qt.Checked)

    def _updateInstallButton(self) -> None:
        something = any(self._isMissing(name) for name in self._chosenGroups())
        self.ui.installButton.enabled = something and not self._installing
        if self._installing:
            return
        if not self.ready:
            missing = [one for one in dependencies.unsatisfied(self._statuses) if not one.group.optional]
            size = amount(dependencies.download_size(missing))
            text = _("{count} packages are missing; about {size} to download.").format(count=len(missing), size=size)
        else:
            text = _("Everything that segmenting needs is installed.")
            lacking = self._needs.look(*self._engine).packages
            if lacking:
                size = amount(dependencies.download_size(lacking))
                text = _("The engine {engine} needs {count} more packages, about {size} to download.").format(
                    engine=self._engine[0], count=len(lacking), size=size
                )
        self.ui.installStatusLabel.text = text

    @guarded
    def onGroupChecked(self) -> None:
        self._updateInstallButton()

    @guarded
    def onInstall(self) -> None:
        if self.owner.session.state != "idle":
            raise InputError(_("Wait for the run to end, or cancel it, before you install packages."))
        self._installing = True
        self.ui.installProgressBar.visible = True
        self._updateInstallButton()
        outcome = None
        try:
            outcome = Installer(self._report).install(self._chosenGroups())
            if outcome == "installed":
                self._restartWorker()  # the next run starts a process that finds the new packages
        finally:
            self._installing = False
            self.ui.installProgressBar.visible = False
            if outcome != "restarting":
                self.refresh()
                self.owner.setupChanged()

    def _report(self, text: str, done: int, total: int) -> None:
        self.ui.installStatusLabel.text = f"{text}…"
        self.ui.installProgressBar.maximum = total
        self.ui.installProgressBar.value = done
        slicer.app.processEvents()

    # ---- Offline folder ----------------------------------------------------------------------------------------

    @guarded
    def onOfflineFolderChanged(self, folder: str) -> None:
        if folder and not os.path.isdir(folder):
            return  # still being typed
        if folder == setting(_OFFLINE, ""):
            return
        setSetting(_OFFLINE, folder or None)
        self._useOfflineFolder(folder)
        if folder:
            self.weights.downloads.stop()  # from now on no connection is made
        self._restartWorker()  # the next run starts a process that looks there
        self.weights.refresh(stop=True)
        self.refresh()
        self.owner.setupChanged()

    def _useOfflineFolder(self, folder: str) -> None:
        """Make the weights be looked for there, by this process and by the children that it starts."""
        self._setOfflineVariable(folder or self._outerOffline)

    @staticmethod
    def _setOfflineVariable(value: str | None) -> None:
        if value is None:
            os.environ.pop(OFFLINE_VARIABLE, None)
        else:
            os.environ[OFFLINE_VARIABLE] = value

    # ---- Device ------------------------------------------------------------------------------------------------

    def _fillDevices(self) -> None:
        """Offer the devices that this computer may have; whether PyTorch can use them only the child can tell."""
        chosen = setting(_DEVICE, "auto")
        offered = {"auto": _("Automatic"), "cpu": _("Processor (CPU)")}
        if shutil.which("nvidia-smi") or chosen.startswith("cuda"):
            offered["cuda"] = _("Graphics card (CUDA)")
        if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
            offered["mps"] = _("Graphics processor (MPS)")
        combo = self.ui.deviceComboBox
        for name, text in offered.items():
            combo.addItem(text, name)
        combo.setCurrentIndex(max(0, combo.findData(chosen)))

    @guarded
    def onDeviceChanged(self) -> None:
        setSetting(_DEVICE, self.device)
        self._forgetDevice()
        self.owner.setupChanged()
        self.onCollapsed(self.ui.setupSection.collapsed)

    @guarded
    def onCollapsed(self, collapsed: bool) -> None:
        """When the section is opened, ask the background process for its device, once for each choice."""
        self.ui.installProgressBar.visible = self._installing  # opening a section shows everything in it
        self.weights.downloads.showStatus()
        session, engine = self.owner.session, self._engine
        asked = (*engine, self.device)
        if collapsed or not self.ready or session.state != "idle" or self._asked == asked or self.lacks(*engine):
            return
        self.ui.deviceLabel.text = _("Loading the models…")
        began = session.warm_up(*asked, failed=self._askAgain)
        self._asked, self._waiting = asked if began else (), not began
        self.owner.pollSoon()

    def _askAgain(self) -> None:
        """No answer came, or one about another device: show none; ask if another loading was in the way until now."""
        waiting = self._waiting
        self._forgetDevice()
        if waiting:
            self.onCollapsed(self.ui.setupSection.collapsed)

    def _forgetDevice(self) -> None:
        """Show no device, and ask for it when the section is opened again."""
        self.ui.deviceLabel.text = ""
        self._asked, self._waiting = (), False

    def _restartWorker(self) -> None:
        self._forgetDevice()  # a loading that is cut off gives no answer
        self.owner.session.restart_worker()
