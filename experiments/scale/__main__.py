"""Rounds of pFedMoAP with many clients, in process and in workers: ``python -m experiments.scale CLIENTS ROUNDS``.

Digits on the embedded CLIP, dealt out in turn; a tenth of the clients in each round (a half of up to ten), every client
evaluated each round, 9 experts, one epoch. Beyond 1,000 clients, the digits are repeated until there are enough. Prints
a line of JSON for each engine; needs fedmoe[flower].
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from experiments.scale.setting import ManyDigits, embedded
from fedmoe import config
from fedmoe.data import Digits
from fedmoe.data.base import Split
from fedmoe.data.partition import ClientIndices, Partition
from fedmoe.experiment import Session
from fedmoe.federation.callbacks import Callback, FederationView
from fedmoe.methods import PFedMoAP
from fedmoe.runs.records import RoundRecord


class InTurn(Partition):
    """Example i belongs to client i mod N, in both splits."""

    def split(self, train: Split, test: Split, num_classes: int, num_clients: int, seed: int) -> list[ClientIndices]:
        step = num_clients
        return [ClientIndices(np.arange(i, len(train), step), np.arange(i, len(test), step)) for i in range(step)]


class Records(Callback):
    """Keeps what a run says of its rounds."""

    def __init__(self) -> None:
        self.all: list[RoundRecord] = []

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        self.all.append(record)


def processor() -> float:
    """Seconds that this process and those below it have computed."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:13])) if int(fields[2]) == os.getpgrp() else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def own_memory() -> list[dict[str, int]]:
    """Memory in MB of this process and of each below it: resident, its own alone, and its share."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            group = int((path / "stat").read_text().rpartition(")")[2].split()[2])
            text = (path / "smaps_rollup").read_text() if group == os.getpgrp() else ""
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in text.splitlines()[1:]}
        if sizes.get("Rss", 0) > 100:
            found.append({"resident": sizes["Rss"], "own": sizes["Private_Dirty"], "share": sizes["Pss"]})
    return found


def measure(clients: int, rounds: int, engine: config.EngineConfig, cache: str) -> dict[str, Any]:
    """Seconds of the start and of each round, what crossed, and memory."""
    federation = config.FederationConfig(
        clients=clients, participation=0.5 if clients <= 10 else 0.1, rounds=rounds, local_epochs=1
    )
    data = Digits() if clients <= 1_000 else ManyDigits.of(clients)
    experiment = embedded(data, InTurn(), federation, cache, engine=engine)
    records = Records()
    run = Session(experiment, Console(quiet=True)).federation(PFedMoAP(num_experts=9), callbacks=[records])
    began = time.perf_counter()
    run.fleet.open("scale")
    start, before = time.perf_counter() - began, processor()
    try:
        run.run()
        computed, memory = processor() - before, own_memory()
    finally:
        run.fleet.close()
    line = {name: sum(record.line.get(name, 0) for record in records.all) for name in ("messages", "down", "up")}
    last = records.all[-1].accuracy
    return {
        "engine": engine.kind,
        "clients": clients,
        "start": round(start, 1),
        "rounds": [round(sum(record.seconds.values()), 2) for record in records.all],
        "processor": round(computed, 2),
        **line,
        "memory_mb": memory,
        "accuracy": last and last["mean"],
    }


def main() -> None:
    clients, rounds = int(sys.argv[1]), int(sys.argv[2])
    os.setpgrp()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        for engine in (config.EngineConfig(), config.EngineConfig(kind="flower_simulation", actors=2)):
            print(json.dumps(measure(clients, rounds, engine, cache)), flush=True)


if __name__ == "__main__":
    main()
