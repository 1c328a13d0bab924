"""What the numbers of a run depend on, so that only a run that would give the same ones is not repeated."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from MedCLIPSAMLib.ablation_rows import Run
from MedCLIPSAMLib.errors import InputError, MissingWeightsError
from MedCLIPSAMLib.weak_recipe import WEAK


def run_identity(run: Run) -> dict[str, Any]:
    """Return what a run's numbers depend on: program, prompt, settings, and the hashes of the weights.

    Raises:
        MissingWeightsError, ChecksumError, InputError: The weights are not there, or cannot be used.
    """
    from MedCLIPSAMLib.prompts import wordings
    from MedCLIPSAMLib.reporting import VERSION

    identity: dict[str, Any] = {"version": VERSION}
    if run.engine.startswith(WEAK):
        card = Path(run.engine.removeprefix(WEAK)) / "weak.json"
        if not card.is_file():
            raise InputError(f"{card.parent.name} holds no weak.json; pass a folder that weak-train has made.")
        # The card names the hashes of all other files.
        own = {"prompt": run.prompt, "members": run.members, "weights": [_sha256(card)]}
        return identity | {"engine": WEAK, **own}
    settings = run.recipe.as_dict()
    clip = run.engine.rpartition("+")[0]
    del settings["name"]  # two names may mean the same
    identity["texts"] = wordings(run.prompt, run.recipe.samples)
    return identity | {"engine": clip.partition(":")[0], "recipe": settings, "weights": _weights(run.engine, clip)}


def _weights(engine: str, clip: str) -> list[str]:
    """Return the SHA-256 of all weight files of an engine; each is read once in a process."""
    from MedCLIPSAMLib.clip.registry import find_checkpoint
    from MedCLIPSAMLib.engines import engine_weights
    from MedCLIPSAMLib.recipe import LITE_ALIGNMENT
    from MedCLIPSAMLib.weights import locate, registered, resolve

    names = engine_weights(engine)
    missing = []
    for name in names:
        try:
            locate(name)
        except MissingWeightsError:
            missing.append(registered(name))
    if missing:
        listed = ", ".join(f"{one.name} ({one.size_text})" for one in missing)
        fetched = " ".join(one.name for one in missing if one.fetchable)
        how = [f"`./medclipsam weights fetch {fetched}`"] if fetched else []
        how += dict.fromkeys(f"`{one.install}`" for one in missing if one.install)
        by_hand = ", ".join(one.name for one in missing if not one.fetchable and not one.install)
        how += [f"`./medclipsam weights list` says how to get {by_hand}"] if by_hand else []
        raise MissingWeightsError(f"weights are missing: {listed}; {', '.join(how)}")
    found = [one.sha256 for one in resolve(names).values()]
    if clip.startswith("finetuned:"):
        folder = Path(clip.partition(":")[2]).expanduser()
        lite = folder / LITE_ALIGNMENT
        found.append(_sha256(lite if lite.is_file() else find_checkpoint(folder)))
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
