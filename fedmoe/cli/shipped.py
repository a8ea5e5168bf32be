"""The configurations that come with fedmoe: ``fedmoe:data/cifar10`` names ``configs/data/cifar10.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedmoe.cli.values import sentence
from fedmoe.errors import did_you_mean

PREFIX = "fedmoe:"
_PACKAGE = Path(__file__).parents[1]
_NOT_FOR_CONFIG = ("sweeps", "regimes")  # W&B's sweeps; and regimes of experiments, which are more than settings


def folder() -> Path:
    """Where the configurations lie: within the installed package, or beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names() -> list[str]:
    """What may follow ``fedmoe:``, those of no folder first."""
    found = [path.relative_to(folder()).with_suffix("").as_posix() for path in folder().rglob("*.yaml")]
    return sorted(
        (name for name in found if name.partition("/")[0] not in _NOT_FOR_CONFIG), key=lambda n: ("/" in n, n)
    )


def find(name: str) -> Path:
    """The file of a configuration, with or without ``fedmoe:`` and ``.yaml``.

    Raises:
        UserError: there is none of this name.
    """
    known, name = names(), name.removeprefix(PREFIX).removesuffix(".yaml")
    if name not in known:
        near = (
            did_you_mean(PREFIX + name, [PREFIX + other for other in known])
            or "; valid is one that `fedmoe configs` lists."
        )
        raise sentence(f"--config={PREFIX}{name} is no configuration that comes with fedmoe", near)
    return folder() / f"{name}.yaml"


def resolved(args: Sequence[str]) -> list[str]:
    """Arguments in which ``--config`` names files, also where these come with fedmoe.

    Raises:
        UserError: as in ``find``.
    """
    found = list(args)
    for i, arg in enumerate(args):
        if arg.startswith(f"--config={PREFIX}"):
            found[i] = f"--config={find(arg.removeprefix('--config='))}"
        elif i and args[i - 1] == "--config" and arg.startswith(PREFIX):
            found[i] = str(find(arg))
    return found


def about(name: str) -> str:
    """The first sentence of the comment that a configuration begins with; "" where it has none."""
    lines = find(name).read_text(encoding="utf-8").splitlines()
    comment: list[str] = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# ").strip())
    return " ".join(comment).partition(". ")[0].rstrip(".:")
