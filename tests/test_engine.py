"""Federations of clients elsewhere, without Flower: what crosses the line, who is lost, comes back or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_helpers import Change, Parts
from federation_helpers import build_federation, differences, results
from safetensors.torch import load
from test_line import CONFIG, METHODS, PROMPT, clip_of, data_of

from fedmoe.client.disk import DiskStates
from fedmoe.config import FeatureConfig
from fedmoe.engine.line import HELLO, Answer, Order
from fedmoe.errors import UserError
from fedmoe.methods import PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.parameters import Scope


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.mark.parametrize("name", METHODS)
def test_clients_with_disks_end_with_the_same_bits(
    embedded_clip: FrozenCLIP, vit_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path, name: str
) -> None:
    clip = clip_of(METHODS[name](), embedded_clip, vit_clip)
    data = data_of(clip, METHODS[name](), cache)
    plain, log = build_federation(clip, data, METHODS[name](), CONFIG)
    plain.run()
    apart = Parts(clip, cache, tmp_path, name)
    apart.run()
    assert results(log) == results(apart.log)
    assert apart.told is not None
    assert apart.told["counts_train"] == [list(row) for row in data.summary()["counts_train"]]
    assert apart.federation.state.clients == {}  # the server's checkpoint holds nothing of the clients'
    shared, pool = plain.server.shared, plain.server.pool
    assert all(torch.equal(shared[key], apart.federation.server.shared[key]) for key in shared)
    assert all(torch.equal(t, apart.federation.server.pool[n][i]) for n, own in pool.items() for i, t in own.items())
    for i, known in plain.server.clients.items():
        kept = DiskStates(tmp_path / str(i) / "run").get(i, known.version)
        assert kept.rounds_seen == plain.state.clients[i].rounds_seen
        assert kept.parameters.keys() == plain.state.clients[i].parameters.keys()
        assert all(torch.equal(kept.parameters[n], t) for n, t in plain.state.clients[i].parameters.items())


def test_what_crosses_is_what_the_method_declares(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    parts = Parts(embedded_clip, cache, tmp_path, "PFedMoAP")
    parts.run()
    declared = parts.fleet.work.module.declared
    assert {part.name for part in declared if part.scope is Scope.SHARED} == {"prompt"}
    uploads = [load(answer.body) for answer in parts.line.answers if answer.kind == "trained"]
    assert len(uploads) == 3 * 2
    assert all(tensors.keys() == {"update/parameters/prompt"} for tensors in uploads)
    scores = [answer for answer in parts.line.answers if answer.kind == "scored"]
    allowed = {f"sums/{n}" for n in ("confusion", "calibration", "attention", "attention_ranked", "gate", "gate_p10")}
    assert all(load(answer.body).keys() <= allowed for answer in scores)
    assert {answer.kind for answer in parts.line.answers} == {"hello", "trained", "scored"}
    # Bytes of a message: those accounted, and less than 700 of names, shapes and numbers.
    for answer, tensors in zip((a for a in parts.line.answers if a.kind == "trained"), uploads, strict=True):
        assert sum(t.nbytes for t in tensors.values()) == PROMPT
        assert PROMPT < len(answer.body) < PROMPT + 700
    records = parts.log.records
    accounted = sum(record.bytes["down"] + record.bytes["evaluate_down"] for record in records)
    orders = [order for order in parts.line.orders if order.ask != HELLO]
    assert sum(t.nbytes for order in orders for t in load(order.body).values()) == accounted
    assert accounted < sum(len(order.body) for order in orders) < accounted + 700 * len(orders)
    assert sum(record.line["messages"] for record in records) == len(orders)
    assert sum(record.line["down"] for record in records) == sum(len(order.body) for order in orders)
    assert sum(record.line["up"] for record in records) == sum(
        len(answer.body) for answer in parts.line.answers if answer.kind != "hello"
    )


def in_round(number: int, node: int, answer: Callable[[Answer], Answer | str | None]) -> Change:
    """Harm what a client answers when it trains in a round."""

    def change(at: int, order: Order, sound: Answer) -> Answer | str | None:
        job = json.loads(order.body[8 : 8 + int.from_bytes(order.body[:8], "little")]) if order.body else {}
        record = json.loads(job["__metadata__"]["record"]) if job else {}
        hit = at == node and order.ask == "train" and record["round"] == number
        return answer(sound) if hit else sound

    return change


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda sound: Answer("trained", b"garbage"), "its answer was refused: the message is no Trained"),
        (lambda sound: Answer("scored", sound.body), "its answer was refused: it is of kind 'scored'"),
        (lambda sound: "its node went away", "its node went away"),
        (lambda sound: None, "no answer within engine.timeout = 0.05 seconds"),
        (lambda sound: Answer("mistake", b"no \x1b such thing"), "its settings: no \\x1b such thing"),
    ],
)
def test_a_client_whose_answer_is_no_use_is_dropped_for_the_round(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path, answer: Any, why: str
) -> None:
    config = replace(CONFIG, participation=1.0, rounds=2)
    parts = Parts(embedded_clip, cache, tmp_path, "PFedMoAP", in_round(1, 2, answer), config=config)
    parts.run()
    first, second = parts.log.records[1:]
    assert list(first.failed) == ["2"]
    assert first.failed["2"].startswith(why)
    assert second.failed == {}
    assert parts.federation.server.known(2).rounds_seen == 1
    assert parts.federation.server.known(0).rounds_seen == 2


def test_a_client_that_is_away_is_not_scored_and_comes_back(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    config = replace(CONFIG, participation=1.0, rounds=3)
    parts = Parts(embedded_clip, cache, tmp_path, "PFedMoAP", config=config)
    parts.fleet.open("run")
    for number in (1, 2, 3):
        parts.line.present = {0, 2, 3} if number == 2 else {0, 1, 2, 3}
        record = parts.federation.round(number)
        assert record.failed == ({"1": "it is not connected"} if number == 2 else {})
    away, back = parts.log.evaluations[1:]
    assert (away.clients[1].accuracy, away.failed) == (None, {"1": "evaluation: it is not connected"})
    assert back.clients[1].accuracy is not None
    assert parts.federation.server.known(1).rounds_seen == 2


def test_a_client_that_loses_its_disk_begins_anew(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    config = replace(CONFIG, participation=1.0, rounds=3)
    parts = Parts(embedded_clip, cache, tmp_path, "PFedMoAP", config=config)
    parts.fleet.open("run")
    parts.federation.round(1)
    DiskStates(tmp_path / "2" / "run").clear()
    record = parts.federation.round(2)
    assert record.failed["2"].startswith("its state of round 1 is no longer on its disk")
    assert parts.federation.server.known(2).rounds_seen == 0
    assert parts.log.evaluations[-1].clients[2].accuracy is not None  # as a new client
    assert parts.federation.round(3).failed == {}
    assert parts.federation.server.known(2).rounds_seen == 1


def test_a_server_that_is_killed_goes_on_with_the_same_bits(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    whole = Parts(embedded_clip, cache, tmp_path / "whole", "PFedMoAP")
    whole.run()
    killed = Parts(embedded_clip, cache, tmp_path / "killed", "PFedMoAP", config=replace(CONFIG, rounds=1))
    killed.run()
    checkpoint = killed.federation.state
    saved = type(checkpoint).unflatten(*checkpoint.flatten())
    lost = Parts(embedded_clip, cache, tmp_path / "killed", "PFedMoAP", config=replace(CONFIG, rounds=2), state=saved)
    lost.run()  # its round 2 has no checkpoint; the clients have its states
    saved = type(checkpoint).unflatten(*checkpoint.flatten())
    again = Parts(embedded_clip, cache, tmp_path / "killed", "PFedMoAP", state=saved)
    again.run()
    assert differences(whole.federation.state, again.federation.state) == []
    assert results(whole.log)[2:] == results(again.log)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"class names": "x"}, "Client 0 has other class names than the server; valid is the same configuration"),
        ({"CLIP": "x"}, "Client 0 has another CLIP than the server; valid is the same configuration on both"),
        ({"fedmoe": "9.9"}, "Client 0 has another version of fedmoe than the server (9.9, not "),
        ({"optim": "x"}, "Client 0 has other settings of optim than the server; valid"),
    ],
)
def test_a_client_of_another_federation_is_told_before_training(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path, change: dict, sentence: str
) -> None:
    def lie(node: int, order: Order, answer: Answer) -> Answer:
        hello = json.loads(answer.body)
        hello["identity"] |= change
        return Answer("hello", json.dumps(hello).encode())

    parts = Parts(embedded_clip, cache, tmp_path, "PromptFL", lie)
    with pytest.raises(UserError) as error:
        parts.run()
    assert str(error.value).startswith(sentence)
    assert parts.log.records == []


def test_real_differences_are_found(embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path) -> None:
    from fedmoe.engine.hello import identity

    def of(method: Any, **changes: Any) -> dict[str, str]:
        data = data_of(embedded_clip, method, cache)
        federation, _ = build_federation(embedded_clip, data, method, replace(CONFIG, **changes))
        return identity(federation.fleet.work)  # type: ignore[attr-defined]

    mine = of(PFedMoAP(num_experts=2))

    def other(theirs: dict[str, str]) -> set[str]:
        return {name for name in mine if mine[name] != theirs[name]}

    assert other(of(PFedMoAP(num_experts=2))) == set()
    assert other(of(PFedMoAP(num_experts=2), rounds=9, evaluate_every=2)) == set()  # what only the server decides
    assert other(of(PFedMoAP(num_experts=1))) == {"method"}
    assert other(of(PromptFL())) == {"method"}
    assert other(of(PFedMoAP(num_experts=2), local_epochs=2)) == {"federation"}


def test_a_second_node_for_a_client_and_a_wrong_key_are_refused(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    twice = Parts(embedded_clip, cache, tmp_path, "PromptFL")
    twice.line.sites[4] = twice.line.sites[1]
    twice.line.present.add(4)
    with pytest.raises(UserError, match=r"Client 1 is connected twice \(nodes 1 and 4\)"):
        twice.run()
    wrong = Parts(embedded_clip, cache, tmp_path, "PromptFL")
    wrong.line.bound = {0: 0, 1: 3, 2: 2, 3: 3}
    with pytest.raises(UserError, match="says that it is client 1, but its key is bound to client 3"):
        wrong.run()
    missing = Parts(embedded_clip, cache, tmp_path, "PromptFL")
    missing.line.present = {0, 3}
    with pytest.raises(UserError, match=r"2 of 4 clients have not connected within .* seconds \(1, 2\)"):
        missing.run()


def test_who_is_refused_in_a_run_is_named_with_the_reason(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path
) -> None:
    config = replace(CONFIG, participation=1.0, rounds=3)
    parts = Parts(embedded_clip, cache, tmp_path, "PromptFL", config=config)
    parts.line.bound = {node: node for node in range(4)}
    parts.fleet.open("run")
    parts.federation.round(1)
    parts.line.present = {0, 2, 3}
    assert parts.federation.round(2).failed == {"1": "it is not connected"}
    parts.line.sites[1], parts.line.present = parts.line.sites[0], {0, 1, 2, 3}
    why = "it is refused: A node says that it is client 0, but its key is bound to client 1"
    assert parts.federation.round(3).failed["1"].startswith(why)


def test_a_site_answers_for_nobody_else(embedded_clip: FrozenCLIP, cache: FeatureConfig, tmp_path: Path) -> None:
    parts = Parts(embedded_clip, cache, tmp_path, "PromptFL")
    parts.run()
    order = next(order for order in parts.line.orders if order.ask == "train")
    answers = [parts.line.sites[node].answer(order) for node in range(4)]
    assert sorted(answer.kind for answer in answers) == ["failed", "failed", "failed", "trained"]
    assert parts.line.sites[0].answer(Order("train", "run", b"garbage")).kind == "failed"
    assert parts.line.sites[0].answer(Order("execute", "run", b"")).kind == "failed"
