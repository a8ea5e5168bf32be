"""Putting an exported client back into a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fedmoe.errors import UserError
from fedmoe.experiment import Session
from fedmoe.export.folder import TELLS, ExportedClient, classes_hash, read_export
from fedmoe.federation.restore import read_state, restore
from fedmoe.federation.state import FederationState
from fedmoe.methods import FedPHA
from fedmoe.models.prompt import readable
from fedmoe.prediction.client import require_client
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import ClientState, Tensors
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.folder import held, require_format
from fedmoe.server.state import Known


def import_client(session: Session, method: Method, exported: Path, folder: Path, client_id: int) -> ExportedClient:
    """Make an exported client the client ``client_id`` of a run's newest checkpoint.

    What the client keeps (its prompt, gate, held experts), its entry in the server's pool and what the server knows of
    its last round become those of the export; the number of its rounds never falls. The shared parameters, the other
    clients and the logs stay. ``evaluate``, ``predict`` and ``fit --resume`` go on from there.

    Raises:
        UserError: the export is damaged, of a client that never trained, or of another method, CLIP or classes; the run
            has no such client or no checkpoint of a round; or another process works in it.
    """
    require_format(folder)
    told, tensors = read_export(exported)
    _require_same(session, method, told, exported, folder)
    with held(folder):
        store = StateStore(folder / "state")
        state = read_state(store)
        if state is None or state.round < 1:
            raise UserError(f"{folder} holds no checkpoint of a round; valid is a run that has finished one.")
        require_client(client_id, state.num_clients)
        _require_same_length(method, told, exported, client_id)
        changed = _with_client(state, client_id, told, tensors)
        try:
            checked = FederationState.unflatten(*changed.flatten())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{exported} does not fit {folder}: {error}.") from error
        restore(session.federation(method), checked, folder)
        store.save(state.round, *changed.flatten(), again=True)
    return told


def _require_same(session: Session, method: Method, told: ExportedClient, exported: Path, folder: Path) -> None:
    own = f"{type(method).__module__}.{type(method).__qualname__}"
    names = [readable(name) for name in session.experiment.data.class_names]
    where = exported / TELLS
    if told.rounds_seen < 1 or told.version < 1:
        raise UserError(f"{where} is of a client that never trained: there is nothing to put back.")
    if told.method != own:
        raise UserError(f"{where} is of the method {told.method}, but {folder} of {own}; valid is the same.")
    if told.classes_sha256 != classes_hash(names):
        raise UserError(
            f"{where} is of {len(told.class_names)} classes that are not the {len(names)} of {folder}; valid are the "
            "same names in the same order."
        )
    if told.clip.get("fingerprint") != session.clip.fingerprint:
        raise UserError(
            f"{where} is of the CLIP {told.clip.get('name')} with other weights, architecture or precision than the "
            f"{session.clip.name} of {folder}; valid is the same."
        )


def _require_same_length(method: Method, told: ExportedClient, exported: Path, client_id: int) -> None:
    """FedPHA's local prompts have the lengths of their clients' numbers."""
    lengths = method.lengths if isinstance(method, FedPHA) else None
    if lengths is None:
        return
    theirs, ours = (lengths[i % len(lengths)] for i in (told.client, client_id))
    if theirs != ours:
        raise UserError(
            f"{exported / TELLS} is of client {told.client} with {theirs} context vectors of method.lengths, but "
            f"client {client_id} has {ours} of them; valid is a client with as many."
        )


def _with_client(state: FederationState, client_id: int, told: ExportedClient, tensors: Tensors) -> FederationState:
    parameters, experts, pool = (
        {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        for start in ("state/parameters/", "state/experts/", "pool/")
    )
    server = state.server.copy()
    for name, entries in server.pool.items():
        if name in pool:
            entries[client_id] = pool[name]
    known = all(0 <= i < state.num_clients for i in told.expert_ids)  # else they are clients of another run
    ids = tuple(told.expert_ids) if known else ()
    gated = told.gated or bool(told.expert_ids)
    seen = max(told.rounds_seen, server.known(client_id).rounds_seen)  # a privacy budget that is spent stays spent
    server.clients[client_id] = Known(seen, ids, min(told.version, state.round), gated)
    client = ClientState(parameters, experts, seen)
    return replace(state, server=server, clients={**state.clients, client_id: client})
