"""A client that fails does not end the federation: it is dropped, tried again, or fatal, as the settings say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import Backwards, Log, build_federation, results

from fedmoe.cli import main
from fedmoe.client.module import ClientModule
from fedmoe.client.work import ClientWork
from fedmoe.config import FeatureConfig, FederationConfig, OptimConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.callbacks import Callback, FederationView
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import FedPer, Method, PFedMoAP, PromptFL, PromptFLFT
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client
from fedmoe.protocol.records import Failed, RoundContext, Trained, TrainJob, Update
from fedmoe.runs.records import Failure

CLIENTS, VICTIM = 4, 2
CONFIG = FederationConfig(clients=CLIENTS, rounds=2, local_epochs=1, batch_size=64)
PROMPT_BYTES = 16 * 64 * 4


def not_finite(loss: torch.Tensor) -> torch.Tensor:
    return loss * float("nan")


def an_error(loss: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("the sensor\nis gone.")


def no_memory(loss: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("tried to allocate 20 GiB")


def a_mistake(loss: torch.Tensor) -> torch.Tensor:
    raise UserError("the views do not fit.")


REASONS = {
    not_finite: "its training loss became nan with optim.prompt_lr = 0.02 and optim.gating_lr = 0.05",
    an_error: "RuntimeError: the sensor is gone",
    no_memory: "memory ran out with federation.batch_size = 64",
}


def failing(kind: Any, harm: Callable[[torch.Tensor], torch.Tensor], when: Callable[[Any], bool]):
    """A method whose loss is harmed on some clients."""

    class Failing(kind):
        def loss(self, client: Client, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            loss = super().loss(client, image_features, labels)
            return harm(loss) if when(client) else loss

    return Failing


def victim_in_round_2(client: ClientModule) -> bool:
    return client.client_id == VICTIM and client.progress > 0


class Failures(Callback):
    def __init__(self) -> None:
        self.seen: list[Failure] = []

    def on_client_failed(self, run: FederationView, context: RoundContext, failure: Failure) -> None:
        self.seen.append(failure)


class Noting(LocalFleet):
    """Clients whose uploads are noted as they come up, by round and client."""

    def __init__(self, work: ClientWork) -> None:
        super().__init__(work)
        self.uploads: dict[tuple[int, int], Update] = {}

    def train(self, jobs: Iterable[TrainJob]) -> Iterator[tuple[TrainJob, Trained | Failed]]:
        for job, result in super().train(jobs):
            if isinstance(result, Trained):
                self.uploads[job.round, job.client_id] = result.update
            yield job, result


def clients_of(federation: Federation) -> Noting:
    assert isinstance(federation.fleet, Noting)
    return federation.fleet


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


def run(
    clip: FrozenCLIP, data: FederatedData, method: Method, config: FederationConfig = CONFIG, **kwargs
) -> tuple[Federation, Log, list[Failure]]:
    failures = Failures()
    federation, log = build_federation(clip, data, method, config, callbacks=[failures], fleet=Noting, **kwargs)
    federation.run()
    return federation, log, failures.seen


@pytest.mark.parametrize("harm", REASONS)
@pytest.mark.parametrize("kind", [PromptFL, PFedMoAP])
def test_a_failed_client_is_dropped_for_the_round(
    embedded_clip: FrozenCLIP, data: FederatedData, kind: type[Method], harm
) -> None:
    make = failing(kind, harm, victim_in_round_2)
    before, log, _ = run(embedded_clip, data, make(), replace(CONFIG, rounds=1))
    federation, log, failures = run(embedded_clip, data, make())
    record = log.records[2]
    assert record.cohort == [0, 1, 2, 3]
    assert record.failed == {str(VICTIM): REASONS[harm]}
    assert [(f.round, f.client, f.attempt, f.reason) for f in failures] == [(2, VICTIM, 0, REASONS[harm])]
    assert "Traceback" in failures[0].traceback
    # It keeps what it had; its old prompt stays in the pool.
    old, new = before.state.clients[VICTIM], federation.state.clients[VICTIM]
    assert new.rounds_seen == federation.server.known(VICTIM).rounds_seen == 1
    assert federation.server.known(VICTIM) == before.server.known(VICTIM)
    assert new.parameters.keys() == old.parameters.keys() == ({"prompt"} if kind is PFedMoAP else set())
    assert all(torch.equal(new.parameters[name], old.parameters[name]) for name in old.parameters)
    assert federation.server.pool.keys() == before.server.pool.keys() == ({"prompt"} if kind is PFedMoAP else set())
    assert all(
        torch.equal(federation.server.pool[name][VICTIM], before.server.pool[name][VICTIM])
        for name in before.server.pool
    )
    # The mean is over the others, with weights that add up over them (eq. 7).
    others = [i for i in range(CLIENTS) if i != VICTIM]
    examples = [len(data.client(i).train_labels) for i in others]
    uploads = clients_of(federation).uploads
    assert (2, VICTIM) not in uploads
    prompts = [uploads[2, i].parameters["prompt"].double() for i in others]
    mean = torch.stack([n / sum(examples) * prompt for n, prompt in zip(examples, prompts, strict=True)]).sum(0)
    assert torch.allclose(federation.server.shared["prompt"].double(), mean, rtol=0, atol=1e-7)
    # It was sent a prompt and sent none back.
    assert record.bytes["up"] == 3 * PROMPT_BYTES
    assert record.bytes["down"] >= 4 * PROMPT_BYTES
    assert record.train_loss is not None
    assert federation.state.round == 2


def test_failures_do_not_depend_on_the_order_of_clients(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    make = failing(PFedMoAP, not_finite, victim_in_round_2)
    one, log, _ = run(embedded_clip, data, make())
    other, log_other, _ = run(embedded_clip, data, make(), kind=Backwards)
    assert results(log) == results(log_other)
    tensors, others = one.state.flatten()[0], other.state.flatten()[0]
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_where_all_clients_fail_the_global_prompt_stays(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    make = failing(PromptFL, not_finite, lambda client: client.progress > 0)
    before, log_before, _ = run(embedded_clip, data, make(), replace(CONFIG, rounds=1))
    federation, log, _ = run(embedded_clip, data, make())
    assert torch.equal(federation.server.shared["prompt"], before.server.shared["prompt"])
    record = log.records[2]
    assert sorted(record.failed) == ["0", "1", "2", "3"]
    assert (record.train_loss, record.prompt_drift, record.bytes["up"]) == (None, None, 0)
    assert record.accuracy == log_before.records[1].accuracy


def test_a_client_is_tried_again_with_other_batches(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    calls: list[torch.Tensor] = []

    class FailsOnce(PromptFL):
        def loss(self, client: Client, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            loss = super().loss(client, image_features, labels)
            if client.client_id != VICTIM:
                return loss
            calls.append(labels)
            return loss * float("nan") if len(calls) <= steps else loss

    steps = -(-len(data.client(VICTIM).train_labels) // 64)
    config = replace(CONFIG, rounds=1, on_failure="retry", retries=2)
    federation, log, failures = run(embedded_clip, data, FailsOnce(), config)
    assert [(f.client, f.attempt) for f in failures] == [(VICTIM, 0)]
    assert log.records[1].failed == {}
    assert len(calls) == 2 * steps
    assert not torch.equal(calls[0], calls[steps])
    assert log.records[1].bytes["up"] == 4 * PROMPT_BYTES
    # All that changed is the victim's own training.
    plain, _, _ = run(embedded_clip, data, PromptFL(), config)
    ours, theirs = clients_of(federation).uploads, clients_of(plain).uploads
    same = [torch.equal(ours[1, i].parameters["prompt"], theirs[1, i].parameters["prompt"]) for i in range(CLIENTS)]
    assert same == [True, True, False, True]


def test_attempts_end(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config = replace(CONFIG, on_failure="retry", retries=2)
    _, log, failures = run(embedded_clip, data, failing(PromptFL, an_error, victim_in_round_2)(), config)
    assert [(f.client, f.attempt) for f in failures] == [(VICTIM, 0), (VICTIM, 1), (VICTIM, 2)]
    assert list(log.records[2].failed) == [str(VICTIM)]


@pytest.mark.parametrize("harm", [not_finite, no_memory])
def test_a_failure_can_be_fatal(embedded_clip: FrozenCLIP, data: FederatedData, harm) -> None:
    config = replace(CONFIG, on_failure="stop")
    federation, log = build_federation(embedded_clip, data, failing(PromptFL, harm, victim_in_round_2)(), config)
    with pytest.raises(UserError) as error:
        federation.run()
    assert f"Client {VICTIM} failed in round 2: {REASONS[harm]}; " in str(error.value)
    assert [record.round for record in log.records] == [0, 1]
    assert federation.state.round == 1


def test_a_fatal_error_of_the_program_is_shown_whole(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    config = replace(CONFIG, on_failure="stop")
    federation, _ = build_federation(embedded_clip, data, failing(PromptFL, an_error, victim_in_round_2)(), config)
    with pytest.raises(RuntimeError, match="sensor"):
        federation.run()


def test_a_mistake_in_the_settings_is_no_failure_of_a_client(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    with pytest.raises(UserError, match="personal_vectors is 17"):
        build_federation(embedded_clip, data, FedPer(personal_vectors=17), CONFIG)  # before there is a round
    federation, log = build_federation(embedded_clip, data, failing(PromptFL, a_mistake, victim_in_round_2)(), CONFIG)
    with pytest.raises(UserError, match="the views do not fit"):
        federation.run()
    assert [record.round for record in log.records] == [0, 1]


def test_parameters_that_overflow_in_the_last_step_are_a_failure(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    make = failing(PromptFL, lambda loss: loss * 1e30, lambda client: True)
    config = replace(CONFIG, rounds=1, batch_size=2000)  # one step, whose loss is finite
    federation, log, _ = run(embedded_clip, data, make(), config, optim=OptimConfig(prompt_lr=1e20))
    assert set(log.records[1].failed.values()) == {"its trained parameters are not finite"}
    assert torch.equal(federation.server.shared["prompt"], clients_of(federation).work.module.prompts.start)


def test_where_fine_tuning_fails_the_client_is_scored_without(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    def tuned(client: ClientModule) -> bool:  # training has CONFIG's one epoch, fine-tuning the method's five
        return client.client_id == VICTIM and client.trainer.max_epochs == 5

    _, log, _ = run(embedded_clip, data, failing(PromptFLFT, not_finite, tuned)())
    _, plain, _ = run(embedded_clip, data, PromptFL())
    _, whole, _ = run(embedded_clip, data, PromptFLFT())
    assert list(log.records[2].failed) == [str(VICTIM)]
    assert log.records[2].failed[str(VICTIM)].startswith("fine-tuning: its training loss became nan")
    for i, score in enumerate(log.evaluations[-1].clients):
        assert score == (plain if i == VICTIM else whole).evaluations[-1].clients[i]


def test_a_run_names_who_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "unlucky.py").write_text(
        "from fedmoe.methods import PromptFL\n\n\n"
        "class Unlucky(PromptFL):\n"
        "    def loss(self, client, image_features, labels):\n"
        "        loss = super().loss(client, image_features, labels)\n"
        "        return loss * float('nan') if client.client_id == 1 else loss\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = ["fit", "--config=configs/embedded.yaml", "--method=unlucky.Unlucky", "--federation.clients=3"]
    arguments += ["--federation.rounds=2", "--federation.local_epochs=1", f"--output.dir={tmp_path / 'runs'}"]
    arguments += ["--output.name=unlucky", f"--features.cache_dir={tmp_path / 'features'}", "--data.shots=16"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    reason = "its training loss became nan with optim.prompt_lr = 0.002 and optim.gating_lr = 0.01"
    assert f"round 2, client 1 failed: {reason}" in told
    assert f"clients that failed and were dropped from rounds: 1 (rounds 1, 2: {reason})" in told
    folder = tmp_path / "runs" / "unlucky"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed_clients"] == [{"client": 1, "rounds": [1, 2], "reason": reason}]
    lines = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert [(line["round"], line["client"], line["reason"]) for line in lines] == [(1, 1, reason), (2, 1, reason)]
    columns = (folder / "rounds.csv").read_text().splitlines()
    assert [row.split(",")[columns[0].split(",").index("clients/failed")] for row in columns[1:]] == ["0", "1", "1"]
