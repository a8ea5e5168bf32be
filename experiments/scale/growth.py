"""What a round costs besides training when there are many clients: ``python -m experiments.scale.growth``.

For each number of clients a process of its own runs rounds of pFedMoAP (9 experts, cohorts of 10, which alone are
evaluated) on the digits and the embedded CLIP, in the state after all clients have trained: their prompts are the start
and normal noise of 0.02, their gates as they are drawn. The digits are repeated until each client has two training
images and a test image. Writes growth.csv and growth.png beside this file.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console

from experiments.scale.setting import ManyDigits, embedded
from fedmoe import config
from fedmoe.data.base import Split
from fedmoe.data.partition import ClientIndices, Partition
from fedmoe.experiment import Experiment, Session
from fedmoe.federation.callbacks import Checkpoint, RunLog
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import PFedMoAP
from fedmoe.protocol.records import ClientState
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.records import RoundRecord
from fedmoe.seeds import torch_generator
from fedmoe.server.state import Known

COHORT, EXPERTS, ROUNDS = 10, 9, 25
SIZES = (100, 1_000, 10_000)
HERE = Path(__file__).parent
COLUMNS = ("clients", "states", "outside_s", "outside_cpu_s", "train_s", "memory_mb", "mapped_mb")


class InTurn(Partition):
    """Example i belongs to client i mod N; two training examples and a test example each."""

    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        own, tested = np.arange(2 * num_clients).reshape(2, -1).T, np.arange(num_clients)
        return [ClientIndices(own[i], tested[i : i + 1]) for i in range(num_clients)]


def experiment(clients: int, states: Any, cache: Path) -> Experiment:
    federation = config.FederationConfig(
        clients=clients,
        participation=COHORT / clients,
        rounds=ROUNDS + 2,  # after the last one, which is not run, all clients would be evaluated
        local_epochs=1,
        evaluate_clients="cohort",
    )
    runtime = config.RuntimeConfig(threads=1, client_states=states)
    return embedded(ManyDigits.of(clients), InTurn(), federation, cache, runtime)


def all_have_trained(federation: Federation, gate: dict[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    """Put the federation into the state after a round in which every client has trained."""
    server, draws = federation.server, torch_generator(0)
    start, count = server.shared["prompt"], federation.config.clients
    for number, first in enumerate(range(0, count, 500)):  # as many at a time as cohorts would have been
        group = range(first, min(first + 500, count))
        for i in group:
            prompt = start + 0.02 * torch.randn(start.shape, generator=draws)
            own = ClientState({"prompt": prompt, **{name: value.clone() for name, value in gate.items()}}, {}, 1)
            server.pool["prompt"][i], server.clients[i] = prompt, Known(1, (), 1, True)
            federation.fleet.restore({i: server.clients[i]}, {i: own})
        federation.rounds_done = number
        checkpoint.on_round_end(federation, RoundRecord(round=number, cohort=list(group)))
    federation.rounds_done = 1


def measure(clients: int, states: str, folder: Path, cache: Path) -> dict[str, Any]:
    """Medians over the rounds after the first one, and this process's memory at the end."""
    torch.set_num_threads(1)
    store = StateStore(folder / "state", mapped=states == "mapped")
    session = Session(experiment(clients, states, cache), Console(quiet=True))
    checkpoint = Checkpoint(store)
    federation = session.federation(PFedMoAP(num_experts=EXPERTS), callbacks=[RunLog(folder), checkpoint])
    federation.meet()
    federation.server.scratch = store.folder if store.mapped else None
    assert isinstance(federation.fleet, LocalFleet)
    module = federation.fleet.work.module
    all_have_trained(federation, {n: t for n, t in module.tensors().items() if n.startswith("gate")}, checkpoint)
    found: list[tuple[float, float, float]] = []
    for number in range(2, ROUNDS + 2):
        wall, busy = time.perf_counter(), time.process_time()
        record = federation.round(number)
        for callback in federation.callbacks:
            callback.on_round_end(federation, record)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        train = record.seconds["train"]
        found.append((wall - train, busy - train * busy / wall, train))
    outside, outside_cpu, train = (statistics.median(column) for column in zip(*found[1:], strict=True))
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(lines[name].split()[0]) // 1024 for name in ("RssAnon", "RssFile"))
    return dict(zip(COLUMNS, (clients, states, outside, outside_cpu, train, own, mapped), strict=True))


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for states in ("memory", "mapped"):
        chosen = [row for row in rows if row["states"] == states]
        sizes = [row["clients"] for row in chosen]
        left.plot(sizes, [row["outside_s"] for row in chosen], marker="o", label=f"states {states}")
        right.plot(sizes, [row["memory_mb"] for row in chosen], marker="o", label=f"states {states}")
    for axes, title in ((left, "Seconds of a round outside training"), (right, "Own memory of the process, MB")):
        axes.set(xscale="log", xlabel="clients", title=title)
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", type=int, nargs="*", default=SIZES, help=f"numbers of clients, {SIZES} unless given")
    parser.add_argument(
        "--one", nargs=2, metavar=("STATES", "CACHE"), help=argparse.SUPPRESS
    )  # in a process of its own
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.one:
            print(json.dumps(measure(args.clients[0], args.one[0], Path(folder), Path(args.one[1]))))
            return
        rows = []
        for clients in args.clients:
            for states in ("memory", "mapped"):
                command = [sys.executable, "-m", "experiments.scale.growth", str(clients), "--one", states, folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
                print(rows[-1], flush=True)
    with (HERE / "growth.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        )
    picture(rows, HERE / "growth.png")


if __name__ == "__main__":
    main()
