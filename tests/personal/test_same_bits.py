"""Runs of methods with personal prompts end with the same bits, however they come about."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from federation_helpers import Backwards, differences, results

from fedmoe.features.client_data import FederatedData
from fedmoe.federation.state import FederationState
from fedmoe.methods import FedAMP, FedPer, FedPGP, PromptFLFT
from fedmoe.models.clip import FrozenCLIP
from fedmoe.runs.checkpoint import StateStore
from personal.helpers import build, run

METHODS = [lambda: PromptFLFT(epochs=1), FedPer, FedAMP, FedPGP]


@pytest.mark.parametrize("make", METHODS)
def test_neither_order_nor_the_global_generator_nor_an_interruption_changes_a_bit(
    embedded_clip: FrozenCLIP, data: FederatedData, make, tmp_path: Path
) -> None:
    whole, log = run(embedded_clip, data, make())
    torch.manual_seed(1234)
    again, log_again = run(embedded_clip, data, make(), kind=Backwards)
    assert differences(whole.state, again.state) == []
    assert results(log) == results(log_again)

    first, first_log = build(embedded_clip, data, make())
    first_log.on_round_end(first, first._before_training())
    first_log.on_round_end(first, first.round(1))
    StateStore(tmp_path).save(1, *first.state.flatten())
    state = StateStore(tmp_path).load(FederationState.unflatten)
    assert state is not None and state.round == 1
    resumed, second_log = run(embedded_clip, data, make(), state=state)
    assert differences(whole.state, resumed.state) == []
    assert results(log) == results(first_log) + results(second_log)
    assert log.evaluations[1].clients == first_log.evaluations[1].clients
    assert log.evaluations[-1].clients == second_log.evaluations[-1].clients
