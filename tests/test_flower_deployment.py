"""A federation on a real SuperLink with real SuperNodes and clients, with TLS and keys: the same bits, and faults.

Needs fedmoe[flower]; `make test-flower` runs it in an environment of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr")

from fedmoe.cli import main
from fedmoe.engine.credentials import make_credentials
from fedmoe.io import read_jsonl

pytestmark = pytest.mark.flower
CLIENTS = 4
SETTINGS = (
    "--config=configs/smoke.yaml",
    f"--federation.clients={CLIENTS}",
    "--federation.participation=1.0",
    "--federation.rounds=3",
    "--method.num_experts=2",
    "--data.shots=16",
)
FORK = multiprocessing.get_context("forkserver")


def command_line(args: list[str], log: str) -> None:
    """The life of a process with fedmoe's command line, forked from one that has imported everything."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    code = main(args)
    sys.stdout.flush()
    os._exit(code)


def until(true: Callable[[], bool], what: str, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Sites:
    """A SuperLink, and for each client a SuperNode and a process that holds its data."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys = folder, folder / "keys"
        make_credentials(self.keys, CLIENTS, ["127.0.0.1", "localhost"])
        self.address = f"127.0.0.1:{free_port()}"
        self.cache = f"--features.cache_dir={folder / 'features'}"
        self.nodes: dict[int, subprocess.Popen] = {}
        self.ports = {i: free_port() for i in range(CLIENTS)}
        self.clients: dict[int, Any] = {}
        server = self.keys / "server"
        self.start_link()
        self.engine = (
            *("--engine.kind=flower", f"--engine.address={self.address}", f"--engine.certificate={server / 'ca.pem'}"),
            *(f"--engine.secret={server / 'secret'}", f"--engine.keys={server / 'keys.json'}", "--engine.timeout=30"),
            f"--engine.signing={server / 'signing.key'}",
        )
        assert main(["engine", "register", *SETTINGS, *self.engine]) == 0
        for i in range(CLIENTS):
            self.start_node(i)
            self.start_client(i)

    def start_link(self) -> None:
        server, before = self.keys / "server", self.log("link").count("Uvicorn running")
        port = self.address.split(":")[1]
        self.link = self.start(
            *("flower-superlink", "--host", "127.0.0.1", "--port", port, "--isolation", "process"),
            *("--superexec-auth-secret-file", server / "secret", "--ssl-certfile", server / "server.pem"),
            *("--ssl-keyfile", server / "server.key", "--ssl-ca-certfile", server / "ca.pem"),
            *("--enable-supernode-auth", "--database", self.folder / "link.db"),
            log="link",
        )
        until(lambda: self.log("link").count("Uvicorn running") > before, "the SuperLink does not start")

    def start(self, program: str, *args: Any, log: str) -> subprocess.Popen:
        environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        environment |= {"FLWR_HOME": str(self.folder / "flwr"), "NO_COLOR": "1"}
        with open(self.folder / f"{log}.log", "ab") as file:
            path = Path(sys.executable).parent / program
            return subprocess.Popen([path, *map(str, args)], stdout=file, stderr=file, env=environment)

    def start_node(self, i: int, key: Path | None = None, log: str = "") -> subprocess.Popen:
        site = self.keys / f"site-{i}"
        process = self.start(
            *("flower-supernode", "--superlink", self.address, "--root-certificates", site / "ca.pem"),
            *("--auth-supernode-private-key", key or site / "key", "--host", "127.0.0.1"),
            *("--port", free_port() if key else self.ports[i], "--isolation", "process"),
            *("--superexec-auth-secret-file", site / "secret"),
            log=log or f"node-{i}",
        )
        if key is None:
            self.nodes[i] = process
        return process

    def bring_back_node(self, i: int) -> None:
        """As a supervisor does: the SuperLink lets a node in again when its last sign of life has expired."""
        end, before = time.monotonic() + 240, self.log(f"node-{i}").count("SuperNode ID")
        while self.log(f"node-{i}").count("SuperNode ID") == before:
            assert time.monotonic() < end, self.log(f"node-{i}")[-2000:]
            if self.nodes[i].poll() is not None:
                self.start_node(i)
            time.sleep(0.5)

    def start_client(self, i: int, *options: str) -> None:
        states = self.folder / "states"
        args = ["client", *SETTINGS, self.cache, f"--client={i}", f"--supernode=127.0.0.1:{self.ports[i]}"]
        site = self.keys / f"site-{i}"
        args += [f"--secret={site / 'secret'}", f"--server_key={site / 'server.pub'}", f"--states={states}", *options]
        self.clients[i] = FORK.Process(target=command_line, args=(args, str(self.folder / f"client-{i}.log")))
        self.clients[i].start()

    def stop_client(self, i: int) -> None:
        self.clients[i].kill()
        self.clients[i].join()

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def fit(self, name: str, *options: str) -> list[str]:
        folder = f"--output.dir={self.folder / 'runs'}"
        return ["fit", *SETTINGS, self.cache, folder, f"--output.name={name}", *self.engine, *options]

    def start_fit(self, name: str, *options: str) -> Any:
        log = str(self.folder / f"{name}.log")
        process = FORK.Process(target=command_line, args=(self.fit(name, *options), log))
        process.start()
        return process

    def lines(self, name: str, file: str = "rounds.jsonl") -> list[dict[str, Any]]:
        path = self.folder / "runs" / name / file
        return [{**line, "seconds": None, "line": None} for line in read_jsonl(path)] if path.exists() else []

    def close(self) -> None:
        for process in self.clients.values():
            process.kill()
        for node in [*self.nodes.values(), self.link]:
            node.kill()
            node.wait()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    FORK.set_forkserver_preload(["fedmoe.experiment", "fedmoe.report.plots", "fedmoe.engine.deployment"])
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("federation")
    here = [f"--output.dir={folder / 'runs'}", "--output.name=here", f"--features.cache_dir={folder / 'features'}"]
    assert main(["fit", *SETTINGS, *here]) == 0
    found = Sites(folder)
    yield found
    found.close()


def test_four_sites_end_with_the_same_bits_as_one_process(sites: Sites, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(sites.fit("there")) == 0
    assert sites.lines("there") == sites.lines("here")
    assert sites.lines("there", "clients.jsonl") == sites.lines("here", "clients.jsonl")
    for name in ("partition.json", "confusion.json"):
        ours, theirs = (json.loads((sites.folder / "runs" / run / name).read_text()) for run in ("here", "there"))
        assert ours == theirs
    # Personal parameters are on the clients' disks, and not in the server's checkpoint.
    (manifest,) = (sites.folder / "runs" / "there" / "state").glob("round-00003.json")
    assert not [name for name in json.loads(manifest.read_text())["tensors"] if name.startswith("client/")]
    assert len(list((sites.folder / "states").glob("client-*/*/*/000003.safetensors"))) == CLIENTS
    line = read_jsonl(sites.folder / "runs" / "there" / "rounds.jsonl")[-1]
    assert line["line"]["messages"] == 2 * CLIENTS
    assert line["bytes"]["down"] + line["bytes"]["evaluate_down"] < line["line"]["down"] < line["line"]["wire_down"]
    assert line["bytes"]["up"] < line["line"]["up"] < line["line"]["wire_up"]
    capsys.readouterr()
    assert main(["engine", "status", *SETTINGS, *sites.engine]) == 0
    told = capsys.readouterr().out.splitlines()
    for i in range(CLIENTS):
        assert f": client {i}, online, last seen about " in told[i]
        assert f", says it is client {i} with fedmoe " in told[i]


def test_a_server_that_is_killed_resumes_to_the_same_bits(sites: Sites) -> None:
    process = sites.start_fit("killed")
    until(lambda: len(sites.lines("killed")) >= 2, "round 1 does not end")
    process.kill()
    process.join()
    assert len(sites.lines("killed")) < 4
    assert main(sites.fit("killed")) == 0
    assert sites.lines("killed") == sites.lines("here")


def test_a_supernode_that_is_killed_is_dropped_and_comes_back_with_its_state(sites: Sites) -> None:
    rounds = 10
    process = sites.start_fit("node", f"--federation.rounds={rounds}", "--engine.timeout=30")
    until(lambda: len(sites.lines("node")) >= 2, "round 1 does not end")
    sites.nodes[1].kill()
    sites.nodes[1].wait()
    until(lambda: any("1" in line["failed"] for line in sites.lines("node")), "client 1 does not fail")
    sites.bring_back_node(1)
    process.join(500)
    assert process.exitcode == 0, sites.log("node")
    failed = [line["round"] for line in sites.lines("node") if "1" in line["failed"]]
    assert 1 < failed[0] <= failed[-1] < rounds  # it was back in time, with its state of the rounds before
    failures = [line for line in sites.lines("node", "failures.jsonl") if line["client"] == 1]
    reasons = {line["reason"] for line in failures}
    assert reasons <= {"no answer within engine.timeout = 30 seconds", "it is not connected"}
    kept = json.loads((sites.folder / "runs" / "node" / "state" / f"round-{rounds:05d}.json").read_text())["clients"]
    assert kept["1"]["version"] == rounds
    assert kept["1"]["rounds_seen"] == rounds - len({line["round"] for line in failures})


def test_a_client_with_other_settings_is_told_before_the_first_round(
    sites: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(sites.fit("other", "--optim.prompt_lr=0.5")) == 2
    told = capsys.readouterr().err
    assert "has other settings of optim than the server; valid is the same configuration on both." in told
    assert not (sites.folder / "runs" / "other").exists()


def test_what_cannot_be_reached_or_trusted_is_one_sentence(
    sites: Sites, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*options: str) -> str:
        capsys.readouterr()
        assert main(sites.fit("nothing", *options)) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert not (sites.folder / "runs" / "nothing").exists()
        return error

    assert "cannot be reached" in told(f"--engine.address=127.0.0.1:{free_port()}")
    (tmp_path / "secret").write_text("wrong")
    assert "refuses this process (401); valid is the engine.secret" in told(f"--engine.secret={tmp_path / 'secret'}")
    make_credentials(tmp_path / "other", 1, ["127.0.0.1"])
    stranger = tmp_path / "other" / "server" / "ca.pem"
    assert "The certificate of engine.address" in told(f"--engine.certificate={stranger}")
    # Orders that another server signs are refused by all clients.
    signing = tmp_path / "other" / "server" / "signing.key"
    assert "4 of 4 clients have not connected" in told(f"--engine.signing={signing}", "--engine.connect=15")
    assert "refused: the order is not signed by this client's server" in sites.log("client-0")
    # A SuperNode whose key nobody registered is not let in.
    node = sites.start_node(0, key=tmp_path / "other" / "site-0" / "key", log="stranger")
    assert node.wait(120) != 0
    assert "Failed to activate SuperNode" in sites.log("stranger")


def test_an_expired_certificate_is_one_sentence(
    sites: Sites, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sites.keys, tmp_path / "keys")
    make_credentials(tmp_path / "keys", CLIENTS, ["127.0.0.1"], days=-1)
    server, port = tmp_path / "keys" / "server", free_port()
    link = sites.start(
        *("flower-superlink", "--host", "127.0.0.1", "--port", port, "--isolation", "process"),
        *("--superexec-auth-secret-file", server / "secret", "--ssl-certfile", server / "server.pem"),
        *("--ssl-keyfile", server / "server.key", "--ssl-ca-certfile", server / "ca.pem", "--enable-supernode-auth"),
        log="expired",
    )
    try:
        until(lambda: "Uvicorn running" in sites.log("expired"), "the SuperLink does not start")
        capsys.readouterr()
        assert main(sites.fit("nothing", f"--engine.address=127.0.0.1:{port}")) == 2
        told = capsys.readouterr().err
        assert "certificate has expired" in told
        assert "valid is one that has not expired" in told
    finally:
        link.kill()
        link.wait()


def test_a_superlink_that_is_killed_ends_the_run_with_a_sentence_and_the_same_command_goes_on(sites: Sites) -> None:
    process = sites.start_fit("broken")
    until(lambda: len(sites.lines("broken")) >= 2, "round 1 does not end")
    sites.link.kill()
    sites.link.wait()
    process.join(240)
    assert process.exitcode == 2, sites.log("broken")
    sites.start_link()
    assert main(sites.fit("broken", "--engine.connect=200")) == 0
    assert sites.lines("broken") == sites.lines("here")
