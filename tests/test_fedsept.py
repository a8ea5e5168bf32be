"""FedSEPT by hand, its router against torch's attention, and PromptFL as a special case."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from federation_helpers import build_federation, build_module
from torch import Tensor, nn
from torch.nn.functional import normalize

from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig, PrivacyConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import FedSEPT, PromptFL
from fedmoe.methods.fedsept import diversity
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.router import Router
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed
from fedmoe.protocol.records import Loadout
from fedmoe.seeds import torch_generator

CONFIG = FederationConfig(clients=5, participation=0.6, rounds=2, local_epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


def test_diversity_by_hand() -> None:
    """Orthogonal factors 0, equal ones 1; of three, two equal: 2 of 6 ordered pairs, 1/3; at 60 degrees 1/4. Scale is
    no matter."""
    one, other = torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert float(diversity(torch.stack([one, other]))) == pytest.approx(0.0, abs=1e-7)
    assert float(diversity(torch.stack([one, -3 * one]))) == pytest.approx(1.0)
    assert float(diversity(torch.stack([one, other, 2 * one]))) == pytest.approx(1 / 3)
    assert float(diversity(torch.stack([one, one + 3**0.5 * other]))) == pytest.approx(1 / 4)


def test_the_router_is_torchs_attention_with_one_key() -> None:
    """MultiheadAttention with any query and the image as its only key; then norm, linear map, softmax."""
    router = Router(16, 3, 4, 0.0, torch_generator(1))
    attention = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight[32:] = router.value.weight
        attention.in_proj_bias[32:] = router.value.bias.normal_(generator=torch_generator(2))
        attention.out_proj.weight.copy_(router.output.weight)
        attention.out_proj.bias.copy_(router.output.bias.normal_(generator=torch_generator(3)))
        images = normalize(torch.randn(5, 1, 16, generator=torch_generator(4)), dim=-1)
        query = torch.randn(5, 1, 16, generator=torch_generator(5))
        mixed, _ = attention(query, images, images)
        expected = torch.softmax(router.weights(router.norm(mixed[:, 0])), dim=-1)
        torch.testing.assert_close(router(images[:, 0]), expected)
        assert router(images[:, 0]).sum(dim=-1).tolist() == pytest.approx([1.0] * 5)


def test_dropout_leaves_out_whole_heads_in_training_only() -> None:
    """The value map is the identity, on (1, ..., 1): a head that is kept gives 1 / (1 - p) = 2, another 0."""
    router = Router(8, 2, 4, 0.5, torch_generator(1))
    seen: list[Tensor] = []
    router.output.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    with torch.no_grad():
        router.value.weight.copy_(torch.eye(8))
        router(torch.ones(3, 8))
    torch.manual_seed(0)
    router(torch.ones(400, 8))
    assert torch.equal(seen[0], torch.ones(3, 8))
    heads = seen[1].unflatten(-1, (4, 2))
    assert torch.equal(heads[..., 0], heads[..., 1])
    assert set(heads.unique().tolist()) == {0.0, 2.0}
    assert float(heads.mean()) == pytest.approx(1.0, abs=0.1)


def test_logits_by_hand(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """The mixture of the experts' logits, each from its own text pass, with weights that are forced to (1/4, 3/4)."""
    method = FedSEPT(num_experts=2, rank=3, dropout=0.0)
    module = build_module(embedded_clip, data, method)
    module.load(2, Loadout())
    router = module.router
    assert isinstance(router, Router)
    with torch.no_grad():
        module.prompts["residual"].normal_(std=0.02, generator=torch_generator(1))
        router.weights.weight.zero_()
        router.weights.bias.copy_(torch.tensor([0.0, math.log(3.0)]))
        factors, basis = module.prompts["factors"], module.constants["basis"]
        assert factors.shape == (2, 16, 3) and basis.shape == (3, 64)
        images = data.client(2).test_features[:7]
        each = [
            module.logit_scale * images @ module.prompts(factor @ basis + module.prompts["residual"]).T
            for factor in factors
        ]
        torch.testing.assert_close(module(images), 0.25 * each[0] + 0.75 * each[1], rtol=0, atol=1e-4)
        entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
        assert float(method.analyse(module, images)["routing_entropy"]) == pytest.approx(entropy, rel=1e-5)
    labels = data.client(2).test_labels[:7]
    plain = nn.functional.cross_entropy(module(images), labels)
    torch.testing.assert_close(method.loss(module, images, labels), plain + 10 * diversity(module.prompts["factors"]))


