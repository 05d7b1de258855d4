"""Imports go one way, and heavy packages are imported in few places (design, section 1)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import moetool

ROOT = Path(moetool.__file__).parent
ORDER = (
    {"errors", "__init__"}, {"progress"}, {"checkpoint", "demo"}, {"model"}, {"accounting", "corpus"}, {"capture"},
    {"statistics"}, {"monitor"}, {"report"}, {"commands"}, {"cli"}, {"__main__"},
)  # fmt: skip
"""A part may import parts before it, and itself."""
HOMES = {
    "torch": ("capture/", "model/meta.py"),
    "transformers": ("capture/", "model/meta.py", "monitor.py"),
    "matplotlib": ("report/figures.py", "report/figures_panels.py"),
    "rich": ("report/formats/text.py", "commands/generate_live", "cli.py"),
    "typer": ("commands/", "cli.py"),
}
RANKS = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all imports, those for type checkers left out."""
    if isinstance(tree, ast.If) and ast.unparse(tree.test) == "TYPE_CHECKING":
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    if isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "relative imports hide where they lead"
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imported(child)


def test_imports_go_one_way():
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        part = name.split("/")[0].removesuffix(".py")
        for target in imported(ast.parse(path.read_text(encoding="utf-8"))):
            package, *rest = target.split(".")
            if package == "moetool" and rest and rest[0] in RANKS and rest[0] != part:
                forbidden = RANKS[rest[0]] >= RANKS[part] or (part, rest[0]) == ("capture", "accounting")
                wrong += [f"{name} imports {target}"] * forbidden
            if package in HOMES and not name.startswith(HOMES[package]):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_every_part_has_a_place():
    parts = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path.is_dir() and path.name[0] != "_")}
    assert parts == set(RANKS)
