"""Secure aggregation: the sum is exact whoever goes away, the server sees no upload, and clients refuse to be tricked.

Needs the cryptography that comes with fedmoe[flower]; no process is started here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr")

from engine_helpers import Change, Parts
from federation_helpers import Log, build_federation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from test_line import CONFIG, data_of
from torch import Tensor

from fedmoe.config import FeatureConfig
from fedmoe.engine.line import KEYS, MASKED, SHARES, UNMASK, Answer, Order
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.secure.fixed_point import encode
from fedmoe.secure.keys import agree, join, key_pair, public_key, seal, split, unseal
from fedmoe.secure.member import Member
from fedmoe.secure.summation import Summation, TooFew

pytestmark = pytest.mark.flower
SECURE = replace(CONFIG, participation=1.0, rounds=1, secure_aggregation=True)


@dataclass
class Cohort:
    """Clients with known uploads, some of which go away before a step."""

    uploads: dict[int, dict[str, Tensor]]
    weights: dict[int, int]
    masked: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def run(self, away: tuple[Collection[int], ...] = ((), (), (), ())) -> dict[str, Tensor]:
        """The mean that the server finds; ``away``: who does not answer in each of the four steps."""
        self.server = Summation(self.weights, self.uploads[next(iter(self.uploads))])
        members = {i: Member(i, upload, self.weights[i], 1) for i, upload in self.uploads.items()}
        peers = self.server.take_keys({i: one.keys for i, one in members.items() if i not in away[0]})
        shares = {i: members[i].shares(keys) for i, keys in peers.items() if i not in away[1]}
        handed = self.server.take_shares(shares)
        self.masked = {}
        for i, sealed in handed.items():
            with contextlib.suppress(ValueError):  # too few neighbours are left for it
                self.masked |= {i: members[i].masked(sealed)} if i not in away[2] else {}
        settled = self.server.take_masked(self.masked)
        told: dict[int, dict[int, bytes]] = {}
        for i, asked in settled.items():
            with contextlib.suppress(ValueError):
                told |= {i: members[i].unmask(*asked)} if i not in away[3] else {}
        return self.server.take_told(told)


def cohort(count: int, shape: tuple[int, ...] = (3, 5)) -> Cohort:
    torch.manual_seed(count)
    uploads = {i: {"prompt": torch.randn(shape), "scale": torch.randn(())} for i in range(0, 3 * count, 3)}
    return Cohort(uploads, {i: 10 + i for i in uploads})


@given(st.integers(3, 8), st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_mean_is_that_of_the_clients_that_stay(count: int, data: st.DataObject) -> None:
    group = cohort(count)
    gone = data.draw(st.dictionaries(st.sampled_from(list(group.uploads)), st.integers(0, 3), max_size=count - 1))
    away = tuple({i for i, step in gone.items() if step == number} for number in range(4))
    try:
        found = group.run(away)
    except TooFew:
        # A majority of everybody's neighbours and three uploads are enough.
        staying = count - len(gone)
        neighbours = count - len(away[0]) - 1
        assert staying - 1 < neighbours // 2 + 1 or staying < 3
        return
    here = [i for i in group.uploads if gone.get(i, 3) == 3]  # who goes away in the last step has uploaded
    assert set(group.server.missing) == set(group.uploads) - set(here)
    weights = torch.tensor([group.weights[i] for i in here], dtype=torch.float64)
    for name, value in found.items():
        values = torch.stack([group.uploads[i][name].double() for i in here])
        expected = torch.tensordot(weights, values, dims=1) / weights.sum()
        torch.testing.assert_close(value.double(), expected, rtol=1e-7, atol=2**-32)


def test_a_large_cohort_has_32_neighbours_each_and_loses_a_third() -> None:
    group = cohort(60, shape=(2,))
    clients = list(group.uploads)
    found = group.run((clients[:5], clients[5:10], clients[10:15], clients[15:20]))
    here = clients[15:]
    total = sum(group.weights[i] for i in here)
    expected = sum(group.weights[i] * group.uploads[i]["prompt"].double() for i in here) / total
    torch.testing.assert_close(found["prompt"].double(), expected, rtol=1e-7, atol=2**-32)


def test_what_the_server_sees_is_uniform_and_new_each_time() -> None:
    group = cohort(4, shape=(200, 50))
    group.run()
    first = group.masked
    group.run()
    for i, upload in first.items():
        plain = encode(group.uploads[i]["prompt"], group.weights[i])
        for seen in (upload["prompt"], upload["prompt"] - plain, upload["prompt"] - group.masked[i]["prompt"]):
            ones = torch.stack([(seen >> bit) & 1 for bit in range(64)]).double().mean(dim=(1, 2))
            # 10,000 fair draws for each bit: six standard deviations are 0.03.
            assert bool((ones - 0.5).abs().max() < 0.03)
    # Nor do the others' masked uploads together tell one: the own masks are still there.
    seen = torch.stack([upload["prompt"] for upload in first.values()]).sum(dim=0)
    plain = torch.stack([encode(one["prompt"], group.weights[i]) for i, one in group.uploads.items()]).sum(dim=0)
    assert not bool((seen == plain).any())


def _members(count: int) -> tuple[dict[int, Member], dict[int, dict[int, bytes]]]:
    members = {i: Member(i, {"prompt": torch.ones(2)}, 5, 1) for i in range(count)}
    keys = {i: {j: members[j].keys for j in members if j != i} for i in members}
    sealed = {i: members[i].shares(keys[i]) for i in members}
    return members, {i: {j: sealed[j][i] for j in members if j != i} for i in members}


def test_a_client_never_tells_what_would_show_one_upload() -> None:
    with pytest.raises(ValueError, match="1 other clients do not hide"):
        Member(0, {"prompt": torch.ones(2)}, 5, 1).shares({1: Member(1, {}, 5, 1).keys})
    alone = Member(0, {"prompt": torch.ones(2)}, 5, 1)
    with pytest.raises(ValueError, match="do not hide"):  # the same neighbour twice
        alone.shares({1: alone.keys, 2: alone.keys})
    members, handed = _members(5)
    with pytest.raises(ValueError, match="2 of 4 neighbours are left"):
        members[0].masked({1: handed[0][1], 2: handed[0][2]})
    with pytest.raises(ValueError, match="not sealed by"):  # of another sender
        members[0].masked({**handed[0], 1: handed[0][2]})
    members[0].masked(handed[0])
    with pytest.raises(ValueError, match="another one"):  # masks are used once
        members[0].masked(handed[0])
    for uploaded, gone in (([1, 2, 3], [3, 4]), ([1, 1, 2], []), ([1, 2, 9], []), ([1, 2], [3, 4])):
        with pytest.raises(ValueError):
            members[0].unmask(uploaded, gone)
    assert set(members[0].unmask([1, 2, 3], [4])) == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="must not have"):
        members[0].unmask([1, 2, 3, 4], [])


def test_secrets_need_a_majority_and_seals_their_key() -> None:
    private, public = key_pair()
    other, others = key_pair()
    assert public_key(private) == public
    key = agree(private, others, "mask")
    assert key == agree(other, public, "mask") != agree(private, others, "seal")
    shares = dict(enumerate(split(private, 3, 5), start=1))
    assert join({i: shares[i] for i in (2, 4, 5)}) == private
    assert join({i: shares[i] for i in (2, 4)}) != private
    assert unseal(key, seal(key, b"told", "a"), "a") == b"told"
    with pytest.raises(ValueError, match="not sealed"):
        unseal(key, seal(key, b"told", "a"), "b")


def test_wrong_shares_give_no_sum_rather_than_a_wrong_one() -> None:
    group = cohort(4)
    group.run()
    told = {i: {j: bytes(32) for j in group.uploads if j != i} for i in group.uploads}
    with pytest.raises(TooFew, match="not that of the uploads"):
        group.server.take_told(told)
    group.run(((), (), (3,), ()))
    with pytest.raises(TooFew, match="the shares of client 3's key are wrong"):
        group.server.take_told({i: {3: bytes(32)} for i in (0, 6, 9)})


# In a federation, over the line


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


def _apart(clip: FrozenCLIP, cache: FeatureConfig, folder: Path, change: Change | None = None) -> Parts:
    parts = Parts(clip, cache, folder, "PromptFL", change, config=SECURE)
    parts.run()
    return parts


def test_a_federation_ends_with_the_bits_of_one_process_and_the_server_sees_no_upload(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    log: Log
    plain, log = build_federation(embedded_clip, data_of(embedded_clip, PromptFL(), cache), PromptFL(), SECURE)
    plain.run()
    apart = _apart(embedded_clip, cache, tmp_path)
    assert torch.equal(apart.federation.server.shared["prompt"], plain.server.shared["prompt"])
    assert [one.accuracy for one in apart.log.records] == [one.accuracy for one in log.records]
    assert [one.bytes for one in apart.log.records] == [one.bytes for one in log.records]
    steps = [order.ask for order in apart.line.orders if order.ask.startswith("query.")]
    assert [steps.count(step) for step in (KEYS, SHARES, MASKED, UNMASK)] == [4 * SECURE.rounds] * 4
    uploaded = [load(answer.body) for answer in apart.line.answers if answer.kind in ("trained", "summand")]
    tensors = [tensor for one in uploaded for tensor in one.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert len(tensors) == 4 * SECURE.rounds


@pytest.mark.parametrize("step", [MASKED, UNMASK])
def test_a_client_that_goes_away_is_named_and_the_others_sum_counts(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path, step: str
) -> None:
    def away(node: int, order: Order, answer: Answer) -> Answer | str:
        return "its node is gone" if node == 2 and order.ask == step else answer

    apart = _apart(embedded_clip, cache, tmp_path, away)
    failed = [record.failed for record in apart.log.records[1:]]
    named = {} if step == UNMASK else {"2": "secure aggregation: its node is gone"}
    assert failed == [named] * SECURE.rounds
    assert apart.log.records[-1].train_loss is not None
    assert apart.federation.server.clients.keys() == ({0, 1, 2, 3} if step == UNMASK else {0, 1, 3})


def test_without_enough_clients_the_prompt_stays(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    def away(node: int, order: Order, answer: Answer) -> Answer | str:
        return "its node is gone" if node < 2 and order.ask == MASKED else answer

    apart = _apart(embedded_clip, cache, tmp_path, away)
    assert torch.equal(apart.federation.server.shared["prompt"], apart.fleet.checks.shared["prompt"])
    failed = apart.log.records[-1].failed
    assert failed["0"] == "secure aggregation: its node is gone"
    assert "there is no sum in this round: 2 clients are left" in failed["3"]


def test_an_upload_in_the_open_is_refused(embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path) -> None:
    apart = Parts(embedded_clip, cache, tmp_path, "PromptFL", config=SECURE)
    apart.line.sites[1]._withheld = None
    apart.run()
    assert "it holds parameters, which are uploaded masked alone" in apart.log.records[-1].failed["1"]


def test_an_upload_is_in_one_sum(embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path) -> None:
    apart = _apart(embedded_clip, cache, tmp_path)
    keys = [order for order in apart.line.orders if order.ask == KEYS][-1]
    told = [site.answer(keys) for site in apart.line.sites.values()]
    assert {answer.kind for answer in told} == {"failed"}
    assert any(b"that is not in a sum yet" in answer.body for answer in told)
