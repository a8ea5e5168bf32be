"""Checkpoints: what is saved is read back to the bit, what is damaged is never used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fedmoe.errors import UserError
from fedmoe.federation.restore import read_state
from fedmoe.federation.state import FederationState
from fedmoe.protocol.records import ClientState
from fedmoe.runs.checkpoint import StateStore
from fedmoe.server.state import Known, ServerState


def _state(round: int = 1) -> FederationState:
    torch.manual_seed(round)
    prompt = torch.randn(4, 3)
    server = ServerState({"prompt": torch.randn(4, 3)}, {"prompt": {2: prompt}}, frozenset({"prompt"}))
    server.extras["mix"] = torch.randn(2)
    server.clients[2] = Known(rounds_seen=1, expert_ids=(4,), version=1)
    parameters = {"prompt": prompt, "gate.query.weight": torch.randn(2, 2)}
    return FederationState(round, 5, server, {2: ClientState(parameters, {"prompt": torch.randn(1, 4, 3)}, 1)})


def _save(store: StateStore, state: FederationState) -> None:
    store.save(state.round, *state.flatten())


def _equal(one: FederationState, other: FederationState) -> bool:
    (tensors, rest), (other_tensors, other_rest) = one.flatten(), other.flatten()
    return (
        rest == other_rest
        and tensors.keys() == other_tensors.keys()
        and all(torch.equal(tensors[name], other_tensors[name]) for name in tensors)
    )


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = _state()
    _save(StateStore(tmp_path), state)
    loaded = read_state(StateStore(tmp_path))
    assert loaded is not None
    assert _equal(loaded, state)
    assert loaded.server.known(2).expert_ids == (4,)
    assert loaded.clients[2].took_part
    assert set(loaded.clients) == {2} and loaded.server.known(0) == Known()  # the others never took part
    assert read_state(StateStore(tmp_path / "nothing")) is None


def test_a_round_writes_only_what_changed(tmp_path: Path) -> None:
    store, state = StateStore(tmp_path), _state()
    _save(store, state)
    first = (tmp_path / "round-00001.safetensors").stat().st_size
    state.round = 2
    state.server.shared["prompt"] = torch.zeros(4, 3)
    _save(store, state)
    assert (tmp_path / "round-00002.safetensors").stat().st_size < first / 2
    loaded = read_state(StateStore(tmp_path))
    assert loaded is not None
    assert _equal(loaded, state)


def test_a_resumed_store_goes_on_from_the_files_it_read(tmp_path: Path) -> None:
    _save(StateStore(tmp_path), _state())
    store = StateStore(tmp_path)
    state = read_state(store)
    assert state is not None
    for round in range(2, 6):
        state.round = round
        state.server.shared["prompt"] = torch.full((4, 3), float(round))
        _save(store, state)
    loaded = read_state(StateStore(tmp_path))
    assert loaded is not None
    assert _equal(loaded, state)
    assert len(list(tmp_path.glob("*.json"))) == 2  # the last two rounds
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {"round-00001", "round-00004", "round-00005"}


def test_rounds_are_in_numeric_order_beyond_five_digits(tmp_path: Path) -> None:
    """Names are padded to five digits, so "round-100000" sorts before "round-99999" as text."""
    store, state = StateStore(tmp_path), _state(99_998)
    for round in (99_998, 99_999, 100_000):
        state.round = round
        state.server.shared["prompt"] = torch.full((4, 3), float(round))
        _save(store, state)
    assert {path.name for path in tmp_path.glob("*.json")} == {"round-99999.json", "round-100000.json"}
    store = StateStore(tmp_path)
    loaded = read_state(store)
    assert loaded is not None and loaded.round == 100_000
    assert _equal(loaded, state)
    loaded.round = 100_001
    _save(store, loaded)
    assert {path.name for path in tmp_path.glob("*.json")} == {"round-100000.json", "round-100001.json"}
    (tmp_path / "round-100001.json").write_text("{")
    fallen = read_state(StateStore(tmp_path))
    assert fallen is not None and fallen.round == 100_000


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_damaged_round_falls_back_to_the_one_before(
    tmp_path: Path, suffix: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store, state = StateStore(tmp_path), _state()
    _save(store, state)
    expected = read_state(StateStore(tmp_path))
    assert expected is not None
    state.round = 2
    state.server.shared["prompt"] = torch.zeros(4, 3)
    _save(store, state)
    newest = tmp_path / f"round-00002.{suffix}"
    content = bytearray(newest.read_bytes())
    if damage == "missing":
        newest.unlink()
    elif damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    loaded = read_state(StateStore(tmp_path))
    unfinished = damage == "missing" and suffix == "json"
    assert ("round-00002.json: " in caplog.text and "round 1 is used" in caplog.text) != unfinished
    assert loaded is not None
    assert _equal(loaded, expected)


def test_all_damaged_or_of_another_format_is_refused(tmp_path: Path) -> None:
    _save(StateStore(tmp_path), _state())
    path = tmp_path / "round-00001.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        read_state(StateStore(tmp_path))
    path.write_text("{")
    with pytest.raises(UserError, match="is whole"):
        read_state(StateStore(tmp_path))
