"""PromptFL + FT: the global prompt, fine-tuned by each client before it predicts."""

from __future__ import annotations

import pytest
import torch
from federation_helpers import differences, work_of

from fedmoe.client.trainer import light_trainer
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData
from fedmoe.methods import PromptFL, PromptFLFT
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import Loadout, RoundContext
from fedmoe.seeds import torch_generator
from personal.helpers import CLIENTS, run


def test_fine_tuning_leaves_promptfls_rounds_alone_and_is_scored(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    tuned, log_tuned = run(embedded_clip, data, PromptFLFT(epochs=2))
    assert differences(promptfl.state, tuned.state) == []
    for plain, ours in zip(log.records, log_tuned.records, strict=True):
        assert (plain.bytes, plain.train_loss, plain.prompt_drift) == (ours.bytes, ours.train_loss, ours.prompt_drift)
        assert plain.accuracy is not None
        assert ours.accuracy is not None
        assert ours.accuracy["mean"] > plain.accuracy["mean"]


def test_fine_tuning_is_a_local_fit_from_the_global_prompt(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, log = run(embedded_clip, data, PromptFLFT(epochs=2))
    before = federation.state.flatten()
    for _ in range(2):  # evaluating again finds the same and changes nothing
        again = federation.evaluate(RoundContext(3, (), 5))
        assert again.clients == log.evaluations[-1].clients
    after = federation.state.flatten()
    assert before[1] == after[1]
    assert all(tensor is after[0][name] for name, tensor in before[0].items())

    work = work_of(federation)
    for client_id in range(CLIENTS):
        client = data.client(client_id)
        work.module.load(client_id, Loadout(federation.server.shared))
        batches = client.training_batches(32, torch_generator(5, "fine-tune batches", 3, client_id))
        light_trainer(work.runtime, max_epochs=2).fit(work.module, batches)
        with torch.no_grad():
            logits = embedded_clip.logit_scale * client.test_features @ work.module.prompts().T
        correct = int((logits.argmax(1) == client.test_labels).sum())
        assert log.evaluations[-1].clients[client_id].correct == correct


def test_fine_tuning_needs_an_epoch() -> None:
    with pytest.raises(UserError, match=r"method\.epochs is 0; valid is an integer of at least 1"):
        PromptFLFT(epochs=0)
