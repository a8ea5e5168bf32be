"""Checkpoints on disk: named tensors and plain numbers, one checkpoint per round.

A checkpoint of round t is two files, each written to a temporary file, synced and renamed: ``round-t.safetensors``
with the tensors that changed in round t, and then the manifest ``round-t.json``, which names the file of every tensor
of the state and contains the files' checksums. A round without a manifest does not exist. So the disk space of a round
is what its cohort changed, not what all clients hold. The last two rounds are kept; if the newest is damaged, the
previous one is used, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from fedmoe.errors import UserError
from fedmoe.io import write_bytes_atomic, write_text_atomic

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
FORMAT = 2
_KEPT = 2  # rounds whose checkpoints stay on disk
State = TypeVar("State")
# What reading a file with other contents can raise.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)


class StateStore:
    """Reads and writes checkpoints in one folder.

    Tensors of the state are never written to in place, so an object that has been saved is not saved again: the
    manifest points to the earlier file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved: dict[int, tuple[Tensor, list[str]]] = {}  # by id(tensor): the tensor, [file, name in file]
        self._digests: dict[str, str] = {}  # of the files that the newest manifest uses

    def save(self, round: int, tensors: Mapping[str, Tensor], rest: Mapping[str, Any], *, again: bool = False) -> None:
        """Write the checkpoint of a round; when this returns, the round is safe.

        Args:
            tensors: by name.
            rest: the remainder of the state, as JSON.
            again: the checkpoint of this round, which is on disk, is changed: its file of tensors stays until the new
                manifest is written.
        """
        from safetensors.torch import save

        file = f"round-{round:05d}{f'-{secrets.token_hex(4)}' if again else ''}.safetensors"
        fresh: dict[str, Tensor] = {}
        places: dict[str, list[str]] = {}
        saved: dict[int, tuple[Tensor, list[str]]] = {}
        for name, tensor in tensors.items():
            entry = saved.get(id(tensor)) or self._saved.get(id(tensor))
            if entry is None:
                fresh[name] = tensor.contiguous()
                entry = (tensor, [file, name])
            saved[id(tensor)] = entry
            places[name] = entry[1]
        self.folder.mkdir(parents=True, exist_ok=True)
        payload = save(fresh)
        write_bytes_atomic(self.folder / file, payload)
        digests = {file: hashlib.sha256(payload).hexdigest()}
        for used in {place[0] for place in places.values()} - {file}:
            digests[used] = self._digests[used]
        manifest = {"format": FORMAT, **rest, "tensors": places, "files": digests}
        manifest["checksum"] = _checksum(manifest)
        write_text_atomic(self.folder / f"round-{round:05d}.json", json.dumps(manifest))
        self._saved, self._digests = saved, digests
        self._collect()

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
        from safetensors.torch import load

        manifest = json.loads(path.read_text())
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{path} has the format {manifest.get('format')!r}; this version of fedmoe reads format {FORMAT}."
            )
        checksum = manifest.pop("checksum", None)
        if checksum != _checksum(manifest):
            raise ValueError("the manifest's checksum does not fit")
        if manifest["round"] != _round(path):
            raise ValueError(f"it is of round {manifest['round']!r}")
        contents = {}
        for file, digest in manifest["files"].items():
            payload = (self.folder / Path(file).name).read_bytes()
            if hashlib.sha256(payload).hexdigest() != digest:
                raise ValueError(f"the checksum of {file} does not fit")
            contents[file] = load(payload)
        tensors = {name: contents[file][key] for name, (file, key) in manifest["tensors"].items()}
        state = build(tensors, manifest)
        self._saved = {id(tensors[name]): (tensors[name], place) for name, place in manifest["tensors"].items()}
        self._digests = manifest["files"]
        return state

    def _manifests(self) -> list[Path]:
        found = [path for path in self.folder.glob("round-*.json") if path.stem.removeprefix("round-").isdecimal()]
        return sorted(found, key=_round)  # by number: names are padded to five digits only

    def _collect(self) -> None:
        """Remove files that the manifests of the last rounds do not need."""
        manifests = self._manifests()
        pinned = self._pinned()
        kept = [path for path in manifests if path in manifests[-_KEPT:] or path == pinned]
        needed = {file for path in kept for file in json.loads(path.read_text())["files"]}
        for path in manifests:
            if path not in kept:
                path.unlink()
        for path in self.folder.glob("round-*.safetensors"):
            if path.name not in needed:
                path.unlink()


def _round(path: Path) -> int:
    return int(path.stem.removeprefix("round-"))


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
