"""Tracking for real: wandb's own client against a local stand-in for its server, offline files, failures as they come.

The expected rows are those of rounds.jsonl, read with the json module, and values worked out by hand.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import build_federation
from fork_server import ForkServer
from wandb_server import WandbServer

import fedmoe
from experiments.dashboard import workspace
from experiments.dashboard.workspace import SECTIONS
from fedmoe.cli import main
from fedmoe.config import (
    FeatureConfig,
    FederationConfig,
    OptimConfig,
    PrivacyConfig,
    TrackingConfig,
)
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.callbacks import Callback, Checkpoint, FederationView, RunLog
from fedmoe.federation.restore import read_state
from fedmoe.io import write_json_atomic
from fedmoe.methods import PFedMoAP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.client import Client
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.records import RoundRecord
from fedmoe.tracking.names import DOMAIN, FINAL, MEDIA, METRICS, final_row, round_row
from fedmoe.tracking.trackers import TensorBoardLog, trackers
from fedmoe.tracking.wandb_tracker import sweep_run_id

README = Path(__file__).parents[1] / "experiments" / "dashboard" / "README.md"
CLIENTS, ROUNDS = 5, 3
SETTINGS = {"seed": 0, "method": {"class_path": "PFedMoAP", "init_args": {"lmbda": 0.5}}, "methods": None}


def under(group: str, key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r[group][key]


def or_none(group: str, key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda r: r[group][key] if r[group] else None


# Where each number of a round stands in its line of rounds.jsonl.
PLACES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "round": lambda r: r["round"],
    **{f"accuracy/{key}": under("accuracy", key) for key in ("mean", "std", "min", "max", "worst_decile")},
    "train/loss": lambda r: r["train_loss"],
    "train/prompt_drift": lambda r: r["prompt_drift"],
    "clients/seen_share": lambda r: r["clients_seen"] / CLIENTS,
    "clients/failed": lambda r: len(r["failed"]),
    "privacy/epsilon": lambda r: r["privacy"]["epsilon"] if r["privacy"] else None,
    "validation/accuracy/mean": lambda r: r["validation"]["mean"] if r["validation"] else None,
    "validation/accuracy/std": lambda r: r["validation"]["std"] if r["validation"] else None,
    **{f"quality/{key}": under("quality", key) for key in ("weighted", "balanced", "ece")},
    **{f"gate/{key}": or_none("gate", key) for key in ("entropy", "entropy_p10", "top_share", "expert_contribution")},
    **{f"generalization/{key}": or_none("generalization", key) for key in ("train_accuracy", "gap")},
    **{f"accuracy_others/{key}": or_none("accuracy_others", key) for key in ("mean", "std")},
    **{
        f"attack/{key}": or_none("attack", key)
        for key in ("honest_accuracy", "attackers_accuracy", "success", "expert_share")
    },
    "attention/local": lambda r: r["attention"]["local"] if r["attention"] else None,
    **{f"seconds/{key}": under("seconds", key) for key in ("train", "evaluate", "other")},
    **{f"bytes/{key}": under("bytes", key) for key in ("down", "up", "evaluate_down")},
}


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody's key, settings or sweep; W&B's process does not outlive the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    yield
    if "wandb" in sys.modules:
        try:
            sys.modules["wandb"].teardown()
        except Exception as error:  # the test has killed W&B's process
            print(error)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    server = WandbServer()
    log_in(monkeypatch, server.url)
    yield server
    server.close()


def log_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_ENTITY", "me")


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, FederationConfig(clients=CLIENTS), cache, seed=0)


class At(Callback):
    """Does something once, after a round."""

    def __init__(self, number: int, action: Callable[[], None]) -> None:
        self.number, self.action = number, action

    def on_round_end(self, run: FederationView, record: RoundRecord) -> None:
        if record.round == self.number:
            self.action()


def stop() -> None:
    raise KeyboardInterrupt


@pytest.fixture
def fit(embedded_clip: FrozenCLIP, data: FederatedData, tmp_path: Path) -> Callable[..., Path]:
    """Runs pFedMoAP into a folder, or goes on where it stopped."""

    def fit(
        tracking: TrackingConfig,
        at: At | None = None,
        name: str = "run",
        rounds: int = ROUNDS,
        kind: type[PFedMoAP] = PFedMoAP,
    ) -> Path:
        folder = tmp_path / name
        config = FederationConfig(clients=CLIENTS, participation=0.8, rounds=rounds, local_epochs=1)
        method = kind(num_experts=2)
        store = StateStore(folder / "state")
        write_json_atomic(folder / "partition.json", data.summary())
        tracked = trackers(tracking, folder, SETTINGS)
        callbacks = [RunLog(folder), Checkpoint(store), *tracked, *([at] if at else [])]
        settings: dict[str, Any] = {"seed": 0, "callbacks": callbacks, "privacy": PrivacyConfig("upload")}
        federation, _ = build_federation(
            embedded_clip, data, method, config, OptimConfig(), read_state(store), **settings
        )
        try:
            federation.run()
        except KeyboardInterrupt:
            pass
        finally:
            for tracker in tracked:
                tracker.close()
        return folder

    return fit


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def numbers_of(folder: Path) -> list[dict[str, float]]:
    """What each round must be tracked as."""
    rows = [{name: place(record) for name, place in PLACES.items()} for record in rounds_of(folder)]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def csv_of(folder: Path) -> list[dict[str, float]]:
    with open(folder / "rounds.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def complete(folder: Path) -> bool:
    """Whether the run folder has every round once, in both files."""
    return [r["round"] for r in rounds_of(folder)] == list(range(ROUNDS + 1)) and csv_of(folder) == numbers_of(folder)


def scalars(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name in METRICS}


# Names


def test_names_are_documented_with_their_meaning() -> None:
    documented = dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", README.read_text(), re.MULTILINE))
    assert documented == {**METRICS, **MEDIA, **FINAL}
    assert f"`{DOMAIN}`" in README.read_text()
    assert set(PLACES) == set(METRICS)


def test_workspace_shows_every_number_and_picture() -> None:
    shown = {name for panels in SECTIONS.values() for panel in panels for name in panel.metrics}
    assert {*METRICS, *MEDIA} - {"round"} <= shown


def test_workspace_without_its_package_or_an_account_is_one_sentence() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "experiments.dashboard.workspace", "--entity", "me"],
        cwd=README.parents[2], stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
    assert "pip install wandb-workspaces" in found.stderr or "did not take the workspace" in found.stderr


def test_workspace_is_saved_with_every_panel(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last call that the script makes, with the package that makes it."""
    pytest.importorskip("wandb_workspaces")
    assert workspace.main(["--entity", "me", "--project", "fedmoe"]) == 0
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["type"]) == ("me", "fedmoe", "project-view")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert {section["name"]: len(section["panels"]) for section in sections} == {
        name: len(panels) for name, panels in SECTIONS.items()
    }
    saved = json.dumps(sections)
    assert all(f'"{name}"' in saved for name in {*METRICS, *MEDIA} - {"round"})
    assert capsys.readouterr().out.startswith(f"{server.url}/me/fedmoe?nw=")


