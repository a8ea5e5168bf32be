"""Checkpoints of many clients, whose manifests say what differs from a base, and states that stay in their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from federation_helpers import differences
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.cli import main
from fedmoe.errors import UserError
from fedmoe.federation.restore import read_state
from fedmoe.federation.state import FederationState, Watch
from fedmoe.protocol.records import ClientState
from fedmoe.runs import checkpoint
from fedmoe.runs.checkpoint import StateStore
from fedmoe.server.state import Known, ServerState

CLIENTS = 30


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_LARGE", 20)  # states of a few clients count as large


def empty() -> FederationState:
    server = ServerState({"prompt": torch.zeros(2)}, {"prompt": {}}, frozenset({"prompt"}))
    return FederationState(0, CLIENTS, server, {})


def train(state: FederationState, clients: set[int], gated: bool) -> None:
    """One round: these clients upload a prompt and keep it, with a gate or without."""
    state.round += 1
    for i in clients:
        prompt = torch.rand(2)
        gate = {"gate.weight": torch.rand(3)} if gated else {}
        state.clients[i] = ClientState({"prompt": prompt, **gate}, {}, state.round)
        state.server.pool["prompt"][i] = prompt
        state.server.clients[i] = Known(state.round, (), state.round, gated)
    state.server.shared["prompt"] = torch.rand(2)


def save(store: StateStore, state: FederationState, watch: Watch | None = None) -> None:
    """Save the state, or only what a watch says has changed."""
    clients = None if watch is None else watch.changed(state.server)
    clients = clients if store.whole else None
    chosen = state.clients if clients is None else {i: own for i, own in state.clients.items() if i in clients}
    part = FederationState(state.round, state.num_clients, state.server, chosen, clients)
    store.save(state.round, part.pieces(), part.rest(), partial=clients is not None)


cohorts = st.lists(st.sets(st.integers(0, CLIENTS - 1), min_size=1, max_size=12), min_size=1, max_size=12)


@settings(max_examples=20, deadline=None)
@given(cohorts, st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)), st.booleans(), st.booleans())
def test_every_round_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    rounds: list[set[int]],
    resumed: set[int],
    lost: set[int],
    mapped: bool,
    changes_alone: bool,
) -> None:
    folder = tmp_path_factory.mktemp("state")
    store, state, watch = StateStore(folder, mapped), empty(), Watch() if changes_alone else None
    for number, clients in enumerate(rounds):
        train(state, clients, gated=number % 2 == 0)
        if number in lost and len(state.clients) > 1:  # a client that begins anew
            gone = min(state.clients)
            del state.clients[gone], state.server.clients[gone]
            state.server.extras = {f"momentum {number}": torch.rand(2)}  # and another extra than before
        save(store, state, watch)
        loaded = read_state(StateStore(folder))
        assert loaded is not None and differences(loaded, state) == []
        assert len([*folder.glob("base-*.json")]) <= 2  # of the two rounds that are kept
        if number in resumed:
            store = StateStore(folder, mapped)
            read = read_state(store)
            assert read is not None
            state = read
        elif mapped:
            pool = state.server.pool["prompt"]
            pool.update({i: store.release(pool[i]) for i in clients})
            changed = {i: state.clients[i].with_tensors(store.release) for i in clients & state.clients.keys()}
            state.clients.update(changed)
            store.renew(state.pieces())
            assert differences(loaded, state) == []


def test_a_manifest_says_what_its_round_changed(tmp_path: Path) -> None:
    store, state = StateStore(tmp_path), empty()
    train(state, set(range(CLIENTS)), gated=True)
    save(store, state)
    train(state, {3, 7}, gated=False)
    save(store, state)
    manifest = json.loads((tmp_path / "round-00002.json").read_text())
    expected = {
        f"{group}/{i}/{name}" for i in (3, 7) for group, name in [("pool", "prompt"), ("client", "parameters/prompt")]
    }
    gone = {f"client/{i}/parameters/gate.weight" for i in (3, 7)}
    assert manifest["changes"]["tensors"].keys() == expected | gone | {"shared/prompt"}
    assert {name for name, place in manifest["changes"]["tensors"].items() if place is None} == gone
    assert manifest["changes"]["clients"].keys() == {"3", "7"}


def test_a_part_is_not_saved_before_the_whole(tmp_path: Path) -> None:
    store, state, watch = StateStore(tmp_path), empty(), Watch()
    train(state, {1, 2}, gated=True)
    save(store, state, watch)
    train(state, {2}, gated=True)
    state.server.shared["prompt"] = "no tensor"  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        save(store, state, watch)
    state.server.shared["prompt"] = torch.rand(2)
    with pytest.raises(ValueError, match="before the whole"):
        store.save(2, state.pieces(), state.rest(), partial=True)
    save(store, state, watch)
    loaded = read_state(StateStore(tmp_path))
    assert loaded is not None and differences(loaded, state) == []


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_damaged_base_is_noticed(tmp_path: Path, damage: str) -> None:
    store, state = StateStore(tmp_path), empty()
    train(state, set(range(CLIENTS)), gated=True)
    save(store, state)
    [base] = tmp_path.glob("base-*.json")
    if damage == "missing":
        base.unlink()
    else:
        base.write_text(base.read_text().replace('"rounds_seen": 1', '"rounds_seen": 2', 1))
    with pytest.raises(UserError, match=r"No checkpoint in .* is whole"):
        read_state(StateStore(tmp_path))


def test_a_save_that_fails_leaves_the_round_before_and_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, state = StateStore(tmp_path), empty()
    train(state, set(range(CLIENTS)), gated=True)
    save(store, state)
    train(state, {1}, gated=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_text_atomic", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            save(store, state)
    before = read_state(StateStore(tmp_path))
    assert before is not None and before.round == 1
    save(store, state)
    loaded = read_state(StateStore(tmp_path))
    assert loaded is not None and differences(loaded, state) == []


def test_mapped_states_change_no_bit(tmp_path: Path) -> None:
    """Also of a run that is interrupted, and that goes on the other way."""

    def fit(name: str, *options: str) -> FederationState:
        arguments = [f"--output.dir={tmp_path}", f"--output.name={name}", "--federation.participation=0.5"]
        assert main(["fit", "--config=configs/smoke.yaml", *arguments, *options]) == 0
        state = read_state(StateStore(tmp_path / name / "state"))
        assert state is not None
        return state

    whole = fit("memory", "--federation.rounds=4")
    assert differences(fit("mapped", "--federation.rounds=4", "--runtime.client_states=mapped"), whole) == []
    fit("stopped", "--federation.rounds=2", "--runtime.client_states=mapped")
    shutil.copytree(tmp_path / "stopped", tmp_path / "other")
    assert differences(fit("stopped", "--federation.rounds=4", "--runtime.client_states=mapped"), whole) == []
    assert differences(fit("other", "--federation.rounds=4"), whole) == []
