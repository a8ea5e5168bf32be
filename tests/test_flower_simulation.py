"""The same federation in worker processes on this machine, by Flower: the same bits, and nothing left behind.

Real processes; needs fedmoe[flower], so `make test-flower` runs it in an environment of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from federation_helpers import Log, build_federation, differences, results
from test_line import CONFIG, METHODS, PROMPT, clip_of, data_of

pytest.importorskip("flwr")

from fedmoe.attacks import NoisePrompt
from fedmoe.attacks.adversary import Adversary
from fedmoe.client.work import ClientWork
from fedmoe.config import EngineConfig, FeatureConfig
from fedmoe.defences import Reputation, TrimmedMean
from fedmoe.defences.guard import Defences
from fedmoe.engine.simulation import SimulatedFleet
from fedmoe.errors import UserError
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import Method, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client

pytestmark = pytest.mark.flower
ENGINE = EngineConfig(kind="flower_simulation", actors=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureConfig:
    torch.set_num_threads(1)
    return FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))


@pytest.fixture
def simulated() -> Iterator[Callable[[ClientWork], SimulatedFleet]]:
    fleets: list[SimulatedFleet] = []

    def make(work: ClientWork) -> SimulatedFleet:
        fleets.append(SimulatedFleet(work, ENGINE))
        fleets[-1].open("run")
        return fleets[-1]

    yield make
    for fleet in fleets:
        folder = fleet.workers.folder
        fleet.close()
        assert not folder.exists()


@pytest.mark.parametrize("name", METHODS)
def test_the_same_bits_as_in_one_process(
    embedded_clip: FrozenCLIP,
    vit_clip: FrozenCLIP,
    cache: FeatureConfig,
    simulated: Callable[[ClientWork], SimulatedFleet],
    name: str,
) -> None:
    clip = clip_of(METHODS[name](), embedded_clip, vit_clip)
    data = data_of(clip, METHODS[name](), cache)
    plain, log = build_federation(clip, data, METHODS[name](), CONFIG)
    plain.run()
    apart, log_apart = build_federation(clip, data, METHODS[name](), CONFIG, fleet=simulated)
    apart.run()
    assert differences(plain.state, apart.state) == []
    assert results(log) == results(log_apart)
    assert [e.clients for e in log.evaluations] == [e.clients for e in log_apart.evaluations]


def test_attackers_in_workers_do_what_they_do_in_one_process(
    embedded_clip: FrozenCLIP, simulated: Callable[[ClientWork], SimulatedFleet], cache: FeatureConfig
) -> None:
    method = METHODS["PFedMoAP"]()
    data = data_of(embedded_clip, method, cache)
    adversary = Adversary(NoisePrompt(), frozenset({1, 2}), 5, 10)
    guard = Defences(TrimmedMean(), Reputation())
    plain, log = build_federation(embedded_clip, data, method, CONFIG, adversary=adversary, defences=guard)
    plain.run()
    apart, log_apart = build_federation(
        embedded_clip, data, METHODS["PFedMoAP"](), CONFIG, fleet=simulated, adversary=adversary, defences=guard
    )
    apart.run()
    assert differences(plain.state, apart.state) == []
    assert results(log_apart) == results(log)
    assert "reputation.counts" in plain.server.extras


def test_either_engine_continues_the_other(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, simulated: Callable[[ClientWork], SimulatedFleet]
) -> None:
    data = data_of(embedded_clip, PFedMoAP(num_experts=2), cache)

    def run(fleet: Callable[[ClientWork], object], rounds: int, state=None) -> tuple[Federation, Log]:
        config = replace(CONFIG, rounds=rounds)
        method = PFedMoAP(num_experts=2)
        federation, log = build_federation(embedded_clip, data, method, config, state=state, fleet=fleet)  # type: ignore[arg-type]
        federation.run()
        return federation, log

    whole, _ = run(LocalFleet, 4)
    begun_here, _ = run(LocalFleet, 2)
    begun_there, _ = run(simulated, 2)
    assert differences(run(simulated, 4, begun_here.state)[0].state, whole.state) == []
    assert differences(run(LocalFleet, 4, begun_there.state)[0].state, whole.state) == []


class Dying(PromptFL):
    """Client 1 ends its process in its first round, once."""

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    def loss(self, client: Client, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if client.client_id == 1 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(client, image_features, labels)


def test_a_worker_that_dies_is_replaced(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, simulated: Callable[[ClientWork], SimulatedFleet], tmp_path: Path
) -> None:
    method: Method = Dying(str(tmp_path / "died"))
    config = replace(CONFIG, participation=1.0, rounds=2)
    federation, log = build_federation(
        embedded_clip, data_of(embedded_clip, method, cache), method, config, fleet=simulated
    )
    federation.run()
    assert log.records[1].failed == {"1": "its worker process ended (exit code -9)"}
    assert log.records[2].failed == {}
    assert len(federation.state.clients) == 4


class Mistaken(PromptFL):
    def loss(self, client: Client, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise UserError("the views do not fit.")


def test_a_mistake_stops_the_run_and_another_error_drops_the_client(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, simulated: Callable[[ClientWork], SimulatedFleet]
) -> None:
    data = data_of(embedded_clip, PromptFL(), cache)
    federation, log = build_federation(embedded_clip, data, Mistaken(), CONFIG, fleet=simulated)
    with pytest.raises(UserError, match="the views do not fit"):
        federation.run()
    assert [record.round for record in log.records] == [0]

    class Unlucky(PromptFL):
        def loss(self, client: Client, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the sensor\nis gone.")

    federation, log = build_federation(embedded_clip, data, Unlucky(), CONFIG, fleet=simulated)
    federation.run()
    assert set(log.records[1].failed.values()) == {"RuntimeError: the sensor is gone"}


def test_what_crosses_is_counted(
    embedded_clip: FrozenCLIP, cache: FeatureConfig, simulated: Callable[[ClientWork], SimulatedFleet]
) -> None:
    config = replace(CONFIG, rounds=1)
    data = data_of(embedded_clip, PromptFL(), cache)
    federation, log = build_federation(embedded_clip, data, PromptFL(), config, fleet=simulated)
    federation.run()
    crossed = {name: log.records[0].line[name] + log.records[1].line[name] for name in ("messages", "down", "up")}
    assert crossed["messages"] == 4 + 2 + 4  # evaluated before training, a cohort of two, evaluated after it
    assert 10 * PROMPT < crossed["down"] < 10 * (PROMPT + 400)
    assert 2 * PROMPT < crossed["up"] < 2 * PROMPT + 10 * 2_000


def fit(tmp_path: Path, *options: str, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "fedmoe.cli", "fit", "--config=configs/smoke.yaml", f"--output.dir={tmp_path}"]
    command += [f"--features.cache_dir={tmp_path / 'features'}", "--engine.actors=2", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def rounds(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{**line, "seconds": None, "line": None} for line in lines]


def processes_of(group: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in found.splitlines()]
    return [int(pid) for pid, pgid, stat in rows if int(pgid) == group and not stat.startswith("Z")]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files, with a path short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_path_too_long_for_a_socket_is_one_sentence(tmp_path: Path) -> None:
    scratch = tmp_path / ("long" * 25)
    scratch.mkdir()
    run = fit(tmp_path, "--engine.kind=flower_simulation", env={**os.environ, "TMPDIR": str(scratch)})
    said = run.communicate()[0]
    assert run.returncode == 2
    assert "Traceback" not in said
    assert f"Error: The folder for temporary files, {scratch}, has too long a path" in said


def test_through_the_command_line_and_nothing_is_left_behind(tmp_path: Path, scratch: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(scratch)}
    here = fit(tmp_path, "--output.name=here")
    assert here.wait() == 0, here.communicate()[0]
    there = fit(
        tmp_path,
        *("--output.name=there", "--engine.kind=flower_simulation"),
        env=environment,
        start_new_session=True,
    )
    assert there.wait() == 0, there.communicate()[0]
    assert rounds(tmp_path / "here") == rounds(tmp_path / "there")
    until(lambda: processes_of(there.pid) == [])
    assert list(scratch.glob("fedmoe-*")) == []
    # Killed, it takes its workers with it, and either engine continues what it left.
    killed = fit(
        tmp_path,
        *("--output.name=killed", "--engine.kind=flower_simulation"),
        env=environment,
        start_new_session=True,
    )
    assert killed.stdout is not None
    while "round 1/2" not in (line := killed.stdout.readline()):
        assert line, "it ended before its first round"
    killed.kill()
    killed.wait()
    until(lambda: processes_of(killed.pid) == [] and list(scratch.glob("fedmoe-*")) == [])
    again = fit(tmp_path, "--output.name=killed", "--engine.kind=in_process")
    assert again.wait() == 0, again.communicate()[0]
    assert rounds(tmp_path / "here") == rounds(tmp_path / "killed")


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
