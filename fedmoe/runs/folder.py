"""The run folder as a whole: the version of its format, its lock, its deletion, and errors of the disk.

A comparison is a folder of run folders with a comparison.json.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedmoe import __version__
from fedmoe.errors import UserError
from fedmoe.io import locked, read_regular, write_json_atomic
from fedmoe.readers import regular

FORMAT = 2
"""Raised when an older fedmoe could misread a folder. Folders without a run.json are of format 1."""


def stamp(folder: Path, packed_weights: bool | None = None) -> None:
    """Write run.json: the folder's format, the version of fedmoe that last wrote to it, and what
    ``runtime.packed_weights: auto`` chose, where it did."""
    chosen = {} if packed_weights is None else {"packed_weights": packed_weights}
    write_json_atomic(folder / "run.json", {"format": FORMAT, "fedmoe": __version__, **chosen})


def packed_before(folder: Path) -> bool | None:
    """What ``runtime.packed_weights: auto`` chose for a run; None where there is none, or it did not choose.

    Raises:
        UserError: as ``require_format``.
    """
    require_format(folder)
    path = folder / "run.json"
    found = json.loads(regular.read_regular(path, regular.MIB)).get("packed_weights") if path.exists() else None
    return found if isinstance(found, bool) else None


def require_format(folder: Path, oldest: int = FORMAT) -> None:
    """Refuse a folder whose format this version cannot read.

    Args:
        oldest: the oldest format that will do; logs and settings have not changed since format 1, checkpoints have.

    Raises:
        UserError: the folder has another format, or run.json is damaged.
    """
    path = folder / "run.json"
    if not os.path.lexists(path):
        if oldest > 1 and (folder / "config.yaml").exists():  # older than the number
            raise UserError(
                f"{folder} has no run.json: written by a fedmoe of format 1; this is fedmoe {__version__}, which "
                f"continues and evaluates runs of format {FORMAT}. Valid is to report it, or to run it anew."
            )
        return
    try:
        said = json.loads(regular.read_regular(path, regular.MIB))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}); valid is the file that fit wrote."
        ) from error
    found = said.get("format") if isinstance(said, dict) else None
    if type(found) is not int or not oldest <= found <= FORMAT:
        writer = said.get("fedmoe", "another version") if isinstance(said, dict) else "another version"
        raise UserError(
            f"{path} says format {found!r}, written by fedmoe {writer}; this is fedmoe {__version__}, which reads "
            f"format {FORMAT}."
        )


# Errors of the disk that are not the program's fault.
_STORAGE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO),
    *(errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY),
}


_RESUMED = "finished rounds are kept, and the same command resumes from there once it can be written"


@contextmanager
def storage(folder: Path, after: str = _RESUMED) -> Iterator[None]:
    """Turn errors of the disk into one sentence, which ends with what is left and what to do.

    Raises:
        UserError: the disk is full, the folder is read-only, or similar.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror}; {after}.") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run or a comparison against other processes, and remove what a killed process left half-written.

    The runs inside a comparison have locks of their own, which are not taken.

    Raises:
        UserError: another process is working in it.
    """
    try:
        with locked(folder):
            inner = [path for path in _folders(folder) if not (path / ".lock").exists()]
            for torn in (path for place in (folder, *inner) for path in place.glob(".*.tmp*")):
                torn.unlink(missing_ok=True)
            yield
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is in use by another process; wait for it, or choose another output.name."
        ) from error


def clear(folder: Path) -> None:
    """Delete a run, or a comparison and the runs in it; never anything that might be something else.

    A run is a folder with a run.json written by ``stamp``, and with rounds.jsonl or state/, or else with nothing but
    files that exist before a first round. In a comparison, all folders except plots/ are runs. Symbolic links count as
    none of these, and are deleted without being followed.

    Raises:
        UserError: the folder is neither; or another process works in it, in a run inside, or in the comparison that
            it is part of.
    """
    if not os.path.lexists(folder):
        return
    problem = _foreign(folder)
    if problem:
        raise UserError(f"{problem}, so output.overwrite does not delete {folder}; choose another output.name.")
    runs = [path for path in _folders(folder) if path.name != "plots"] if _is_file(folder / "comparison.json") else []
    whole = folder.absolute().parent
    with ExitStack() as stack:
        for path in (*([whole] if _is_file(whole / "comparison.json") else []), folder, *runs):
            stack.enter_context(held(path))
        for path in (*runs, folder):
            _delete(path)


# Files that show that a folder is ours, deleted last and in this order; and what a run holds before its first round.
_PROOF = ("state", "rounds.jsonl", "comparison.json", "run.json", ".lock")
_BEGINNING = {"config.yaml", "partition.json", "run.json", ".lock", "wandb.json", "wandb", "tensorboard", "engine.json"}


def _foreign(folder: Path) -> str | None:
    """Why a folder may hold something other than a run or a comparison; None if it does not."""
    if folder.is_symlink() or not folder.is_dir():
        return f"{folder} is no folder, and so holds no run of fedmoe"
    if _is_file(folder / "comparison.json"):
        wrong = [path for path in _links(folder) if path.is_dir()]
        wrong += [path for path in _folders(folder) if path.name != "plots" and not _is_run(path)]
    elif _is_run(folder):
        wrong = [
            path for path in _folders(folder) if any(_is_file(path / name) for name in ("run.json", "config.yaml"))
        ]
    else:
        return f"{folder} holds no run of fedmoe (a run.json, and rounds.jsonl or state)"
    return f"{folder} holds {wrong[0].name!r}, which is no part of it" if wrong else None


def _is_run(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir() if not path.match(".*.tmp*")}
    if names <= {".lock"}:
        return True
    try:
        said = json.loads(read_regular(folder / "run.json")) if _is_file(folder / "run.json") else None
    except (OSError, ValueError, RecursionError):
        return False
    if not (isinstance(said, dict) and type(said.get("format")) is int and isinstance(said.get("fedmoe"), str)):
        return False
    return _is_file(folder / "rounds.jsonl") or folder / "state" in _folders(folder) or names <= _BEGINNING


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _links(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_symlink())


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, excluding links."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _delete(folder: Path) -> None:
    """Delete a folder; if this is interrupted, what is left can still be recognized as a run."""
    last = [path for name in _PROOF if os.path.lexists(path := folder / name)]
    for path in [*(path for path in folder.iterdir() if path not in last), *last]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    folder.rmdir()
