"""Runs in W&B: online and offline, interrupted and continued, with alerts and artifacts."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fork_server import ForkServer
from wandb_server import WandbServer

import fedmoe
from fedmoe.cli import main
from fedmoe.config import TrackingConfig
from fedmoe.data import Digits
from fedmoe.methods import PFedMoAP
from fedmoe.protocol.client import Client
from fedmoe.tracking.names import FINAL, MEDIA, final_row
from tracking.helpers import (
    CLIENTS,
    README,
    ROUNDS,
    At,
    children,
    complete,
    csv_of,
    log_in,
    numbers_of,
    rounds_of,
    scalars,
    stop,
)


def test_online_run_is_interrupted_and_continued(
    fit: Callable[..., Path], server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    config = TrackingConfig(wandb="online", group="table2/CIFAR-10", tags=("a", "b"), detail_every=2, timeout=20)
    folder = fit(config, At(1, stop))
    (run_id,) = server.runs
    assert [row["round"] for row in server.history(run_id)] == [0, 1]
    fit(config)
    assert list(server.runs) == [run_id] and complete(folder)
    history, run = server.history(run_id), server.runs[run_id]
    assert [scalars(row) for row in history] == [pytest.approx(row) for row in numbers_of(folder)]
    assert all(row["_step"] == row["round"] for row in history)
    classes = ["classes/confusion", "classes/table"]
    assert [sorted(set(row) & set(MEDIA)) for row in history] == [
        [*classes, "clients/labels", "clients/table"],
        [],
        [*classes, "clients/table", "experts/assignment", "experts/attention"],
        [*classes, "clients/table", "experts/assignment", "experts/attention"],  # the last round always
    ]
    of_classes = json.loads(run["files"][history[3]["classes/table"]["path"]])
    assert of_classes["columns"] == ["round", "class", "test_examples", "accuracy"]
    confusion = json.loads((folder / "confusion.json").read_text())
    for label, (number, name, examples, accuracy) in enumerate(of_classes["data"]):
        row = confusion["confusion"][label]
        assert (number, name, examples) == (3, Digits().class_names[label], sum(row))
        assert accuracy == pytest.approx(100 * row[label] / sum(row))
    table = json.loads(run["files"][history[3]["clients/table"]["path"]])
    clients = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()][-CLIENTS:]
    for row, client in zip(table["data"], clients, strict=True):
        named = dict(zip(table["columns"], row, strict=True))
        experts = rounds_of(folder)[-1]["experts"].get(str(client["client"]), [])
        assert named.pop("experts") == " ".join(map(str, experts))
        assert named == client
    assert server.config(run_id) == {
        "seed": 0,
        "method.class_path": "PFedMoAP",
        "method.init_args.lmbda": 0.5,
        "methods": None,
    }
    settings = run["settings"]
    assert (settings["groupName"], settings["jobType"], settings["displayName"]) == ("table2/CIFAR-10", "fit", "run")
    assert settings["project"] == "fedmoe" and settings["tags"] == ["a", "b"]
    final = {name: value for name, value in run["summary"].items() if name in FINAL}
    assert final == pytest.approx(final_row(rounds_of(folder)))
    starts = run["starts"]
    fit(config)  # finished: nothing to do, and nothing to say to W&B
    assert run["starts"] == starts
    assert "off for this run" not in capfd.readouterr().err


def test_offline_run_is_interrupted_continued_and_synced(
    fit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrackingConfig(wandb="offline")
    folder = fit(config, At(1, stop))
    fit(config)
    starts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(starts) == 2 and complete(folder)
    server = WandbServer()
    log_in(monkeypatch, server.url)
    subprocess.run([sys.executable, "-m", "wandb", "sync", *starts], check=True, capture_output=True)
    server.close()
    (run_id,) = server.runs
    assert run_id == json.loads((folder / "wandb.json").read_text())["id"]
    assert [scalars(row) for row in server.history(run_id)] == [pytest.approx(row) for row in numbers_of(folder)]
    assert server.runs[run_id]["settings"]["groupName"] == "digits/pFedMoAP"


@pytest.mark.slow
def test_offline_run_that_is_killed_loses_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL of the run and of W&B's process, as in a power cut: every round is in W&B's files, with its value."""
    folder, log, program = tmp_path / "run", tmp_path / "log.txt", ForkServer()
    settings = {"clients": 3, "local_epochs": 1, "batch_size": 64}
    args = [
        *("fit", f"--config={README.parents[2] / 'configs/embedded.yaml'}", "--method=PromptFL", "--data.shots=4"),
        *(f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={tmp_path / 'features'}"),
        *(f"--federation.{key}={value}" for key, value in settings.items()),
        "--tracking.wandb=offline",
    ]

    def starts() -> list[Path]:
        return sorted((folder / "wandb").glob("offline-run-*"))

    def killed(ready: Callable[[], bool]) -> None:
        pid = program.start([*args, "--federation.rounds=100000"], log)
        while not ready():
            os.kill(pid, 0)  # it is alive
        for process in [*children("wandb-core", pid), pid]:
            os.kill(process, signal.SIGKILL)
        assert program.wait()[0] == -signal.SIGKILL

    try:
        killed(lambda: (folder / "wandb.json").exists() and bool(rounds_of(folder)))
        first = len(rounds_of(folder))
        killed(lambda: len(starts()) == 2 and len(rounds_of(folder)) > first + 5)
        last = len(rounds_of(folder)) + 2
        program.start([*args, f"--federation.rounds={last}"], log)
        assert program.wait()[0] == 0, log.read_text()[-3000:]
        told = log.read_text()
        program.start([*args, f"--federation.rounds={last}"], log)  # finished: nothing is sent again
        assert program.wait()[0] == 0 and len(starts()) == 3
    finally:
        program.close()
    found: dict[int, list[dict[str, Any]]] = {}
    for start in starts():
        server = WandbServer()
        log_in(monkeypatch, server.url)
        subprocess.run([sys.executable, "-m", "wandb", "sync", start], capture_output=True)
        server.close()
        for name in server.runs:
            assert name == json.loads((folder / "wandb.json").read_text())["id"]
            for row in server.history(name):
                found.setdefault(row["round"], []).append(scalars(row))
    expected = {int(record["round"]): record for record in csv_of(folder)}
    assert sorted(expected) == list(range(last + 1))
    for number, record in expected.items():  # what was sent before the kill may have other times
        rows = [{n: v for n, v in row.items() if not n.startswith("seconds/")} for row in found[number]]
        assert rows == [pytest.approx({n: v for n, v in record.items() if n in rows[0]})] * len(rows), number
        assert {"round", "accuracy/mean", "clients/failed", "bytes/up"} <= set(rows[0])
    assert re.search(r"^W&B: rounds 0 to \d+ are written again from rounds.jsonl, because", told, re.MULTILINE)


def test_a_finished_run_is_sent_later(fit: Callable[..., Path], server: WandbServer) -> None:
    folder = fit(TrackingConfig())
    fit(TrackingConfig(wandb="online", timeout=20))
    (run_id,) = server.runs
    assert [scalars(row) for row in server.history(run_id)] == [pytest.approx(row) for row in numbers_of(folder)]
    assert server.runs[run_id]["summary"]["final/rounds"] == ROUNDS


class Failing(PFedMoAP):
    """Client 1 never learns anything."""

    def loss(self, client: Client, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().loss(client, image_features, labels) * (math.nan if client.client_id == 1 else 1)


def test_an_alert_says_which_clients_failed(fit: Callable[..., Path], server: WandbServer) -> None:
    folder = fit(TrackingConfig(wandb=True, timeout=20), kind=Failing)
    (run,) = server.runs.values()
    failed = {r["round"]: r["failed"] for r in rounds_of(folder) if r["failed"]}
    assert failed and len(run["alerts"]) == len(failed)
    for alert, (number, reasons) in zip(run["alerts"], failed.items(), strict=True):
        assert (alert["title"], alert["severity"]) == ("Clients failed in run", "WARN")
        assert alert["waitDuration"] == 3600 * 1000  # W&B sends one mail of a title in that time
        assert f"Round {number}: clients that failed (1) are left out. client 1: {reasons['1']}" == alert["text"]
        assert "its training loss became nan" in alert["text"]
    assert server.artifacts == {}  # nobody asked for one


def test_an_artifact_is_a_run_to_predict_and_evaluate_with(server: WandbServer, tmp_path: Path) -> None:
    args = [
        *("fit", f"--config={README.parents[2] / 'configs/embedded.yaml'}", "--method.num_experts=1"),
        *("--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--data.shots=4"),
        *(f"--output.dir={tmp_path}", "--output.name=run", f"--features.cache_dir={tmp_path / 'features'}"),
        *("--tracking.wandb=true", "--tracking.artifacts=true", "--tracking.timeout=20"),
    ]
    assert main(args) == 0
    (run_id,) = server.runs
    assert server.config(run_id)["provenance.versions.fedmoe"] == fedmoe.__version__
    for name, content in server.artifacts[f"{run_id}-state"].items():
        path = tmp_path / "elsewhere" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert main(["evaluate", str(tmp_path / "elsewhere")]) == 0
    evaluation = json.loads((tmp_path / "elsewhere/evaluation.json").read_text())
    assert evaluation["accuracy"] == rounds_of(tmp_path / "run")[-1]["accuracy"]
