"""Prompts to choose from: those used before, and those that come with the software."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from MedCLIPSAMLib import prompts as prompt_sets
from MedCLIPSAMPanel.settings import setSetting, setting

KEPT = 30
_SETTING = "PromptHistory"


def remember(prompts: list[str], parameters: Any) -> None:
    """Put prompts at the head of the user's history and of the scene's."""
    setSetting(_SETTING, _merged(prompts, setting(_SETTING, [])))
    parameters.promptHistory = tuple(_merged(prompts, parameters.promptHistory))


def recent(parameters: Any) -> list[str]:
    """Return the prompts used before, the latest first: those of this scene, then the user's others."""
    return _merged(parameters.promptHistory, setting(_SETTING, []))


def forget(parameters: Any) -> None:
    """Empty both histories."""
    setSetting(_SETTING, None)
    parameters.promptHistory = ()


def examples() -> dict[str, list[str]]:
    """Return prompts by task: the plain names first, then sentences, then the ensembles as "set:NAME"."""
    found: dict[str, list[str]] = {}
    loaded = [prompt_sets.load_prompt_set(name) for name in prompt_sets.prompt_sets() if not name.startswith("paper-")]
    for one in sorted(loaded, key=lambda one: (one.is_ensemble, one.design)):
        text = _text(one)
        entries = found.setdefault(one.task, [])
        if text not in entries:
            entries.append(text)
    return dict(sorted(found.items()))


def spoken(prompts: Iterable[str]) -> list[str]:
    """Return prompts as a user would type them: the sentence where "set:NAME" names one, an ensemble as it is."""
    found = []
    for prompt in prompts:
        name = prompt.removeprefix(prompt_sets.SET_PREFIX).strip()
        found.append(prompt if name == prompt else _text(prompt_sets.load_prompt_set(name)))
    return found


def completions(parameters: Any) -> list[str]:
    """Return everything that a line may be completed to: the history, then all prompts of all sets."""
    every = recent(parameters)
    for entries in examples().values():
        every += entries
    for name in prompt_sets.prompt_sets():
        every += prompt_sets.load_prompt_set(name).prompts
    return list(dict.fromkeys(every))


def _text(chosen: prompt_sets.PromptSet) -> str:
    return f"{prompt_sets.SET_PREFIX}{chosen.name}" if chosen.is_ensemble else chosen.prompts[0]


def _merged(first: Any, then: Any) -> list[str]:
    return list(dict.fromkeys([*first, *then]))[:KEPT]
