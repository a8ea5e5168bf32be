"""Readers of CLIP weights files. None of them executes what a file holds.

Known: safetensors (also the compact form below), torch.save files (tensors only), and TorchScript archives such as
OpenAI's own .pt files. A TorchScript archive is read by a restricted unpickler: its classes become inert bags of
attributes, from which the tensors are collected.

Compact form: a safetensors file with open_clip's keys, except that ``token_embedding.weight`` is [R, w] and a further
int64 tensor ``token_embedding.rows`` [R] names the vocabulary rows it holds; the others are zero after loading.
"""

from __future__ import annotations

import collections
import io
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedmoe.errors import UserError, some
from fedmoe.io import open_regular
from fedmoe.readers.plain_pickle import Builder, SmallUnpickler

ROWS = "token_embedding.rows"
EMBEDDING = "token_embedding.weight"
_MOST_MODULES = 100_000
_MOST_HEADER = 1 << 22  # bytes of a safetensors header, a hundred times CLIP's; a million empty tensors take minutes
_MOST_EXPANDED = 1 << 26  # numbers of a tensor that repeats those stored, by strides of 0
_OPENAI_KEYS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's archives keep as tensors


@dataclass(frozen=True)
class WeightsFile:
    """A weights file's tensors by open_clip's keys.

    ``openai``: the file is one of OpenAI's own archives, or its state dict. ``rows``: the vocabulary rows of a compact
    file [R], None where all are stored.
    """

    tensors: dict[str, Tensor]
    openai: bool = False
    rows: Tensor | None = None


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file of any known format, told by its contents and not by its name.

    Raises:
        UserError: the file is missing, unreadable, damaged, of no known format, or holds anything but tensors.
    """
    path = Path(path).expanduser()
    try:
        with open_regular(path) as file:
            head = file.read(9)
    except OSError as error:
        raise UserError(f"The weights file {path} cannot be read: {error.strerror}.") from error
    if len(head) == 9 and head[8:9] == b"{":
        if int.from_bytes(head[:8], "little") > _MOST_HEADER:
            raise _damaged(path)
        return _finish(path, _read_safetensors(path))
    if head[:2] == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                scripted = any(name.endswith("/constants.pkl") for name in archive.namelist())
                script = _TorchScript(path, archive) if scripted else None
                code = f"{script.root}code/" if script else "\0"
                read = [member.file_size for member in archive.infolist() if not member.filename.startswith(code)]
                if sum(read) > path.stat().st_size:  # torch compresses nothing but code, which is not read
                    raise _damaged(path)
                if script:
                    return _finish(path, *script.read())
        except UserError:
            raise
        except Exception as error:  # a damaged archive raises many kinds
            raise _damaged(path) from error
    return _finish(path, _read_torch(path))


def expand_rows(path: str | Path, compact: Tensor, rows: Tensor, vocabulary: int) -> Tensor:
    """The whole token embedding [vocabulary, w] of a compact file: its [R, w] at ``rows``, zero elsewhere."""
    if compact.ndim != 2:
        raise UserError(f"In the weights file {path}, {EMBEDDING} has shape {list(compact.shape)}; valid is [R, w].")
    if rows.dtype != torch.int64 or rows.shape != compact.shape[:1] or len(rows.unique()) != len(rows):
        raise UserError(
            f"In the weights file {path}, {ROWS} has shape {tuple(rows.shape)} and type {rows.dtype}; valid are "
            f"{len(compact)} different int64 numbers, one for each row of {EMBEDDING}."
        )
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < vocabulary:
        raise UserError(
            f"In the weights file {path}, {ROWS} goes from {int(rows.min())} to {int(rows.max())}; valid are 0 to "
            f"{vocabulary - 1}, the rows of the vocabulary."
        )
    return compact.new_zeros(vocabulary, *compact.shape[1:]).index_copy(0, rows, compact)


def require_model_fit(tensors: Mapping[str, Tensor], needed: Mapping[str, Tensor], path: Path, model: str) -> None:
    """Raise ``UserError`` unless ``tensors`` are those the model needs, by name, shape and kind, and finite.

    Counters of batches that batch norms have seen may be missing: they serve training only.
    """
    missing = [key for key in needed if key not in tensors and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"The weights file {path} lacks {some(missing, 1)}, which {model} needs.")
    unexpected = [key for key in tensors if key not in needed]
    if unexpected:
        raise UserError(f"The weights file {path} holds {some(unexpected, 1)}, which {model} does not have.")
    for key, tensor in tensors.items():
        if tensor.shape != needed[key].shape:
            raise UserError(
                f"In the weights file {path}, {key} has shape {list(tensor.shape)}, but {model} needs "
                f"{list(needed[key].shape)}."
            )
        if tensor.is_floating_point() != needed[key].is_floating_point() or tensor.is_complex():
            raise UserError(
                f"In the weights file {path}, {key} is of {tensor.dtype}, but {model} needs {needed[key].dtype}."
            )
        if not bool(torch.isfinite(tensor.float()).all()):
            raise UserError(f"In the weights file {path}, {key} is not finite; valid are finite numbers.")


def _finish(path: Path, tensors: Any, openai: bool = False) -> WeightsFile:
    """Take the state dict out of whatever a file holds around it, and the bookkeeping out of the state dict."""
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not tensors:
        raise UserError(f"The weights file {path} holds no state dict; valid is a mapping of names to tensors.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"The weights file {path} is no state dict: its entry {name!r} is a {type(tensor).__name__}; valid "
                "is a mapping of names to tensors, or a mapping with one under 'state_dict'."
            )
        expanded = tensor.layout is torch.strided and tensor.nbytes > tensor.untyped_storage().nbytes()
        if expanded and tensor.numel() > _MOST_EXPANDED:
            raise UserError(
                f"In the weights file {path}, {name} has shape {list(tensor.shape)}, more numbers than are stored; "
                "valid are tensors that are stored whole."
            )
    state = {str(name).removeprefix("module."): tensor for name, tensor in tensors.items()}
    openai = openai or "input_resolution" in state
    state = {name: tensor for name, tensor in state.items() if name not in _OPENAI_KEYS}
    return WeightsFile(state, openai, state.pop(ROWS, None))


def _damaged(path: Path) -> UserError:
    return UserError(
        f"The weights file {path} is truncated, damaged or of no known format; valid are safetensors, OpenAI's .pt and "
        "open_clip's checkpoints, whole."
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path) from error


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on odd pickle protocols, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        said = str(error).lower()
        if "unsupported" not in said or "unsupported operand" in said:  # an operand that is none is a damaged file
            raise _damaged(path) from error
        raise UserError(
            f"The weights file {path} holds other objects than tensors, and pickled code is never loaded; valid is a "
            "state dict of tensors, or safetensors."
        ) from error
    except Exception as error:  # torch raises many kinds for damaged files
        raise _damaged(path) from error


class _Bag:
    """An object of a TorchScript archive: its attributes, and no behaviour."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update((name, value) for name, value in state.items() if isinstance(name, str))


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _TorchScript:
    """The parameters and buffers of a TorchScript archive, without running any of it."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self.archive = path, archive
        self.root = next(name for name in archive.namelist() if name.endswith("/constants.pkl"))[
            : -len("constants.pkl")
        ]
        self.storages: dict[str, Tensor] = {}

    def read(self) -> tuple[dict[str, Tensor], bool]:
        """The state dict, and whether the archive is one of OpenAI's."""
        if self.root + "data.pkl" not in self.archive.namelist():
            raise _damaged(self.path)
        order = self.root + "byteorder"
        if order in self.archive.namelist() and self._read(order).strip() != b"little":
            raise UserError(f"The weights file {self.path} is big-endian; valid is little-endian.")
        state: dict[str, Tensor] = {}
        names: set[str] = set()
        try:
            module = _TensorUnpickler(self, io.BytesIO(self._read(self.root + "data.pkl"))).load()
            _collect(module, "", state, names, (), [None] * _MOST_MODULES)
        except UserError:
            raise
        except Exception as error:  # damaged pickles raise many kinds
            raise _damaged(self.path) from error
        return state, "input_resolution" in names

    def _read(self, name: str) -> bytes:
        """An entry, and no more than the archive says that it has: ``ZipFile.read`` expands all of it first."""
        with self.archive.open(name) as entry:
            return entry.read(self.archive.getinfo(name).file_size)

    def storage(self, key: str, dtype: torch.dtype, numel: int) -> Tensor:
        """The flat storage under ``data/<key>``."""
        if key not in self.storages:
            name = f"{self.root}data/{key}"
            if name not in self.archive.namelist():
                raise _damaged(self.path)
            data = bytearray(self._read(name))
            if len(data) != numel * dtype.itemsize:
                raise _damaged(self.path)
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


