"""Faults of the machine in real runs: a disk that fails, a clock that goes backwards, a file system without writing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from federation_helpers import differences

from fedmoe.federation.restore import read_state
from fedmoe.io import read_jsonl
from fedmoe.runs.checkpoint import StateStore

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
/* FAULT_PATH: from the FAULT_AT-th time on, writing to a file whose path holds this text fails. */
static int fails(int fd) {
    static int count = 0;
    char link[64], path[4096];
    const char *part = getenv("FAULT_PATH");
    if (!part) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strstr(path, part) && ++count >= atoi(getenv("FAULT_AT"));
}
ssize_t write(int fd, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (fails(fd)) { errno = EIO; return -1; }
    return real(fd, data, size);
}
int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    if (fails(fd)) { errno = EIO; return -1; }
    return real(fd);
}
/* CLOCK_BACK: each look at the clock finds it a minute earlier. */
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    static long looks = 0;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME && getenv("CLOCK_BACK")) now->tv_sec -= 60 * ++looks;
    return code;
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or sys.platform != "linux":
        pytest.skip("no C compiler, or no LD_PRELOAD")
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", "shim.so", "shim.c", "-ldl"], cwd=folder, check=True)
    return folder / "shim.so"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = fit(folder)
    assert done.returncode == 0, done.stderr
    return folder


def command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "fedmoe.cli", "fit", f"--config={ROOT / 'configs/embedded.yaml'}"),
        *("--method=PromptFL", f"--output.dir={folder.parent}", f"--output.name={folder.name}", "--partition=IID"),
        *(f"--features.cache_dir={folder.parent / 'features'}", "--data.subset={classes: 4, train: 60, test: 40}"),
        *("--federation.clients=3", "--federation.rounds=4", "--federation.local_epochs=1", "--runtime.threads=1"),
        "--runtime.accelerator=cpu",
    ]


def fit(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command(folder), capture_output=True, text=True, env=environment)


def assert_same(folder: Path, whole: Path) -> None:
    assert (folder / "clients.jsonl").read_bytes() == (whole / "clients.jsonl").read_bytes()
    rounds = [[{**r, "seconds": 0} for r in read_jsonl(path / "rounds.jsonl")] for path in (folder, whole)]
    assert rounds[0] == rounds[1]
    states = [read_state(StateStore(path / "state")) for path in (folder, whole)]
    assert differences(*(state for state in states if state is not None)) == []


@pytest.mark.parametrize(
    ("part", "at"), [("run/rounds.jsonl", 5), ("run/state/", 6), ("features/", 2), ("run/plots/", 1)]
)
def test_a_disk_that_fails_ends_in_a_sentence_and_nothing_finished_is_lost(
    part: str, at: int, shim: Path, whole: Path, tmp_path: Path
) -> None:
    done = fit(tmp_path / "run", LD_PRELOAD=str(shim), FAULT_PATH=part, FAULT_AT=str(at))
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert "Input/output error" in done.stderr and done.stderr.strip().count("\n") == 0
    done = fit(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "run", whole)


def test_a_clock_that_goes_backwards_changes_nothing(shim: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = fit(folder, LD_PRELOAD=str(shim), CLOCK_BACK="1")
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert_same(folder, whole)
    for record in read_jsonl(folder / "rounds.jsonl"):
        assert all(0 <= seconds < 600 for seconds in record["seconds"].values())


def test_a_read_only_file_system_is_one_sentence(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    quoted = " ".join(f"'{word}'" for word in command(disk / "run"))
    script = f"mount -t tmpfs -o size=1m none {disk} && mount -o remount,ro {disk} || exit 77\n{quoted}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, env=environment)
    if done.returncode in (1, 77):
        pytest.skip("no file system can be mounted here")
    assert done.returncode == 2, done.stderr
    assert "Read-only file system" in done.stderr and done.stderr.strip().count("\n") == 0
