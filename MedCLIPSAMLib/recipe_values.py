"""Values of settings as a user types them, held against the type hints of the settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from MedCLIPSAMLib.errors import InputError

_KIND_NAMES = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a text",
    dict: 'an object such as {"beta": 0.1}',
    tuple: "a list of numbers",
    NoneType: "null",
}


def read_value(name: str, value: Any, hint: Any) -> Any:
    """Return a setting's value if it is of the kind that its type hint describes.

    Args:
        name: Of the setting, for the message.
        value: A text is read as JSON where it is JSON: "0.4", "[1, 0.5]", "null".
        hint: For example ``Literal["otsu"] | float``, ``int | None`` or ``tuple[float, ...]``.

    Raises:
        InputError: It is of another kind; the message names the possible ones.
    """
    value = from_text(value)
    kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if isinstance(value, str) and value in choices:
        return value
    for kind in kinds:
        plain = get_origin(kind) or kind
        if plain is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if plain is tuple and isinstance(value, list):
            return tuple(value)
        if plain is not Literal and isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
            return value
    names = [repr(choice) for choice in choices]
    names += [_KIND_NAMES[get_origin(kind) or kind] for kind in kinds if get_origin(kind) is not Literal]
    raise InputError(f"{name} is {value!r}; pass {' or '.join(names)}.")


def from_text(text: Any) -> Any:
    """Return a text as the JSON value that it is, or as it is; other values as they are."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


_Rule = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float, whole: bool = False) -> _Rule:
    kinds = int if whole else int | float
    text = f"a {'whole ' if whole else ''}number from {low:g} to {high:g}"
    return lambda value: isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high, text


_RULES: dict[str, _Rule] = {
    "samples": _number(1, 1000, whole=True),
    "scales": (
        lambda value: bool(value) and all(isinstance(one, int | float) and 0.1 <= one <= 1 for one in value),
        "a list of numbers from 0.1 to 1, such as [1, 0.8]",
    ),
    "threshold": (
        lambda value: isinstance(value, str) or 0 <= value < 1,
        "a number from 0 to below 1, or a rule's name",
    ),
    "minimum_confidence": _number(0, 1),
    "relative_confidence": _number(0, 1),
    "minimum_area": _number(0, 0.999),
    "maximum_components": (lambda value: value is None or value >= 1, "a whole number from 1 on, or null for all"),
    "points_per_component": _number(1, 1000, whole=True),
    "negatives": _number(0, 1000, whole=True),
    "box_padding": _number(0, 10),
    "box_jitter": _number(0, 1),
    "m2ib.layer": _number(0, 100, whole=True),
    "m2ib.beta": _number(0, 1e6),
    "m2ib.steps": _number(1, 10_000, whole=True),
    "m2ib.copies": _number(1, 1000, whole=True),
    "m2ib.learning_rate": _number(1e-6, 100),
    "m2ib.map": (lambda value: value in ("capacity", "lambda"), "'capacity' or 'lambda'"),
    "gscorecam.channels": _number(1, 100_000, whole=True),
    "gscorecam.batch": _number(1, 10_000, whole=True),
}


def check_range(name: str, value: Any) -> None:
    """Raise :class:`InputError` if a setting of a recipe is out of its range, or has a part that does not exist."""
    if isinstance(value, dict):
        parts = [rule.partition(".")[2] for rule in _RULES if rule.startswith(f"{name}.")]
        for part, inner in value.items():
            if part not in parts:
                raise InputError(f"{name} has no {part!r}; it has: {', '.join(parts)}.")
            check_range(f"{name}.{part}", inner)
    elif name in _RULES and not _RULES[name][0](value):
        raise InputError(f"{name} is {value!r}; pass {_RULES[name][1]}.")
