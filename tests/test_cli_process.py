"""The program among others: signals at any moment, readers that leave, terminals that know only ASCII."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from fedmoe.cli.process import SENTENCE
from fedmoe.display import say
from fedmoe.io import read_jsonl

ROOT = Path(__file__).parents[1]
CODES: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def options(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of seconds: three clients, two rounds, a few images."""
    cache = tmp_path_factory.getbasetemp() / "features"
    return [
        *(f"--config={ROOT / 'configs/embedded.yaml'}", f"--features.cache_dir={cache}"),
        *(f"--output.dir={tmp_path}", "--output.name=run", "--method=PromptFL", "--runtime.accelerator=cpu"),
        *("--data.subset={classes: 4, train: 60, test: 40}", "--federation.clients=3", "--federation.rounds=2"),
        *("--federation.local_epochs=1", "--partition=IID", "--runtime.threads=1"),
    ]


def start(
    args: list[str], extra: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """The program itself, with a folder of modules that are found before others."""
    path = os.pathsep.join(str(folder) for folder in (extra, ROOT) if folder)
    return subprocess.Popen(
        [sys.executable, "-m", "fedmoe.cli", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", **(environment or {})},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job would ignore it
    )


# The interpreter imports this module before anything else.
AT_IMPORT = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), {signal})
            finally:
                os.kill(os.getpid(), {second})
sys.meta_path.insert(0, Finder())
"""
AT_EXIT = "import atexit, os\natexit.register(lambda: [os.kill(os.getpid(), {signal}) for _ in range(2)])\n"
IN_DESTRUCTOR = """
import os, sys
class Noisy:
    def __del__(self):
        os.kill(os.getpid(), {signal})
        for _ in range(1000):
            pass
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "rich":
            Noisy()
sys.meta_path.insert(0, Finder())
"""


def check_interrupted(program: subprocess.Popen[bytes], code: int) -> None:
    _, err = program.communicate(timeout=120)
    assert err.decode() == f"{SENTENCE}\n"
    assert program.returncode == code


@pytest.mark.parametrize("second", CODES)
@pytest.mark.parametrize("first", CODES)
@pytest.mark.parametrize("module", ["jsonargparse", "fedmoe.cli.commands", "numpy", "fedmoe.methods", "torch"])
def test_two_signals_during_imports(module: str, first: int, second: int, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT.format(module=module, signal=int(first), second=int(second)))
    check_interrupted(start(["fit", "--output.dir=nowhere"], tmp_path), CODES[first])


CLEANING = """
import os, sys
from fedmoe.cli import process
def command():
    try:
        os.kill(os.getpid(), {signal})
    finally:
        os.kill(os.getpid(), {signal})
        open(sys.argv[1], "w").close()
process.run(command)
"""


@pytest.mark.parametrize("sign", CODES)
def test_the_second_signal_does_not_interrupt_the_cleanup(sign: int, tmp_path: Path) -> None:
    script = CLEANING.format(signal=int(sign))
    command = [sys.executable, "-c", script, str(tmp_path / "cleaned")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    restore = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=restore)
    assert (done.returncode, done.stderr) == (CODES[sign], f"{SENTENCE}\n")
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize("sign", CODES)
def test_two_signals_at_exit(sign: int, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_EXIT.format(signal=int(sign)))
    program = start(["--help"], tmp_path)
    out, err = program.communicate(timeout=120)
    assert (program.returncode, err.decode()) == (CODES[sign], f"{SENTENCE}\n")
    assert "evaluate" in out.decode()


@pytest.mark.parametrize("sign", CODES)
def test_a_signal_where_exceptions_are_dropped(sign: int, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(IN_DESTRUCTOR.format(signal=int(sign)))
    check_interrupted(start(["fit", "--output.dir=nowhere"], tmp_path), CODES[sign])


@pytest.mark.parametrize("sign", CODES)
def test_two_signals_in_training(sign: int, options: list[str], tmp_path: Path) -> None:
    program = start(["fit", *options, "--federation.rounds=100000"])
    assert program.stdout is not None
    assert any(b"round 2/" in line for line in program.stdout)
    program.send_signal(sign)
    program.send_signal(sign)
    _, err = program.communicate(timeout=120)
    assert program.returncode == CODES[sign]
    assert err.decode().splitlines()[-1] == SENTENCE
    assert err.decode().count(SENTENCE) == 1
    assert "Traceback" not in err.decode()
    assert len(read_jsonl(tmp_path / "run" / "rounds.jsonl")) >= 3


def test_a_reader_that_leaves_does_not_end_the_run(options: list[str], tmp_path: Path) -> None:
    program = start(["fit", *options])
    assert program.stdout is not None and program.stderr is not None
    assert program.stdout.readline()
    program.stdout.close()
    err = program.stderr.read().decode()
    assert (program.wait(timeout=120), "Traceback" in err) == (0, False), err
    assert [record["round"] for record in read_jsonl(tmp_path / "run" / "rounds.jsonl")] == [0, 1, 2]
    assert (tmp_path / "run/summary.json").is_file()
    assert (tmp_path / "run/plots/accuracy_over_rounds.png").is_file()


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["encoding", "locale"],
)
@pytest.mark.slow
def test_a_terminal_that_knows_only_ascii(environment: dict[str, str], options: list[str], tmp_path: Path) -> None:
    for args in (["fit", *options], ["evaluate", str(tmp_path / "run")]):
        program = start(args, environment=environment)
        out, err = program.communicate(timeout=120)
        assert (program.returncode, b"Traceback" in err) == (0, False), err.decode()
    assert "mean +/- standard deviation over clients" in out.decode("ascii")


def test_closed_streams_are_replaced(options: list[str], tmp_path: Path) -> None:
    """Nothing is printed into a file that would otherwise get the number of a closed stream."""
    shell = f'exec "{sys.executable}" -m fedmoe.cli "$@" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", shell, "sh", "fit", *options], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0
    assert [record["round"] for record in read_jsonl(tmp_path / "run" / "rounds.jsonl")] == [0, 1, 2]


def test_text_from_outside_is_neither_markup_nor_control(capsys: pytest.CaptureFixture[str]) -> None:
    say(Console(), "cannot read [/data/x.png] \033]0;title\a :smile: [bold]x[/bold] ±\nnext")
    assert capsys.readouterr().out == "cannot read [/data/x.png] \\x1b]0;title\\x07 :smile: [bold]x[/bold] ±\nnext\n"


def test_help_and_mistakes_import_no_torch() -> None:
    heavy = {"torch", "lightning", "matplotlib", "wandb", "sklearn", "open_clip", "scipy"}
    script = "import json, sys\nfrom fedmoe.cli import main\ntry:\n    code = main(sys.argv[1:])\n"
    script += "except SystemExit as stop:\n    code = stop.code\n"
    script += "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    for args, code in (["fit", "--help"], 0), (["--help"], 0), (["fit", "--method.num_expert=3"], 2):
        command = [sys.executable, "-c", script, *args]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        found, modules = json.loads(done.stderr.splitlines()[-1])
        assert (found, heavy & set(modules)) == (code, set())