def test_what_is_declared(embedded_clip: FrozenCLIP) -> None:
    """At CLIP's width 512: 1,024 numbers are sent; the residual starts at zero; the basis is the same everywhere."""
    method = FedSEPT()
    parts = {part.name: part for part in method.parameters(ModelSpec(torch.zeros(16, 512), 512))}
    start: dict[str, Any] = {name: part.start(torch_generator(1)) for name, part in parts.items() if part.start}
    assert {name: part.scope for name, part in parts.items()} == {
        "factors": Scope.SHARED,
        "residual": Scope.PERSONAL,
        "router": Scope.PERSONAL,
    }
    assert start["factors"].numel() == 1024
    assert float(start["factors"].std()) == pytest.approx(0.02, rel=0.1)
    router = start["router"]
    # Xavier's bound for one matrix [3 d, d], torch's for a linear map, N(0, 0.01^2).
    assert float(router.value.weight.detach().abs().max()) == pytest.approx((6 / (4 * 512)) ** 0.5, rel=0.01)
    assert float(router.output.weight.detach().abs().max()) == pytest.approx(512**-0.5, rel=0.01)
    assert float(router.weights.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert not start["residual"].any()
    # value and output maps, norm, and the map to 4 weights
    assert sum(p.numel() for p in start["router"].parameters()) == 2 * (512 * 512 + 512) + 1024 + 4 * 512 + 4
    one, other = (method.constants(embedded_clip, names, "")["basis"] for names in (["a"], ["b", "c"]))
    assert torch.equal(one, other)
    assert float(one.std()) == pytest.approx(0.02, rel=0.1)
    assert [p.name for p in FedSEPT(num_experts=1).parameters(ModelSpec(torch.zeros(4, 64), 128))] == [
        "factors",
        "residual",
    ]


class OneFullExpert(FedSEPT):
    """One expert in the whole space: the basis is the identity, A the prompt."""

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        return {"basis": torch.eye(clip.token_width)}

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        _, residual = super().parameters(model)
        return [Parameter("factors", Scope.SHARED, fixed(model.prompt[None])), residual]


def test_one_expert_of_full_rank_without_residual_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    optim = OptimConfig(prompt_lr=0.02, gating_lr=0.0)  # the residual stays zero
    runs = [build_federation(embedded_clip, data, m, CONFIG, optim) for m in (PromptFL(), OneFullExpert(1, rank=64))]
    for federation, _ in runs:
        federation.run()
    (plain, plain_log), (ours, our_log) = runs
    factors = ours.server.shared["factors"][0]
    torch.testing.assert_close(factors, plain.server.shared["prompt"], rtol=0, atol=5e-6)
    assert [r.accuracy for r in plain_log.records] == [r.accuracy for r in our_log.records]


@pytest.mark.parametrize("mechanism", ["upload", "dpsgd"])
def test_it_fits_the_proven_mechanisms(embedded_clip: FrozenCLIP, data: FederatedData, mechanism: str) -> None:
    privacy = PrivacyConfig(mechanism=mechanism, epsilon=8.0, delta=0.01, clip=0.2)  # type: ignore[arg-type]
    small = FederationConfig(clients=5, participation=0.2, rounds=1, local_epochs=1, batch_size=400)
    federation, log = build_federation(embedded_clip, data, FedSEPT(2, rank=2), small, privacy=privacy)
    federation.run()
    record = log.records[-1].privacy
    assert record is not None and record["noise_std"] and not log.records[-1].failed


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_experts": 0}, "num_experts"),
        ({"rank": 0}, "rank"),
        ({"lmbda": -1.0}, "lmbda"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_mistakes_are_told(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{said} is"):
        FedSEPT(**settings)  # type: ignore[arg-type]


def test_heads_that_do_not_divide_are_told() -> None:
    with pytest.raises(UserError, match=r"method\.heads is 3, which does not divide CLIP's feature width 128"):
        FedSEPT(heads=3).parameters(ModelSpec(torch.zeros(4, 64), 128))
