"""The line to clients elsewhere, without Flower: what the server believes, what a site answers, what a disk keeps.

Clients are real ones on the embedded CLIP and data; the line is a queue in this process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import Log, build_federation, differences, results
from safetensors.torch import load
from test_line import CONFIG, METHODS, PROMPT, clip_of, data_of

from fedmoe.cli import main
from fedmoe.client.counts import BINS
from fedmoe.client.disk import DiskStates, StateLost
from fedmoe.client.work import ClientWork
from fedmoe.config import EngineConfig, FeatureConfig
from fedmoe.engine.check import Checks
from fedmoe.engine.line import HELLO, Answer, Order
from fedmoe.engine.remote import RemoteFleet
from fedmoe.engine.site import Site
from fedmoe.errors import UserError
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.parameters import Scope
from fedmoe.protocol.records import About, ClientState, Failed, Scored, Trained, Update
from fedmoe.protocol.wire import to_bytes

ENGINE = EngineConfig(timeout=0.05, connect=0.2)
Change = Callable[[int, Order, Answer], "Answer | str | None"]


def _disk(folder: Path, run: str) -> DiskStates:
    return DiskStates(folder / run)


class Sites:
    """A line to one site for each client, with a disk each; ``change`` harms answers, None loses them."""

    def __init__(self, work: ClientWork, folder: Path, change: Change | None = None) -> None:
        self.sites = {i: self._site(work, i, folder / str(i)) for i in range(work.config.clients)}
        self.change = change or (lambda node, order, answer: answer)
        self.present = set(self.sites)
        self.bound: dict[int, int] = {}
        self.orders: list[Order] = []
        self.answers: list[Answer] = []
        self._waiting: dict[str, tuple[int, Order]] = {}

    @staticmethod
    def _site(work: ClientWork, client_id: int, folder: Path) -> Site:
        return Site(work, [client_id], partial(_disk, folder), withholds=work.config.secure_aggregation)

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def traffic(self) -> tuple[int, int] | None:
        return None

    def nodes(self) -> Collection[int]:
        return self.present

    def owner(self, node: int) -> int | None:
        return self.bound.get(node)

    def send(self, node: int, order: Order) -> str:
        self.orders.append(order)
        name = str(len(self.orders))
        self._waiting[name] = (node, order)
        return name

    def receive(self, names: Collection[str]) -> Sequence[tuple[str, Answer | str]]:
        found: list[tuple[str, Answer | str]] = []
        for name in [name for name in names if name in self._waiting]:
            node, order = self._waiting.pop(name)
            answer = self.change(node, order, self.sites[node].answer(order))
            if answer is not None:
                found.append((name, answer))
                if isinstance(answer, Answer):
                    self.answers.append(answer)
        return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


class Parts:
    """A federation of sites, and its parts."""

    def __init__(
        self,
        clip: FrozenCLIP,
        cache: FeatureConfig,
        folder: Path,
        name: str,
        change: Change | None = None,
        **kwargs: Any,
    ) -> None:
        self.lines: list[Sites] = []

        def fleet(work: ClientWork) -> RemoteFleet:
            self.lines.append(Sites(work, folder, change))
            return RemoteFleet(work, self.lines[-1], ENGINE)

        method = METHODS[name]()
        config = kwargs.pop("config", CONFIG)
        self.federation: Federation
        self.log: Log
        self.federation, self.log = build_federation(
            clip, data_of(clip, method, cache), method, config, fleet=fleet, **kwargs
        )
        self.line = self.lines[-1]
        assert isinstance(self.federation.fleet, RemoteFleet)
        self.fleet = self.federation.fleet

    def run(self, run: str = "run") -> None:
        self.told = self.fleet.open(run)
        self.federation.run()


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


def upload(**changes: Any) -> bytes:
    """An upload of client 1 with 20 examples, whose prompt is [2, 3]."""
    given = {
        "client_id": 1,
        "num_examples": 20,
        "metrics": {},
        "loss": 0.5,
        "seconds": 1.0,
        "noise_std": 0.0,
        **changes,
    }
    parameters = given.get("parameters") or {"prompt": given.get("prompt", torch.ones(2, 3))}
    update = Update(given["client_id"], parameters, given["num_examples"], given["metrics"])
    return to_bytes(Trained(update, given["loss"], given["seconds"], given["noise_std"]))


CHECKS = Checks({"prompt": torch.zeros(2, 3)}, 2)
ABOUT = About(20, 5)


def test_a_sound_upload_passes() -> None:
    found = CHECKS.trained(upload(metrics={"norm": 2}), 1, ABOUT)
    assert torch.equal(found.update.parameters["prompt"], torch.ones(2, 3))
    assert (found.update.num_examples, found.loss, found.update.metrics) == (20, 0.5, {"norm": 2.0})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (upload(prompt=torch.ones(3, 2)), "of shape"),
        (upload(prompt=torch.ones(2, 3, dtype=torch.float64)), "float64"),
        (upload(prompt=torch.full((2, 3), float("inf"))), "not finite"),
        (upload(num_examples=21), "counts 21 examples, but the client said 20"),
        (upload(num_examples=20.0), "counts 20.0 examples"),
        (upload(num_examples=True), "counts True"),
        (upload(client_id=2), "another client's"),
        (upload(loss="low"), "loss, seconds"),
        (upload(seconds=-1), "loss, seconds"),
        (upload(metrics={"norm": "x"}), "metrics"),
        (upload(metrics=[1]), "metrics"),
        (b"", "no Trained"),
        (b"\x80\x04cos\nsystem\n.", "no Trained"),
        (to_bytes(Failed("why", "")), "no Trained"),
        (upload(parameters={"gate": torch.ones(2)}), "'gate', which is not shared"),
        (b"x" * 2_000_000, "at most"),
    ],
)
def test_an_upload_that_no_client_could_make_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CHECKS.trained(data, 1, ABOUT)


def scored(**changes: Any) -> bytes:
    """Client 1 has 3 of its 5 test examples right."""
    sums = {
        "confusion": torch.tensor([[2, 1], [1, 1]]),
        "calibration": torch.zeros(BINS, 3, dtype=torch.float64),
        **changes.pop("sums", {}),
    }
    return to_bytes(Scored(**{"client_id": 1, "correct": 3, "total": 5, **changes}, sums=sums))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (scored(correct=4), "add up"),
        (scored(total=6), "counts 6 test examples, but the client said 5"),
        (scored(sums={"confusion": torch.tensor([[2, 1], [1, 2]])}), "add up"),
        (
            scored(
                sums={
                    "confusion": torch.tensor([[3, -1], [2, 1]]),
                }
            ),
            "no confusion",
        ),
        (scored(sums={"confusion": torch.ones(3, 3, dtype=torch.int64)}), "its confusion is"),
        (scored(sums={"calibration": torch.full((BINS, 3), float("nan"), dtype=torch.float64)}), "not finite"),
        (scored(sums={"labels": torch.zeros(5, dtype=torch.int64)}), "'labels' is"),
        (scored(sums={"logits": torch.zeros(5, 2, dtype=torch.float64)}), "'logits' is"),
        (scored(sums={"validation": torch.tensor([3, 2])}), "validation"),
        (scored(failed=3), "no text"),
    ],
)
def test_a_score_that_no_client_could_have_is_refused(data: bytes, why: str) -> None:
    assert CHECKS.scored(scored(), 1, ABOUT).correct == 3
    with pytest.raises(ValueError, match=why):
        CHECKS.scored(data, 1, ABOUT)


def test_texts_of_a_failure_are_cut_and_cannot_command_a_terminal() -> None:
    found = CHECKS.failed(to_bytes(Failed("\x1b[2Jgone " * 200, "\x1b" * 50_000, 1.0)))
    assert "\x1b" not in found.reason + found.traceback
    assert len(found.reason) == 500
    assert len(found.traceback) == 20_000


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


def test_a_disk_keeps_three_rounds_and_gives_up_later_ones(tmp_path: Path) -> None:
    states = DiskStates(tmp_path / "run")

    def state(number: int) -> ClientState:
        return ClientState({"prompt": torch.full((2,), float(number))}, {"prompt": torch.ones(1, 2)}, number)

    assert states.get(3, 0) == ClientState()
    for version in (2, 5, 6, 9):
        states.put(3, version, state(version))
    found = states.get(3, 5)
    assert found.rounds_seen == 5
    assert torch.equal(found.parameters["prompt"], torch.tensor([5.0, 5.0]))
    assert torch.equal(found.experts["prompt"], torch.ones(1, 2))
    with pytest.raises(StateLost, match="its state of round 2 is no longer on its disk"):
        states.get(3, 2)
    states.put(3, 6, state(6))  # resumed from an older checkpoint
    with pytest.raises(StateLost):
        states.get(3, 9)
    assert states.get(3, 5).rounds_seen == 5
    with pytest.raises(StateLost):
        DiskStates(tmp_path / "another run").get(3, 6)
    (path,) = (tmp_path / "run" / "3").glob("*6.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StateLost):
        states.get(3, 6)


def test_without_flower_the_sentence_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)  # as if it were not installed
    folder = tmp_path / "runs"
    arguments = ["fit", "--config=configs/smoke.yaml", f"--output.dir={folder}", f"--features.cache_dir={tmp_path}"]
    assert main([*arguments, "--engine.kind=flower_simulation"]) == 2
    told = capsys.readouterr().err
    assert "Error: engine.kind is 'flower_simulation', which needs Flower: pip install" in told
    assert "'fedmoe[flower]'" in told
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--engine.kind=flower"], "engine.address is None; valid is HOST:PORT"),
        (["--engine.kind=flower", "--engine.address=here"], "engine.address is 'here'; valid is HOST:PORT"),
        (
            ["--engine.kind=flower", "--engine.address=h:1"],
            "engine.secret is None; valid is a file with the SuperLink's",
        ),
        (
            ["--engine.kind=flower", "--engine.address=h:1", "--engine.secret=x"],
            "engine.signing is None; valid is a file with the server's key, or insecure: true",
        ),
        (["--engine.timeout=0"], "engine.timeout is 0.0; valid is a number above 0"),
        (["--engine.actors=0"], "engine.actors is 0; valid is null or at least 1"),
    ],
)
def test_settings_that_cannot_work_are_told_at_once(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config=configs/smoke.yaml", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_the_engine_needs_no_torch_for_help() -> None:
    code = "import sys, fedmoe.config, fedmoe.engine.line, fedmoe.cli.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("asked", ["cohort", 3])
def test_a_part_of_the_clients_is_evaluated_between_the_first_and_the_last_round(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, asked: Any
) -> None:
    data = data_of(embedded_clip, PromptFL(), cache)
    whole, log = build_federation(embedded_clip, data, PromptFL(), CONFIG)
    whole.run()
    part, log_part = build_federation(embedded_clip, data, PromptFL(), replace(CONFIG, evaluate_clients=asked))
    part.run()
    assert differences(whole.state, part.state) == []  # who is evaluated changes no training
    for number, (every, some) in enumerate(zip(log.evaluations, log_part.evaluations, strict=True)):
        chosen = [score for score in some.clients if score.accuracy is not None]
        assert all(score == every.clients[score.client] for score in chosen)
        record = log_part.records[number]
        assert record.accuracy is not None
        if number in (0, CONFIG.rounds):
            assert len(chosen) == 4
            assert "standard_error" not in record.accuracy
            continue
        assert len(chosen) == (3 if asked == 3 else 2)
        assert asked == 3 or [score.client for score in chosen] == record.cohort
        values = [score.accuracy for score in chosen if score.accuracy is not None]
        mean, n = sum(values) / len(values), len(values)
        spread = sum((value - mean) ** 2 for value in values) / (n - 1)
        expected = (spread / n * (1 - n / 4)) ** 0.5
        assert record.accuracy["mean"] == pytest.approx(mean)
        assert record.accuracy["standard_error"] == pytest.approx(expected)
