"""What an engine needs beyond what every run needs, and what of it is not there: packages and weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from slicer.i18n import tr as _

from MedCLIPSAMLib import crf, dependencies, weights
from MedCLIPSAMLib.dependencies import Dependency
from MedCLIPSAMLib.engines import check_choice, engine_weights
from MedCLIPSAMLib.errors import MedCLIPSAMError, MissingWeightsError
from MedCLIPSAMLib.weak_recipe import WEAK
from MedCLIPSAMPanel.install_wording import amount

GROUP = "biomedclip"  # of packages: what every CLIP but that of the engine lite runs on
_WEAK_GROUP = "weak"  # what a trained nnU-Net runs on
_OF_LITE = "minilm-l6-v2"  # only the engine lite needs these weights
_LOOK_AGAIN = 2.0  # seconds
_CRF_PACKAGE = "pydensecrf2"


@dataclass(frozen=True)
class Needs:
    """What was found for one choice.

    Attributes:
        problem: Why the choice cannot be used at all; empty if it can.
        group: The group of packages that it needs beyond the required one, or None.
        packages: Those of that group that are not installed.
        weights: The weight files that it needs, there or not.
        missing: Those that are not there.
    """

    problem: str = ""
    group: str | None = None
    packages: tuple[Dependency, ...] = ()
    weights: tuple[weights.Weight, ...] = ()
    missing: tuple[weights.Weight, ...] = ()


def needs(engine: str, preset: str | None) -> Needs:
    """Look at what a choice needs and what of it is there; loads nothing and hashes nothing."""
    try:
        recipe = check_choice(engine, preset, "auto")
        registry = weights.registry()
        names = engine_weights(engine)
        wanted = tuple(registry[name] for name in names if name in registry)
        missing = tuple(one for one in wanted if _isMissing(one.name))
    except MedCLIPSAMError as error:
        return Needs(problem=str(error))
    group, packages = None, ()
    wanted_group = _WEAK_GROUP if engine.startswith(WEAK) else None if _OF_LITE in names else GROUP
    if wanted_group in {one.name for one in dependencies.groups()}:
        group = wanted_group
        packages = tuple(dependencies.unsatisfied(dependencies.check([group])))
    problem = ""
    if recipe.threshold == "crf" and not crf.is_available():
        problem = _("This preset needs the package {package}, which is not installed.").format(package=_CRF_PACKAGE)
    return Needs(problem, group, packages, wanted, missing)


class NeedsLookout:
    """Looks at what an engine needs, and for a moment remembers it: it is asked with every key that is pressed."""

    def __init__(self) -> None:
        self._last: tuple[float, tuple[str, str | None], Needs] | None = None

    def look(self, engine: str, preset: str | None) -> Needs:
        """See :func:`needs`."""
        now, asked = time.monotonic(), (engine, preset)
        if self._last is None or self._last[1] != asked or now - self._last[0] > _LOOK_AGAIN:
            self._last = (now, asked, needs(engine, preset))
        return self._last[2]

    def forget(self) -> None:
        """Look anew the next time: something was installed, or a file came or went."""
        self._last = None


def isThere(name: str) -> bool:
    """Return whether a weight file lies in one of its places; not if the offline folder is none."""
    try:
        weights.locate(name)
    except MedCLIPSAMError:
        return False
    return True


def lackText(engine: str, found: Needs) -> str | None:
    """Return what a run with the engine still lacks and how to get it; None if nothing."""
    if found.problem:
        return found.problem[:1].upper() + found.problem[1:]
    parts = []
    if found.packages:
        title = next(one.title for one in dependencies.groups() if one.name == found.group)
        parts.append(
            _("{engine} needs packages that are not installed: {names} (about {size}). Install “{title}” in Setup.")
            .format(
                engine=engine,
                names=", ".join(one.name for one in found.packages),
                size=amount(dependencies.download_size(found.packages)),
                title=title,
            )
        )  # fmt: skip
    if found.missing:
        parts.append(_missingText(engine, found.missing))
    return "\n".join(parts) or None


def sizeText(files: Sequence[weights.Weight]) -> str:
    """Return the size of files, such as "3.3 GB"; "at least" where that of one is not known."""
    known = amount(sum(one.bytes or 0 for one in files) / 1e6)
    return known if all(one.bytes for one in files) else _("at least {size}").format(size=known)


def _missingText(engine: str, missing: Sequence[weights.Weight]) -> str:
    names = ", ".join(f"{one.name} ({amount(one.bytes / 1e6)})" if one.bytes else one.name for one in missing)
    if len(missing) == 1:
        text = _("{engine} needs weights that are not there: {names}.").format(engine=engine, names=names)
    else:
        text = _("{engine} needs weights that are not there: {names}; {size} in all.").format(
            engine=engine, names=names, size=sizeText(missing)
        )
    if weights.offline():
        return text + " " + _("Put them into the offline folder that the section Setup names.")
    parts = [text]
    if any(one.fetchable for one in missing):
        parts.append(_("The section Setup downloads them."))
    others = ", ".join(one.name for one in missing if not one.fetchable)
    if others:
        parts.append(_("The section Setup says how to get {names}.").format(names=others))
    return " ".join(parts)


def _isMissing(name: str) -> bool:
    """Return whether a weight file is in none of its places; an offline folder that is none is an InputError."""
    try:
        weights.locate(name)
    except MissingWeightsError:
        return True
    return False
