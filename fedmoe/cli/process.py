"""What the program owes its surroundings: signals end it with one sentence, and printing never does.

Standard library only: ``prepare`` runs before anything else is imported, so that a signal during imports is
answered like any other.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO

SENTENCE = "Interrupted; the same command continues after the last finished round."
_SAME_KEYSTROKE = 1.0  # seconds within which further signals count as the first one: a key held down, kill and Ctrl-C
_IN_ASCII = {"±": "+/-", "×": "x", "−": "-", "–": "-", "…": "...", "→": "->", "·": "."}


class _Stop:
    """The signal that ends this process, once there is one."""

    number = 0
    moment = 0.0
    unwinding = True  # whether the signal may raise; later, nothing is left that could catch it
    said = False


def program() -> str:
    """How this process was called, for usage lines."""
    return "fedmoe" if os.path.basename(sys.argv[0]) == "fedmoe" else "python -m fedmoe.cli"


def run(command: Callable[[], int]) -> NoReturn:
    """Run the program in this process and exit: with the command's code, or 128 plus the number of the signal."""
    _open_standard_streams()
    sys.stdout, sys.stderr = _unfailing(1, sys.stdout), _unfailing(2, sys.stderr)
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell starts its background jobs
            signal.signal(number, _on_signal)
    os.register_at_fork(after_in_child=_as_in_any_process)  # workers leave the sentence to their parent
    sys.unraisablehook = _on_unraisable
    code = 1
    try:
        code = command()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        if not _Stop.number:
            raise
    finally:
        _Stop.unwinding = False
    if _Stop.number:
        _say()
        code = 128 + _Stop.number
    sys.exit(code)


def interrupted() -> int:
    """The exit code after Ctrl-C or SIGTERM, once the sentence is printed."""
    _say()
    return 128 + (_Stop.number or signal.SIGINT)


def _on_signal(number: int, frame: FrameType | None) -> None:
    again = _Stop.number != 0
    if not again:
        _Stop.number, _Stop.moment = number, time.monotonic()
    if not _Stop.unwinding or (again and time.monotonic() - _Stop.moment > _SAME_KEYSTROKE):
        _leave()
    if not again:
        raise KeyboardInterrupt


def _on_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """A signal that arrived where exceptions are dropped, in a destructor or at exit, ends the process all the same."""
    if _Stop.number:
        _leave()
    sys.__unraisablehook__(unraisable)


def _leave() -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the signal may have come while it was written to
            stream.flush()
    _say()
    os._exit(128 + _Stop.number)


def _say() -> None:
    if not _Stop.said:
        _Stop.said = True
        show_cursor = "\033[?25h" if os.isatty(2) else ""  # which a progress display may have hidden
        with contextlib.suppress(OSError):
            os.write(2, f"{show_cursor}{SENTENCE}\n".encode())


def _as_in_any_process() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.unraisablehook = sys.__unraisablehook__


class _UnfailingFile(io.FileIO):
    """Output that is dropped where it cannot be written: its reader has left, or the disk is full."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def _unfailing(number: int, stream: TextIO | None) -> TextIO:
    """The standard stream, which neither a closed pipe nor any character makes fail."""
    codecs.register_error("fedmoe", _replacement)
    encoding = "utf-8" if stream is None else stream.encoding  # None: it was closed
    file: Any = io.BufferedWriter(_UnfailingFile(number, "wb", closefd=False))
    lines = number == 2 or os.isatty(number)
    return io.TextIOWrapper(file, encoding=encoding, errors="fedmoe", line_buffering=lines)


def _replacement(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return _IN_ASCII.get(error.object[error.start], "?"), error.start + 1


def _open_standard_streams() -> None:
    """Give closed standard streams to /dev/null, so that no file opened later takes their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
