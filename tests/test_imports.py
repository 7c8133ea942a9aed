"""Imports between the folders run only downward, as the table of the design says."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

# folder -> (its import name, the import names of ours that it may use beside its own)
FOLDERS = {
    "kernels": ("mmvl.kernels", set()),
    "text_backbone": ("mmvl.text_backbone", {"mmvl.kernels"}),
    "vision": ("mmvl.vision", {"mmvl.kernels"}),
    "data": ("mmvl.data", set()),
    "mmvl": ("mmvl", {"mmvl.kernels", "mmvl.text_backbone", "mmvl.vision", "mmvl.data"}),
    "app": ("mmvl.app", {"mmvl"}),
}
ROOMS = {name for name, _ in FOLDERS.values() if name != "mmvl"}


def room_of(module: str) -> str | None:
    """ "mmvl.data.shards" -> "mmvl.data", "mmvl.engine" -> "mmvl", "torch" -> None."""
    parts = module.split(".")
    if parts[0] != "mmvl":
        return "mmvl.app" if parts[0] in FOLDERS else None  # `import kernels`: only right by accident of the directory
    room = ".".join(parts[:2])
    return room if room in ROOMS else "mmvl"


def imported_modules(source: str, package: str) -> set[str]:
    """Every module that the code of `package` imports, also inside functions and by name through importlib."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from mmvl import data` imports the room `mmvl.data`; `from mmvl.data import shards` stays in it.
            found |= {f"{module}.{alias.name}" if module == "mmvl" else module for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                found.add(node.args[0].value)
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_imports_only_what_the_table_allows(folder):
    own, allowed = FOLDERS[folder]
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    assert files, f"no code in {folder}/"
    wrong = []
    for file in files:
        package = ".".join([own, *file.relative_to(REPOSITORY / folder).parent.parts])
        for module in imported_modules(file.read_text(encoding="utf-8"), package):
            room = room_of(module)
            if room is not None and room not in allowed | {own}:
                wrong.append(f"{file.relative_to(REPOSITORY)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_every_folder_with_code_is_in_the_table():
    packages = {file.parent.name for file in REPOSITORY.glob("*/__init__.py")}
    assert packages == set(FOLDERS)


def test_the_checker_sees_every_way_to_import():
    source = """
import mmvl.engine.engine, torch
from mmvl import VLM, data
from ..vision import tiling
from . import media
def late():
    from mmvl.kernels.rope import rope
    importlib.import_module("mmvl.app.cli")
import text_backbone
"""
    rooms = {room_of(module) for module in imported_modules(source, "mmvl.engine")}
    assert rooms == {"mmvl", None, "mmvl.data", "mmvl.vision", "mmvl.kernels", "mmvl.app"}
