"""Writing files so that a reader, or a run after a crash, finds the old contents or the new, never a half.

A file is written under a temporary name in the same folder, forced to the disk and renamed into place. Lines of a JSONL
file are appended in one write; a line that a crash cut short is dropped by the next append and by the reader.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fedmoe.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 1 << 28
"""The largest text file that is read into memory at once, 268 MB: records of runs, lists of data sets, settings."""


class DamagedFile(UserError, ValueError):
    """A file that does not hold what was written to it."""


NOT_REGULAR = errno.EINVAL
"""The errno of ``open_regular`` for what is no regular file."""


def open_regular(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """Open for reading what must be a regular file, or a link to one, of at most ``most`` bytes.

    A named pipe, a device or a socket in its place would block the reader, or never end.

    Raises:
        OSError: it cannot be opened, is of another kind, or is larger.
    """
    try:
        _require_regular(path, os.stat(path), most)  # before it is opened: for a device, that alone may have an effect
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a null character in the name
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    try:
        _require_regular(path, os.fstat(descriptor), most)  # it may have become another one in the meantime
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """The contents of a regular file of at most ``most`` bytes.

    Raises:
        OSError: as ``open_regular``.
    """
    with open_regular(path, most) as file:
        data = file.read(most + 1)
    if len(data) > most:  # it has grown
        raise _too_large(path, len(data), most)
    return data


def _require_regular(path: str | os.PathLike[str], status: os.stat_result, most: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(NOT_REGULAR, "it is not a regular file", str(path))
    if most is not None and status.st_size > most:
        raise _too_large(path, status.st_size, most)


def _too_large(path: str | os.PathLike[str], size: int, most: int) -> OSError:
    return OSError(errno.EFBIG, f"its {size:,} bytes exceed the limit of {most:,}", str(path))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], folder: Path | None = None) -> Iterator[Path]:
    """A temporary path to write to; it becomes ``path`` when the block ends and is removed if the block fails.

    It lies in ``folder``, which must exist on the file system of ``path``, or else in the folder of ``path`` (made if
    missing), and keeps the suffix, which savefig and others choose a format by. Several processes may replace one file
    at once: the last one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (folder or path.parent) / f".{secrets.token_hex(8)}.tmp{path.suffix}"
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Make ``data`` the contents of the file."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Make ``text`` the contents of the file, as UTF-8 with the line ends it has."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Make ``value`` the contents of the file. NaN and infinity are refused with a ValueError: JSON has none."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors_atomic(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> None:
    """Write a safetensors file of ``tensors``, which may lie on any device and share memory; ``folder`` as above.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()  # safetensors refuses views of one storage
        storages.add(tensor.untyped_storage().data_ptr())
        own[name] = tensor
    with replacing(path, folder) as temporary:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            save_file(own, temporary, dict(metadata or {}))  # a new file, readable by its owner only
        except SafetensorError as error:  # its own kind for a full disk, too
            found = re.search(r"os error (\d+)|code: (\d+)", str(error))
            number = int(found[1] or found[2]) if found else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error
        temporary.chmod(mode)


def append_jsonl(path: str | os.PathLike[str], *records: Mapping[str, Any]) -> None:
    """Append a line for each record to a JSONL file and force it to the disk. One process at a time may write to it.

    Raises:
        ValueError: a record contains NaN or infinity; nothing is written.
    """
    lines = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "ab+") as file:
        _drop_torn_line(file)
        file.write(lines.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())
    if new:
        _fsync(path.parent)


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the folder's lock, the file ``.lock`` in it, while the block lasts; the folder is made if missing.

    The operating system frees the lock when the process ends, however it ends; processes forked from it do not hold it.
    Whoever holds it may delete the folder: a lock on a deleted file counts for nothing. Where the file system has no
    locks, nothing is held.

    Raises:
        BlockingIOError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except (Timeout, FileNotFoundError) as error:  # held; or its holder has just deleted the folder
        raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(folder)) from error
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
    try:
        yield
    finally:
        lock.release()


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a JSONL file; a last line without line end was cut short by a crash and is left out.

    Raises:
        DamagedFile: the file cannot be read, is no regular file or too large, or a whole line is not a JSON object; the
            message names file and line.
    """
    try:
        whole, _, _ = read_regular(path).rpartition(b"\n")
    except OSError as error:
        raise DamagedFile(f"{path} cannot be read: {error.strerror}; valid is what fit has written.") from error
    records = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DamagedFile(f"{path}, line {number}, is not JSON: {error}.") from error
        if not isinstance(record, dict):
            raise DamagedFile(f"{path}, line {number}, is {line[:40]!r}; valid is a JSON object.")
        records.append(record)
    return records


def _drop_torn_line(file: Any) -> None:
    """Cut the file, open for appending and reading, behind its last line end."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)


def _fsync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk; on systems that cannot sync a folder, do nothing for it."""
    folder = path.is_dir()
    if folder and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
