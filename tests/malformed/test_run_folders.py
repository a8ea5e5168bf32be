"""Run and comparison folders that are damaged, of another version, or not what they say: no command changes them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmoe import cli, experiment
from fedmoe.models.clip import FrozenCLIP
from malformed.helpers import Refused, each
from malformed.run_damage import ALL, BRACKETS, READERS, REPORTS, RUN, Damage, edits, writes
from malformed.run_records import comparisons, documents, logs
from malformed.run_states import contents, states


def versions() -> list[Damage]:
    path = RUN / "run.json"
    texts: dict[str, tuple[str | bytes, str]] = {
        "format 0": ('{"format": 0, "fedmoe": "0.0.1"}', "says format 0, written by fedmoe 0.0.1"),
        "format 99": ('{"format": 99, "fedmoe": "9.9"}', "says format 99, written by fedmoe 9.9"),
        "no format": ("{}", "says format None, written by fedmoe another version"),
        "format in words": ('{"format": "2"}', "says format '2'"),
        "a list": ("[]", "says format None"),
        "null": ("null", "says format None"),
        "empty": ("", "cannot be read"),
        "garbled": ("{", "cannot be read"),
        "no UTF-8": (b"\xff\xfe{", "cannot be read"),
        "deep": (BRACKETS, "cannot be read"),
    }
    folder = Damage("run.json a folder", lambda: (path.unlink(), path.mkdir()), (str(path), "cannot be read"), ALL)
    long = json.dumps({"format": 3, "fedmoe": "x" * 10_000 + "\n\x1b[2J"})
    return [
        *(
            Damage(f"run.json {name}", writes(path, text), (str(path), words), ALL)
            for name, (text, words) in texts.items()
        ),
        Damage("run.json hostile", writes(path, long), (str(path), "says format 3"), ALL),
        # Logs have not changed since format 1, so that such a run is still reported (test_report).
        Damage("run.json format 1", writes(path, '{"format": 1, "fedmoe": "0.1.0"}'), ("says format 1",), READERS),
        Damage("run.json missing", path.unlink, ("has no run.json", "format 1"), READERS),
        folder,
        Damage(
            "run.json a FIFO", lambda: (path.unlink(), os.mkfifo(path)), (str(path), "valid is a regular file"), REPORTS
        ),
    ]


def settings() -> list[Damage]:
    path = RUN / "config.yaml"
    commands = ("evaluate", "resume")
    texts: dict[str, tuple[bytes | str, str]] = {
        "empty": ("", "is empty"),
        "a list": ("- seed", "valid is a YAML mapping"),
        "binary": (bytes(range(256)), "valid"),
        "an unknown key": ("sede: 3", "line 1: sede is not a known setting; did you mean 'seed'?"),
        "a wrong type": ("seed: many", "line 1: seed is 'many'"),
        "a function": ("method: {class_path: os.system, init_args: {command: touch canary}}", "'os.system'"),
        "a tag": ("seed: !!python/object/apply:os.system ['touch canary']", "is not valid YAML"),
        "laughs": ("a: &a [1, 1]\nb: &b [*a, *a]\n" * 0 + "seed: &a [*a]", "aliases"),
        "deep": (b"seed: " + BRACKETS, "is not valid YAML"),
    }
    damages = [Damage(f"config.yaml {n}", writes(path, t), (str(path), w), commands) for n, (t, w) in texts.items()]
    reported: dict[str, str | bytes] = {
        "laughs": "method: {class_path: CoOp, init_args: {a: &a [1], b: &b [*a]}}\nseed: &c [*c]",
        "deep": "method: " + "[" * 20_000,
        "a tag": "seed: !!python/object/apply:os.system ['touch canary']",
        "bool of no bool": "seed: !!bool maybe",
        "empty": "",
        "a list": "[]",
        "no method": "seed: 3",
        "a method of no class": "seed: 3\nmethod: 3",
        "binary": b"\xff\xfe",
    }
    damages += [
        Damage(f"config.yaml {n} in a report", writes(path, t), (str(path),), REPORTS) for n, t in reported.items()
    ]
    missing = (str(RUN), "not a run folder")
    return [
        *damages,
        Damage("config.yaml missing", path.unlink, missing, ("evaluate",)),
        Damage("config.yaml missing at resume", path.unlink, (str(RUN),), ("resume",)),
        Damage("config.yaml cut", writes(path, "clip:\n  architec"), (str(path), "is 'architec'"), commands),
        Damage("config.yaml a folder", lambda: (path.unlink(), path.mkdir()), (str(RUN),), ("evaluate", "resume")),
        Damage(
            "config.yaml of another run", edits(path, "length: 2", "length: 3"), ("prompt.length = 3, not 2",), ("fit",)
        ),
    ]


def outputs() -> list[Damage]:
    """Whole run folders, and an output that cannot be; the commands are those of ``OUTPUTS``."""
    words = {
        "overwrite with a wrong gate": "method.gating_dim is 48",
        "overwrite with a long prompt": "prompt.length = 75",
        "overwrite with too many clients": "partition.min_size",
        "overwrite and resume": "valid is one of the two",
        "overwrite of no run": "holds no run of fedmoe",
        "a run under a file": "config.yaml",
        "a page of text": "page.txt",
        "a page of records": "rounds.jsonl",
        "a page that is a folder": "runs/run/state.html",
        "a page under a file": "x.html",
        "a picture that is a folder": "runs/run/state",
        "a picture under a file": "config.yaml/picture.png",
    }
    folder = Path("runs/run/state.html")
    return [Damage(name, lambda: folder.mkdir(), (word,), (name,)) for name, word in words.items()]


KINDS = {
    "outputs": outputs(),
    "versions": versions(),
    "settings": settings(),
    "states": states(),
    "contents of states": contents(),
    "logs": logs(),
    "documents": documents(),
    "comparisons": comparisons(),
}


@dataclass(frozen=True)
class Refusal:
    name: str
    damage: Damage
    command: str


CASES = [
    Refusal(f"{damage.name}: {command}", damage, command)
    for damages in KINDS.values()
    for i, damage in enumerate(damages)
    for command in {damage.commands[i % len(damage.commands)]}  # in turn: all of them would take minutes
]


@pytest.fixture
def commands(fit_args: list[str]) -> dict[str, list[str]]:
    own = [arg for arg in fit_args if arg.startswith("--features")]
    return {
        "evaluate": ["evaluate", "runs/run"],
        "report": ["report", "runs/run"],
        "page": ["report", "runs/run", "--html=page.html"],
        "fit": [*fit_args, "--federation.rounds=3"],
        "resume": ["fit", "--resume=runs/run", *own, "--federation.rounds=3"],
        "overwrite with a wrong gate": [*fit_args, "--output.overwrite=true", "--method.gating_dim=48"],
        "overwrite with a long prompt": [*fit_args, "--output.overwrite=true", "--prompt.length=75"],
        "overwrite with too many clients": [*fit_args, "--output.overwrite=true", "--federation.clients=40"],
        "overwrite and resume": ["fit", "--resume=runs/run", *own, "--output.overwrite=true"],
        "overwrite of no run": [*fit_args, "--output.overwrite=true", "--output.dir=runs/run", "--output.name=state"],
        "a run under a file": [*fit_args, "--output.dir=runs/run/config.yaml"],
        "a page of text": ["report", "runs/run", "--html=page.txt"],
        "a page of records": ["report", "runs/run", "--html=runs/run/rounds.jsonl"],
        "a page that is a folder": ["report", "runs/run", "--html=runs/run/state.html"],
        "a page under a file": ["report", "runs/run", "--html=runs/run/config.yaml/x.html"],
        "a picture that is a folder": ["partition", *fit_args[1:], "--picture=runs/run/state"],
        "a picture under a file": ["partition", *fit_args[1:], "--picture=runs/run/config.yaml/picture.png"],
        "comparison": ["report", "runs"],
        "comparisons": ["report", "runs", "--html=page.html"],
    }


def test_there_are_many_cases() -> None:
    counts = {kind: len(damages) for kind, damages in KINDS.items()}
    assert sum(counts.values()) >= 200, counts
    assert {case.command for case in CASES} >= {*ALL, "comparison", "comparisons"}


@pytest.fixture
def _one_clip(monkeypatch: pytest.MonkeyPatch, embedded_clip: FrozenCLIP) -> None:
    """CLIP is frozen: the one that was loaded first serves all cases."""
    monkeypatch.setattr(experiment, "load_clip", lambda _: embedded_clip)


@pytest.mark.usefixtures("_one_clip", "bounded")
@each(CASES)
def test_a_run_folder_is_refused(
    case: Refusal, whole_run: Path, commands: dict[str, list[str]], refused: Refused
) -> None:
    shutil.copytree(whole_run / "runs", "runs")
    case.damage.change()
    refused(commands[case.command], *case.damage.words)


def test_a_run_of_format_1_is_still_reported(whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs and settings have not changed since; its run.json may be missing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole_run / "runs", "runs")
    (RUN / "run.json").write_text('{"format": 1, "fedmoe": "0.1.0"}')
    assert cli.main(["report", str(RUN)]) == 0
    (RUN / "run.json").unlink()
    assert cli.main(["report", str(RUN)]) == 0


@pytest.mark.usefixtures("_one_clip")
def test_a_comparison_with_a_run_of_another_version(
    whole_run: Path, commands: dict[str, list[str]], refused: Refused
) -> None:
    """Nothing of it is written anew, though only its last run is of another version."""
    Path("runs/both").mkdir(parents=True)
    shutil.copytree(whole_run / "runs" / "run", "runs/both/CoOp")
    Path("runs/both/CoOp/run.json").write_text('{"format": 99}')
    Path("runs/both/comparison.json").write_text('{"labels": ["ZeroShot", "CoOp"], "results": [{"a": 1}]}')
    own = [arg for arg in commands["fit"] if not arg.startswith("--method")]
    refused([*own, "--output.name=both", "--methods=[ZeroShot,CoOp]"], "runs/both/CoOp/run.json says format 99")


@pytest.mark.parametrize("command", ["evaluate", "report", "page", "fit", "resume"])
def test_the_whole_folder_is_taken(command: str, whole_run: Path, commands: dict[str, list[str]], here: Path) -> None:
    shutil.copytree(whole_run / "runs", "runs")
    assert cli.main(commands[command]) == 0
