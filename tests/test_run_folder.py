"""The run folder: what may be deleted, and who may work in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmoe.errors import UserError
from fedmoe.io import append_jsonl, write_json_atomic
from fedmoe.runs import folder as run_folder
from fedmoe.runs.folder import clear, held, stamp


def a_run(folder: Path, rounds: int = 1) -> Path:
    """A run folder as fit leaves it, by the functions that write one."""
    folder.mkdir(parents=True)
    stamp(folder)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "partition.json").write_text("{}")
    if rounds:
        append_jsonl(folder / "rounds.jsonl", *({"round": i} for i in range(rounds)))
        (folder / "state" / "1").mkdir(parents=True)
        (folder / "state" / "1" / "state.json").write_text("{}")
        (folder / "plots").mkdir()
        (folder / "plots" / "a.png").write_bytes(b"")
    return folder


def a_comparison(folder: Path) -> Path:
    for name in ("CoOp", "PromptFL"):
        a_run(folder / name)
    write_json_atomic(folder / "comparison.json", {"labels": ["CoOp", "PromptFL", "PFedMoAP"], "results": []})
    (folder / "comparison.yaml").write_text("")
    (folder / "plots").mkdir()
    (folder / "PFedMoAP").mkdir()  # planned, not begun
    return folder


def everything(folder: Path) -> dict[str, object]:
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[None]:
    script = "import sys\nfrom pathlib import Path\nfrom fedmoe.runs.folder import held\n"
    script += "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    input()"
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
        other.communicate("\n")


@pytest.mark.parametrize("rounds", [0, 2])
def test_a_run_is_deleted(tmp_path: Path, rounds: int) -> None:
    clear(a_run(tmp_path / "run", rounds))
    assert os.listdir(tmp_path) == []


def test_a_comparison_is_deleted_with_its_runs(tmp_path: Path) -> None:
    clear(a_comparison(tmp_path / "all"))
    assert os.listdir(tmp_path) == []


def test_nothing_and_an_empty_folder_are_cleared(tmp_path: Path) -> None:
    clear(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    clear(tmp_path / "empty")
    assert os.listdir(tmp_path) == []


def no_run_json(folder: Path) -> None:
    (folder / "run.json").unlink()


def broken_run_json(folder: Path) -> None:
    (folder / "run.json").write_text('{"format": ')


def deep_run_json(folder: Path) -> None:
    (folder / "run.json").write_text("[" * 200_000)


def run_json_of_another_program(folder: Path) -> None:
    (folder / "run.json").write_text(json.dumps({"format": "x", "program": "other"}))


def run_json_is_a_link(folder: Path) -> None:
    (folder / "run.json").rename(folder.parent / "run.json")
    (folder / "run.json").symlink_to(folder.parent / "run.json")


def run_json_is_a_pipe(folder: Path) -> None:
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")


def neither_rounds_nor_state(folder: Path) -> None:
    (folder / "rounds.jsonl").unlink()
    (folder / "state").rename(folder / "stat")


def another_run_inside(folder: Path) -> None:
    a_run(folder / "mine")


@pytest.mark.parametrize(
    "change",
    [
        no_run_json,
        broken_run_json,
        deep_run_json,
        run_json_of_another_program,
        run_json_is_a_link,
        run_json_is_a_pipe,
        neither_rounds_nor_state,
        another_run_inside,
    ],
)
@pytest.mark.parametrize("compared", [False, True])
def test_what_may_be_something_else_is_kept(tmp_path: Path, change, compared: bool) -> None:
    if compared and change is another_run_inside:
        pytest.skip("a run in a run in a comparison is deleted with it")
    folder = a_comparison(tmp_path / "x") if compared else a_run(tmp_path / "x")
    change(folder / "CoOp" if compared else folder)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=r"so output\.overwrite does not delete .*; choose another output\.name\."):
        clear(folder)
    assert everything(tmp_path) == before


def test_a_configuration_alone_is_no_run(tmp_path: Path) -> None:
    """Row 1 of the attack: a folder of one's own that merely has such a file."""
    for name in ("config.yaml", "thesis.tex"):
        (tmp_path / name).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(UserError, match="holds no run of fedmoe"):
        clear(tmp_path)
    assert everything(tmp_path) == before


def test_a_folder_of_one_s_own_beside_the_runs_of_a_comparison_is_kept(tmp_path: Path) -> None:
    folder = a_comparison(tmp_path / "all")
    (folder / "notes").mkdir()
    (folder / "notes" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds 'notes'"):
        clear(folder)
    assert (folder / "CoOp" / "rounds.jsonl").exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    other = a_run(tmp_path / "other")
    before = everything(other)
    run = a_run(tmp_path / "run")
    (run / "more").symlink_to(other)
    (run / "plots" / "b").symlink_to(other)
    clear(run)
    assert not run.exists() and everything(other) == before
    run.symlink_to(other)
    with pytest.raises(UserError, match="is no folder"):
        clear(run)
    compared = a_comparison(tmp_path / "all")
    (compared / "mine").symlink_to(other)
    with pytest.raises(UserError, match="holds 'mine'"):
        clear(compared)
    assert everything(other) == before


def test_the_locks_of_a_comparison_and_of_its_runs_are_respected(tmp_path: Path) -> None:
    folder = a_comparison(tmp_path / "all")
    before = everything(folder)
    for busy in (folder, folder / "PromptFL"):
        with held_elsewhere(busy), pytest.raises(UserError, match=f"{busy} is in use by another process"):
            clear(folder)
        assert everything(folder) == before
    clear(folder)
    assert not folder.exists()


def counted(action: Callable, left: list[int]) -> Callable:
    """The action, which is interrupted once it has been done ``left[0]`` times."""

    def step(*args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return action(*args, **kwargs)

    return step


def test_an_interrupted_deletion_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each of its steps, what is left is still known to be a run."""
    steps = 0
    while True:
        folder, left = a_run(tmp_path / f"{steps}"), [steps]
        with monkeypatch.context() as patch:
            patch.setattr(run_folder.shutil, "rmtree", counted(run_folder.shutil.rmtree, left))
            patch.setattr(Path, "unlink", counted(Path.unlink, left))
            try:
                clear(folder)
            except KeyboardInterrupt:
                steps += 1
            else:
                break
        clear(folder)
        assert not folder.exists()
    assert steps == 7  # config, partition, plots, state, rounds, run.json, .lock


def test_holding_removes_half_written_files_but_not_those_of_a_run_in_use(tmp_path: Path) -> None:
    folder = a_comparison(tmp_path / "all")
    with held_elsewhere(folder / "CoOp"):
        torn = [folder / ".1.tmp.json", folder / "plots" / ".2.tmp.png"]
        used = folder / "CoOp" / ".3.tmp.json"
        for path in (*torn, used):
            path.write_text("half")
        with held(folder):
            assert not any(path.exists() for path in torn) and used.exists()


def test_a_run_ends_and_its_lock_with_it(tmp_path: Path) -> None:
    script = "import os, sys\nfrom pathlib import Path\nfrom fedmoe.runs.folder import held\n"
    script += "with held(Path(sys.argv[1])):\n    if not os.fork():\n        print('child', flush=True)\n"
    script += "        sys.stdin.read()\n        os._exit(0)\n    os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "child\n"
        assert killed.wait() == -9
        with held(tmp_path):  # although the child, which was forked from it, is alive
            pass