class _TensorUnpickler(SmallUnpickler):
    """Builds tensors, containers and inert bags; refuses every other name."""

    def __init__(self, script: _TorchScript, file: io.BytesIO) -> None:
        super().__init__(file)
        self.script = script

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Bag,), {})  # a class of its own, so that nothing in the file reaches the shared one
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if (module, name) not in _BUILDERS:
            raise UserError(
                f"The weights file {self.script.path} holds the object {module}.{name}, and pickled code is never "
                "loaded; valid are tensors, or safetensors."
            )
        return _BUILDERS[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        kind, storage, key, _, numel = pid
        if kind != "storage" or not isinstance(storage, _StorageType):
            raise _damaged(self.script.path)
        return self.script.storage(str(key), storage.dtype, int(numel))


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """A view into a storage. ``as_strided`` checks that it lies inside."""
    return storage.as_strided(tuple(size), tuple(stride), offset)


_BUILDERS = {
    ("torch._utils", "_rebuild_tensor_v2"): Builder(_rebuild),
    ("collections", "OrderedDict"): Builder(lambda: collections.OrderedDict()),
    ("torch.jit._pickle", "restore_type_tag"): Builder(lambda value, tag: value),
    **{("torch.jit._pickle", f"build_{kind}list"): Builder(list) for kind in ("int", "double", "bool", "tensor")},
}


def _collect(
    module: _Bag, prefix: str, state: dict[str, Tensor], names: set[str], above: tuple[_Bag, ...], left: list[None]
) -> None:
    """The tensors of a module and its children, named as a state dict names them, and all attributes' names.

    A module may be a child of several; ``left`` loses an item for each visit and bounds their number.
    """
    if any(module is parent for parent in above):
        raise ValueError("a module inside itself")
    left.pop()
    names.update(vars(module))
    for name, value in vars(module).items():
        if isinstance(value, _Bag):
            _collect(value, f"{prefix}{name}.", state, names, (*above, module), left)
        elif isinstance(value, Tensor) and name != "attn_mask":  # a constant, which looks like a buffer here
            state[prefix + name] = value
