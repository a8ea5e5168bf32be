"""When W&B fails, it is off for the run, one sentence says so, and the run goes on."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from wandb_server import WandbServer

from fedmoe.config import TrackingConfig
from tracking.helpers import At, children, complete, log_in, rounds_of


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


def test_folder_that_cannot_be_made(
    fit: Callable[..., Path], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    folder = fit(TrackingConfig(wandb="offline", dir=str(tmp_path / "file" / "w")))
    assert "file" in off(capfd.readouterr().err) and complete(folder)
