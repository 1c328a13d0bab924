"""What a training job asks of the user, and the command line that its answers become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from MedCLIPSAMLib.errors import InputError

Value = int | float | str | bool
Kind = Literal["int", "float", "text", "choice", "folder", "file", "bool"]


@dataclass(frozen=True)
class Field:
    """One setting of a job.

    Attributes:
        name: In the values; ``learning_rate`` becomes the option ``--learning-rate``.
        label: As the form shows it.
        kind: What it holds.
        default: None: the user must give a value. "" of a text, choice, folder or file: the option is left out.
        minimum, maximum: Of a number, both allowed.
        choices: Of a choice.
        tooltip: One sentence.
        advanced: Shown folded.
    """

    name: str
    label: str
    kind: Kind
    default: Value | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    tooltip: str = ""
    advanced: bool = False

    def checked(self, value: Any) -> Value:
        """Return ``value`` as this field's type; paths become absolute.

        Raises:
            InputError: It is missing, of another type, out of range, no choice, or a path that does not exist.
        """
        if self.kind == "bool":
            if not isinstance(value, bool):
                raise InputError(f"{self.label}: {value!r} is neither yes nor no.")
            return value
        if self.kind in ("int", "float"):
            return self._number(value)
        text = str(value).strip() if value is not None else ""
        if not text and self.default != "":
            raise InputError(f"{self.label}: a value is needed.")
        if any(ord(character) < 32 for character in text):
            raise InputError(f"{self.label}: {text!r} has a line break or another control character; take it out.")
        if self.kind == "choice" and text not in self.choices:
            named = ", ".join(choice or '""' for choice in self.choices)
            raise InputError(f"{self.label}: {text!r} is not a choice; choose one of {named}.")
        if self.kind in ("folder", "file") and text:
            path = Path(text).expanduser().absolute()
            if not (path.is_dir() if self.kind == "folder" else path.is_file()):
                raise InputError(f"{self.label}: there is no {self.kind} {path}; choose one that exists.")
            return str(path)
        return text

    def _number(self, value: Any) -> int | float:
        if value is None or value == "":
            raise InputError(f"{self.label}: a number is needed.")
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        whole = self.kind == "int"
        if not math.isfinite(number) or (whole and number != int(number)):
            raise InputError(f"{self.label}: {value!r} is not a {'whole ' if whole else ''}number.")
        if self.minimum is not None and number < self.minimum:
            raise InputError(f"{self.label}: {value} is too small; the least is {self.minimum:.10g}.")
        if self.maximum is not None and number > self.maximum:
            raise InputError(f"{self.label}: {value} is too large; the most is {self.maximum:.10g}.")
        return int(number) if whole else number


@dataclass(frozen=True)
class JobDescription:
    """A kind of training job: its form, and how it is run.

    Attributes:
        name: Short, for files.
        title: As the user sees it.
        help: A sentence or two.
        module: Run as ``python -m``.
        fields: Of its form.
        resumable: Whether its trainer goes on where it was stopped.
        gpu: Whether it needs the GPU for itself; not asked where the value of a field "device" is "cpu".
        packages: Python packages that the module imports, by their import names.
        outputs: Options that name a file or folder in the job's own folder, as (option, name).
        grace: Seconds that a trainer may take to save and end after it was asked to.
    """

    name: str
    title: str
    help: str
    module: str
    fields: tuple[Field, ...]
    resumable: bool
    gpu: bool
    packages: tuple[str, ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()
    grace: float = 120.0

    def unavailable(self) -> str | None:
        """Say why this job cannot be started here, or None; nothing is imported for it."""
        package, _, part = self.module.rpartition(".")
        places: list[str] | None = [str(folder) for folder in search_path()]
        if package:
            spec = PathFinder.find_spec(package, places)
            places = list(spec.submodule_search_locations or []) if spec else []
        if PathFinder.find_spec(f"{package}.{part}" if package else part, places) is None:
            return f"The command {self.module} is not part of this version."
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            return f"Not installed: {', '.join(missing)}. Install what is missing in the section Setup."
        return None

    def checked(self, values: Mapping[str, Any]) -> dict[str, Value]:
        """Return all values by field, missing ones as their defaults.

        Raises:
            InputError: A value that its field refuses, or a name that is no field's.
        """
        unknown = sorted(set(values) - {field.name for field in self.fields})
        if unknown:
            known = ", ".join(field.name for field in self.fields)
            raise InputError(f"{self.title} has no setting {', '.join(unknown)}; it has {known}.")
        return {field.name: field.checked(values.get(field.name, field.default)) for field in self.fields}

    def command(self, values: Mapping[str, Any], folder: Path) -> list[str]:
        """Return the arguments after ``python -m module``.

        Args:
            values: By field name; those missing are the defaults.
            folder: The job's own.

        Raises:
            InputError: See :meth:`checked`.
        """
        arguments = []
        for name, value in self.checked(values).items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{option}" if value else f"--no-{option}")
            elif value != "":
                arguments.append(f"--{option}={value}")  # one word, so that a value may begin with a dash
        return arguments + [f"{option}={folder / name}" for option, name in self.outputs]

    def needs_gpu(self, values: Mapping[str, Any]) -> bool:
        """Whether the job waits for its turn at the GPU with these values."""
        return self.gpu and self.checked(values).get("device") != "cpu"


def search_path() -> tuple[Path, Path]:
    """Where the library and the training package are, in a checkout, in Slicer and in a pip installation."""
    root = Path(__file__).resolve().parent.parent
    return root, root / "training"
