"""Checkpoints on disk: named tensors and plain numbers, one checkpoint per round.

A checkpoint of round t is two files, each written to a temporary file, synced and renamed: ``round-t.safetensors``
with the tensors that changed in round t, and then the manifest ``round-t.json``, which names the file of every tensor
of the state and contains the files' checksums. A round without a manifest does not exist. The manifest of a large state
says only what differs from an earlier one, its ``base``, which stays as long as it is needed. So the time and the disk
space of a round are what its cohort changed, not what all clients hold. The last two rounds are kept; if the newest is
damaged, the previous one is used, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.io import write_bytes_atomic, write_text_atomic

log = logging.getLogger(__name__)
FORMAT = 2  # of a manifest that is complete
_WITH_BASE = 3  # of one that says what differs from its base
_LARGE = 1000  # tensors from which on manifests have a base
_KEPT = 2  # rounds whose checkpoints stay on disk
State = TypeVar("State")
# What reading a file with other contents can raise.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)


class Group(Protocol):
    """Several tensors that change together."""

    def tensors(self) -> Mapping[str, Tensor]:
        """By name, within the group."""


Pieces = Mapping[str, Tensor | Group | None]
"""The tensors of a state, what changes together in one piece."""


@dataclass(slots=True)  # there is one for each tensor of each client
class _Entry:
    """A tensor that has been saved."""

    tensor: Tensor
    place: tuple[str, str]  # file, name in file
    names: int = 0  # under which the newest state has it
    mapped: bool = False  # whether it lies in its file


class StateStore:
    """Reads and writes checkpoints in one folder.

    Tensors of the state are never written to in place, so an object that has been saved is not saved again: the
    manifest points to the earlier file.

    Args:
        folder: where they are.
        mapped: leave the tensors of loaded states in their files, mapped into memory.
    """

    def __init__(self, folder: Path, mapped: bool = False) -> None:
        self.folder, self.mapped = folder, mapped
        self._forget()

    def _forget(self) -> None:
        """Know nothing of what is on disk: the next checkpoint is written whole."""
        self._saved: dict[int, _Entry] = {}  # by id(tensor)
        self._pieces: dict[str, tuple[Tensor | Group, dict[str, _Entry]]] = {}  # of the newest state
        self._digests: dict[str, str] = {}  # file -> its checksum
        self._uses: Counter[str] = Counter()  # file -> number of tensors in it that the newest state has
        self._rest: dict[str, dict[str, Any]] = {}  # the mappings in the rest of the newest state
        self._base: tuple[str, str] | None = None  # file, checksum
        self._base_size = self._written = 0  # entries of the base, and of all changes that were written since
        self._since: dict[str, Sequence[str]] = {}  # pieces that differ from the base's: their tensors there
        self._touched: dict[str, set[str]] = {}  # the same of each mapping of the rest: keys
        self._needs: dict[str, set[str]] = {}  # manifest -> the files without which it is none
        self._replaced: list[Tensor] = []
        self._open: tuple[str, dict[str, Tensor]] = ("", {})  # the file that tensors were last mapped from

    @property
    def whole(self) -> bool:
        """Whether the newest state is known, so that changes of it can be saved."""
        return bool(self._pieces)

    def save(
        self,
        round: int,
        pieces: Pieces,
        rest: Mapping[str, Any],
        *,
        again: bool = False,
        partial: bool = False,
    ) -> None:
        """Write the checkpoint of a round; when this returns, the round is safe.

        Args:
            pieces: the state's tensors, and groups of them, by name. One that is the same object as in the round before
                has not changed.
            rest: the remainder of the state, as JSON.
            again: the checkpoint of this round, which is on disk, is changed: its file of tensors stays until the new
                manifest is written.
            partial: pieces, and keys of mappings in the rest, that are not named are as they were (``whole`` says
                whether that is known), and those that are None are gone.

        Raises:
            ValueError: a part of an unknown state.
        """
        if partial and not self.whole:
            raise ValueError("a part of a state cannot be saved before the whole")
        file = f"round-{round:05d}{f'-{secrets.token_hex(4)}' if again else ''}.safetensors"
        try:
            fresh = self._renew(pieces, file, partial)
            self._renew_rest({key: value for key, value in rest.items() if isinstance(value, dict)}, partial)
            self.folder.mkdir(parents=True, exist_ok=True)
            payload = save({name: tensor.contiguous() for name, tensor in fresh.items()})
            write_bytes_atomic(self.folder / file, payload)
            self._digests[file] = hashlib.sha256(payload).hexdigest()
            self._digests = {used: self._digests[used] for used in {*self._uses, file}}
            self._write(round, {key: value for key, value in rest.items() if not isinstance(value, dict)})
        except BaseException:
            self._forget()
            raise
        self._collect()

    def _renew(self, pieces: Pieces, file: str, partial: bool) -> dict[str, Tensor]:
        """Take note of the pieces that have changed. Their tensors that were not saved yet are returned, and have their
        place in ``file``."""
        fresh: dict[str, Tensor] = {}
        left: list[dict[str, _Entry]] = []
        for name, piece in pieces.items():
            before = self._pieces.get(name)
            if before is not None:
                if before[0] is piece:
                    continue
                left.append(before[1])
            self._since.setdefault(name, () if before is None else tuple(before[1]))
            if piece is None:
                self._pieces.pop(name, None)
                continue
            found: dict[str, _Entry] = {}
            for part, tensor in _parts(name, piece).items():
                entry = self._saved.get(id(tensor))
                if entry is None:
                    entry = self._saved[id(tensor)] = _Entry(tensor, (file, part))
                    fresh[part] = tensor
                if not entry.names:
                    self._uses[entry.place[0]] += 1
                entry.names += 1
                found[part] = entry
            self._pieces[name] = (piece, found)
        if not partial and len(self._pieces) > len(pieces):
            for name in self._pieces.keys() - pieces.keys():
                left.append(self._pieces.pop(name)[1])
                self._since.setdefault(name, tuple(left[-1]))
        for entry in (entry for entries in left for entry in entries.values()):
            entry.names -= 1
            if not entry.names:
                self._uses[entry.place[0]] -= 1
                del self._saved[id(entry.tensor)]
        self._uses = +self._uses
        return fresh

    def _renew_rest(self, rest: Mapping[str, dict[str, Any]], partial: bool) -> None:
        """Take note of what has changed in the mappings of the rest."""
        if self._rest.keys() != rest.keys():
            self._base, self._rest = None, {key: {} for key in rest}
        for key, values in rest.items():
            own = self._rest[key]
            changed = {name for name, value in values.items() if own.get(name) != value}
            if not partial:
                changed |= own.keys() - values.keys()
            self._touched.setdefault(key, set()).update(changed)
            for name in changed:
                if values.get(name) is None:
                    own.pop(name, None)
                else:
                    own[name] = values[name]

    def _write(self, round: int, rest: Mapping[str, Any]) -> None:
        """Write the manifest, and first its base if it needs another one."""
        manifest = {"format": FORMAT, **rest, "files": self._digests}
        needed = set(self._digests)
        if sum(self._uses.values()) < _LARGE:
            manifest |= {**self._rest, "tensors": self._places(self._pieces)}
        else:
            changes = self._changes()
            if changes is None:
                whole = {**self._rest, "tensors": self._places(self._pieces)}
                text, name = json.dumps(whole), f"base-{round:05d}-{secrets.token_hex(4)}.json"
                write_text_atomic(self.folder / name, text)
                self._base = (name, hashlib.sha256(text.encode()).hexdigest())
                self._base_size, self._written = sum(map(len, whole.values())), 0
                self._since, self._touched = {}, {}
                changes = {key: {} for key in whole}
            assert self._base is not None
            manifest |= {"format": _WITH_BASE, "base": list(self._base), "changes": changes}
            needed.add(self._base[0])
        manifest["checksum"] = _checksum(manifest)
        path = self.folder / f"round-{round:05d}.json"
        write_text_atomic(path, json.dumps(manifest))
        self._needs[path.name] = needed

    def _places(self, names: Iterable[str]) -> dict[str, tuple[str, str]]:
        """The place of each tensor of these pieces."""
        return {part: entry.place for name in names for part, entry in self._pieces.get(name, ((), {}))[1].items()}

    def _changes(self) -> dict[str, dict[str, Any]] | None:
        """What differs from the base, as a JSON merge patch (RFC 7386) of each part; None if there should be another
        base: changes have been written that take as much room by now."""
        if self._base is None:
            return None
        changes = {key: {name: own.get(name) for name in self._touched.get(key, ())} for key, own in self._rest.items()}
        places = self._places(self._since)
        gone = {part for parts in self._since.values() for part in parts} - places.keys()
        changes["tensors"] = {**places, **dict.fromkeys(gone)}
        self._written += sum(map(len, changes.values()))
        return None if self._written > self._base_size else changes

    def release(self, tensor: Tensor) -> Tensor:
        """The same values, mapped into memory from the file that the tensor was saved in; itself if it was not saved.

        Whoever replaces tensors of the state by these calls ``renew`` afterwards.
        """
        entry = self._saved.get(id(tensor))
        if entry is None or entry.tensor is not tensor or entry.mapped:
            return tensor if entry is None else entry.tensor
        file, name = entry.place
        if self._open[0] != file:
            self._open = (file, load_file(self.folder / file))
        self._replaced.append(tensor)  # its id stays its own until it is forgotten
        entry.tensor, entry.mapped = self._open[1][name], True
        self._saved[id(entry.tensor)] = entry
        return entry.tensor

    def renew(self, pieces: Pieces) -> None:
        """Of the saved state, these pieces are others now, with the same values."""
        for tensor in self._replaced:
            del self._saved[id(tensor)]
        self._replaced, self._open = [], ("", {})
        if self._renew(pieces, "", partial=True):
            raise ValueError("a tensor of the state was not saved")

    def pin(self, round: int) -> None:
        """Keep the checkpoint of a round that is on disk until another one is pinned."""
        write_text_atomic(self.folder / "pinned.json", json.dumps({"round": round}))

    def load_pinned(self, build: Callable[[Mapping[str, Tensor], Mapping[str, Any]], State]) -> State | None:
        """The pinned checkpoint, or None where there is none.

        Raises:
            UserError: it is damaged or of another format.
        """
        pinned = self._pinned()
        if pinned is None:
            return None
        try:
            return self._read(pinned, build)
        except _DAMAGE as error:
            raise UserError(f"The checkpoint {pinned} is damaged: {error}.") from error

    def _pinned(self) -> Path | None:
        path = self.folder / "pinned.json"
        try:
            number = json.loads(path.read_bytes())["round"]
        except FileNotFoundError:
            return None
        except _DAMAGE as error:
            raise UserError(f"{path} is damaged ({error}); valid is what fit has written.") from error
        return self.folder / f"round-{number:05d}.json" if type(number) is int else None

    def load(self, build: Callable[[Mapping[str, Tensor], Mapping[str, Any]], State]) -> State | None:
        """The newest intact checkpoint, or None if there are no checkpoints.

        Args:
            build: makes a state from the tensors and the rest; raises if the checkpoint is damaged.

        Raises:
            UserError: there are checkpoints, but none is intact, or they are of another format.
        """
        damaged: list[str] = []
        for path in reversed(self._manifests()):
            try:
                state = self._read(path, build)
            except _DAMAGE as error:
                damaged.append(f"{path.name}: {error}")
                continue
            for what in damaged:
                log.warning(
                    "A checkpoint in %s is damaged (%s); the one of round %d is used.", path.parent, what, _round(path)
                )
            return state
        if damaged:
            raise UserError(
                f"No checkpoint in {self.folder} is whole ({damaged[0]}); start over with --output.overwrite=true."
            )
        return None

    def _read(self, path: Path, build: Callable[[Mapping[str, Tensor], Mapping[str, Any]], State]) -> State:
        manifest = json.loads(path.read_text())
        if manifest.get("format") not in (FORMAT, _WITH_BASE):
            raise UserError(
                f"{path} has the format {manifest.get('format')!r}; this version of fedmoe reads format {FORMAT}."
            )
        checksum = manifest.pop("checksum", None)
        if checksum != _checksum(manifest):
            raise ValueError("the manifest's checksum does not fit")
        if manifest["round"] != _round(path):
            raise ValueError(f"it is of round {manifest['round']!r}")
        if manifest["format"] == _WITH_BASE:
            self._complete(manifest)
        contents = {file: self._tensors(file, digest) for file, digest in manifest["files"].items()}
        tensors = {name: contents[file][key] for name, (file, key) in manifest["tensors"].items()}
        state = build(tensors, manifest)
        self._forget()
        for name, place in manifest["tensors"].items():
            self._saved[id(tensors[name])] = _Entry(tensors[name], (place[0], place[1]), mapped=self.mapped)
        self._digests = manifest["files"]
        return state

    def _complete(self, manifest: dict[str, Any]) -> None:
        """Put a manifest and its base together."""
        name, checksum = manifest["base"]
        text = (self.folder / Path(name).name).read_bytes()
        if hashlib.sha256(text).hexdigest() != checksum:
            raise ValueError(f"the checksum of {name} does not fit")
        for key, values in json.loads(text).items():
            merged = {**values, **manifest["changes"][key]}
            manifest[key] = {name: value for name, value in merged.items() if value is not None}

    def _tensors(self, file: str, digest: str) -> dict[str, Tensor]:
        """The tensors of a file."""
        path = self.folder / Path(file).name
        if self.mapped:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            payload = path.read_bytes()
            found = hashlib.sha256(payload).hexdigest()
        if found != digest:
            raise ValueError(f"the checksum of {file} does not fit")
        return load_file(path) if self.mapped else load(payload)

    def _manifests(self) -> list[Path]:
        found = [path for path in self.folder.glob("round-*.json") if path.stem.removeprefix("round-").isdecimal()]
        return sorted(found, key=_round)  # by number: names are padded to five digits only

    def _collect(self) -> None:
        """Remove files that the manifests of the last rounds do not need."""
        manifests = self._manifests()
        pinned = self._pinned()
        kept = [path for path in manifests if path in manifests[-_KEPT:] or path == pinned]
        needed = set[str]().union(*(self._needed(path) for path in kept))
        for path in manifests:
            if path not in kept:
                path.unlink()
                self._needs.pop(path.name, None)
        for pattern in ("round-*.safetensors", "base-*.json"):
            for path in self.folder.glob(pattern):
                if path.name not in needed:
                    path.unlink()

    def _needed(self, path: Path) -> set[str]:
        """The files that a manifest on disk needs."""
        if path.name not in self._needs:
            manifest = json.loads(path.read_text())
            self._needs[path.name] = {*manifest["files"], *manifest.get("base", ())[:1]}
        return self._needs[path.name]


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def flat(pieces: Pieces) -> dict[str, Tensor]:
    """The tensors of all pieces, by their names in a manifest."""
    return {part: tensor for name, piece in pieces.items() for part, tensor in _parts(name, piece).items()}


def _parts(name: str, piece: Tensor | Group | None) -> dict[str, Tensor]:
    """The tensors of a piece, by their names in the manifest."""
    if piece is None:
        return {}
    if isinstance(piece, Tensor):
        return {name: piece}
    return {f"{name}/{part}": tensor for part, tensor in piece.tensors().items()}
