"""One client of a run, restored from the run's checkpoint, ready to predict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientFailure
from fedmoe.errors import UserError
from fedmoe.experiment import Session
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.restore import read_state, restore
from fedmoe.federation.state import FederationState
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import RoundContext, ScoreJob
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.folder import packed_before, require_format


@dataclass(frozen=True)
class RestoredClient:
    """A client of a run after the checkpoint's round.

    Attributes:
        module: the run's client module in this client's state; loading another client into it makes this one invalid.
        experts: what the weights of its gate belong to, the client's own prompt first; empty without experts.
    """

    client_id: int
    round: int
    module: ClientModule
    experts: tuple[str, ...]
    federation: Federation
    state: FederationState


def require_client(client_id: int, count: int) -> None:
    """Refuse a client that the run does not have.

    Raises:
        UserError: ``client_id`` is not in [0, count).
    """
    if not 0 <= client_id < count:
        raise UserError(f"client is {client_id}, but the run has {count} clients; valid is 0 to {count - 1}.")


def require_checkpoint(folder: Path, best: bool = False) -> FederationState:
    """The state in the run folder's newest checkpoint that is whole; with ``best``, in the one chosen by validation.

    Raises:
        UserError: the folder holds none, or none that can be used.
    """
    require_format(folder)
    state = read_state(StateStore(folder / "state"), best)
    if state is None:
        chosen = " chosen by validation" if best else ""
        valid = "a run with federation.validation" if best else "the folder of a run that fit has started"
        raise UserError(f"{folder} holds no checkpoint{chosen}; valid is {valid}.")
    return state


def restore_client(
    session: Session, method: Method, folder: Path, client_id: int, best: bool = False
) -> RestoredClient:
    """The client as the run's last evaluation had it: with what it keeps, what the server sends it for that, and
    fine-tuned where the method does so.

    Args:
        best: take the checkpoint that validation chose.

    Raises:
        UserError: there is no such client, the folder holds no checkpoint, or its fine-tuning fails.
    """
    state = require_checkpoint(folder, best)
    require_client(client_id, state.num_clients)
    session.packed = packed_before(folder)
    federation = session.federation(method)
    restore(federation, state, folder)
    fleet, server = federation.fleet, federation.server
    assert isinstance(fleet, LocalFleet)
    served = federation.defences.served(server).to(client_id)
    downlink = method.deploy(served, client_id, RoundContext(state.round, (), session.experiment.seed))
    job = ScoreJob(client_id, state.round, server.known(client_id).version, downlink)
    try:
        fleet.work.ready(job, fleet.kept.get(client_id, job.version))
    except ClientFailure as failure:
        raise UserError(f"Client {client_id} could not be fine-tuned: {failure}.") from failure
    module = fleet.work.module
    module.eval()
    count = 0 if module.expert_text is None else len(module.expert_text)
    names = [f"client {i}" for i in downlink.expert_ids] if len(downlink.expert_ids) == count else []
    names = names or [f"expert {i + 1}" for i in range(count)]  # copies or noise are no client's
    return RestoredClient(client_id, state.round, module, ("own", *names) if count else (), federation, state)
