"""Settings of the engine: what cannot work is told at once, with and without Flower."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe.cli import main


def test_without_flower_the_sentence_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "flwr", None)  # as if it were not installed
    folder = tmp_path / "runs"
    arguments = ["fit", "--config=configs/smoke.yaml", f"--output.dir={folder}", f"--features.cache_dir={tmp_path}"]
    assert main([*arguments, "--engine.kind=flower_simulation"]) == 2
    told = capsys.readouterr().err
    assert "Error: engine.kind is 'flower_simulation', which needs Flower: pip install" in told
    assert "'fedmoe[flower]'" in told
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--engine.kind=flower"], "engine.address is None; valid is HOST:PORT"),
        (["--engine.kind=flower", "--engine.address=here"], "engine.address is 'here'; valid is HOST:PORT"),
        (
            ["--engine.kind=flower", "--engine.address=h:1"],
            "engine.secret is None; valid is a file with the SuperLink's",
        ),
        (
            ["--engine.kind=flower", "--engine.address=h:1", "--engine.secret=x"],
            "engine.signing is None; valid is a file with the server's key, or insecure: true",
        ),
        (["--engine.timeout=0"], "engine.timeout is 0.0; valid is a number above 0"),
        (["--engine.actors=0"], "engine.actors is 0; valid is null or at least 1"),
    ],
)
def test_settings_that_cannot_work_are_told_at_once(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config=configs/smoke.yaml", *options]) == 2
    assert sentence in capsys.readouterr().err


def test_the_engine_needs_no_torch_for_help() -> None:
    code = "import sys, fedmoe.config, fedmoe.engine.line, fedmoe.cli.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
