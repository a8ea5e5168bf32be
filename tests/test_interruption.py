"""Runs that are killed, run out of disk or share a folder: nothing finished is lost, and the result is the same bits.

Real processes. FEDMOE_KILLS sets how often the run is killed at random moments (CI: 12).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from federation_helpers import differences
from fork_server import ForkServer

from fedmoe import __version__
from fedmoe.cli import main
from fedmoe.federation.restore import read_state
from fedmoe.io import read_jsonl
from fedmoe.runs.checkpoint import StateStore

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("FEDMOE_KILLS", "12"))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def options(cache: Path, runs: Path, name: str = "run") -> list[str]:
    settings = {"clients": 4, "participation": 0.5, "rounds": 10, "local_epochs": 1, "batch_size": 64}
    return [
        "--config=configs/embedded.yaml",
        f"--features.cache_dir={cache}",
        f"--output.dir={runs}",
        f"--output.name={name}",
        "--method.num_experts=2",
        "--data.shots=16",
        *(f"--federation.{key}={value}" for key, value in settings.items()),
    ]


def run(server: ForkServer, args: list[str], log: Path, **kwargs: int) -> tuple[int, int]:
    server.start(args, log, **kwargs)
    return server.wait()


@pytest.fixture(scope="module")
def whole(server: ForkServer, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(server, ["fit", *options(cache, folder, "first")], folder / "log.txt")[0] == 0  # fills the feature cache
    start = time.monotonic()
    assert run(server, ["fit", *options(cache, folder)], folder / "log.txt")[0] == 0
    (folder / "seconds").write_text(str(time.monotonic() - start))
    return folder / "run"


def assert_same(folder: Path, whole: Path) -> None:
    """Both runs left the same bits, but for seconds."""
    for name in ("clients.jsonl", "partition.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    untimed = [[{**line, "seconds": None} for line in read_jsonl(path / "rounds.jsonl")] for path in (folder, whole)]
    assert untimed[0] == untimed[1]
    states = [read_state(StateStore(path / "state")) for path in (folder, whole)]
    assert differences(*(state for state in states if state is not None)) == []
    summaries = [json.loads((path / "summary.json").read_text()) for path in (folder, whole)]
    assert summaries[0]["accuracy"] == summaries[1]["accuracy"]
    manifests = [sorted(found.name for found in (path / "state").glob("*.json")) for path in (folder, whole)]
    assert manifests[0] == manifests[1]
    assert not list(folder.rglob(".*.tmp*"))


def test_killed_at_random_moments_again_and_again(server: ForkServer, cache: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL, SIGTERM or Ctrl-C after a random time, until the run has come to its end."""
    draw = random.Random(0)
    args, log = ["fit", *options(cache, tmp_path)], tmp_path / "log.txt"
    seconds = float((whole.parent / "seconds").read_text())
    survived, inside, reached = 0, 0, 0
    for attempt in range(KILLS):
        if attempt % 6 == 0:  # many kills need several runs
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            reached = 0
        sign = draw.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        pid = server.start(args, log)
        timer = threading.Timer(draw.uniform(0.3, 1) * seconds, os.kill, (pid, sign))
        timer.start()
        code, _ = server.wait()
        timer.cancel()
        assert code in (0, 130, -sign), log.read_text()[-3000:]
        survived += code != 0
        state = read_state(StateStore(tmp_path / "run" / "state"))
        finished = read_jsonl(tmp_path / "run" / "rounds.jsonl") if (tmp_path / "run" / "rounds.jsonl").exists() else []
        assert state is None or len(finished) >= state.round + 1  # each checkpointed round is on record
        inside += len(finished) > reached  # it was killed between two rounds, or in one
        reached = len(finished)
        if code == 0:  # it came to its end, being faster than the first run was: another one, killed earlier
            assert_same(tmp_path / "run", whole)
            shutil.rmtree(tmp_path / "run")
            seconds, reached = 0.8 * seconds, 0
            continue
        if attempt % 6 == 5 or attempt == KILLS - 1:
            assert run(server, ["fit", f"--resume={tmp_path / 'run'}"] if state else args, log)[0] == 0
            assert_same(tmp_path / "run", whole)
    print(f"{survived} kills survived, {inside} of them after some rounds of that process")
    assert survived >= KILLS // 2


