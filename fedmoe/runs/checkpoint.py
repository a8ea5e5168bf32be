"""Everything a round leaves behind, and its checkpoint on disk.

A checkpoint of round t is two files, each written to a temporary file, synced and renamed: ``round-t.safetensors``
with the tensors that changed in round t, and then the manifest ``round-t.json``, which says for every tensor of the
state in which file it lies and carries the files' checksums. A round without its manifest does not exist. So a round
costs the disk what its cohort changed, not what all clients hold. The last two rounds are kept; where the newest is
damaged, the one before is used, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.io import write_bytes_atomic, write_text_atomic
from fedmoe.protocol.records import ClientState
from fedmoe.server.state import ServerState

log = logging.getLogger(__name__)
FORMAT = 1
_KEPT = 2  # rounds whose checkpoints stay on disk
_MOST_CLIENTS = 1_000_000  # a damaged number of clients must not take all memory
# What reading a file of other contents runs into.
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)


@dataclass
class FederationState:
    """The last finished round, the server, each client's own state, and the common start of all prompts.

    Round 0 is the evaluation before training; -1 stands for nothing done yet.
    """

    round: int
    initial: Tensor  # [l, w]
    server: ServerState
    clients: list[ClientState]

    @classmethod
    def fresh(cls, prompt: Tensor, num_clients: int) -> FederationState:
        """The state before the first round: everybody holds the same prompt."""
        return cls(-1, prompt, ServerState(prompt), [ClientState(prompt)] * num_clients)

    def flatten(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, and the rest as JSON."""
        tensors = {"initial": self.initial, "server/prompt": self.server.prompt}
        tensors |= {f"pool/{client}": prompt for client, prompt in self.server.pool.items()}
        tensors |= {f"extras/{name}": tensor for name, tensor in self.server.extras.items()}
        seen = {}
        for i, client in enumerate(self.clients):
            if not client.took_part:
                continue
            seen[str(i)] = {"rounds_seen": client.rounds_seen, "expert_ids": list(client.expert_ids)}
            tensors[f"client/{i}/prompt"] = client.prompt
            tensors |= {f"client/{i}/personal/{name}": tensor for name, tensor in client.personal.items()}
            if client.experts is not None:
                tensors[f"client/{i}/experts"] = client.experts
        return tensors, {"round": self.round, "num_clients": len(self.clients), "clients": seen}

    @classmethod
    def unflatten(cls, tensors: dict[str, Tensor], rest: dict[str, Any]) -> FederationState:
        """The inverse of ``flatten``."""

        def under(prefix: str) -> dict[str, Tensor]:
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        state = cls.fresh(tensors["initial"], rest["num_clients"])
        pool = {int(client): prompt for client, prompt in under("pool/").items()}
        state.server = ServerState(tensors["server/prompt"], pool, under("extras/"))
        state.round = rest["round"]
        for i, seen in rest["clients"].items():
            own = under(f"client/{i}/")
            personal = {name.removeprefix("personal/"): t for name, t in own.items() if name.startswith("personal/")}
            state.clients[int(i)] = ClientState(
                own["prompt"], personal, own.get("experts"), tuple(seen["expert_ids"]), seen["rounds_seen"]
            )
        return state


