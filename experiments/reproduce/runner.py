"""Runs as processes of their own: several at once, each with its log. Finished ones are skipped, others go on."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from filelock import lock_descriptor
from rich.console import Console

from experiments.reproduce.manifest import ROOT
from experiments.reproduce.plan import Run
from experiments.reproduce.progress import Display, Estimate, last_round, tail
from fedmoe.display import say
from fedmoe.errors import UserError

_POLL = 0.2  # seconds between two looks at the running processes
_GRACE = 60.0  # seconds that a run has after Ctrl-C to write what it has
_FAILURES_IN_A_ROW = 3  # as many, with no success between them, and the rest would fail as well


@dataclass
class Outcome:
    """What became of the runs."""

    skipped: int = 0  # were finished before
    finished: int = 0
    failed: list[tuple[Run, str]] = field(default_factory=list)  # and why
    not_started: int = 0
    interrupted: bool = False


@dataclass
class _Process:
    run: Run
    process: subprocess.Popen[bytes]
    slot: int


def run_all(runs: Sequence[Run], jobs: int, console: Console, title: str, out: Path) -> Outcome:
    """Run what is not finished, ``jobs`` at a time. A run that fails does not stop the others.

    Of each data set one run goes ahead until it has the image features; the others then find them in the cache.

    Raises:
        UserError: runs of an earlier command are still going in ``out``.
    """
    outcome = Outcome()
    waiting = [run for run in runs if not run.finished]
    outcome.skipped = len(runs) - len(waiting)
    warm = {run.data for run in runs if run not in waiting}
    display = Display(console, title, len(waiting), Estimate(waiting, jobs))
    going: list[_Process] = []
    in_a_row = 0
    with _lock(out) as lock:
        try:
            while waiting or going:
                for one in [p for p in going if p.process.poll() is not None]:
                    going.remove(one)
                    code = one.process.returncode
                    ok = code == 0 and one.run.finished
                    why = "" if ok else _why(one.run, code)
                    display.end(one.run, why)
                    warm |= {one.run.data} if ok else set()
                    in_a_row = 0 if ok else in_a_row + 1
                    outcome.finished += ok
                    if not ok:
                        outcome.failed.append((one.run, why))
                if in_a_row >= _FAILURES_IN_A_ROW and not outcome.finished:
                    outcome.not_started, waiting = len(waiting), []
                warm |= {p.run.data for p in going if last_round(p.run)[0] >= 0}
                while len(going) < jobs and (run := _next(waiting, going, warm)) is not None:
                    waiting.remove(run)
                    slot = min(set(range(jobs)) - {p.slot for p in going})
                    display.start(run)
                    going.append(_Process(run, _start(run, slot, jobs, lock), slot))
                display.update()
                time.sleep(_POLL)
        except KeyboardInterrupt:
            outcome.interrupted = True
            outcome.not_started = len(waiting)
        finally:
            display.close()
            _stop(going, console)
    return outcome


def _next(waiting: Sequence[Run], going: Sequence[_Process], warm: set[str]) -> Run | None:
    """The first run whose data set's features are there, or which nobody is making."""
    making = {process.run.data for process in going} - warm
    return next((run for run in waiting if run.data not in making), None)


def _start(run: Run, slot: int, jobs: int, lock: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedmoe.cli", "fit", *run.arguments]
    command += [f"--output.dir={run.folder.parent}", f"--output.name={run.folder.name}"]
    run.log.parent.mkdir(parents=True, exist_ok=True)
    with open(run.log, "ab") as log:
        log.write(f"$ {shlex.join(['python', *command[1:]])}\n".encode())
        log.flush()
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=_environment(slot, jobs),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it through us alone
            pass_fds=() if os.name == "nt" else (lock.fileno(),),  # what outlives us keeps the folder locked
        )


def _environment(slot: int, jobs: int) -> dict[str, str]:
    """The processor's cores are divided among the jobs, and the GPUs dealt out to them in turn."""
    environment = dict(os.environ)
    cores = int(environment.get("OMP_NUM_THREADS") or available_cores())
    environment["OMP_NUM_THREADS"] = str(max(1, cores // jobs))
    gpus = visible_gpus()
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return environment


def available_cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(number) for number in range(count)]


def _stop(going: Sequence[_Process], console: Console) -> None:
    """Ask the running runs to stop, and wait; a second Ctrl-C, or the grace time, ends them at once."""
    if not going:
        return
    say(console, f"Stopping {len(going)} run{'s' * (len(going) > 1)}; Ctrl-C again does not wait.")
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            for one in going:
                with contextlib.suppress(ProcessLookupError):
                    one.process.send_signal(number)
            end = time.monotonic() + _GRACE
            for one in going:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    one.process.wait(max(0.0, end - time.monotonic()))
            if all(one.process.poll() is not None for one in going):
                return
    except KeyboardInterrupt:
        pass
    finally:
        for one in going:
            if one.process.poll() is None:
                one.process.kill()
                one.process.wait()


def _why(run: Run, code: int) -> str:
    how = "ended without a result" if code == 0 else f"ended with code {code}"
    return f"{how}: {tail(run.log)}"


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[IO[bytes]]:
    """The folder's lock as an open file, which the runs inherit: the same lock as that of ``fedmoe.io.locked``."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "ab") as file:
        if not lock_descriptor(file.fileno(), blocking=False):
            raise UserError(
                f"Runs of another command are going in {out}; wait for them, or choose another folder with --out."
            )
        yield file
