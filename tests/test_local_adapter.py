"""LocalAdapter, worked out by hand on toys (``toy_client``: text features are the prompts), and a short real run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from federation_helpers import build_federation
from toy_client import SCALE, at, same, server_of, toy_client

from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import prepare
from fedmoe.methods import LocalAdapter, PFedMoAP
from fedmoe.models.adapter import ResidualAdapter
from fedmoe.models.gating import AttentionGate
from fedmoe.protocol.parameters import ModelSpec, Scope
from fedmoe.protocol.records import ClientState, RoundContext
from fedmoe.server.state import Known

CONTEXT = RoundContext(6, (0, 1), seed=5)


@pytest.mark.parametrize(("feature_dim", "gating_dim"), [(1024, 128), (128, 128), (64, 32), (6, 1)])
def test_it_has_as_many_parameters_as_an_attention_gate(feature_dim: int, gating_dim: int) -> None:
    adapter, gate = ResidualAdapter(feature_dim, gating_dim), AttentionGate(feature_dim, gating_dim, heads=1)
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (adapter, gate)]
    assert sizes[0] == sizes[1] == 4 * gating_dim**2 + 4 * gating_dim
    assert gating_dim != 128 or sizes[0] == 66_048


def test_the_declaration() -> None:
    prompt, adapter = LocalAdapter(gating_dim=2).parameters(ModelSpec(at(1.0), 2))
    assert (prompt.name, prompt.scope, prompt.rate, prompt.keep) == ("prompt", Scope.SHARED, "prompt_lr", True)
    assert (adapter.name, adapter.scope, adapter.rate) == ("adapter", Scope.PERSONAL, "gating_lr")
    assert not prompt.pool
    assert LocalAdapter().gating_dim == 128 and LocalAdapter().pooling == "stride"


def test_what_crosses_is_the_prompt() -> None:
    made = LocalAdapter(gating_dim=2)
    server = server_of({}, {"prompt": at(9.0)}, {1: Known(1)})
    assert same(made.configure(server, 1, CONTEXT).parameters, {"prompt": at(9.0)})
    assert same(made.deploy(server, 0, CONTEXT).parameters, {"prompt": at(9.0)})
    assert same(made.deploy(server, 1, CONTEXT).parameters, {})
    client = toy_client(made, at(1.0))
    update, kept = made.finish(client, ClientState(), made.configure(server, 1, CONTEXT), 30)
    assert same(update.parameters, {"prompt": at(1.0)})
    assert kept.parameters.keys() == {"prompt", *(f"adapter.{n}" for n in client.__dict__["adapter"].state_dict())}


def test_it_starts_as_the_prompt_alone() -> None:
    made = LocalAdapter(gating_dim=2)
    image = torch.tensor([[0.6, 0.8]])
    assert made.logits(toy_client(made, torch.eye(2)), image).tolist() == [pytest.approx([SCALE * 0.6, SCALE * 0.8])]


@pytest.mark.parametrize(("pooling", "pooled"), [("stride", 0.5), ("average", 0.25)])
def test_logits_by_hand(pooling: Any, pooled: float) -> None:
    """Width 2 pooled to 1. Hidden: relu(2 x + 1), relu(-2 x - 1) = 2 x + 1, 0; A = 3 (4 (2 x + 1) + 7 * 0 - 2)."""
    made = LocalAdapter(gating_dim=1, pooling=pooling)
    client: Any = toy_client(made, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    with torch.no_grad():
        client.adapter.inner.weight.copy_(torch.tensor([[2.0], [-2.0]]))
        client.adapter.inner.bias.copy_(torch.tensor([1.0, -1.0]))
        client.adapter.outer.weight.copy_(torch.tensor([[4.0, 7.0]]))
        client.adapter.outer.bias.fill_(-2.0)
        client.adapter.scale.fill_(3.0)
    added = 3 * (4 * (2 * pooled + 1) - 2)
    texts = [1.0, 0.0] if pooling == "stride" else [0.5, 0.5]  # the pooled text features
    expected = [SCALE * (added * texts[0] + 0.5), SCALE * (added * texts[1] + 0.0)]
    assert made.logits(client, torch.tensor([[0.5, 0.0]])).tolist() == [pytest.approx(expected)]


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"^method\.gating_dim is 100, .* CLIP's feature width 1024; valid are 1, 2, 4"):
        LocalAdapter(gating_dim=100).check(FederationConfig(), 1024)
    LocalAdapter().check(FederationConfig(), 1024)


def test_with_an_adapter_that_does_not_learn_it_is_the_own_prompt(embedded_clip: Any, tmp_path: Any) -> None:
    config = FederationConfig(clients=3, rounds=2, local_epochs=1, batch_size=32)
    data = prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, config, FeatureConfig(cache_dir=str(tmp_path)), seed=0)
    ends = []
    for made, rate in ((PFedMoAP(gate="none"), 0.0), (LocalAdapter(), 0.0), (LocalAdapter(), 0.05)):
        federation, _ = build_federation(embedded_clip, data, made, config, OptimConfig(prompt_lr=0.02, gating_lr=rate))
        federation.run()
        ends.append(federation.server.shared["prompt"])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-3, atol=1e-5)  # another order of the same products
    assert (ends[0] - ends[2]).abs().max() > 10 * (ends[0] - ends[1]).abs().max()