class StateStore:
    """Reads and writes checkpoints in one folder.

    Tensors of the state are never written to in place, so an object that was saved before is not saved again: the
    manifest points to the earlier file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._saved: dict[int, tuple[Tensor, list[str]]] = {}  # by id(tensor): the tensor, [file, name in file]
        self._digests: dict[str, str] = {}  # of the files that the newest manifest uses

    def save(self, state: FederationState) -> None:
        """Write the checkpoint of ``state.round``; when it returns, the round is safe."""
        tensors, rest = state.flatten()
        file = f"round-{state.round:05d}.safetensors"
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
        payload = save_tensors(fresh)
        write_bytes_atomic(self.folder / file, payload)
        digests = {file: hashlib.sha256(payload).hexdigest()}
        for used in {place[0] for place in places.values()} - {file}:
            digests[used] = self._digests[used]
        manifest = {"format": FORMAT, **rest, "tensors": places, "files": digests}
        manifest["checksum"] = _checksum(manifest)
        write_text_atomic(self.folder / f"round-{state.round:05d}.json", json.dumps(manifest))
        self._saved, self._digests = saved, digests
        self._collect()

    def load(self) -> FederationState | None:
        """The newest checkpoint that is whole, or None where there is none.

        Raises:
            UserError: there are checkpoints, but none is whole, or they are of another format.
        """
        damaged: list[str] = []
        for path in reversed(self._manifests()):
            try:
                state = self._read(path)
            except _DAMAGE as error:
                damaged.append(f"{path.name}: {error}")
                continue
            for what in damaged:
                log.warning(
                    "A checkpoint in %s is damaged (%s); the one of round %d is used.", path.parent, what, state.round
                )
            return state
        if damaged:
            raise UserError(
                f"No checkpoint in {self.folder} is whole ({damaged[0]}); start anew with --output.overwrite=true."
            )
        return None

    def _read(self, path: Path) -> FederationState:
        manifest = json.loads(path.read_text())
        if manifest.get("format") != FORMAT:
            raise UserError(
                f"{path} has the format {manifest.get('format')!r}; this version of fedmoe reads format {FORMAT}."
            )
        checksum = manifest.pop("checksum", None)
        if checksum != _checksum(manifest):
            raise ValueError("the manifest's checksum does not fit")
        _require_numbers(manifest, path)
        contents = {}
        for file, digest in manifest["files"].items():
            payload = (self.folder / Path(file).name).read_bytes()
            if hashlib.sha256(payload).hexdigest() != digest:
                raise ValueError(f"the checksum of {file} does not fit")
            contents[file] = load_tensors(payload)
        tensors = {name: contents[file][key] for name, (file, key) in manifest["tensors"].items()}
        state = FederationState.unflatten(tensors, manifest)
        _require_one_kind(state)
        self._saved = {id(tensors[name]): (tensors[name], place) for name, place in manifest["tensors"].items()}
        self._digests = manifest["files"]
        return state

    def _manifests(self) -> list[Path]:
        return sorted(self.folder.glob("round-*.json"))

    def _collect(self) -> None:
        """Remove what the last rounds' manifests do not need."""
        manifests = self._manifests()
        kept = manifests[-_KEPT:]
        needed = {file for path in kept for file in json.loads(path.read_text())["files"]}
        for path in manifests[:-_KEPT]:
            path.unlink()
        for path in self.folder.glob("round-*.safetensors"):
            if path.name not in needed:
                path.unlink()


def _checksum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _require_numbers(manifest: dict[str, Any], path: Path) -> None:
    """Raise ``ValueError`` unless the manifest names its own round, and clients that there are."""
    count = manifest["num_clients"]
    if type(count) is not int or not 0 < count <= _MOST_CLIENTS:
        raise ValueError(f"it has {count!r} clients")
    if type(manifest["round"]) is not int or path.stem != f"round-{manifest['round']:05d}":
        raise ValueError(f"it is of round {manifest['round']!r}")
    for client, seen in manifest["clients"].items():
        if not client.isdecimal() or int(client) >= count:
            raise ValueError(f"it names client {client!r} of {count}")
        if type(seen["rounds_seen"]) is not int or seen["rounds_seen"] < 1:
            raise ValueError(f"client {client} took part in {seen['rounds_seen']!r} rounds")
        if not all(type(expert) is int and 0 <= expert < count for expert in seen["expert_ids"]):
            raise ValueError(f"client {client} has the experts {seen['expert_ids']!r}")


def _require_one_kind(state: FederationState) -> None:
    """Raise ``ValueError`` unless all prompts are of one kind, as are what the clients keep for themselves.

    What is sent may be a part of the prompt's l context vectors, the same part of each.
    """
    whole, server, pool = state.initial, state.server.prompt, state.server.pool
    sent = {prompt.shape for prompt in pool.values()}
    clients = {i: client for i, client in enumerate(state.clients) if client.took_part}
    prompts = {"the prompt": server} | {f"the prompt in the pool of client {i}": prompt for i, prompt in pool.items()}
    for name, prompt in prompts.items():
        if len(sent) > 1 or prompt.shape not in (whole.shape, *sent) or prompt.shape[-1:] != whole.shape[-1:]:
            raise ValueError(f"{name} has shape {list(prompt.shape)}, and all begin with {list(whole.shape)}")
    for i, client in clients.items():
        prompts[f"the prompt of client {i}"] = client.prompt
        if client.prompt.shape != whole.shape:
            raise ValueError(f"the prompt of client {i} has shape {list(client.prompt.shape)}, not {list(whole.shape)}")
        if client.experts is not None and client.experts.shape[1:] not in (whole.shape, *sent):
            raise ValueError(f"the experts of client {i} have shape {list(client.experts.shape)}")
    for name, prompt in prompts.items():
        if prompt.dtype != whole.dtype or not bool(torch.isfinite(prompt).all()):
            raise ValueError(f"{name} is not of finite {whole.dtype}")
    if any(not 0 <= client < len(state.clients) for client in pool):
        raise ValueError(f"the pool has the clients {sorted(pool)} of {len(state.clients)}")
    kinds = {  # a client whose gate took no part in training yet keeps none
        i: {name: (tensor.shape, tensor.dtype) for name, tensor in client.personal.items()}
        for i, client in clients.items()
        if client.personal
    }
    for i, kind in kinds.items():
        if kind != next(iter(kinds.values())):
            raise ValueError(f"client {i} keeps other tensors than client {next(iter(kinds))}")
