"""Values of settings as a user types them, held against the type hints of the settings."""

from __future__ import annotations

import json
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
    if isinstance(value, str):
        value = _from_text(value)
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


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
