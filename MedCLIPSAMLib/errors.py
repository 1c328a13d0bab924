"""The errors that the library raises on purpose. Each message names the value at fault and the remedy."""

from __future__ import annotations


class MedCLIPSAMError(Exception):
    """Base of all errors below; its message can be shown to the user as it is."""


class InputError(MedCLIPSAMError, ValueError):
    """An image, prompt, setting or file that cannot be used."""


class OutputError(MedCLIPSAMError, OSError):
    """A result that cannot be written (no permission, disk full); nothing partial is left behind."""


class MissingWeightsError(MedCLIPSAMError):
    """Weights that are not installed; the message says how to get them."""


class ChecksumError(MedCLIPSAMError):
    """A weight file whose SHA-256 is not the registered one; it is never loaded."""


class CancelledError(MedCLIPSAMError):
    """The user cancelled the run."""


class DeviceMemoryError(MedCLIPSAMError, MemoryError):
    """The device has not enough memory for the request."""
