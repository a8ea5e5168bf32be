"""What goes wrong in a deployment, on real processes: killed, stopped, cut off, without a disk, lying. The run goes on.

Each test has a federation of its own. Minutes: Flower itself notices some of it only after its own patience.
`make test-flower-slow` runs these.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from flower_sites import Sites, running, until

from fedmoe.cli import main

pytestmark = [pytest.mark.flower, pytest.mark.slow]
ENDLESS = "--federation.rounds=100000"  # until the test has seen what it waits for
TIMEOUT = 15
AWAY = ("it is not connected", "Error: Node Unavailable")
LATE = f"no answer within engine.timeout = {TIMEOUT} seconds"


def until_round(sites: Sites, name: str, number: int) -> None:
    until(lambda: len(sites.lines(name)) > number, lambda: f"no round {number}: {sites.log(name)[-2000:]}")


def until_failed(sites: Sites, name: str, client: int) -> int:
    """Wait until a client fails; the round."""
    until(lambda: bool(sites.failed(name, client)), lambda: f"it does not fail: {sites.log(name)[-2000:]}")
    return min(sites.failed(name, client))


def until_back(sites: Sites, name: str, client: int) -> None:
    """Wait until a client that had failed does not fail, in two rounds."""

    def back() -> bool:
        rounds = sites.lines(name)
        return len(rounds) > 2 and not any(str(client) in line["failed"] for line in rounds[-2:])

    until(back, lambda: f"it does not come back: {sites.log(name)[-2000:]}")


def start_endless(sites: Sites, name: str) -> Any:
    process = sites.start_fit(name, ENDLESS, f"--engine.timeout={TIMEOUT}")
    until_round(sites, name, 1)
    return process


def kept(sites: Sites, name: str) -> dict[str, Any]:
    """What the last checkpoint says of the clients."""
    last = max((sites.folder / "runs" / name / "state").glob("round-*.json"))
    return json.loads(last.read_text())["clients"]


def test_a_server_that_is_killed_resumes_to_the_same_bits(tmp_path: Path) -> None:
    with running(tmp_path, clients=3) as sites:
        process = sites.start_fit("killed")
        until_round(sites, "killed", 1)
        sites.stop(process)
        assert len(sites.lines("killed")) < 4
        assert main(sites.fit("killed")) == 0
        assert sites.lines("killed") == sites.lines("here")


def test_a_superlink_that_is_killed_ends_the_run_with_a_sentence_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, clients=3) as sites:
        process = sites.start_fit("broken")
        until_round(sites, "broken", 1)
        sites.stop(sites.link)
        process.join()
        assert process.exitcode == 2, sites.log("broken")
        assert "The same command" in sites.log("broken") or "cannot be reached" in sites.log("broken")
        sites.start_link()
        assert main(sites.fit("broken")) == 0
        assert sites.lines("broken") == sites.lines("here")


def test_a_supernode_that_is_killed_is_dropped_and_comes_back_with_its_state(tmp_path: Path) -> None:
    with running(tmp_path, clients=3) as sites:
        start_endless(sites, "node")
        sites.stop(sites.nodes[1])
        first = until_failed(sites, "node", 1)
        sites.bring_back_node(1)
        until_back(sites, "node", 1)
        assert first > 0
        assert all(why.startswith((LATE, *AWAY)) for why in sites.failed("node", 1).values())
        # With its state of before: what it has seen is counted on.
        assert kept(sites, "node")["1"]["rounds_seen"] >= first - 1
        assert "no longer on its disk" not in sites.log("node")


def test_a_client_that_stands_still_is_dropped_until_it_moves(tmp_path: Path) -> None:
    with running(tmp_path, clients=3) as sites:
        start_endless(sites, "slow")
        os.kill(sites.clients[2].pid, signal.SIGSTOP)
        until_failed(sites, "slow", 2)
        os.kill(sites.clients[2].pid, signal.SIGCONT)
        until_back(sites, "slow", 2)
        assert set(sites.failed("slow", 2).values()) == {LATE}
        failures = sites.lines("slow", "failures.jsonl")
        assert LATE in {line["reason"] for line in failures if line["client"] == 2}


def test_a_client_behind_a_network_that_is_cut_is_dropped_until_it_is_mended(tmp_path: Path) -> None:
    with running(tmp_path, clients=3, through=(1,)) as sites:
        start_endless(sites, "cut")
        sites.proxies[1].cut()
        until_failed(sites, "cut", 1)
        sites.proxies[1].mend()
        until_back(sites, "cut", 1)
        assert all(why.startswith((LATE, *AWAY)) for why in sites.failed("cut", 1).values())


def test_a_client_that_loses_its_disk_is_named_and_begins_anew(tmp_path: Path) -> None:
    with running(tmp_path, clients=3) as sites:
        start_endless(sites, "disk")
        sites.stop(sites.clients[0])
        for folder in sites.states.glob("client-0*"):
            shutil.rmtree(folder)
        sites.start_client(0)
        until(
            lambda: any("no longer on its disk" in why for why in sites.failed("disk", 0).values()),
            lambda: sites.log("disk")[-2000:],
        )
        until_back(sites, "disk", 0)
        seen = {client: known["rounds_seen"] for client, known in kept(sites, "disk").items()}
        assert seen["0"] < seen["1"]


def test_a_client_that_sends_garbage_is_refused_and_named(tmp_path: Path) -> None:
    with running(tmp_path, clients=3) as sites:
        sites.stop(sites.clients[1])
        sites.start_client(1, garbage=True)
        process = sites.start_fit("garbage")
        process.join()
        assert process.exitcode == 0, sites.log("garbage")
        assert set(sites.failed("garbage", 1)) == {1, 2, 3}
        assert all(why.startswith("its answer was refused: ") for why in sites.failed("garbage", 1).values())
        assert not any(sites.failed("garbage", other) for other in (0, 2))


def test_a_second_process_for_a_client_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, clients=3) as sites:
        # A second SuperNode with the client's key.
        second = sites.start_node(1, log="second")
        until(lambda: not second.is_alive(), "it is let in")
        assert "SuperNode ID" not in sites.log("second")
        # Client 1's process gives way, in a run, to one that takes itself for client 0.
        start_endless(sites, "twice")
        sites.stop(sites.clients[1])
        sites.start_client(1, "--client=0", f"--states={tmp_path / 'elsewhere'}")
        wrong = "the order is for client 1, who is not here"
        until(
            lambda: any(wrong in why for why in sites.failed("twice", 1).values()), lambda: sites.log("twice")[-2000:]
        )
