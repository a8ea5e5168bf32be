"""Runs of methods with personal prompts end with the same bits, however they come about."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation_helpers import after_one_round, assert_same_bits

from fedmoe.features.client_data import FederatedData
from fedmoe.methods import FedAMP, FedPer, FedPGP, PromptFLFT
from fedmoe.models.clip import FrozenCLIP
from personal.helpers import build, run

METHODS = [lambda: PromptFLFT(epochs=1), FedPer, FedAMP, FedPGP]


@pytest.mark.parametrize("make", METHODS)
def test_neither_order_nor_the_global_generator_nor_an_interruption_changes_a_bit(
    embedded_clip: FrozenCLIP, data: FederatedData, make, tmp_path: Path
) -> None:
    first, first_log = after_one_round(*build(embedded_clip, data, make()))
    log = assert_same_bits(lambda **how: run(embedded_clip, data, make(), **how), (first, first_log), tmp_path)
    assert first.rounds_done == 1
    assert log.evaluations[1].clients == first_log.evaluations[1].clients
