"""Attacks and defences in a federation on the embedded CLIP and data.

The expected values are worked out by hand, or are those of another run that must agree.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from federation_helpers import Log, build_federation, differences, results, work_of
from test_line import ByteFleet

from fedmoe.attacks import Attack, Backdoor, HugeNorm, LabelFlip, NoisePrompt
from fedmoe.attacks.adversary import Adversary
from fedmoe.attacks.backdoor import Patch
from fedmoe.config import FeatureConfig, FederationConfig, PrivacyConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.defences import Median, OutlierTest, Reputation
from fedmoe.defences.guard import Defences
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.state import FederationState
from fedmoe.methods import Method, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP

CONFIG = FederationConfig(clients=5, participation=0.8, rounds=3, local_epochs=1, batch_size=32)
DIGITS = Digits(subset=SubsetConfig(train=400, test=200))
NEVER = 99


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, cache: FeatureConfig) -> FederatedData:
    return prepare(DIGITS, Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


@pytest.fixture(scope="module")
def triggered(embedded_clip: FrozenCLIP, cache: FeatureConfig) -> FederatedData:
    return prepare(DIGITS, Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0, stamp=Patch(0.5))


def build(
    clip: FrozenCLIP,
    data: FederatedData,
    method: Method,
    attack: Attack | None = None,
    defences: Defences | None = None,
    config: FederationConfig = CONFIG,
    triggered: FederatedData | None = None,
    **settings,
) -> tuple[Federation, Log]:
    adversary = None
    if attack is not None:
        adversary = Adversary(attack, attack.attackers(config.participants, 5), 5, 10, triggered)
    return build_federation(clip, data, method, config, adversary=adversary, defences=defences, **settings)


def test_attackers_who_do_nothing_change_no_bit(embedded_clip, data: FederatedData, triggered: FederatedData) -> None:
    method = PFedMoAP(num_experts=2)
    plain, log = build(embedded_clip, data, method)
    plain.run()
    attack = Backdoor(share=0.4, from_round=NEVER)
    other, log_other = build(embedded_clip, data, method, attack, triggered=triggered)
    other.run()
    assert differences(plain.state, other.state) == []
    assert [{**r, "attack": None} for r in results(log_other)] == results(log)
    assert all(record.attack and "success" in record.attack for record in log_other.records)


def test_flipped_labels_are_those_of_a_client_that_has_them(embedded_clip, data: FederatedData) -> None:
    flipped = prepare_copy(data)
    features, labels = flipped._train[1]
    flipped._train[1] = (features, 9 - labels)
    plain, _ = build(embedded_clip, flipped, PromptFL())
    plain.run()
    attacked, log = build(embedded_clip, data, PromptFL(), LabelFlip(clients=(1,)))
    attacked.run()
    assert differences(plain.state, attacked.state) == []
    honest, _ = build(embedded_clip, data, PromptFL())
    honest.run()
    assert differences(honest.state, attacked.state) != []
    last = log.records[-1].attack
    shares = {score.client: score.accuracy for score in log.evaluations[-1].clients}
    assert last is not None
    assert last["attackers_accuracy"] == shares[1]
    assert last["honest_accuracy"] == pytest.approx(np.mean([shares[i] for i in (0, 2, 3, 4)]))


def prepare_copy(data: FederatedData) -> FederatedData:
    """The same data, whose list of clients can be changed."""
    from copy import copy

    found = copy(data)
    found._train = list(data._train)
    return found


def test_uploads_change_from_the_first_round_of_the_attack_on(embedded_clip, data: FederatedData) -> None:
    everyone = replace(CONFIG, participation=1.0, rounds=2)

    def pools(attack: Attack | None) -> list[dict[int, torch.Tensor]]:
        federation, _ = build(embedded_clip, data, PFedMoAP(num_experts=2), attack, config=everyone)
        found = []
        for number in (1, 2):
            federation.round(number)
            found.append(dict(federation.server.pool["prompt"]))
        return found

    honest = pools(None)
    huge = pools(HugeNorm(clients=(1, 3), factor=10.0, from_round=2))
    for client in range(5):
        assert torch.equal(huge[0][client], honest[0][client])
        factor = 10.0 if client in (1, 3) else 1.0
        torch.testing.assert_close(huge[1][client], factor * honest[1][client])


def test_attackers_train_as_long_as_they_like(embedded_clip, data: FederatedData) -> None:
    everyone = replace(CONFIG, participation=1.0, rounds=1)
    longer = replace(everyone, local_epochs=3)
    attack = HugeNorm(clients=(1,), factor=1.0, epochs=3)
    attacked, _ = build(embedded_clip, data, PFedMoAP(num_experts=2), attack, config=everyone)
    attacked.run()
    ones, _ = build(embedded_clip, data, PFedMoAP(num_experts=2), config=everyone)
    ones.run()
    threes, _ = build(embedded_clip, data, PFedMoAP(num_experts=2), config=longer)
    threes.run()
    found, one, three = (run.server.pool["prompt"] for run in (attacked, ones, threes))
    assert torch.equal(found[1], three[1])
    assert torch.equal(found[2], one[2])
    assert not torch.equal(one[1], three[1])


def test_triggered_features_are_those_of_the_stamped_images(
    embedded_clip, data: FederatedData, triggered: FederatedData
) -> None:
    clean, stamped = data.client(0), triggered.client(0)
    assert torch.equal(clean.test_labels, stamped.test_labels)
    assert torch.equal(clean.train_labels, stamped.train_labels)
    # Find the first clean test feature among all images, stamp that image, and encode it by hand.
    split = DIGITS.test
    with torch.no_grad():
        for i in np.flatnonzero(split.labels == int(clean.test_labels[0])):
            image = split.image(int(i))
            feature = embedded_clip.encode_image(embedded_clip.preprocess(image).unsqueeze(0))[0]
            if torch.allclose(feature, clean.test_features[0], atol=1e-5):
                inputs = embedded_clip.preprocess(Patch(0.5)(image)).unsqueeze(0)
                torch.testing.assert_close(embedded_clip.encode_image(inputs)[0], stamped.test_features[0])
                return
    raise AssertionError("no image has this feature")


def test_a_backdoor_opens_in_the_attacker_and_not_without_it(
    embedded_clip, data: FederatedData, triggered: FederatedData
) -> None:
    """With all but one client attacking, the honest one's triggered images are taken for the target."""
    everyone = replace(CONFIG, participation=1.0, rounds=2, evaluate_every=2, batch_size=16)

    def success(first: int) -> float:
        attack = Backdoor(clients=(0, 1, 2, 3), target=3, epochs=20, from_round=first)
        _, log = ran = build(embedded_clip, data, PromptFL(), attack, config=everyone, triggered=triggered)
        ran[0].run()
        found = log.records[-1].attack
        assert found is not None
        return found["success"]

    assert success(NEVER) < 40 < 90 < success(1)


