"""Reading the pickles that data sets come in without running what they may contain.

A pickle is a program: it names functions and calls them. Here the only names it may give are those that numpy and
Python write for arrays, numpy scalars and bytes, and each stands for a builder of our own that can do nothing else.
numpy's own functions are not used: they trust the file's account of number formats and sizes.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fedmoe.errors import UserError
from fedmoe.io import open_regular
from fedmoe.readers.plain_pickle import Builder, SmallUnpickler

_MOST_BYTES = 1 << 31  # ten times CIFAR-100's largest file


def load_arrays(path: str | Path) -> Any:
    """The contents of a pickle of numpy arrays, str, bytes, int, float, bool, None, list, tuple and dict.

    Arrays may hold numbers, texts, or objects of these kinds. numpy's scalars become Python's; byte strings that
    Python 2 wrote become str, read as latin-1.

    Raises:
        UserError: the file cannot be read, is larger than 2 GiB, is damaged, or asks for anything else; the sentence
            names file and name.
    """
    path = Path(path)
    try:
        with open_regular(path, _MOST_BYTES) as file:
            return _finished(_ArrayUnpickler(file, path).load())
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"The file {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged pickle raises whatever its instructions run into
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise UserError(f"The file {path} is not a whole pickle of arrays and texts ({reason[:120]}).") from error


class _ArrayUnpickler(SmallUnpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # keeps every byte of Python 2's strings
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        builder = _BUILDERS.get((module.replace("numpy.core.", "numpy._core."), name))
        if builder is None:
            raise UserError(
                f"The file {self._path} is a pickle that asks for {module}.{name}, which is refused because it could "
                "run code; valid are numpy arrays, texts, numbers, lists and dictionaries."
            )
        return builder


class _Dtype:
    """A number format under construction: its name, then its byte order."""

    __slots__ = ("value",)

    def __init__(self, name: Any, *_: Any) -> None:
        self.value = np.dtype(str(name))
        if self.value.kind not in "biufSUO":
            raise pickle.UnpicklingError(f"an array of {self.value}, which holds neither numbers nor texts")

    def __setstate__(self, state: Any) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """An array under construction: empty until the pickle gives its contents."""

    __slots__ = ("value",)

    def __init__(self, kind: Any, *_: Any) -> None:
        if kind is not _BUILDERS["numpy", "ndarray"]:
            raise pickle.UnpicklingError("an array of an unknown kind")
        self.value: np.ndarray = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, contents = state
        self.value = _filled(contents, dtype, shape, "F" if fortran else "C")


def _filled(contents: Any, dtype: _Dtype, shape: Any, order: Any) -> np.ndarray:
    if dtype.value.kind == "O":
        if not isinstance(contents, list):
            raise pickle.UnpicklingError("an array of objects without a list of them")
        flat = np.empty(len(contents), dtype=object)
        flat[:] = contents
    else:
        flat = np.frombuffer(_bytes(contents), dtype.value)
    return flat.reshape(shape, order=order).copy()


def _scalar(dtype: _Dtype, contents: Any = b"") -> Any:
    if dtype.value.kind == "O":
        raise pickle.UnpicklingError("a scalar that is neither number nor text")
    return np.frombuffer(_bytes(contents), dtype.value, count=1)[0].item() if dtype.value.itemsize else ""


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("bytes in an unknown encoding")
    return _bytes(text)


def _bytes(contents: Any) -> bytes:
    return contents.encode("latin1") if isinstance(contents, str) else bytes(memoryview(contents))


def _no_call(*_: Any) -> NoReturn:
    raise pickle.UnpicklingError("an array is made in an unknown way")


_BUILDERS: dict[tuple[str, str], Builder] = {
    ("numpy", "dtype"): Builder(_Dtype),
    ("numpy", "ndarray"): Builder(_no_call),  # only ever named as the kind of array to make
    ("numpy._core.multiarray", "_reconstruct"): Builder(_Array),
    ("numpy._core.multiarray", "scalar"): Builder(_scalar),
    ("numpy._core.numeric", "_frombuffer"): Builder(_filled),  # protocol 5
    ("_codecs", "encode"): Builder(_encode),
    ("__builtin__", "bytes"): Builder(lambda: b""),  # how protocols 0 to 2 write no bytes at all
}


def _finished(value: Any, done: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """The value with arrays in place of what they were built in; refuses whatever is not plain.

    ``done`` maps a part's id to the part and its result: a part that occurs a million times is walked through once.
    """
    done = {} if done is None else done
    if id(value) in done:
        return done[id(value)][1]
    result = _converted(value, done)
    done[id(value)] = value, result
    return result


def _converted(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    if isinstance(value, _Array):
        value = value.value
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "O":
            for i, item in enumerate(value.flat):
                value.flat[i] = _finished(item, done)
        return value
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, list | tuple):
        return type(value)(_finished(item, done) for item in value)
    if isinstance(value, dict):
        return {_finished(key, done): _finished(item, done) for key, item in value.items()}
    raise pickle.UnpicklingError(f"a value of the kind {type(value).__name__.strip('_')}")
