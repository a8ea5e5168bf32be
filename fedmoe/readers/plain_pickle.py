"""An unpickler that stays small, and what stands for the names that its subclasses let a file give."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable
from pickle import _Unpickler as PythonUnpickler  # the one written in Python; has no public name
from typing import IO, Any, ClassVar, NoReturn


class _Whole:
    """A file from its start, which says where more is asked for than it has left."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._end = file, file.seek(0, os.SEEK_END)
        file.seek(0)
        self.readline = file.readline

    def read(self, count: int) -> bytes:
        if count > self._end - self._file.tell():
            raise pickle.UnpicklingError("it ends in the middle of a value")
        return self._file.read(count)


def _without_tuples(opcode: bytes, keys: slice) -> Callable[[Any], None]:
    """The instruction that puts items into a dictionary, refused where one of the keys on the stack is a tuple."""
    load = PythonUnpickler.dispatch[opcode[0]]

    def checked(unpickler: Any) -> None:
        if any(isinstance(key, tuple) for key in unpickler.stack[keys]):
            raise pickle.UnpicklingError("a dictionary with a tuple as a key")
        load(unpickler)

    return checked


def _bytearray(unpickler: Any) -> None:
    (length,) = struct.unpack("<Q", unpickler.read(8))
    unpickler.append(bytearray(unpickler.read(length)))


def _no_set(_: Any) -> None:
    raise pickle.UnpicklingError("a set")


class Builder:
    """A name that a pickle may give. It can be called, and is closed to everything else a pickle may try."""

    __slots__ = ("_build",)

    def __init__(self, build: Callable[..., Any]) -> None:
        self._build = build

    def __call__(self, *args: Any) -> Any:
        return self._build(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("a name is given contents")


class SmallUnpickler(PythonUnpickler):
    """Python's unpickler, without what lets a file of a few bytes take all time or memory.

    The one written in C makes room for as many memo entries as the largest index that a file names, up to 2**32. Both
    make room for texts and bytes of the length that the file tells, here only where it goes on for so long. And a tuple
    is hashed with all that is in it, wherever that occurs again: a key of sixty levels of ten references each is never
    done. So keys are no tuples, and there are no sets.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **PythonUnpickler.dispatch,
        **dict.fromkeys((pickle.EMPTY_SET[0], pickle.ADDITEMS[0], pickle.FROZENSET[0]), _no_set),
        pickle.BYTEARRAY8[0]: _bytearray,
        pickle.DICT[0]: _without_tuples(pickle.DICT, slice(None, None, 2)),
        pickle.SETITEM[0]: _without_tuples(pickle.SETITEM, slice(-2, -1)),
        pickle.SETITEMS[0]: _without_tuples(pickle.SETITEMS, slice(None, None, 2)),
    }

    def __init__(self, file: IO[bytes], *, encoding: str = "ASCII") -> None:
        super().__init__(_Whole(file), encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the file stands for: nothing, unless a subclass says so."""
        raise pickle.UnpicklingError(f"the name {module}.{name}")
