"""A federation on a real SuperLink with real SuperNodes and clients, with TLS and keys: the same bits, and bad inputs.

Needs fedmoe[flower]; `make test-flower` runs it in an environment of its own. Faults are in test_flower_faults.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr")

from flower_sites import CLIENTS, LONG, Sites, free_port, running

from fedmoe.cli import main
from fedmoe.engine.credentials import make_credentials
from fedmoe.io import read_jsonl

pytestmark = pytest.mark.flower
SLOW = {0: 1.0, 2: 0.3}  # two of the SuperNodes are as slow as on a loaded machine
DAY = 86_400.0


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    with running(tmp_path_factory.mktemp("federation"), slow=SLOW) as found:
        yield found


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
    assert len(list(sites.states.glob("client-*/*/*/000003.safetensors"))) == CLIENTS
    line = read_jsonl(sites.folder / "runs" / "there" / "rounds.jsonl")[-1]
    assert line["line"]["messages"] == 2 * CLIENTS
    assert line["bytes"]["down"] + line["bytes"]["evaluate_down"] < line["line"]["down"] < line["line"]["wire_down"]
    assert line["bytes"]["up"] < line["line"]["up"] < line["line"]["wire_up"]
    capsys.readouterr()
    assert main(["engine", "status", *sites.settings, *sites.engine]) == 0
    told = capsys.readouterr().out.splitlines()
    for i in range(CLIENTS):
        assert f": client {i}, online, last seen about " in told[i]
        assert f", says it is client {i} with fedmoe " in told[i]


def test_uploads_are_aggregated_securely(sites: Sites) -> None:
    options = ("--method=PromptFL", "--federation.rounds=1", "--federation.secure_aggregation=true")
    for i in range(CLIENTS):
        sites.stop(sites.clients[i])
        sites.start_client(i, *options)
    assert main([*sites.fit("secure_here", *options), "--engine.kind=in_process"]) == 0
    assert main(sites.fit("secure", *options)) == 0
    assert sites.lines("secure") == sites.lines("secure_here")
    line = read_jsonl(sites.folder / "runs" / "secure" / "rounds.jsonl")[-1]
    assert line["line"]["messages"] == 6 * CLIENTS  # training, four steps of the sum, evaluation
    for i in range(CLIENTS):
        sites.stop(sites.clients[i])
        sites.start_client(i)


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("--optim.prompt_lr=0.5", "other settings of optim"),
        ("--method.num_experts=3", "other settings of method"),
        ("--seed=5", "another seed"),
    ],
)
def test_a_client_with_other_settings_is_told_before_the_first_round(
    sites: Sites, capsys: pytest.CaptureFixture[str], setting: str, what: str
) -> None:
    capsys.readouterr()
    assert main(sites.fit("other", setting)) == 2
    told = capsys.readouterr().err
    assert f"has {what} than the server" in told
    assert "valid is the same configuration on both." in told
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
    # Orders that another server signs are refused.
    signing = tmp_path / "other" / "server" / "signing.key"
    assert "4 of 4 clients have not connected" in told(f"--engine.signing={signing}", "--engine.connect=15")
    refused = "refused: the order is not signed by this client's server"
    assert any(refused in sites.log(f"client-{i}") for i in range(CLIENTS))
    # A SuperNode whose key nobody registered, or whose clock is wrong, is not let in.
    strange = sites.start_node(0, key=tmp_path / "other" / "site-0" / "key", log="stranger")
    early = sites.start_node(1, log="early", clock=DAY)
    for node, log in ((strange, "stranger"), (early, "early")):
        node.join(LONG)
        assert not node.is_alive()
        assert "Starting Flower SuperNode" in sites.log(log)
        assert "SuperNode ID" not in sites.log(log)


def test_an_expired_certificate_is_one_sentence(
    sites: Sites, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sites.keys, tmp_path / "keys")
    make_credentials(tmp_path / "keys", CLIENTS, ["127.0.0.1"], days=-1)
    port = sites.another_link(tmp_path / "keys" / "server", "expired")
    capsys.readouterr()
    assert main(sites.fit("nothing", f"--engine.address=127.0.0.1:{port}")) == 2
    told = capsys.readouterr().err
    assert "certificate has expired" in told
    assert "valid is one that has not expired" in told


def test_two_sites_cannot_be_the_same_client_and_a_clients_clock_may_be_wrong(
    sites: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    sites.stop(sites.clients[1])
    sites.start_client(1, "--client=0")  # with client 1's key
    capsys.readouterr()
    assert main(sites.fit("twice")) == 2
    told = capsys.readouterr().err
    assert "A node says that it is client 0, but its key is bound to client 1; valid is the client that" in told
    sites.stop(sites.clients[1])
    sites.start_client(1, clock=DAY)
    sites.stop(sites.clients[2])
    sites.start_client(2, clock=-DAY)
    assert main(sites.fit("clocks")) == 0
    assert sites.lines("clocks") == sites.lines("here")
