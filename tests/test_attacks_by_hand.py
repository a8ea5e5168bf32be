"""Attacks by hand: what an attacker trains on and uploads, whom the seed makes one, and what counts as success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fedmoe.attacks import Attack, Backdoor, HugeNorm, LabelFlip, ModelReplacement, NearestCopies, NoisePrompt
from fedmoe.attacks.adversary import Adversary
from fedmoe.attacks.backdoor import Patch
from fedmoe.attacks.base import Place
from fedmoe.features.client_data import ClientData
from fedmoe.federation.under_attack import attack_numbers
from fedmoe.protocol.records import Downlink, Scored, Update

PLACE = Place(seed=5, round=1, client=2)


def own_data(features: Sequence[float], labels: Sequence[int]) -> ClientData:
    given = torch.tensor(features).unsqueeze(1)
    return ClientData(2, given, torch.tensor(labels), given[:0], torch.tensor([], dtype=torch.int64))


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
