"""FedPer: some vectors of the prompt are shared, the others stay with the client."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from federation_helpers import Log, differences, results, work_of
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.config import PromptConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.state import fresh_server
from fedmoe.methods import FedPer, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import ClientState, Loadout, RoundContext, Update
from fedmoe.server.state import ServerState
from personal.helpers import CLIENTS, CONFIG, VECTOR_BYTES, LocalRounds, build, run


def joined(module: ClientModule, loadout: Loadout) -> Tensor:
    """The prompt that a client classifies with after the load."""
    module.load(0, loadout)
    return module.method.prompt(module).detach().clone()


def test_fedper_joins_averages_and_keeps_by_hand(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip(text_width=2, text_heads=1)
    method, context = FedPer(personal_vectors=1), RoundContext(1, (0, 1), 0)
    module = ClientModule(clip, PromptLearner(clip, ["cat", "dog"], PromptConfig(length=4)), method=method)
    start = torch.arange(4.0).unsqueeze(1).expand(4, 2)  # l = 4, w = 2, row i holds i
    server = fresh_server(module.declared, {"prompt": start[:3]})
    own = ClientState({"own": torch.full((1, 2), 7.0)})
    downlink = method.configure(server, 0, context)
    assert downlink.nbytes == 3 * 2 * 4
    assert joined(module, method.start(own, downlink))[:, 0].tolist() == [0, 1, 2, 7]

    updates = []
    for client_id, (value, examples) in enumerate([(1.0, 30), (5.0, 10)]):
        module.load(client_id, method.start(own, downlink))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.fill_(value)  # in place of training
        assert method.prompt(module).tolist() == [[value, value]] * 4
        update, kept = method.finish(module, own, downlink, examples)
        assert update.client_id == client_id
        assert update.parameters.keys() == {"prompt"}
        assert update.parameters["prompt"].tolist() == [[value, value]] * 3
        assert update.nbytes == 3 * 2 * 4
        assert kept.parameters.keys() == {"own"}
        assert kept.parameters["own"].tolist() == [[value, value]] * 1
        updates.append(update)
    method.aggregate(server, updates, context)
    assert server.shared["prompt"].tolist() == [[2.0, 2.0]] * 3  # (30 * 1 + 10 * 5) / 40
    assert method.configure(server, 1, context).parameters["prompt"].tolist() == [[2.0, 2.0]] * 3
    loadout = method.inference(own, method.deploy(server, 0, context))
    assert joined(module, loadout)[:, 0].tolist() == [2, 2, 2, 7]


def test_fedper_shares_the_first_half_of_class_specific_prompts_too(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip()
    learner = PromptLearner(clip, ["cat", "dog", "bird"], PromptConfig(length=4, class_specific=True))
    prompts = learner.start.clone()  # [C, l, w]
    assert prompts.shape == (3, 4, clip.token_width)
    module = ClientModule(clip, learner, method=FedPer())
    shared = module.shared_start()
    assert shared.keys() == {"prompt"}
    assert torch.equal(shared["prompt"], prompts[:, :2])
    assert torch.equal(joined(module, Loadout(shared)), prompts)


def test_fedper_without_personal_vectors_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    fedper, log_fedper = run(embedded_clip, data, FedPer(personal_vectors=0))
    assert differences(promptfl.state, fedper.state) == []
    assert results(log) == results(log_fedper)


def test_fedper_with_all_vectors_personal_is_local_training(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    local, log = run(embedded_clip, data, LocalRounds())
    fedper, log_fedper = run(embedded_clip, data, FedPer(personal_vectors=16))
    clients = fedper.state.clients  # the same but for the name of the prompt
    assert all(client.parameters.keys() == {"own"} for client in clients.values())
    renamed = {i: replace(client, parameters={"prompt": client.parameters["own"]}) for i, client in clients.items()}
    assert differences(local.state, replace(fedper.state, clients=renamed)) == []
    assert results(log) == results(log_fedper)
    assert all(record.bytes == {"down": 0, "up": 0, "evaluate_down": 0} for record in log_fedper.records)


class Recorded(FedPer):
    """Keeps the last round's uploads."""

    uploads: Sequence[Update] = ()

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        self.uploads = updates
        super().aggregate(server, updates, context)


def test_fedper_in_between(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    method = Recorded(personal_vectors=6)
    federation, log = run(embedded_clip, data, method, config=replace(CONFIG, participation=1.0))
    server, clients = federation.server, federation.state.clients
    assert [update.client_id for update in method.uploads] == list(clients) == list(range(CLIENTS))
    prompts = [
        torch.cat([update.parameters["prompt"], clients[i].parameters["own"]])
        for i, update in enumerate(method.uploads)
    ]
    assert all(prompt.shape == (16, 64) for prompt in prompts)
    assert server.shared["prompt"].shape == (10, 64)
    examples = [len(data.client(i).train_labels) for i in range(CLIENTS)]
    total = torch.stack([n * prompt[:10].double() for n, prompt in zip(examples, prompts, strict=True)]).sum(0)
    mean = total / sum(examples)
    assert torch.allclose(server.shared["prompt"].double(), mean, rtol=0, atol=1e-7)
    for record in log.records[1:]:
        sent = CLIENTS * 10 * VECTOR_BYTES  # ten vectors to and from each client, and again to each for its evaluation
        assert record.bytes == {"down": sent, "up": sent, "evaluate_down": sent}
    assert log.records[0].bytes == {"down": 0, "up": 0, "evaluate_down": sent}
    current = server.shared["prompt"].double()
    drift = math.fsum(float((prompt[:10].double() - current).norm()) for prompt in prompts) / CLIENTS
    assert log.records[-1].prompt_drift == pytest.approx(drift, rel=1e-9)
    assert all(not torch.equal(prompts[0][10:], prompt[10:]) for prompt in prompts[1:])
    loadout = method.inference(clients[2], method.deploy(server, 2, RoundContext(3, (), 5)))
    expected = torch.cat([server.shared["prompt"], prompts[2][10:]])
    assert torch.equal(joined(work_of(federation).module, loadout), expected)


def test_fedper_refuses_more_vectors_than_there_are(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    with pytest.raises(UserError, match=r"method\.personal_vectors is -1; valid is an integer of at least 0"):
        FedPer(personal_vectors=-1)
    log = Log()
    with pytest.raises(UserError, match=r"personal_vectors is 17, but the prompt has 16 .* valid is 0 to 16"):
        build(embedded_clip, data, FedPer(personal_vectors=17), callbacks=[log])[0].run()
    assert log.records == []