@pytest.mark.parametrize(
    ("attack", "defences"),
    [
        (NoisePrompt(share=0.4), Defences(Median(), Reputation(least=0.9))),
        (Backdoor(share=0.4, scale=2.0, from_round=2), Defences(None, OutlierTest())),
    ],
    ids=["noise", "backdoor"],
)
def test_an_interruption_and_the_line_change_no_bit(
    embedded_clip, data: FederatedData, triggered: FederatedData, attack: Attack, defences: Defences
) -> None:
    def start(state: FederationState | None = None, **settings) -> tuple[Federation, Log]:
        method = PFedMoAP(num_experts=2)
        return build(embedded_clip, data, method, attack, defences, triggered=triggered, state=state, **settings)

    whole, log = start()
    whole.run()
    first, _ = start()
    first.round(1)
    first.round(2)
    again, log_again = start(FederationState.unflatten(*first.state.flatten()))
    again.run()
    assert differences(whole.state, again.state) == []
    assert results(log_again) == results(log)[-1:]
    apart, log_apart = start(fleet=ByteFleet)
    apart.run()
    assert differences(whole.state, apart.state) == []
    assert results(log_apart) == results(log)


def test_a_huge_prompt_is_an_expert_unless_it_is_screened(embedded_clip, data: FederatedData) -> None:
    everyone = replace(CONFIG, participation=1.0)
    method, attack = PFedMoAP(num_experts=4), HugeNorm(clients=(2,))

    def last(screening: OutlierTest | None) -> tuple[dict[str, list[int]], float]:
        federation, log = build(embedded_clip, data, method, attack, Defences(None, screening), everyone)
        federation.run()
        found = log.records[-1]
        assert found.attack is not None
        return found.experts, found.attack["expert_share"]

    experts, share = last(None)
    assert all(2 in ids for client, ids in experts.items() if client != "2")
    assert share == pytest.approx(25)
    experts, share = last(OutlierTest())
    assert all(2 not in ids for ids in experts.values())
    assert share == 0


