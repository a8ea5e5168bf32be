"""Attacks: what an attacker trains on and uploads, by hand and in a federation on the embedded CLIP and data.

The expected values are worked out by hand, or are those of another run that must agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from federation_helpers import Log, build_federation, differences, results, work_of
from PIL import Image
from test_line import ByteFleet

from fedmoe.api.plain import plain_settings
from fedmoe.attacks import Attack, Backdoor, HugeNorm, LabelFlip, ModelReplacement, NearestCopies, NoisePrompt
from fedmoe.attacks.adversary import Adversary
from fedmoe.attacks.backdoor import Patch
from fedmoe.attacks.base import Place
from fedmoe.cli import main
from fedmoe.cli.settings import as_experiment, experiment_parser
from fedmoe.config import FeatureConfig, FederationConfig, PrivacyConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.defences import Median, OutlierTest, Reputation
from fedmoe.defences.guard import Defences
from fedmoe.engine.check import Checks
from fedmoe.errors import UserError
from fedmoe.features.client_data import ClientData, FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.federation.state import FederationState
from fedmoe.federation.under_attack import attack_numbers
from fedmoe.methods import Method, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import About, Downlink, Scored, Trained, Update
from fedmoe.protocol.wire import from_bytes, to_bytes
from fedmoe.report import report as print_report
from fedmoe.runs.records import read_rounds

CONFIG = FederationConfig(clients=5, participation=0.8, rounds=3, local_epochs=1, batch_size=32)
DIGITS = Digits(subset=SubsetConfig(train=400, test=200))
NEVER = 99
PLACE = Place(seed=5, round=1, client=2)


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


def own_data(features: Sequence[float], labels: Sequence[int]) -> ClientData:
    given = torch.tensor(features).unsqueeze(1)
    return ClientData(2, given, torch.tensor(labels), given[:0], torch.tensor([], dtype=torch.int64))


# By hand


def test_what_attackers_upload() -> None:
    sent = Downlink({"prompt": torch.tensor([1.0, 2.0])})
    trained = Update(2, {"prompt": torch.tensor([2.0, 0.0]), "gate": torch.tensor([3.0])}, 7)

    def uploaded(attack: Attack) -> dict[str, list[float]]:
        found = attack.upload(trained, sent, PLACE)
        assert (found.client_id, found.num_examples) == (2, 7)
        return {name: tensor.tolist() for name, tensor in found.parameters.items()}

    assert uploaded(LabelFlip()) == {"prompt": [2, 0], "gate": [3]}
    assert uploaded(HugeNorm(factor=10.0)) == {"prompt": [20, 0], "gate": [30]}
    # (1, 2) + 3 (1, -2); the gate was not sent.
    assert uploaded(ModelReplacement(scale=3.0)) == {"prompt": [4, -4], "gate": [3]}
    assert uploaded(NearestCopies(step=0.5)) == {"prompt": [1.5, 1], "gate": [3]}
    assert uploaded(NearestCopies(step=0.0))["prompt"] == [1, 2]
    noise = NoisePrompt(factor=2.0).upload(trained, sent, PLACE)
    assert float(noise.parameters["prompt"].norm()) == pytest.approx(4)
    again = NoisePrompt(factor=2.0).upload(trained, sent, PLACE)
    other = NoisePrompt(factor=2.0).upload(trained, sent, replace(PLACE, round=2))
    assert torch.equal(noise.parameters["prompt"], again.parameters["prompt"])
    assert not torch.equal(noise.parameters["prompt"], other.parameters["prompt"])


def test_noise_is_normal_in_every_direction() -> None:
    update = Update(0, {"prompt": torch.ones(100, 100)}, 1)
    values = NoisePrompt().upload(update, Downlink(), PLACE).parameters["prompt"]
    assert abs(float(values.mean())) < 0.03  # of 10,000 values with standard deviation 1
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    assert float((values.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.02)


def test_what_attackers_train_on() -> None:
    own = own_data([0.0, 1.0, 2.0, 3.0], [0, 3, 5, 9])
    assert LabelFlip().data(own, None, 10, PLACE).train_labels.tolist() == [9, 6, 4, 0]
    assert NearestCopies().data(own, None, 10, PLACE).train_labels.tolist() == [9, 6, 4, 0]
    assert ModelReplacement(target=4).data(own, None, 10, PLACE).train_labels.tolist() == [4, 4, 4, 4]
    stamped = own_data([10.0, 11.0, 12.0, 13.0], [0, 3, 5, 9])
    half = Backdoor(target=4, poisoned=0.5).data(own, stamped, 10, PLACE)
    rows = list(zip(half.train_features[:, 0].tolist(), half.train_labels.tolist(), strict=True))
    clean, bad = [(0, 0), (1, 3), (2, 5), (3, 9)], [(10, 4), (11, 4), (12, 4), (13, 4)]
    assert all(row in (clean[i], bad[i]) for i, row in enumerate(rows))
    assert sum(row == bad[i] for i, row in enumerate(rows)) == 2
    later = Backdoor(target=4, poisoned=0.5).data(own, stamped, 10, replace(PLACE, round=7))
    assert torch.equal(half.train_features, later.train_features)  # the same images in each round
    assert own.train_features[:, 0].tolist() == [0, 1, 2, 3]  # what clients share memory through is not written to


def test_successes_by_hand() -> None:
    predicted, labels = torch.tensor([9, 9, 4, 2, 0]), torch.tensor([0, 9, 5, 7, 7])

    def counts(attack: Attack, classes: int = 10) -> list[list[bool]]:
        return [mask.tolist() for mask in attack.hits(predicted, labels, classes)]

    assert counts(LabelFlip()) == [[True, False, True, True, False], [True] * 5]
    # Of eleven classes, 5 is flipped to itself and is not aimed at.
    assert counts(LabelFlip(), 11) == [[False, False, False, False, False], [True, True, False, True, True]]
    assert counts(Backdoor(target=9)) == [[True, True, False, False, False], [True, False, True, True, True]]
    logits = torch.nn.functional.one_hot(predicted, 10).float()
    adversary = Adversary(Backdoor(target=9), frozenset({1}), 0, 10)
    # Four images of other classes, one of which is taken for 9; batches of two.
    assert adversary.success(logits, labels, lambda batch: batch, 2).tolist() == [1, 4]


def test_the_trigger_is_a_chequered_square() -> None:
    image = Image.fromarray(np.full((8, 16), 100, dtype=np.uint8))
    pixels = np.array(Patch(0.5)(image))
    assert pixels.shape == (8, 16, 3)
    board = pixels[4:, 12:, 0]
    assert board.tolist() == [[0, 255, 0, 255], [255, 0, 255, 0]] * 2
    pixels[4:, 12:] = 100
    assert bool((pixels == 100).all())
    assert bool((np.array(image) == 100).all())


def test_attackers_are_drawn_by_the_seed() -> None:
    attack = LabelFlip(share=0.25)
    drawn = [attack.attackers(20, seed) for seed in range(200)]
    assert {len(found) for found in drawn} == {5}
    assert drawn[3] == HugeNorm(share=0.25).attackers(20, 3)  # the same for every attack
    often = np.bincount([client for found in drawn for client in found], minlength=20)
    assert often.min() > 25 and often.max() < 80  # 50 expected of each, standard deviation 6.1
    assert len(LabelFlip(share=0.29).attackers(100, 0)) == 29  # 0.29 * 100 is 28.999...
    assert len(LabelFlip(share=0.01).attackers(5, 0)) == 1
    assert LabelFlip(clients=(4, 1)).attackers(5, 0) == {1, 4}


def test_numbers_of_an_attack_by_hand() -> None:
    scored = [
        Scored(0, 8, 10, {"attack": torch.tensor([1, 8])}),
        Scored(1, 5, 10, {"attack": torch.tensor([5, 5])}),
        Scored(2, 6, 10, {"attack": torch.tensor([2, 4])}),
    ]
    experts = {0: (1, 2, 0), 1: (0, 2), 2: (1, 1)}  # client 0's own prompt does not count
    found = attack_numbers(scored, experts, {1})
    assert found == pytest.approx({"honest_accuracy": 70, "attackers_accuracy": 50, "success": 25, "expert_share": 75})
    assert attack_numbers(scored[:1], {}, {1, 2}) == pytest.approx({"honest_accuracy": 80, "success": 12.5})
    assert attack_numbers(scored[1:2], {}, {1}) is None


# In a federation


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


def test_a_client_elsewhere_reports_only_what_it_is_asked_for() -> None:
    shared = {"prompt": torch.zeros(2)}
    about = About(4, 4)

    def message(weights: torch.Tensor) -> bytes:
        return to_bytes(Trained(Update(1, dict(shared), 4, {}, {"attention": weights}), 0.5, 0.1))

    good = torch.tensor([0.5, 0.25, 0.25])
    found = Checks(shared, 10, most_weights=5).trained(message(good), 1, about)
    assert torch.equal(found.update.extras["attention"], good)
    for checks, weights in (
        (Checks(shared, 10), good),
        (Checks(shared, 10, most_weights=2), good),
        (Checks(shared, 10, most_weights=5), good.double()),
        (Checks(shared, 10, most_weights=5), torch.tensor([float("nan")])),
    ):
        with pytest.raises(ValueError, match=r"extras|weights|finite"):
            checks.trained(message(weights), 1, about)
    assert from_bytes(Trained, message(good)).update.num_examples == 4


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


# In Python, and on the command line


def test_attacks_and_defences_are_settings_in_python_too() -> None:
    given = {"attack": NearestCopies(clients=(1,)), "aggregation": Median(), "screening": OutlierTest}
    plain = plain_settings(given)
    everything = {"share": 0.2, "clients": [1], "from_round": 1, "epochs": None, "step": 0.1}
    assert plain["attack"] == {"class_path": "NearestCopies", "init_args": everything}
    assert plain["screening"] == "OutlierTest"
    experiment, _ = as_experiment(experiment_parser().parse_args([], plain))
    assert (experiment.attack, experiment.aggregation) == (given["attack"], Median())
    assert experiment.screening == OutlierTest()


def arguments(tmp_path: Path, cache: FeatureConfig, *more: str) -> list[str]:
    small = ["--federation.clients=4", "--federation.rounds=2", "--federation.local_epochs=1", "--method.num_experts=2"]
    where = [f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={cache.cache_dir}"]
    return ["fit", "--config=configs/embedded.yaml", *small, *where, *more]


def test_a_run_records_the_attack(tmp_path: Path, cache: FeatureConfig, capsys) -> None:
    more = ["--attack=Backdoor", "--attack.clients=[2]", "--attack.epochs=4", "--aggregation=TrimmedMean"]
    assert main([*arguments(tmp_path, cache, *more), "--screening=OutlierTest", "--screening.measure=norm"]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["attackers"] == [2]
    rounds = read_rounds(tmp_path / "run")
    assert summary["attack"] == rounds[-1].attack
    header, *lines = (tmp_path / "run/rounds.csv").read_text().splitlines()
    column = header.split(",").index("attack/success")
    assert [float(line.split(",")[column]) for line in lines] == [r.attack["success"] for r in rounds if r.attack]
    assert "attack's" in capsys.readouterr().out
    from rich.console import Console

    print_report(tmp_path / "run", Console(quiet=True))
    assert main(arguments(tmp_path, cache, *more)) == 2  # without the screening it is another run
    assert "screening" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--attack=LabelFlop"], "attack is 'LabelFlop'; valid is ModelReplacement, Backdoor, "),
        (["--attack=Backdoor", "--attack.target=10"], "attack.target is 10; valid is 0 to 9, the data's classes."),
        (["--attack=LabelFlip", "--attack.clients=[0,4]"], "attack.clients is [0, 4]; valid is clients of 0 to 3, "),
        (["--attack=LabelFlip", "--attack.share=1.0"], "attack.share is 1.0; valid is a number above 0 and below 1."),
        (["--attack=Backdoor", "--views.kind=online"], "attack is Backdoor, which needs features of images with the"),
        (
            ["--attack=LabelFlip", "--federation.participation=0.5", "--aggregation=Krum"],
            "aggregation.attackers is 1; valid is no Krum with cohorts of fewer than 3.",
        ),
        (
            ["--method=CoOp", "--aggregation=Median"],
            "aggregation is Median, but CoOp averages nothing that it could protect; valid is null, or a method with "
            "shared parameters.",
        ),
        (
            ["--method=PromptFL", "--serving=Noise"],
            "serving is Noise, but PromptFL hands no client's values to others; valid is null, or a method with a pool",
        ),
        (
            ["--method=PromptFL", "--screening=OutlierTest"],
            "screening is OutlierTest, but PromptFL hands no client's values to others; valid is null, or a method "
            "with a pool of prompts, such as PFedMoAP.",
        ),
        (["--method=FedAMP", "--screening=Reputation"], "screening is Reputation, but FedAMP has no gate over experts"),
        (
            ["--federation.share_momentum=true", "--aggregation=Median"],
            "aggregation is Median, but federation.share_momentum is true, which hands on what no defence sees; valid "
            "is false.",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, cache: FeatureConfig, capsys, more: list[str], sentence: str
) -> None:
    given = [arg for arg in arguments(tmp_path, cache) if "num_experts" not in arg or "--method" not in str(more)]
    assert main([*given, *more]) == 2
    said = capsys.readouterr().err
    assert " ".join(said.split()).startswith(f"Error: {sentence}")
    assert not (tmp_path / "run").exists()
