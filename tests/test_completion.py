"""What a shell offers at TAB, and how much a command says."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe.cli import main
from fedmoe.cli.completion import complete

ROOT = Path(__file__).parents[1]
argcomplete = pytest.importorskip("argcomplete")


def offered(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words that bash would be given, with the cursor at the end of the line."""
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:"}
    for name, value in {**asked, "COMP_LINE": line, "COMP_POINT": str(len(line))}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        argcomplete.CompletionFinder, "_init_debug_stream", lambda self: None
    )  # it takes pytest's file 9
    stream = io.StringIO()
    stream.close = lambda: None  # type: ignore[method-assign]
    assert complete(stream) == 0
    return stream.getvalue().split("\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("fedmoe ev", ["evaluate "]),
        ("fedmoe --log-level debug ev", ["evaluate "]),
        ("fedmoe fit --federation.ro", ["--federation.rounds "]),
        ("fedmoe fit --quiet --optim.optimizer ", ["sgd", "adam"]),
        ("fedmoe fit --optim.optimizer=a", ["adam "]),
        ("fedmoe fit --partition Dom", ["DomainDirichlet", "DomainClasses"]),
        ("fedmoe fit --partition.al", ["--partition.alpha "]),  # of Dirichlet, the default
        (
            "fedmoe fit --partition=Pathological --partition.",
            ["--partition.help", "--partition.sizes", "--partition.seed"],
        ),
        ("fedmoe fit --config fedmoe:methods/promptfolio --method.th", ["--method.theta "]),
        ("fedmoe fit --nonsense --optim.optimizer s", ["sgd "]),
        ("fedmoe fit --config fedmoe:data/cifar", ["data/cifar10", "data/cifar100"]),  # from the last ":" on
        ("fedmoe features li", ["list "]),
        ("fedmoe runs --state un", ["unfinished", "unreadable"]),
        ("fedmoe fit --log-level=w", ["warning "]),
        ("fedmoe report runs/x --opt", [""]),  # no command's settings but its own
    ],
)
def test_what_is_offered(line: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert offered(line, monkeypatch) == words


def test_files_are_offered_where_a_path_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("seed: 1")
    (tmp_path / "mine.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    assert offered("fedmoe fit --config mi", monkeypatch) == ["mine.yaml "]
    assert sorted(offered("fedmoe predict mi", monkeypatch)) == ["mine.txt", "mine.yaml"]


def test_bash_completes_with_the_printed_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script in a real bash, which asks a real process."""
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "fedmoe").write_text(f"#!/bin/sh\nexec {sys.executable} -m fedmoe.cli\n")
    (tmp_path / "fedmoe").chmod(0o755)
    program = (
        f"PATH={tmp_path}:$PATH; source {tmp_path}/script\n"
        "COMP_LINE='fedmoe fit --federation.ro'; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9; COMP_CWORD=2\n"
        'COMP_WORDS=($COMP_LINE); $(complete -p fedmoe | sed -E "s/.*-F (\\S+).*/\\1/") fedmoe 2>/dev/null\n'
        'printf "<%s>" "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "<--federation.rounds >", done


def test_completion_without_its_package_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["completion", "zsh"]) == 2
    assert "pip install 'fedmoe[completion]'" in capsys.readouterr().err


# How much is said


def alone(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The package's logger without pytest's own handlers; afterwards it is as it was."""
    log = logging.getLogger("fedmoe")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "level", log.level)
    return log


@pytest.mark.parametrize(
    ("args", "stdout", "warned"),
    [
        ([], True, True),
        (["--log-level=info"], True, True),
        (["--quiet"], False, True),
        (["--log-level", "warning"], False, True),
        (["--log-level=error"], False, False),
        (["--quiet", "--log-level=info"], True, True),  # the last one counts
    ],
)
def test_each_level_says_what_it_should(
    args: list[str], stdout: bool, warned: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = alone(monkeypatch)
    assert main([*args, "configs"]) == 0
    log.getChild("cli").warning("something is odd")
    told = capsys.readouterr()
    assert ("fedmoe:quickstart" in told.out, told.err == "something is odd\n") == (stdout, warned)


def test_debug_shows_where_a_mistake_was_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(monkeypatch)
    assert main(["report", "nowhere", "--log-level=debug"]) == 2
    told = capsys.readouterr().err
    assert "DEBUG fedmoe.cli.commands: Where the mistake was found:\nTraceback" in told
    assert main(["report", "nowhere"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (
            ["--log-level=warn"],
            "--log-level is 'warn'; valid is debug, info, warning or error; did you mean 'warning'?",
        ),
        (["fit", "--log-level"], "--log-level is ''; valid is debug, info, warning or error."),
    ],
)
def test_a_wrong_level(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert capsys.readouterr().err == f"Error: {sentence}\n"