def test_reports_cost_their_bytes_and_nothing_else_changes(embedded_clip, data: FederatedData) -> None:
    plain, log = build(embedded_clip, data, PFedMoAP(num_experts=3))
    plain.run()
    asked, log_asked = build(embedded_clip, data, PFedMoAP(num_experts=3), None, Defences(None, Reputation(least=0.0)))
    asked.run()
    extra = [b.bytes["up"] - a.bytes["up"] for a, b in zip(log.records, log_asked.records, strict=True)]
    counts = asked.server.extras["reputation.counts"]
    # 4 (K + 1) bytes of each client that had K experts; none in round 1.
    assert extra[:2] == [0, 0]
    assert sum(extra) == 4 * (int(counts.sum()) + sum(len(r.cohort) for r in log.records[2:]) - missing(log))
    assert [name for name in differences_of(plain, asked) if not name.startswith("extras/")] == []


def missing(log: Log) -> int:
    """How many clients of rounds 2 and 3 trained for the first time, and so without experts."""
    seen: set[int] = set(log.records[1].cohort)
    count = 0
    for record in log.records[2:]:
        count += len(set(record.cohort) - seen)
        seen |= set(record.cohort)
    return count


def differences_of(one: Federation, other: Federation) -> list[str]:
    tensors, others = one.state.flatten()[0], other.state.flatten()[0]
    return [name for name in others if name not in tensors or not torch.equal(tensors[name], others[name])]


def test_reports_are_the_gates_weights(embedded_clip, data: FederatedData) -> None:
    """A gate that is uniform gives each of K + 1 experts the same weight, so each client's report is 1."""
    method = PFedMoAP(num_experts=3, attention="uniform")
    federation, _ = build(embedded_clip, data, method, None, Defences(None, Reputation()))
    federation.run()
    extras = federation.server.extras
    assert int(extras["reputation.counts"].sum()) > 0
    torch.testing.assert_close(extras["reputation.sums"], extras["reputation.counts"], atol=1e-5, rtol=0)


def test_an_upload_that_overflows_has_failed(embedded_clip, data: FederatedData) -> None:
    attack = HugeNorm(clients=(1,), factor=1e39)
    everyone = replace(CONFIG, participation=1.0, rounds=1)
    federation, log = build(embedded_clip, data, PromptFL(), attack, config=everyone)
    federation.run()
    assert log.records[-1].failed == {"1": "its trained parameters are not finite"}
    stopping, _ = build(embedded_clip, data, PromptFL(), attack, config=replace(everyone, on_failure="stop"))
    with pytest.raises(UserError, match=r"Client 1 failed in round 1: .* not finite"):
        stopping.run()


def test_attackers_need_not_protect_their_uploads(embedded_clip, data: FederatedData) -> None:
    """Honest clients' noise is as without attack; the attacker's upload is what the attack says, after the noise."""
    privacy, everyone = PrivacyConfig(mechanism="upload"), replace(CONFIG, participation=1.0, rounds=1)
    pools = []
    for attack in (None, HugeNorm(clients=(1,), factor=3.0)):
        federation, _ = build(embedded_clip, data, PFedMoAP(num_experts=2), attack, config=everyone, privacy=privacy)
        federation.run()
        pools.append(federation.server.pool["prompt"])
    for client in range(5):
        torch.testing.assert_close(pools[1][client], (3.0 if client == 1 else 1.0) * pools[0][client])


def test_without_an_attack_no_client_is_an_adversary(embedded_clip, data: FederatedData) -> None:
    federation, log = build(embedded_clip, data, PromptFL())
    federation.round(1)
    assert work_of(federation).adversary is None
    assert all(record.attack is None for record in log.records)