def test_round_and_summary_by_hand() -> None:
    spread = {"mean": 80.0, "std": 5.0, "min": 70.0, "max": 90.0, "worst_decile": 71.0}
    seconds, sent = {"train": 2.0, "evaluate": 1.0, "other": 0.5}, {"down": 30, "up": 20, "evaluate_down": 10}
    record = {"round": 4, "accuracy": spread, "accuracy_per_domain": {"real": 81.0, "sketch": 79.0}}
    record |= {"train_loss": 0.5, "seconds": seconds, "bytes": sent, "clients_seen": 3, "prompt_drift": 0.1}
    record |= {"attention": {"local": 0.4, "experts": [0.5, 0.1]}}
    row = round_row(record, num_clients=12)
    assert row["clients/seen_share"] == 0.25 and row["attention/local"] == 0.4 and row["bytes/up"] == 20
    assert row["accuracy_domain/real"] == 81.0 and row["accuracy_domain/sketch"] == 79.0
    without = {**record, "round": 5, "accuracy": None, "accuracy_per_domain": {}, "attention": None}
    assert round_row(without, 12)["accuracy/mean"] is None and round_row(without, 12)["attention/local"] is None
    assert final_row([record, without]) == {
        "final/accuracy_mean": 80.0,
        "final/accuracy_std": 5.0,
        "final/accuracy_worst_decile": 71.0,
        "final/rounds": 5,
        "final/seconds": 7.0,
        "final/bytes_down": 60,
        "final/bytes_up": 40,
        "final/bytes_evaluate_down": 20,
    }


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"wandb": "on"}, "wandb"), ({"detail_every": 0}, "detail_every"), ({"timeout": 0}, "timeout")],
)
def test_wrong_settings(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^tracking\.{key} is .*; valid is .*\.$"):
        TrackingConfig(**settings)


def test_sweep_run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert sweep_run_id() is None  # the agent sets both
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert sweep_run_id() == "abc"


# Local files


def test_csv_follows_the_jsonl_through_an_interruption(fit: Callable[..., Path]) -> None:
    folder = fit(TrackingConfig(), At(1, stop))
    assert csv_of(folder) == numbers_of(folder) and len(csv_of(folder)) == 2
    (folder / "rounds.csv").write_text("torn")
    fit(TrackingConfig())
    assert complete(folder)
    assert not (folder / "wandb").exists() and not (folder / "wandb.json").exists()


def test_tensorboard_has_the_same_numbers(fit: Callable[..., Path]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = TrackingConfig(tensorboard=True, detail_every=2)
    folder = fit(config, At(1, stop))
    fit(config)
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    experts = {"experts/assignment", "experts/attention"}
    assert set(events.Tags()["images"]) == {"clients/labels", "classes/confusion", *experts}
    for name in set(METRICS) - {"round"}:
        expected = {int(row["round"]): row[name] for row in numbers_of(folder) if name in row}
        if not expected:  # this run has no such number
            assert name not in events.Tags()["scalars"]
            continue
        assert {e.step: e.value for e in events.Scalars(name)} == pytest.approx(expected, rel=1e-6), name


def test_tensorboard_that_is_missing_is_a_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as Python does for a failed import
    with pytest.raises(UserError, match=r"pip install 'fedmoe\[tensorboard\]'"):
        TensorBoardLog(tmp_path, 10)


# W&B


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


# W&B fails


def off(text: str) -> str:
    """The reason in the one sentence that says so."""
    lines = [line for line in text.splitlines() if "off for this run" in line]
    assert len(lines) == 1, text
    found = re.fullmatch(r"W&B is off for this run: (.+)\. The files in \S+ are complete(, and .+)?\.", lines[0])
    assert found, lines
    return found[1]


def test_without_a_key_on_a_terminal_nothing_is_asked(
    fit: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = fit(TrackingConfig(), name="plain")
    ours, theirs = os.openpty()  # a terminal on which nobody types
    with os.fdopen(theirs, "r") as terminal, os.fdopen(os.dup(theirs), "w") as screen:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys, "stderr", screen)
        folder = fit(TrackingConfig(wandb="online"))
        screen.flush()
        shown = os.read(ours, 10_000).decode().replace("\r\n", "\n")
    os.close(ours)
    assert "No API key" in off(shown) and len(shown.splitlines()) == 1
    assert complete(folder)
    for a, b in zip(rounds_of(plain), rounds_of(folder), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}  # W&B changes no bit of the run


def test_port_without_a_server(
    fit: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = WandbServer()
    server.close()
    log_in(monkeypatch, server.url)
    folder = fit(TrackingConfig(wandb="online", timeout=2))
    assert "connection refused" in off(capfd.readouterr().err) and complete(folder)


def test_server_that_dies_during_the_run(
    fit: Callable[..., Path], server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = fit(TrackingConfig(wandb="online", timeout=2), At(1, server.close))
    assert off(capfd.readouterr().err) and complete(folder)


def test_upload_that_is_refused(
    fit: Callable[..., Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = WandbServer(refuse=403)
    log_in(monkeypatch, server.url)
    folder = fit(TrackingConfig(wandb="online", timeout=5))
    server.close()
    error = capfd.readouterr().err
    assert error.count("Fatal error while uploading") == 1 and complete(folder)  # W&B's own words


def test_log_that_raises(fit: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    def kill() -> None:
        deadline = time.monotonic() + 60
        while not (found := children("wandb-core")) and time.monotonic() < deadline:
            time.sleep(0.05)  # W&B starts in a thread of its own
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    folder = fit(TrackingConfig(wandb="offline", timeout=5), At(1, kill))
    assert off(capfd.readouterr().err) and complete(folder)


def children(name: str, parent: int | None = None) -> list[int]:
    """Processes that this one, or another, has started under a name."""
    found, parent = [], parent or os.getpid()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = int(stat.parent.name), stat.read_text()
        except OSError:
            continue
        if f"({name}" in rest and int(rest.rpartition(")")[2].split()[1]) == parent:
            found.append(pid)
    return found


def test_folder_that_cannot_be_made(
    fit: Callable[..., Path], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    folder = fit(TrackingConfig(wandb="offline", dir=str(tmp_path / "file" / "w")))
    assert "file" in off(capfd.readouterr().err) and complete(folder)
