"""DP-FPL: its factors, gradients and noise by hand, and the methods that it is without them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from federation_helpers import build_federation, build_module, differences, results
from toy_client import at, server_of, toy_client, uploads

from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig, PrivacyConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import DPFPL, FedPGP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.factors import RULES, Clipped, Factored, clipped, factor
from fedmoe.protocol.client import Client
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed
from fedmoe.protocol.records import Loadout, RoundContext
from fedmoe.seeds import torch_generator

CONFIG = FederationConfig(clients=5, participation=0.6, rounds=2, local_epochs=1, batch_size=32)
CONTEXT = RoundContext(3, (0, 1), seed=7)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


# The factors


def test_factors_are_orthonormal_and_reproduce_a_matrix_of_their_rank() -> None:
    matrix = draw(6, 3, seed=1) @ draw(3, 9, seed=2)
    left, right = factor(matrix, draw(9, 3, seed=3))
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, identity)
    torch.testing.assert_close(right @ right.T, identity)
    # The columns of U and the rows of V span those of the matrix: projecting on both changes nothing.
    torch.testing.assert_close(left @ left.T @ matrix @ right.T @ right, matrix)


@pytest.mark.parametrize(("rule", "sign", "over"), [("paper", -1.0, 1.0), ("release", 1.0, 10.0)])
def test_the_matrixs_gradient_by_hand(rule: str, sign: float, over: float) -> None:
    """L [2, 2] = diag(2, 1) and Z = (1, 0): U = V^T = (1, 0) up to a sign that cancels. For the gradient
    ((1, 2), (3, 4)) of U V + R: gU = (1, 3), gV = (1, 2); gU V = ((1, 0), (3, 0)), U gV = ((1, 2), (0, 0)),
    U U^T gU V = ((1, 0), (0, 0)).
    """
    matrix = torch.diag(torch.tensor([2.0, 1.0])).requires_grad_()
    value = Factored.apply(matrix, torch.tensor([[1.0], [0.0]]), True, None, 0.0, RULES[rule])
    assert torch.equal(value, matrix)
    value.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    expected = torch.tensor([[2.0 + sign, 2.0], [3.0, 0.0]]) / over
    torch.testing.assert_close(matrix.grad, expected)


def test_at_full_rank_the_gradient_is_the_plain_one() -> None:
    matrix = draw(4, 7, seed=1).requires_grad_()
    value = Factored.apply(matrix, draw(7, 4, seed=2), True, None, 0.0, RULES["paper"])
    gradient = draw(4, 7, seed=3)
    value.backward(gradient)
    torch.testing.assert_close(matrix.grad, gradient)


def test_without_the_residual_the_scale_is_lost() -> None:
    """U V of diag(2, 1, 0) at rank 1 along e_0 is e_0 e_0^T: 1 where the matrix has 2."""
    matrix = torch.diag(torch.tensor([2.0, 1.0, 0.0]))
    value = Factored.apply(matrix, torch.eye(3)[:, :1], False, None, 0.0, RULES["paper"])
    torch.testing.assert_close(value, torch.diag(torch.tensor([1.0, 0.0, 0.0])))


def test_clipping_by_hand() -> None:
    gradient = torch.tensor([[3.0, 4.0]])
    assert torch.equal(clipped(gradient, 10.0), gradient)
    assert torch.equal(clipped(gradient, None), gradient)
    torch.testing.assert_close(clipped(gradient, 1.0), gradient / 5)
    assert torch.equal(clipped(0 * gradient, 1.0), 0 * gradient)
    shared = torch.zeros(1, 2, requires_grad=True)
    Clipped.apply(shared, 1.0).backward(gradient)
    torch.testing.assert_close(shared.grad, gradient / 5)


def test_each_factors_gradient_is_clipped_by_itself_and_gets_its_own_noise() -> None:
    """With a gradient of zero, only noise is left: gU = s E, gV = s F, so L's gradient is (I - U U^T) s E V + U s F,
    whose parts off and in U have, of 40,000 draws, the deviation s each. With noise 0 the parts are those clipped."""
    torch.manual_seed(3)
    probe, matrix = torch.tensor([[1.0], [0.0]]), torch.diag(torch.tensor([2.0, 1.0]))
    found = []
    for _ in range(4000):
        leaf = matrix.clone().requires_grad_()
        Factored.apply(leaf, probe, True, 1.0, 0.5, RULES["paper"]).backward(torch.zeros(2, 2))
        assert leaf.grad is not None
        found.append(leaf.grad)
    noise = torch.stack(found)
    # U = V^T = e_0: entry (1, 0) is gU's second, entries (0, :) are gV; entry (1, 1) is reached by neither.
    assert noise.std(dim=0)[0].tolist() == pytest.approx([0.5, 0.5], rel=0.05)
    assert noise.std(dim=0)[1].tolist() == pytest.approx([0.5, 0.0], rel=0.05)
    assert noise.mean(dim=0).abs().max() < 0.03
    leaf = matrix.clone().requires_grad_()
    Factored.apply(leaf, probe, True, 1.0, 0.0, RULES["paper"]).backward(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    # gU = (0, 3) is clipped to (0, 1), gV = (0, 2) to (0, 1).
    torch.testing.assert_close(leaf.grad, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))


# The method


def test_the_context_is_the_sum_of_both(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    method = DPFPL(rank=2)
    module = build_module(embedded_clip, data, method)
    module.load(1, Loadout())
    shared, local = module.prompts["prompt"], module.prompts["local"]
    assert float(local.detach().std()) == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        assert torch.equal(method.prompt(module), shared + local)
    assert torch.equal(method.prompt(module), shared + local)  # with gradient, through the factors
    ablation = DPFPL(rank=2, residual=False)
    with torch.no_grad():
        low = ablation.prompt(module) - shared
        assert torch.equal(low, ablation.prompt(module) - shared)
    torch.testing.assert_close(torch.linalg.svdvals(low)[:3], torch.tensor([1.0, 1.0, 0.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_the_global_prompts_gradient_is_clipped_with_and_without_noise(
    embedded_clip: FrozenCLIP, data: FederatedData, noise: float
) -> None:
    norms = []
    for clip in (10.0, 1e-4):
        method = DPFPL(rank=2, clip=clip, noise=noise)
        module = build_module(embedded_clip, data, method)
        module.load(1, Loadout())
        client = data.client(1)
        loss = method.loss(module, client.train_features, client.train_labels)
        shared, local = torch.autograd.grad(loss, [module.prompts["prompt"], module.prompts["local"]])
        norms.append((float(shared.norm()), float(local.norm())))
    assert norms[0][0] > 1
    assert norms[1][0] == pytest.approx(1e-4, rel=1e-4)
    assert norms[1][1] < 3e-4  # of three terms, each of at most the bound


class NoLocal(DPFPL):
    """With a local prompt of zeros; at a learning rate of zero it stays there."""

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        local = Parameter("local", Scope.PERSONAL, fixed(torch.zeros_like(model.prompt)), rate="gating_lr")
        return [super().parameters(model)[0], local]


def test_without_a_local_prompt_it_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    optim = OptimConfig(prompt_lr=0.02, gating_lr=0.0)
    runs = [build_federation(embedded_clip, data, m, CONFIG, optim) for m in (PromptFL(), NoLocal(rank=3, clip=None))]
    for federation, _ in runs:
        federation.run()
    (plain, plain_log), (ours, our_log) = runs
    assert torch.equal(plain.server.shared["prompt"], ours.server.shared["prompt"])
    assert [r.accuracy for r in plain_log.records] == [r.accuracy for r in our_log.records]


class Whole(FedPGP):
    """FedPGP whose personal part is a free matrix: U is the identity and V the local prompt of DP-FPL's start."""

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        shared, _, right = super().parameters(model)
        left = Parameter("U", Scope.PERSONAL, fixed(torch.eye(len(model.prompt))), rate="gating_lr")
        return [shared, left, right]

    def prompt(self, client: Client) -> torch.Tensor:
        return client.prompts["prompt"] + client.prompts["V"]


