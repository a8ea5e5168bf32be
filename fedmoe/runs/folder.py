"""The run folder as a whole: the version of its format, the one process that may work in it, a disk that is full."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmoe import __version__
from fedmoe.errors import UserError
from fedmoe.io import locked, write_json_atomic
from fedmoe.readers.regular import MIB, read_regular

FORMAT = 2
"""Raised when an older fedmoe could misread a folder. Folders without a run.json are older than the number and of
the same format."""


def stamp(folder: Path) -> None:
    """Write run.json: the format of the folder, and the fedmoe that wrote to it last."""
    write_json_atomic(folder / "run.json", {"format": FORMAT, "fedmoe": __version__})


def require_format(folder: Path) -> None:
    """Refuse a folder whose format this version cannot read.

    Raises:
        UserError: the format is another one, or run.json is damaged.
    """
    path = folder / "run.json"
    try:
        if not path.exists():
            return
        said = json.loads(read_regular(path, MIB))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())}); valid is what fit has written."
        ) from error
    found = said.get("format") if isinstance(said, dict) else None
    if type(found) is not int or found != FORMAT:
        writer = said.get("fedmoe", "another version") if isinstance(said, dict) else "another version"
        raise UserError(
            f"{path} says format {found!r}, written by fedmoe {writer}; this is fedmoe {__version__}, which reads "
            f"format {FORMAT}."
        )


# What the disk answers, where nothing is wrong with the program.
_STORAGE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO),
    *(errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR),
}


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into a sentence.

    Raises:
        UserError: the disk is full, the folder is read-only, and the like.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        raise UserError(
            f"{error.filename or folder} cannot be written: {error.strerror}; what is finished is kept, and the same "
            "command goes on from there once it can be written."
        ) from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes off a run folder, and remove what a killed one has left half-written.

    Raises:
        UserError: another process works in it.
    """
    try:
        with locked(folder):
            for torn in [*folder.glob(".*.tmp*"), *folder.glob("*/.*.tmp*")]:
                torn.unlink(missing_ok=True)
            yield
    except BlockingIOError as error:
        raise UserError(
            f"{folder} is in use by another process; wait for it, or choose another output.name."
        ) from error
