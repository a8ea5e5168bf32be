"""Where a result comes from: code, command and machine."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedmoe import __version__

_PACKAGES = ("torch", "lightning", "open_clip_torch", "torchmetrics")


def provenance(method: type) -> dict[str, Any]:
    """The entry of summary.json and of W&B's configuration.

    ``git``: commit of fedmoe's checkout, and whether tracked files differ from it; null where it is none.
    ``method_file``: path and SHA-256 of the file of a method that is not fedmoe's own; null for those that are.
    ``command``, ``host``, ``versions``.
    """
    return {
        "git": _git(Path(__file__).resolve().parents[2]),
        "method_file": _method_file(method),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "host": platform.node(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, fedmoe and the packages that numbers depend on."""
    return {"fedmoe": __version__, "python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit and state of a checkout; None where the folder is no checkout's top, or git is missing."""
    if not (folder / ".git").exists():
        return None

    def ask(*words: str) -> str:
        environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "dirty": bool(ask("status", "--porcelain", "-uno").strip())}
    except (OSError, subprocess.SubprocessError):
        return None


def _method_file(method: type) -> dict[str, str] | None:
    if method.__module__.partition(".")[0] == "fedmoe":
        return None
    path = getattr(importlib.import_module(method.__module__), "__file__", None)
    if path is None:
        return None
    return {"path": path, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
