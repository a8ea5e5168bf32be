"""The numbers of an audit against hand computation, published values and other libraries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmoe.audit.epsilon import one_run_epsilon, one_run_p_value, rates_epsilon
from fedmoe.audit.judge import Judge, true_logit
from fedmoe.audit.membership import PIPRA, FedMIA, LiRA, LossThreshold, Shadow
from fedmoe.audit.membership.base import Setting
from fedmoe.audit.membership.fedmia import null_cdf
from fedmoe.audit.membership.lira import distribution
from fedmoe.audit.membership.pipra import contrast
from fedmoe.audit.properties import Owner, answers, estimate, score
from fedmoe.audit.rates import auc, auc_interval, clopper_pearson, roc, true_positive_rate
from fedmoe.audit.run import right_guesses
from fedmoe.audit.threats import Seen
from fedmoe.client.module import ClientModule
from fedmoe.config import PromptConfig
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner

NAN = math.nan


@pytest.mark.parametrize(
    ("coins", "guesses", "correct", "delta", "epsilon"),
    [  # the first two are printed in the paper (0.673, 2.675); the others come from independent ports of appendix D
        (1000, 100, 75, 1e-4, 0.673),
        (100_000, 1510, 1439, 1e-5, 2.6759),
        (1000, 100, 75, 0, 0.7022),
        (1000, 1000, 1000, 1e-5, 5.7823),
        (500, 100, 95, 1e-5, 2.1688),
        (200, 40, 40, 1e-5, 2.5482),
        (1000, 100, 50, 0, 0.0),  # as good as guessing
    ],
)
def test_the_one_run_bound(coins: int, guesses: int, correct: int, delta: float, epsilon: float) -> None:
    assert one_run_epsilon(coins, guesses, correct, delta) == pytest.approx(epsilon, abs=1e-3)


def test_the_p_value_of_one_run() -> None:
    assert one_run_p_value(100, 100, 75, math.log(3), 0) == pytest.approx(0.553, abs=1e-3)  # printed
    # By hand: r = v = 2, q = 1/2: P[Bin >= 2] = 1/4; i = 1: P[Bin = 1] / 1 = 1/2; i = 2: P[Bin in 0, 1] / 2 = 3/8.
    assert one_run_p_value(4, 2, 2, 0.0, 0.01) == pytest.approx(0.25 + 2 * 4 * 0.01 * 0.5)


def test_the_bound_from_rates() -> None:
    assert rates_epsilon(1000, 1000, 0, 1000, 1e-5) == pytest.approx(5.6006, abs=1e-4)
    assert rates_epsilon(100, 1000, 10, 1000, 1e-5) == pytest.approx(1.5003, abs=1e-4)
    assert rates_epsilon(5, 100, 5, 100, 0) == 0


def test_intervals_and_rates() -> None:
    low, high = clopper_pearson(0, 10)
    assert (low, high) == pytest.approx((0, 1 - 0.025**0.1))  # in closed form
    rng = np.random.default_rng(3)
    inside = rng.random(300) < 0.5
    values = np.round(rng.normal(size=300) + 0.6 * inside, 1)  # with ties
    assert auc(values, inside) == pytest.approx(roc_auc_score(inside, values))
    # DeLong by hand: members 3 and 1, non-members 2 and 0; shares above 1, 1/2 and 1/2, 1: each variance 1/8.
    four, sides = np.array([3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False])
    assert auc(four, sides) == 0.75
    low, high = auc_interval(four, sides, np.arange(4))
    assert low == pytest.approx(max(0.0, 0.75 - 3.182446 * math.sqrt(1 / 8 / 2 + 1 / 8 / 2)), abs=1e-6)  # t with 3
    assert high == 1.0
    many = auc_interval(np.tile(four, 100), np.tile(sides, 100), np.arange(400))  # t is nearly normal: 1/16 in 200
    assert many[0] == pytest.approx(0.75 - 1.965927 * math.sqrt(2 / 199 / 16), abs=1e-3)
    twice, both = np.concatenate([values, values]), np.concatenate([inside, inside])
    wide, narrow = (auc_interval(twice, both, c) for c in (np.tile(np.arange(300), 2), np.arange(600)))
    assert wide[1] - wide[0] == pytest.approx(math.sqrt(2) * (narrow[1] - narrow[0]), rel=0.02)  # copies tell nothing
    scores = np.concatenate([np.arange(100), [98.5, 97.5, 3.5]])  # 100 non-members, 3 members
    sides = np.arange(103) >= 100
    found = true_positive_rate(scores, sides, 0.01)
    assert found is not None and found.value == pytest.approx(1 / 3)  # above 98, which one non-member is above
    assert true_positive_rate(scores, sides, 0.001) is None
    assert roc(np.array([2.0, 1.0, 0.0]), np.array([True, False, True])) == [(0, 0), (0, 0.5), (1, 0.5), (1, 1)]


def test_statistics_of_a_prompt(embedded_clip: FrozenCLIP) -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [50.0, 0.0, 0.0]])
    p = math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(3))
    expected = [math.log(p / (1 - p)), 50 - math.log(2)]
    torch.testing.assert_close(true_logit(logits, torch.tensor([1, 0])), torch.tensor(expected).double())
    prompts = PromptLearner(embedded_clip, ["zero", "one", "two"], PromptConfig(length=3), torch.manual_seed(0))
    module = ClientModule(embedded_clip, prompts, method=PromptFL())
    features = torch.nn.functional.normalize(torch.randn(4, embedded_clip.feature_dim), dim=1)
    labels = torch.tensor([0, 1, 2, 1])
    judge = Judge(module, features, labels)
    start, update = prompts.start.clone(), 0.1 * torch.randn_like(prompts.start)
    found = judge.alignment(start, start + update)
    for i in range(4):  # one gradient for each target, the slow way
        at = start.clone().requires_grad_()
        logit = module.logit_scale * features[i : i + 1] @ prompts(at).T
        (gradient,) = torch.autograd.grad(cross_entropy(logit, labels[i : i + 1]), at)
        assert float(found[i]) == pytest.approx(-float((gradient * update).sum()), rel=1e-3, abs=1e-4)


def seen(confidence: list) -> Seen:
    return Seen({"confidence": torch.tensor(confidence)})


def test_attacks_by_hand() -> None:
    setting = Setting(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.zeros(2, 2))
    victim = seen([[[0.0, 9.0], [9.0, 1.0]]])  # E = 1, J = 2, X = 2: of targets 0 and 1 under owners 0 and 1
    loss = LossThreshold().scores(victim, [], setting)
    assert loss is not None and loss.tolist() == pytest.approx([-math.log(2), -math.log(1 + math.exp(-1))])
    assert FedMIA("confidence").scores(victim, [], setting) is None  # one other upload is no null
    # FedMIA by hand: others 0 and 2 have mean 1 and standard deviation sqrt(2).
    null = torch.tensor([[[NAN], [0.0], [2.0]]]).double()
    expected = 0.5 * (1 + math.erf((2 - 1) / math.sqrt(2) / math.sqrt(2)))
    assert float(null_cdf(torch.tensor([[2.0]]).double(), null)) == pytest.approx(expected)
    # An outlier among 21, more than 3 standard deviations above the mean, is left out: 0 and 1 ten times are left.
    null = torch.tensor([[[NAN], *([[0.0], [1.0]] * 10), [100.0]]]).double()
    expected = 0.5 * (1 + math.erf((0.75 - 0.5) / math.sqrt(20 * 0.25 / 19) / math.sqrt(2)))
    assert float(null_cdf(torch.tensor([[0.75]]).double(), null)) == pytest.approx(expected)
    # LiRA: target 0 is in shadows 0 and 1, with 3 and 5, and out of 2 and 3, with 0 and 2; target 1 in the others.
    inside = [torch.tensor(m) for m in ([True, False], [True, False], [False, True], [False, True])]
    values = [(3.0, 0.0), (5.0, 2.0), (0.0, 3.0), (2.0, 5.0)]
    shadows = [Shadow(seen([[[a, 0.0], [0.0, b]]]), m) for (a, b), m in zip(values, inside, strict=True)]
    # Means 4 and 1; within each side two deviations of 1 for each target: 4 over 2 degrees of freedom.
    offline = LiRA("confidence", online=False).scores(victim, shadows, setting)
    online = LiRA("confidence", online=True).scores(victim, shadows, setting)
    assert offline is not None and offline.tolist() == pytest.approx([-1 / math.sqrt(2), 0.0])
    assert online is not None and online.tolist() == pytest.approx([(-16 + 1) / 4, (-9 + 0) / 4])
    unseen = seen([[[NAN, NAN], [NAN, 1.0]]])
    again = LiRA("confidence", online=True).scores(unseen, shadows, setting)
    assert again is not None and math.isnan(again[0]) and float(again[1]) == pytest.approx(-9 / 4)


def test_many_shadows_give_each_target_its_own_spread() -> None:
    values = torch.tensor([[[1.0, 10.0]], [[-1.0, -10.0]]]).repeat(32, 1, 1).double()  # S = 64: +-1 and +-10
    mean, std = distribution(values)
    assert mean.tolist() == [[0.0, 0.0]]
    assert std[0].tolist() == pytest.approx([math.sqrt(64 / 63), math.sqrt(6400 / 63)])
    assert distribution(values[:62])[1][0].tolist() == pytest.approx([math.sqrt(62 * 101 / 122)] * 2)  # one for both


def test_pipra_learns_what_its_shadows_show() -> None:
    # The loss by hand: one member of similarity ln 3 against non-members of ln 1 and ln 2: -ln(3 / 6).
    similarity, inside = torch.tensor([3.0, 1.0, 2.0]).log(), torch.tensor([True, False, False])
    assert float(contrast(similarity, inside, torch.zeros(3, dtype=torch.int64))) == pytest.approx(math.log(2))
    generator = torch.Generator().manual_seed(0)

    def federation() -> tuple[Seen, Tensor]:
        """20 owners with a target each; an owner's prompt leans towards its target's features if that is in."""
        inside = torch.rand(20, generator=generator) < 0.5
        noise = torch.randn(20, 1, 8, generator=generator)
        return Seen({}, 0.5 * noise + inside[:, None, None] * features[:, None]), inside

    features = torch.nn.functional.normalize(torch.randn(20, 8, generator=generator), dim=1) * 3
    setting = Setting(torch.arange(20), torch.zeros(20, dtype=torch.int64), features)
    shadows = [Shadow(*federation()) for _ in range(4)]
    attack, victims = PIPRA(), [federation() for _ in range(3)]
    found = [attack.scores(victim, shadows, setting) for victim, _ in victims]
    assert all(scores is not None for scores in found)
    values = torch.cat([scores for scores in found if scores is not None]).numpy()
    truth = torch.cat([inside for _, inside in victims]).numpy()
    assert auc(values, truth) > 0.9
    assert attack.scores(Seen({}, None), shadows, setting) is None


def test_guesses_are_of_the_surest_pairs() -> None:
    scores = torch.tensor([0.0, 5.0, 4.0, 0.0, 1.0, 2.0, NAN, 3.0])  # leads of the second: 5, -4, 1, none
    assert right_guesses(scores, torch.tensor([1, 1, 1, 0]), 0.5) == (1, 2)
    assert right_guesses(scores, torch.tensor([1, 0, 1, 0]), 1.0) == (4, 4)


def test_proportions_are_inferred_where_they_can_be() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    assert answers(logits, torch.tensor([0, 1])) == pytest.approx(np.log([0.625, 0.375, 0.5, 0.25]))
    rng = np.random.default_rng(0)
    truth = rng.dirichlet([0.5] * 4, size=300)
    told = truth @ rng.normal(size=(4, 8)) + 0.01 * rng.normal(size=(300, 8))
    found = estimate(told[:250], truth[:250], told[250:])
    assert found.min() >= 0 and found.sum(axis=1) == pytest.approx(1)
    owners = [Owner(*pair) for pair in zip(told, truth, strict=True)]
    result = score(owners[:250], owners[250:])
    assert result["error"]["mean"] == pytest.approx(np.abs(found - truth[250:]).sum(axis=1).mean())
    assert result["error"]["mean"] < 0.1
    assert result["prior"]["mean"] == pytest.approx(np.abs(truth[:250].mean(axis=0) - truth[250:]).sum(axis=1).mean())
    assert result["control"]["mean"] > 0.9 * result["prior"]["mean"]
    assert result["gain"]["low"] > 0
