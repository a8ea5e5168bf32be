"""``output.overwrite`` through the command line: what is not a run, or in use, is not deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe.cli import main
from fedmoe.io import read_jsonl

ROOT = Path(__file__).parents[1]
WAITING = """
from fedmoe.methods import PromptFL

class Waiting(PromptFL):
    waited = False
    def loss(self, client, image_features, labels):
        if not Waiting.waited:
            open({pipe!r}).close()  # until somebody opens the other end
            Waiting.waited = True
        return super().loss(client, image_features, labels)
"""


def fit(folder: Path, tmp_path: Path, *more: str) -> list[str]:
    """The arguments of a run of seconds into ``folder``."""
    return [
        "fit",
        *(f"--config={ROOT / 'configs/embedded.yaml'}", f"--features.cache_dir={tmp_path / 'features'}"),
        *(f"--output.dir={folder.parent}", f"--output.name={folder.name}", "--output.overwrite=true"),
        *("--data.subset={classes: 4, train: 60, test: 40}", "--federation.clients=3", "--federation.rounds=2"),
        *("--federation.local_epochs=1", "--partition=IID", "--runtime.threads=1", "--runtime.accelerator=cpu"),
        *more,
    ]


def start(folder: Path, tmp_path: Path, *more: str) -> subprocess.Popen[str]:
    """The run, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedmoe.cli", *fit(folder, tmp_path, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "OMP_NUM_THREADS": "1"},
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_that_merely_has_a_configuration_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 1 of the attack."""
    folder = tmp_path / "thesis"
    (folder / "chapters").mkdir(parents=True)
    for name in ("config.yaml", "notes.txt", "chapters/one.tex"):
        (folder / name).write_text("mine")
    before = contents(folder)
    for more in ("--method=PromptFL", "--methods=[PromptFL, ZeroShot]"):
        code, err = main(fit(folder, tmp_path, more)), capsys.readouterr().err
        assert (code, contents(folder)) == (2, before), err
        assert err.splitlines()[-1].endswith(
            f"so output.overwrite does not delete {folder}; choose another output.name."
        )
        assert "Traceback" not in err


@pytest.mark.slow
def test_a_comparison_in_training_is_not_overwritten(tmp_path: Path) -> None:
    """Row 2 of the attack: the second one is refused, the first one ends with all its results."""
    pipe, folder = tmp_path / "pipe", tmp_path / "all"
    os.mkfifo(pipe)
    (tmp_path / "waiting.py").write_text(WAITING.format(pipe=str(pipe)))
    first = start(folder, tmp_path, "--methods=[CoOp, waiting.Waiting]")
    assert first.stdout is not None
    while "PromptFL: round 0/2" not in (line := first.stdout.readline()):  # the second method is in training
        assert line, first.communicate()[1]
    before = contents(folder)
    assert "CoOp/summary.json" in before and "Waiting/summary.json" not in before
    second = start(folder, tmp_path, "--methods=[CoOp, PromptFL]")
    _, err = second.communicate()
    assert second.returncode == 2
    told = f"{folder} is in use by another process; wait for it, or choose another output.name."
    assert err.splitlines()[-1] == f"Error: {told}"
    third = start(folder / "CoOp", tmp_path, "--method=CoOp")  # a finished run inside is not taken away either
    _, err = third.communicate()
    refused = third.returncode == 2 and "is in use by another process" in err
    now = contents(folder)
    assert {name: now.get(name) for name in before} == before, err
    assert refused, err
    open(pipe, "w").close()
    out, err = first.communicate()
    assert first.returncode == 0, err
    for name in ("CoOp", "Waiting"):
        run = folder / name
        assert all((run / file).is_file() for file in ("config.yaml", "summary.json", "run.json", "partition.json"))
    assert [record["round"] for record in read_jsonl(folder / "Waiting/rounds.jsonl")] == [0, 1, 2]
    assert (folder / "comparison.md").is_file() and "CoOp" in out
