"""Slots and observers that never let an exception escape: PythonQt would only print it, and the user see nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def guarded(slot: Callable[..., Any]) -> Callable[..., Any]:
    """Make a method of a panel part into a slot of something that the user did.

    Whatever it raises is shown by ``self.owner.showError`` (or by ``self.showError`` of the panel itself). A signal may
    carry more arguments than the method takes; those are left out.
    """
    return _guarded(slot, "showError")


def guardedQuietly(slot: Callable[..., Any]) -> Callable[..., Any]:
    """Like :func:`guarded` for timers and observers: what goes wrong goes into the log, since nobody asked for it."""
    return _guarded(slot, "logError")


def _guarded(slot: Callable[..., Any], reporter: str) -> Callable[..., Any]:
    takes = sum(one.kind in _POSITIONAL for one in inspect.signature(slot).parameters.values()) - 1

    @functools.wraps(slot)
    def call(self: Any, *arguments: Any) -> Any:
        try:
            return slot(self, *arguments[:takes])
        except Exception as error:
            getattr(getattr(self, "owner", self), reporter)(error)
            return None

    return call
