"""A client's own states on disk, where they survive the process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedmoe.io import read_regular, write_bytes_atomic
from fedmoe.protocol.records import ClientState


class StateLost(LookupError):
    """A client no longer has the state that the server names; the message says why, without naming the client."""


_KEPT = 3  # rounds of a client: one that the server counts, the one before it, and one whose answer was lost


class DiskStates:
    """One file for each client and each of the last rounds that it trained in.

    Args:
        folder: of one run; other runs have their own.
        durable: force each file to the disk, so that it survives a power cut.
    """

    def __init__(self, folder: Path, durable: bool = True) -> None:
        self.folder, self.durable = folder, durable

    def get(self, client_id: int, version: int) -> ClientState:
        """The state after a round; version 0 is that of a client that has never trained.

        Raises:
            StateLost: the state is no longer there, or is damaged.
        """
        if not version:
            return ClientState()
        path = self._path(client_id, version)
        try:
            data = read_regular(path)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            seen = int(header["__metadata__"]["rounds_seen"])
            tensors = load(data)
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                raise ValueError("it holds a number that is not finite")
        except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
            raise StateLost(f"its state of round {version} is no longer on its disk ({error})") from error
        groups: dict[str, dict[str, torch.Tensor]] = {"parameters": {}, "experts": {}}
        for name, tensor in tensors.items():
            group, _, inner = name.partition("/")
            groups[group][inner] = tensor
        return ClientState(**groups, rounds_seen=seen)

    def put(self, client_id: int, version: int, state: ClientState) -> None:
        """Store a new state. Rounds after it are those of a course that was given up; they are deleted."""
        tensors = {f"parameters/{name}": tensor.clone().contiguous() for name, tensor in state.parameters.items()}
        tensors |= {f"experts/{name}": tensor.clone().contiguous() for name, tensor in state.experts.items()}
        data = save(tensors, {"rounds_seen": str(state.rounds_seen)})
        path = self._path(client_id, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.durable:
            write_bytes_atomic(path, data)
        else:
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(data)
            temporary.replace(path)
        found = {int(file.stem): file for file in path.parent.glob("*.safetensors") if file.stem.isdecimal()}
        given_up = [number for number in found if number > version]
        old = sorted(number for number in found if number <= version)[:-_KEPT]
        for number in (*given_up, *old):
            found[number].unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all states of the run."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, client_id: int, version: int) -> Path:
        return self.folder / str(client_id) / f"{version:06d}.safetensors"
