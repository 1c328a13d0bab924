"""The commands that train: each starts the training program as a child process and hands its options on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from MedCLIPSAMLib.job_form import search_path
from MedCLIPSAMLib.job_launch import python_path

PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""For typer: all options belong to the child, ``--help`` too."""
_PROCESSES = "--processes"
_SIGNALS = ("SIGINT", "SIGTERM")


def finetune(context: typer.Context) -> None:
    """Fine-tune a CLIP on your own image-caption pairs; the result is an engine. Options: finetune --help."""
    raise typer.Exit(run_training("MedCLIPSAMTraining.finetune", context.args, "medclipsam finetune"))


def weak_train(context: typer.Context) -> None:
    """Train an nnU-Net on unlabelled images and a prompt; the result is an engine. Options: weak-train --help."""
    raise typer.Exit(run_training("MedCLIPSAMTraining.weak_supervision", context.args, "medclipsam weak-train"))


def add_training(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(context_settings=PASSED_ON)(finetune)
    app.command("weak-train", context_settings=PASSED_ON)(weak_train)


def run_training(module: str, arguments: list[str], program: str) -> int:
    """Run ``python -m module`` and return its exit code; signals are handed on, so that it can save and stop.

    ``--processes N`` among the arguments starts N of them by torch's own launcher, one for each GPU.

    Args:
        module: Of the training package.
        arguments: What the user gave.
        program: How the command is called, for its help.
    """
    try:
        processes, arguments = take_processes(arguments)
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        return 2
    command = [sys.executable, "-m", module, *arguments]
    if processes > 1:
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", module]
        command = [sys.executable, "-m", *launcher, *arguments]
    environment = os.environ | {"PYTHONPATH": python_path(search_path()), "MEDCLIPSAM_PROGRAM": program}
    with _handing_on_signals() as children:
        child = subprocess.Popen(command, env=environment)
        children.append(child)
        code = child.wait()
    return code if code >= 0 else 128 - code


def take_processes(arguments: list[str]) -> tuple[int, list[str]]:
    """Return N of ``--processes N`` (1 without it), and the other arguments.

    Raises:
        ValueError: N is not a number from 1 on.
    """
    rest, count = [], "1"
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name == _PROCESSES:
            count = value if equals else next(words, "")
        else:
            rest.append(word)
    if not count.isascii() or not count.isdigit() or int(count) < 1:
        raise ValueError(f"{_PROCESSES} {count!r}: pass the number of processes, 1 or more.")
    return int(count), rest


@contextmanager
def _handing_on_signals() -> Iterator[list[subprocess.Popen]]:
    """Within this, the signals that end a program go to the children in the list, and this process waits for them."""
    children: list[subprocess.Popen] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        # A terminal's Ctrl+C reaches the children by itself.
        if number != signal.SIGINT or not sys.stdin.isatty():
            for child in children:
                if child.poll() is None:
                    child.send_signal(number)

    before = {
        number: signal.signal(number, hand_on)
        for number in (getattr(signal, name, None) for name in _SIGNALS)
        if number is not None
    }
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
