"""Continuing from a checkpoint."""

from __future__ import annotations

from pathlib import Path

from fedmoe.errors import UserError
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.state import FederationState
from fedmoe.runs.checkpoint import StateStore


def read_state(store: StateStore, best: bool = False) -> FederationState | None:
    """The newest checkpoint that is whole, or the one chosen by validation (``best``); None where there is none.

    Raises:
        UserError: there are checkpoints, but none is intact, or they are of another format.
    """
    return (store.load_pinned if best else store.load)(FederationState.unflatten)


def restore(federation: Federation, state: FederationState, folder: Path) -> None:
    """Put a checkpoint into a federation that was rebuilt from the run folder's settings.

    Raises:
        UserError: the checkpoint belongs to another federation, with other clients or other parameters.
    """
    expected, found = federation.server, state.server
    if state.num_clients != federation.config.clients:
        raise UserError(
            f"{folder / 'state'} is of {state.num_clients} clients, but config.yaml says {federation.config.clients}; "
            "valid is a folder as fit left it."
        )
    shapes, others = ({name: list(t.shape) for name, t in server.shared.items()} for server in (expected, found))
    if shapes != others or expected.pool.keys() != found.pool.keys() or expected.kept != found.kept:
        raise UserError(
            f"{folder / 'state'} holds the shared parameters {others}, but the method of config.yaml has {shapes}; "
            "valid is a folder as fit left it."
        )
    try:
        federation.restore(state)
    except ValueError as error:
        raise UserError(
            f"{folder / 'state'} does not fit the method of config.yaml ({error}); valid is a folder as fit left it."
        ) from error