def test_killed_at_every_kind_of_change_of_the_disk(
    server: ForkServer, cache: Path, whole: Path, tmp_path: Path
) -> None:
    """The process dies just before its n-th opening, renaming or removal of a file, for n over a whole run."""
    log = tmp_path / "log.txt"
    args = ["fit", *options(cache, tmp_path, "counted"), "--federation.rounds=3"]
    code, changes = run(server, args, log)
    assert code == 0
    step = max(1, changes // (KILLS // 2 + 1))
    reference = tmp_path / "counted"
    for die_at in range(1, changes, step):
        name = f"run-{die_at}"
        args = ["fit", *options(cache, tmp_path, name), "--federation.rounds=3"]
        assert run(server, args, log, die_at=die_at)[0] == -signal.SIGKILL
        assert run(server, args, log)[0] == 0, log.read_text()[-3000:]
        assert_same(tmp_path / name, reference)
        shutil.rmtree(tmp_path / name)


def test_resume_by_folder_and_what_may_change(
    cache: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], server: ForkServer
) -> None:
    args, moved = ["fit", *options(cache, tmp_path)], tmp_path / "elsewhere" / "renamed"
    assert run(server, [*args, "--federation.rounds=4"], tmp_path / "log.txt")[0] == 0
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    assert main(["fit", f"--resume={moved}", "--federation.rounds=10", "--tracking.detail_every=5"]) == 0
    assert_same(moved, whole)
    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    for setting, old, new in (
        ("--partition.alpha=0.1", "partition.init_args.alpha = 0.5", "0.1"),
        ("--method=PromptFL", "method.class_path = 'fedmoe.methods.PFedMoAP'", "'fedmoe.methods.PromptFL'"),
        ("--prompt.length=4", "prompt.length = 16", "4"),
        ("--seed=3", "seed = 0", "3"),
        ("--federation.batch_size=8", "federation.batch_size = 64", "8"),
        ("--federation.on_failure=stop", "federation.on_failure = 'drop'", "'stop'"),
    ):
        capsys.readouterr()
        assert main(["fit", f"--resume={moved}", setting]) == 2
        error = capsys.readouterr().err
        assert f"holds a run with {old}, not {new};" in error
        assert error.count("\n") <= 2  # a note about dropped settings may stand in front
    assert main(["fit", "--resume", str(moved), "--output.overwrite=true"]) == 2
    assert "output.overwrite is true, but --resume=" in capsys.readouterr().err
    assert main(["fit", f"--resume={moved.parent / 'renames'}"]) == 2
    assert f"did you mean '{moved}'" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}


def test_a_comparison_is_resumed(cache: Path, tmp_path: Path, server: ForkServer) -> None:
    args = [a for a in options(cache, tmp_path) if "num_experts" not in a] + ["--federation.rounds=3"]
    args += ["--methods=[PromptFL, {class_path: PFedMoAP, init_args: {num_experts: 1}}]"]
    assert run(server, ["fit", *args], tmp_path / "log.txt")[0] == 0
    (tmp_path / "run").rename(tmp_path / "whole")
    killed = 0
    for die_at in (20, 90):  # in the first and in the second method
        code, _ = run(server, ["fit", *args], tmp_path / "log.txt", die_at=die_at)
        killed += code == -signal.SIGKILL
    assert killed == 2
    assert run(server, ["fit", f"--resume={tmp_path / 'run'}"], tmp_path / "log.txt")[0] == 0
    for name in ("PromptFL", "PFedMoAP"):
        assert_same(tmp_path / "run" / name, tmp_path / "whole" / name)


