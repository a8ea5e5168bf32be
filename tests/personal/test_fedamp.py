"""FedAMP: each client's prompt is pulled to a mixture of those that are near to it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from federation_helpers import build_module
from torch import Tensor

from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import FedAMP
from fedmoe.methods.fedamp import message_weights
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import ClientState, Downlink, RoundContext
from fedmoe.server.state import ServerState
from personal.helpers import CLIENTS, CONFIG, VECTOR_BYTES, LocalRounds, run


def pooled(start: Tensor, pool: dict[int, Tensor]) -> ServerState:
    """A server that has had these uploads of the prompt."""
    return ServerState({"prompt": start}, {"prompt": pool}, frozenset({"prompt"}))


def test_fedamps_messages_by_hand() -> None:
    """Prompts of one number, 0, 1 and 3, with sigma = 2 and alpha = 0.5, so that alpha / sigma = 1 / 4."""
    pool = {0: torch.zeros(1, 1), 1: torch.ones(1, 1), 2: torch.full((1, 1), 3.0)}
    weights = message_weights(pool, 1, sigma=2.0, alpha=0.5)
    near, far = math.exp(-1 / 2) / 4, math.exp(-4 / 2) / 4
    assert weights == {0: pytest.approx(near), 1: pytest.approx(1 - near - far), 2: pytest.approx(far)}
    server = pooled(torch.zeros(1, 1), pool)
    downlink = FedAMP(sigma=2.0, alpha=0.5).configure(server, 1, RoundContext(2, (1,), 0))
    mixture = downlink.extras["mixture"]
    assert mixture.item() == pytest.approx(1 - near - far + 3 * far, rel=1e-6)
    assert downlink.nbytes == 4 + 4  # the mixture of one number, and alpha
    # The server's step is alpha down the gradient of the attentive term: A'(x) (w_i - w_j) for each j.
    step = 0.5 * (math.exp(-1 / 2) / 2 * (1 - 0) + math.exp(-4 / 2) / 2 * (1 - 3))
    assert mixture.item() == pytest.approx(1 - step, rel=1e-6)


def test_fedamps_default_step_averages_equal_prompts_and_leaves_distant_ones() -> None:
    method, context = FedAMP(sigma=1.0), RoundContext(2, (0,), 0)
    near = {0: torch.zeros(2, 3), 1: torch.full((2, 3), 1e-4), 2: torch.full((2, 3), 2e-4)}
    downlink = method.configure(pooled(torch.zeros(2, 3), near), 0, context)
    assert torch.allclose(downlink.extras["mixture"], torch.full((2, 3), 1e-4), rtol=1e-5)
    distant = {i: torch.full((2, 3), 100.0 * i + 1) for i in range(3)}
    downlink = method.configure(pooled(torch.zeros(2, 3), distant), 0, context)
    assert torch.equal(downlink.extras["mixture"], distant[0])


def test_fedamps_pull_by_hand(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    method = FedAMP(sigma=2.0, alpha=0.25, lmbda=0.3)
    module = build_module(embedded_clip, data, method)
    own = ClientState(module.shared_start(), rounds_seen=1)
    assert own.parameters["prompt"].shape == (16, 64)
    features, labels = data.client(0).train_features[:8], data.client(0).train_labels[:8]
    mixture = own.parameters["prompt"] + 0.5
    downlink = Downlink(extras={"mixture": mixture, "alpha": torch.tensor(0.25)})
    losses = {}
    for name, sent in {"pulled": downlink, "free": Downlink()}.items():
        loadout = method.start(own, sent)
        assert loadout.parameters["prompt"] is own.parameters["prompt"]
        module.load(0, loadout)
        losses[name] = float(method.loss(module, features, labels).detach())
    # lambda / (2 alpha) = 0.6, times 16 * 64 squares of 0.5
    assert losses["pulled"] - losses["free"] == pytest.approx(0.6 * 16 * 64 * 0.25, rel=1e-5)


def test_fedamp_without_the_attentive_term_is_local_training(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    local, log = run(embedded_clip, data, LocalRounds())
    fedamp, log_fedamp = run(embedded_clip, data, FedAMP(lmbda=0.0))
    assert len(local.state.clients) >= 3
    assert local.state.clients.keys() == fedamp.state.clients.keys()
    for client_id, client in local.state.clients.items():
        assert torch.equal(client.parameters["prompt"], fedamp.state.clients[client_id].parameters["prompt"])
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_fedamp.evaluations]


def test_fedamp_draws_clients_together_and_costs_a_prompt_each_way(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    def spread(federation: Federation) -> float:
        prompts = torch.stack([client.parameters["prompt"] for client in federation.state.clients.values()])
        assert len(prompts) == CLIENTS
        return float((prompts - prompts.mean(0)).norm())

    config = replace(CONFIG, participation=1.0)
    local, _ = run(embedded_clip, data, LocalRounds(), config=config)
    weak, log = run(embedded_clip, data, FedAMP(lmbda=0.1), config=config)
    strong, _ = run(embedded_clip, data, FedAMP(lmbda=1.0), config=config)
    assert 0 < spread(strong) < spread(weak) < spread(local)
    prompts = CLIENTS * 16 * VECTOR_BYTES
    assert log.records[1].bytes == {"down": 0, "up": prompts, "evaluate_down": 0}
    for record in log.records[2:]:
        assert record.bytes == {"down": prompts + CLIENTS * 4, "up": prompts, "evaluate_down": 0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, r"method\.sigma is 0\.0; valid is a number above 0"),
        ({"alpha": 0.0}, r"method\.alpha is 0\.0; valid is a number above 0, or null"),
        ({"lmbda": -1.0}, r"method\.lmbda is -1\.0; valid is a number of at least 0"),
        ({"alpha": 0.3}, r"method\.alpha is 0\.3; .* valid is at most sigma / \(clients - 1\) = 0\.25, or null"),
    ],
)
def test_fedamp_refuses_settings_that_make_no_mixture(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedAMP(**settings).check(CONFIG, feature_dim=64)
    FedAMP(alpha=0.25).check(CONFIG, feature_dim=64)  # five clients: four others with at most a quarter each
