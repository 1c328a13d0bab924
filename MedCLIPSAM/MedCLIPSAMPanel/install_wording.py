"""The questions before an installation and before a download: what, why, how large, from where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from slicer.i18n import tr as _

from MedCLIPSAMLib import dependencies
from MedCLIPSAMLib.dependencies import UNPACKED, Dependency
from MedCLIPSAMLib.download import address
from MedCLIPSAMLib.weight_entry import Weight


def amount(megabytes: float) -> str:
    """Return a size for a person, such as "36 MB" or "3.1 GB"."""
    if megabytes >= 1000:
        return f"{megabytes / 1000:.1f} GB"
    return f"{megabytes:.0f} MB" if megabytes >= 1 else f"{megabytes:.1f} MB"


def amounts(dependency: Dependency) -> str:
    """Return what a requirement downloads, such as "0.2–3 GB" where it depends on the graphics card."""
    low, high = dependency.download_mb
    return amount(low) if low == high else f"{low / 1000:g}–{high / 1000:g} GB"


def plan(wanted: Sequence[Dependency], restart: bool, extensionMissing: bool) -> tuple[str, str]:
    """Return the question and, for those who want to know more, the details.

    Args:
        wanted: What would be installed.
        restart: Slicer must restart in between.
        extensionMissing: Because the extension PyTorch must be installed first.
    """
    lines = [f"•  {one.name}: {one.purpose} ({amounts(one)})" for one in wanted]
    size = dependencies.download_size(wanted)
    parts = [
        _("MedCLIPSAM needs these Python packages:"),
        "\n".join(lines),
        _("They are installed into this Slicer; about {download} are downloaded, {disk} on the disk.").format(
            download=amount(size), disk=amount(size * UNPACKED)
        ),
    ]
    if extensionMissing:
        parts.append(_("The extension PyTorch is installed first, then Slicer restarts and the installation goes on."))
    elif restart:
        parts.append(_("Slicer restarts first, because a package that must be replaced is in use."))
    if restart:
        parts.append(_("Save your work before you go on."))
    parts.append(_("Nothing else is sent or fetched. Go on?"))
    details = [one.line for one in wanted]
    held = dependencies.constraints().splitlines()
    if held:
        details += ["", _("These stay as they are:"), *held]
    return "\n\n".join(parts), "\n".join(details)


def downloadPlan(wanted: Sequence[Weight], folder: Path, parts: Mapping[str, int]) -> str:
    """Return the question before weights are downloaded.

    Args:
        wanted: What would be downloaded.
        folder: Where they will lie.
        parts: How many bytes an earlier download has left, by name.
    """
    blocks = [_("These weights are downloaded from the addresses below and kept in {folder}.").format(folder=folder)]
    for one in wanted:
        size = amount(one.bytes / 1e6) if one.bytes else _("size unknown")
        if parts.get(one.name):
            size += _(", {part} of it is here already").format(part=amount(parts[one.name] / 1e6))
        check = _("SHA-256: {value}").format(value=one.sha256)
        if one.sha256 is None:
            check = _("SHA-256: none is published; that of the first use is recorded and compared from then on")
        lines = (f"{one.name} ({size})", address(one), check, _("Licence: {licence}").format(licence=one.licence))
        blocks.append("\n".join((*lines, _("Cite: {citation}").format(citation=one.citation))))
    blocks.append(_("Nothing is sent but the request for these files. Download?"))
    return "\n\n".join(blocks)
