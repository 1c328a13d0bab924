"""Compare the files that the CMake lists name with the files on disk: a file that is not listed is not installed.

python Testing/package_files.py            tell what is missing on either side; exit code 1 if anything is
python Testing/package_files.py --write    rewrite the lists from what is on disk
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class FileList:
    """One ``set(NAME ...)`` of a CMakeLists.txt and the files that belong into it.

    Attributes:
        cmake: Folder of the CMakeLists.txt, below the root.
        name: Of the variable.
        patterns: What belongs into it, as globs below ``cmake``.
    """

    cmake: str
    name: str
    patterns: tuple[str, ...]

    def expression(self) -> re.Pattern[str]:
        """Return what finds the list; group 1 holds the files, one a line."""
        return re.compile(rf"^set\({self.name}\n(.*?)  \)$", re.MULTILINE | re.DOTALL)

    def listed(self, root: Path) -> list[str]:
        """Return the files that CMakeLists.txt names, in its order."""
        text = (root / self.cmake / "CMakeLists.txt").read_text(encoding="utf-8")
        found = self.expression().search(text)
        if found is None:
            raise SystemExit(
                f"{self.cmake}/CMakeLists.txt has no list of the form set({self.name} ...), a file a line."
            )
        return [line.strip().strip('"') for line in found.group(1).splitlines()]

    def on_disk(self, root: Path) -> list[str]:
        """Return the files that there are, sorted; caches and hidden files do not count."""
        folder = root / self.cmake
        found = {path.relative_to(folder) for pattern in self.patterns for path in folder.glob(pattern)}
        return sorted(
            path.as_posix()
            for path in found
            if (folder / path).is_file()
            and path.suffix != ".pyc"
            and not any(part == "__pycache__" or part.startswith(".") for part in path.parts)
        )

    def write(self, root: Path) -> None:
        """Rewrite the list in CMakeLists.txt from what is on disk."""
        path = root / self.cmake / "CMakeLists.txt"
        lines = "".join(f'  "{file}"\n' if " " in file else f"  {file}\n" for file in self.on_disk(root))
        text = path.read_text(encoding="utf-8")
        path.write_text(
            self.expression().sub(lambda _: f"set({self.name}\n{lines}  )", text), encoding="utf-8", newline="\n"
        )


LISTS = (
    FileList(".", "MedCLIPSAM_LIBRARY", ("MedCLIPSAMLib/**/*",)),
    FileList(".", "MedCLIPSAM_RESOURCES", ("Resources/**/*",)),
    FileList(".", "MedCLIPSAM_TRAINING", ("training/*/**/*",)),  # not the page for the shell
    FileList("MedCLIPSAM", "MedCLIPSAM_MODULE", ("MedCLIPSAM.py", "MedCLIPSAMPanel/**/*")),
)


def differences(root: Path = ROOT) -> list[str]:
    """Return one line for each file that is listed and does not exist, or exists and is not listed, or listed twice."""
    found = []
    for one in LISTS:
        listed, on_disk = one.listed(root), one.on_disk(root)
        place = f"{one.name} of {(Path(one.cmake) / 'CMakeLists.txt').as_posix()}"
        found += [f"add to {place}:\n  {file}" for file in on_disk if file not in listed]
        found += [f"remove from {place}:\n  {file}" for file in dict.fromkeys(listed) if file not in on_disk]
        found += [f"twice in {place}:\n  {file}" for file in dict.fromkeys(listed) if listed.count(file) > 1]
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="rewrite the lists from what is on disk")
    if parser.parse_args().write:
        for one in LISTS:
            one.write(ROOT)
    found = differences()
    sys.stdout.writelines(line + "\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
