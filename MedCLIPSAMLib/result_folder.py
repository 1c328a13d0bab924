"""How results reach a folder: all files or none, and the files of the previous result go with it.

Files are written into a temporary folder inside the output folder and moved out when all of them are there. The
descriptions (``result.json``) of the previous result go first and the new ones come last, so that a folder with a
description holds the whole result that it describes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from MedCLIPSAMLib.errors import OutputError
from MedCLIPSAMLib.medical_image import file_label

DESCRIPTION = "result.json"
_OWN_FILE = re.compile(
    r"(\d+-[a-z0-9-]+-)?(mask\.png|coarse\.png|saliency\.nrrd|entropy\.nrrd|result\.json)"
    r"|(\d+-[a-z0-9-]+-)?(probability\.nrrd|mutual-information\.nrrd)|labels\.png"
    r"|overview\.png|segmentation\.seg\.nrrd"
)


@contextmanager
def collected(output: Path) -> Iterator[Path]:
    """Yield a temporary folder inside ``output``; when the block ends well, its files replace the previous result.

    Raises:
        OutputError: For any ``OSError`` in the block or here.
    """
    folder = output / f".partial-{secrets.token_hex(8)}"
    try:
        folder.mkdir()
        yield folder
        _publish(folder, output)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{file_label(output)} cannot be written ({error.strerror or error}); "
            "free some space, or choose another output folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, output: Path) -> None:
    previous = _previous_files(output)
    names = sorted(path.name for path in folder.iterdir())
    descriptions = [name for name in names if name.endswith(DESCRIPTION)]
    for name in sorted(previous, key=lambda name: not name.endswith(DESCRIPTION)):
        if name.endswith(DESCRIPTION) or name not in names:
            (output / name).unlink(missing_ok=True)
    for name in [*(name for name in names if name not in descriptions), *descriptions]:
        os.replace(folder / name, output / name)


def _previous_files(output: Path) -> set[str]:
    """Return the files that an earlier run wrote here, by its own account."""
    files: set[str] = set()
    for path in output.glob(f"*{DESCRIPTION}"):
        if _OWN_FILE.fullmatch(path.name):
            with suppress(OSError, ValueError, TypeError, KeyError):
                files.update(json.loads(path.read_text("utf-8"))["files"])
    return {name for name in files if isinstance(name, str) and _OWN_FILE.fullmatch(name)}
