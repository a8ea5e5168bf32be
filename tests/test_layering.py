"""Imports point downwards only, without a circle, and open_clip is imported in one place."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "fedmoe"
# The rooms from the bottom up. A room may import those below it; within a room, files must not form a circle.
ROOMS = [
    "fedmoe",  # the version; what else it offers lies in ``api``, and is imported by name when it is asked for
    "errors",
    "seeds",
    "io",
    "config",
    "display",
    "readers",
    "runs",
    "models",
    "data",
    "features",
    "secure",
    "server",
    "protocol",
    "attacks",
    "client",
    "defences",
    "privacy",
    "methods",
    "federation",
    "engine",
    "report",
    "tracking",
    "experiment",
    "prediction",
    "export",
    "search",
    "audit",
    "cli",
    "api",
]
MODULES = {
    ".".join(["fedmoe", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "fedmoe"


def imports(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it, for types too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_every_room_has_its_place() -> None:
    assert {room(module) for module in MODULES} - {"assets"} == set(ROOMS)


def test_imports_point_downwards() -> None:
    wrong = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        for other in imports(path) & MODULES.keys()
        if room(module) != room(other) and ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert wrong == []


def test_no_circle_within_a_room() -> None:
    below = {module: imports(path) & MODULES.keys() - {module} for module, path in MODULES.items()}
    left = dict(below)
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert sorted(left) == []  # what is left imports itself in the end


def test_few_modules_stand_loose_at_the_top() -> None:
    assert len([path for path in ROOT.glob("*.py") if path.name != "__init__.py"]) <= 7


def test_open_clip_is_imported_in_one_file() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if any(name.split(".")[0] == "open_clip" for name in imports(path))
    }
    assert found == {"models/clip.py"}