def test_at_full_rank_without_noise_it_is_a_free_personal_part(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """FedPGP with mu = 0 and a personal part of full rank, to rounding."""
    runs = [
        build_federation(embedded_clip, data, m, CONFIG, OptimConfig(prompt_lr=0.02, gating_lr=0.02))
        for m in (Whole(rank=16, mu=0.0), DPFPL(rank=16, clip=None))
    ]
    for federation, _ in runs:
        federation.run()
    (other, _), (ours, _) = runs
    torch.testing.assert_close(ours.server.shared["prompt"], other.server.shared["prompt"], rtol=0, atol=1e-5)
    for client, state in other.state.clients.items():
        local = ours.state.clients[client].parameters["local"]
        torch.testing.assert_close(local, state.parameters["V"], rtol=0, atol=1e-5)


def test_the_server_adds_noise_to_the_mean() -> None:
    """Means of 1 and 5 with 30 and 10 examples: 2. The noise is that of (seed, round), and of another round another."""
    found = []
    for method, context in [
        (DPFPL(server_noise=0.5), CONTEXT),
        (DPFPL(), CONTEXT),
        (DPFPL(server_noise=0.5), RoundContext(4, (0, 1), 7)),
    ]:
        server = server_of({}, {"prompt": at(9.0)})
        method.aggregate(server, uploads([(1.0, 30), (5.0, 10)]), context)
        found.append(server.shared["prompt"])
    assert torch.equal(found[1], at(2.0))
    expected = torch.randn(2, 2, generator=torch_generator(7, "DP-FPL", 3))
    torch.testing.assert_close(found[0], at(2.0) + 0.5 * expected)
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("mechanism", ["upload", "dpsgd"])
def test_it_fits_the_proven_mechanisms(embedded_clip: FrozenCLIP, data: FederatedData, mechanism: str) -> None:
    privacy = PrivacyConfig(mechanism=mechanism, epsilon=8.0, delta=0.01, clip=0.2)  # type: ignore[arg-type]
    small = FederationConfig(clients=5, participation=0.2, rounds=1, local_epochs=1, batch_size=400)
    federation, log = build_federation(embedded_clip, data, DPFPL(rank=2), small, privacy=privacy)
    federation.run()
    record = log.records[-1].privacy
    assert record is not None and record["noise_std"] and not log.records[-1].failed


def test_noise_repeats_with_the_seed(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    method = DPFPL(rank=4, noise=1.0)
    small = FederationConfig(clients=5, participation=0.4, rounds=1, local_epochs=1, batch_size=64)
    (one, log), (again, log_again), (quiet, _) = (
        build_federation(embedded_clip, data, m, small) for m in (method, method, DPFPL(rank=4))
    )
    for federation in (one, again, quiet):
        torch.manual_seed(id(federation) % 1000)
        federation.run()
    assert differences(one.state, again.state) == []
    assert results(log) == results(log_again)
    assert any("local" in name for name in differences(one.state, quiet.state))


def test_a_toy_client_sees_the_sum() -> None:
    client = toy_client(DPFPL(rank=1), at(1.0), Loadout({"prompt": at(1.0), "local": at(2.0)}))
    with torch.no_grad():
        assert torch.equal(client.text_features(), at(3.0))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"noise": -1.0}, "noise is"),
        ({"server_noise": -1.0}, "server_noise is"),
        ({"clip": 0.0}, "clip is 0"),
        ({"clip": None, "noise": 1.0}, "clip is null"),
    ],
)
def test_mistakes_are_told(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{said}"):
        DPFPL(**settings)  # type: ignore[arg-type]


def test_a_rank_above_the_prompts_is_told() -> None:
    with pytest.raises(UserError, match=r"method\.rank is 8, but a prompt's rank is at most 4; valid is 1 to 4"):
        DPFPL().parameters(ModelSpec(torch.zeros(4, 64), 128))
