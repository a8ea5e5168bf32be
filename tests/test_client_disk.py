"""The disk on which a client elsewhere keeps its states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedmoe.client.disk import DiskStates, StateLost
from fedmoe.protocol.records import ClientState


def test_a_disk_keeps_three_rounds_and_gives_up_later_ones(tmp_path: Path) -> None:
    states = DiskStates(tmp_path / "run")

    def state(number: int) -> ClientState:
        return ClientState({"prompt": torch.full((2,), float(number))}, {"prompt": torch.ones(1, 2)}, number)

    assert states.get(3, 0) == ClientState()
    for version in (2, 5, 6, 9):
        states.put(3, version, state(version))
    found = states.get(3, 5)
    assert found.rounds_seen == 5
    assert torch.equal(found.parameters["prompt"], torch.tensor([5.0, 5.0]))
    assert torch.equal(found.experts["prompt"], torch.ones(1, 2))
    with pytest.raises(StateLost, match="its state of round 2 is no longer on its disk"):
        states.get(3, 2)
    states.put(3, 6, state(6))  # resumed from an older checkpoint
    with pytest.raises(StateLost):
        states.get(3, 9)
    assert states.get(3, 5).rounds_seen == 5
    with pytest.raises(StateLost):
        DiskStates(tmp_path / "another run").get(3, 6)
    (path,) = (tmp_path / "run" / "3").glob("*6.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateLost):
        states.get(3, 6)
