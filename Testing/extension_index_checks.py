"""What the 3D Slicer Extensions Index checks of an extension, as far as that can be told without internet.

    python Testing/extension_index_checks.py [CHECKOUT]    a line for each thing that is wrong; exit code 1 if any is

The entry for the index is MedCLIPSAM.json; a pull request puts it into the index's branch of each Slicer version.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

NAME = "MedCLIPSAM"
LIMIT_MB = 100  # of the whole repository
SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0.1.json#"
)
REQUIRED = {"$schema", "category", "scm_url"}
FIELDS = {
    "$schema": str,
    "build_dependencies": list,
    "build_subdirectory": str,
    "category": str,
    "enabled": bool,
    "scm_revision": str,
    "scm_type": str,
    "scm_url": str,
    "tier": int,
}
# Categories of which an extension like this one may choose; the index has a closed list, which holds these.
CATEGORIES = {"Analysis", "Filtering", "Quantification", "Segmentation", "Ultrasound", "Utilities"}
LICENCES = ("LICENSE", "LICENCE", "License.txt", "license.txt", "LICENSE.txt", "COPYING", "COPYING.txt")
PICTURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif"}
# What may be imported when the module is loaded: all of it comes with Slicer.
WITH_SLICER = {"slicer", "vtk", "vtkmodules", "qt", "ctk", "numpy", "scipy", "SimpleITK", "SampleData"}
OWN = {"MedCLIPSAM", "MedCLIPSAMPanel", "MedCLIPSAMLib"}


def check(root: Path) -> list[str]:
    """Return one line for each thing that is wrong with the extension in this checkout."""
    return [line for one in (_entry, _cmake, _repository, _code, _readme) for line in one(root)]


def _entry(root: Path) -> Iterator[str]:
    file = root / f"{NAME}.json"
    if not file.is_file():
        yield f"{file.name} is missing"
        return
    if b"\r" in file.read_bytes():
        yield f"{file.name} must have LF line ends"
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        yield f"{file.name} is not JSON: {error}"
        return
    for field in REQUIRED - entry.keys():
        yield f"{file.name} lacks {field}"
    for field, value in entry.items():
        if field not in FIELDS:
            yield f"{file.name}: there is no field {field!r}"
        elif type(value) is not FIELDS[field]:
            yield f"{file.name}: {field} must be a {FIELDS[field].__name__}, not {value!r}"
    if entry.get("$schema") != SCHEMA:
        yield f"{file.name}: $schema is not {SCHEMA}"
    if entry.get("category") not in CATEGORIES:
        yield f"{file.name}: category {entry.get('category')!r} is not one of {', '.join(sorted(CATEGORIES))}"
    if entry.get("tier", 1) not in range(1, 6):
        yield f"{file.name}: tier {entry['tier']!r} is not 1 to 5"
    if NAME.lower().startswith("slicer"):
        yield "the extension's name must not begin with Slicer"
    address = urlsplit(entry.get("scm_url", ""))
    if address.scheme not in ("https", "git") or not address.netloc:
        yield f"{file.name}: scm_url {entry.get('scm_url')!r} is not of the form https://HOST/PATH"
    if not re.fullmatch(r"(Slicer|SlicerExtension)[-_]?\w+", Path(address.path).stem):
        yield f"{file.name}: the repository's name {Path(address.path).stem!r} must begin with Slicer"


def _cmake(root: Path) -> Iterator[str]:
    file = root / "CMakeLists.txt"
    if not file.is_file():
        yield "CMakeLists.txt is missing"
        return
    text = file.read_text(encoding="utf-8")
    project = re.search(r"project\s*\(\s*([^\s)]+)", text, re.IGNORECASE)
    if project is None or project[1] != NAME:
        yield f"the first project() of CMakeLists.txt is not {NAME}"
    try:
        entry = json.loads((root / f"{NAME}.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return
    for variable in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "DEPENDS", "ICONURL", "SCREENSHOTURLS"):
        # The index reads icon and screenshots by an expression: one line, with nothing between quote and bracket.
        end = r"[ ]*\)" if variable != "SCREENSHOTURLS" else r"\)"
        found = re.search(rf'set\s*\(EXTENSION_{variable}\s+"([^"\n]+)"{end}', text)
        if found is None:
            yield f'CMakeLists.txt has no line of the form set(EXTENSION_{variable} "...")'
        elif variable == "DEPENDS":
            depends = [] if found[1] == "NA" else found[1].split()
            if depends != entry.get("build_dependencies", []):
                yield f"EXTENSION_DEPENDS is {depends}, build_dependencies {entry.get('build_dependencies', [])}"
        elif variable.endswith(("URL", "URLS")):
            for address in found[1].split():
                yield from _picture(root, f"EXTENSION_{variable}", address, entry)


def _picture(root: Path, variable: str, address: str, entry: dict) -> Iterator[str]:
    repository = urlsplit(entry.get("scm_url", "")).path.removesuffix(".git")
    start = f"https://raw.githubusercontent.com{repository}/{entry.get('scm_revision', 'main')}/"
    if not address.startswith(start):
        yield f"{variable}: {address} does not begin with {start}"
        return
    file = root / address.removeprefix(start)
    if not file.is_file():
        yield f"{variable}: {address.removeprefix(start)} is not in the repository"
    elif PICTURES.get(next((magic for magic in PICTURES if file.read_bytes().startswith(magic)), b"")) != file.suffix:
        yield f"{variable}: {file.name} is not a picture of the kind that its name says"


def _repository(root: Path) -> Iterator[str]:
    if not any((root / name).is_file() for name in LICENCES):
        yield "there is no licence file in the top folder"
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\0") if listed.returncode == 0 else ()
    files = [root / name for name in names if name] or [path for path in root.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    counted = subprocess.run(
        ["git", "-C", str(root), "count-objects", "-v"], capture_output=True, text=True, check=False
    )
    packed = re.findall(r"^size(?:-pack)?: (\d+)$", counted.stdout, re.MULTILINE)
    size += sum(int(kib) for kib in packed) * 1024 / 1e6
    if size > LIMIT_MB:
        yield f"the repository has {size:.0f} MB with its history; at most {LIMIT_MB} are allowed"


def _code(root: Path) -> Iterator[str]:
    """Follow what the module's file imports at file scope, as Slicer's start does."""
    start = root / NAME / f"{NAME}.py"
    if not start.is_file():
        yield f"{NAME}/{NAME}.py is missing"
        return
    queue, seen = [start, *sorted((root / NAME / f"{NAME}Panel").glob("*.py"))], set()
    while queue:
        file = queue.pop()
        if file in seen:
            continue
        seen.add(file)
        place = file.relative_to(root).as_posix()
        for line, module in _imports_at_file_scope(ast.parse(file.read_text(encoding="utf-8"))):
            top = module.partition(".")[0]
            if top in OWN:
                queue += _files(root, module)
            elif top not in WITH_SLICER and top not in sys.stdlib_module_names:
                yield f"{place}:{line} imports {module} when the module is loaded; it does not come with Slicer"
    for folder in (root / NAME, root / "MedCLIPSAMLib", root / "training"):
        for file in sorted(folder.rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            place = file.relative_to(root).as_posix()
            if re.search(r"pip_(install|ensure)\(\s*[\[(]?\s*[\"']torch", text):
                yield f"{place} installs torch by pip; the extension PyTorch must do that"
            if re.search(r"trust_remote_code\s*=\s*True|weights_only\s*=\s*False", text):
                yield f"{place} would run code that was downloaded"


def _imports_at_file_scope(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and module of each import that runs when the file is imported."""
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            queue += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]


def _files(root: Path, module: str) -> list[Path]:
    """Return the file of one of our modules, and the packages' files above it; none for a name inside a module."""
    parts, found = module.split("."), []
    base = root / NAME if parts[0] in (NAME, f"{NAME}Panel") else root
    for depth in range(1, len(parts) + 1):
        path = base.joinpath(*parts[:depth])
        found += [file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()]
    return found


def _readme(root: Path) -> Iterator[str]:
    text = (root / "README.md").read_text(encoding="utf-8") if (root / "README.md").is_file() else ""
    for word, what in (
        ("panel.png", "the screenshot of the panel"),
        ("result-3d.png", "the picture of a result"),
        ("utorial", "a tutorial"),
        ("sample", "where sample data come from"),
        ("atent", "a word on patents"),
        ("arXiv", "the publication"),
    ):
        if word not in text:
            yield f"README.md lacks {what}"


def main() -> int:
    """Run the command line."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    found = check(root)
    sys.stdout.writelines(line + "\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