def test_settings_that_came_later_have_their_defaults(cache: Path, whole: Path, tmp_path: Path) -> None:
    """A folder of an older version with the same format, whose config.yaml lacks some keys, is continued."""
    shutil.copytree(whole, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for key in ("late_clients", "on_failure", "retries"):
        del config["federation"][key]
    del config["views"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", *options(cache, tmp_path)]) == 0
    assert main(["fit", f"--resume={tmp_path / 'run'}"]) == 0
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("command", [["fit", "--resume"], ["evaluate"], ["report"]])
def test_a_folder_of_a_later_format_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    (folder / "run.json").write_text('{"format": 3, "fedmoe": "9.9"}')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main([*command, str(folder)]) == 2
    told = f"says format 3, written by fedmoe 9.9; this is fedmoe {__version__}, which reads format 2."
    assert told in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_processes_on_one_folder(server: ForkServer, cache: Path, whole: Path, tmp_path: Path) -> None:
    """The second is refused while the first works, which is not disturbed."""
    folder, other = tmp_path / "run", ForkServer()
    args = ["fit", *options(cache, tmp_path), "--federation.rounds=100000"]
    try:
        pid = server.start(args, tmp_path / "first.txt")
        while not (folder / "rounds.jsonl").exists():
            os.kill(pid, 0)  # it is alive
        code, _ = run(other, args, tmp_path / "second.txt")
    finally:
        other.close()
    while len(read_jsonl(folder / "rounds.jsonl")) < 12:
        os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)
    server.wait()
    assert code == 2
    told = "is in use by another process; wait for it, or choose another output.name."
    assert told in (tmp_path / "second.txt").read_text()
    lines = [[{**line, "seconds": None} for line in read_jsonl(path / "rounds.jsonl")] for path in (folder, whole)]
    assert lines[0][:11] == lines[1]


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_when_there_is_space(
    cache: Path, whole: Path, tmp_path: Path
) -> None:
    """On a file system of 128 kB, which then grows."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    fit = [sys.executable, "-m", "fedmoe.cli", "fit", *options(cache, disk)]
    quoted = " ".join(f"'{word}'" for word in fit)
    script = (
        f"mount -t tmpfs -o size=128k none {disk} || exit 77\n"
        f"{quoted} >{out}/first.txt 2>&1; echo $? >{out}/code\n"
        f"cp -r {disk}/run {out}/full\n"
        f"mount -o remount,size=64m {disk} && {quoted} >{out}/second.txt 2>&1 && cp -r {disk}/run {out}/run\n"
    )
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode in (1, 77) and not (out / "code").exists():
        pytest.skip("no file system can be mounted here")
    assert (out / "code").read_text() == "2\n", (out / "first.txt").read_text()[-2000:]
    last = (out / "first.txt").read_text().strip().splitlines()[-1]
    assert "cannot be written: No space left on device; finished rounds are kept" in last
    assert "Traceback" not in (out / "first.txt").read_text()
    assert read_jsonl(out / "full" / "rounds.jsonl")  # some rounds were finished
    assert "resuming" in (out / "second.txt").read_text()
    assert_same(out / "run", whole)


def test_a_file_size_limit_ends_in_a_sentence(cache: Path, whole: Path, tmp_path: Path) -> None:
    """As a quota: files cannot grow beyond 3 kB."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY)); "
    limited += "from fedmoe.cli import main; sys.exit(main(sys.argv[1:]))"
    args = ["fit", *options(cache, tmp_path)]
    done = subprocess.run([sys.executable, "-c", limited, *args], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "cannot be written: File too large; finished rounds are kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert main(args) == 0
    assert_same(tmp_path / "run", whole)


def test_a_folder_that_cannot_be_written(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_only = tmp_path / "runs"
    read_only.mkdir()
    read_only.chmod(0o555)
    if os.access(read_only, os.W_OK):  # root: a place where not even root can make a folder
        read_only = Path("/sys")
    if os.access(read_only, os.W_OK) and not Path("/sys/kernel").exists():
        pytest.skip("this user may write everywhere")
    capsys.readouterr()
    assert main(["fit", *options(cache, read_only)]) == 2
    error = capsys.readouterr().err
    assert f"{read_only / 'run'} cannot be written: " in error
    assert error.count("\n") == 1
