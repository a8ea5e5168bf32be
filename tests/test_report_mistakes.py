"""Folders that cannot be reported: damaged, missing and oversized files, and paths that are no run."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_helpers import printed, write_comparison, write_run
from rich.console import Console

from fedmoe.errors import UserError
from fedmoe.report import report


def replace(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


MALFORMED: list[tuple[str, Callable[[str], str], list[str]]] = [
    ("rounds.jsonl", lambda text: "", ["rounds.jsonl holds no finished round yet"]),
    ("rounds.jsonl", lambda text: "{}\n" + text, ["rounds.jsonl, line 1, has no key"]),
    ("rounds.jsonl", lambda text: "\n" + text, ["rounds.jsonl is damaged, its line 1 is not valid JSON"]),
    ("rounds.jsonl", lambda text: "[]\n" + text, ["line 1, holds a list; valid is an object"]),
    ("rounds.jsonl", replace('"cohort": [0]', '"cohort": [0.5]'), ["line 2, has 0.5 under key 'cohort'", "an integer"]),
    ("rounds.jsonl", replace('"mean"', '"meen"'), ["key 'accuracy', has no key 'mean'", "did you mean 'meen'?"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": "50"'), ["has \"50\" under key 'mean'", "valid is a number"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": NaN'), ["line 1 is not valid JSON: NaN is not allowed"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": 1e999'), ["Infinity under key 'mean'; valid is a number"]),
    ("rounds.jsonl", replace('"mean": 50.0', f'"mean": 1{"0" * 400}'), ["under key 'mean'; valid is a number"]),
    ("rounds.jsonl", replace('"mean": 50.0', '"mean": 101'), ["line 1, has accuracy", "valid is 0 to 100 percent"]),
    (
        "rounds.jsonl",
        replace('{"0": [1, 2]}', '{"x": [1, 2]}'),
        ["key 'experts', has a key that is not a client's number"],
    ),
    ("clients.jsonl", replace('"client": 3', '"client": 4'), ["names client 4", "4 clients, from 0"]),
    ("clients.jsonl", replace('"accuracy": 20.0', '"accuracy": 21.0'), ["has accuracy 21.0; 2 of 10 right is 20.0"]),
    ("clients.jsonl", replace('"correct": 2', '"correct": 11'), ["11 of 10 right; valid is 0 to 10"]),
    ("clients.jsonl", replace('"domain": "photo"', '"domain": 3'), ["line 1, has 3 under key 'domain'", "a string"]),
    ("partition.json", lambda text: text[:-5], ["partition.json is damaged or cut, it is not valid JSON"]),
    (
        "partition.json",
        replace("[1, 2]", "[1, 2, 3]"),
        ["wrong counts under 'counts_train'", "2 counts for each client"],
    ),
    ("partition.json", replace("[1, 2]", "[1, -2]"), ["wrong counts under 'counts_train'"]),
    ("partition.json", replace("[[1, 2], ", "["), ["has [3, 4, 4] clients in its lists"]),
    ("partition.json", replace('["cat", "dog"]', "[]"), ["wrong counts under 'counts_train'"]),
    ("summary.json", lambda text: "null", ["summary.json holds nothing; valid is an object"]),
    ("summary.json", replace('"label"', '"lable"'), ["summary.json has no key 'label'; did you mean 'lable'?"]),
    ("summary.json", lambda text: "\xff", ["summary.json is damaged or cut"]),
    ("config.yaml", lambda text: "a: [", ["config.yaml is damaged, it is not valid YAML"]),
    ("config.yaml", lambda text: "!!python/object/apply:os.getcwd []", ["config.yaml is damaged"]),
    ("config.yaml", lambda text: "seed: 7", ["config.yaml has no key 'method'"]),
    ("config.yaml", replace("class_path", "class"), ["key 'method', has no key 'class_path'"]),
]


@pytest.mark.parametrize(("name", "change", "words"), MALFORMED, ids=[f"{m[0]}-{i}" for i, m in enumerate(MALFORMED)])
def test_a_malformed_file_is_answered_by_one_sentence(
    name: str, change: Callable[[str], str], words: list[str], tmp_path: Path
) -> None:
    path = write_run(tmp_path / "run") / name
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    with pytest.raises(UserError) as caught:
        printed(tmp_path / "run")
    sentence = str(caught.value)
    assert str(path) in sentence and "\n" not in sentence and sentence[-1] in ".?" and "?." not in sentence
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "run" / "plots").exists()  # nothing half-written


@pytest.mark.parametrize("name", ["rounds.jsonl", "clients.jsonl", "partition.json"])
@pytest.mark.parametrize(("folder", "reason"), [(False, "is missing."), (True, "cannot be read: Is a directory.")])
def test_a_missing_or_unreadable_file(name: str, folder: bool, reason: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / name
    path.unlink()
    if folder:
        path.mkdir()
    with pytest.raises(UserError, match=f"{name} {reason}$"):
        printed(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "most"), [("rounds.jsonl", 256), ("clients.jsonl", 256), ("partition.json", 64), ("config.yaml", 64)]
)
def test_a_file_that_is_too_large_is_not_read(name: str, most: int, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run") / name
    os.truncate(path, 30 * 2**30)  # sparse: takes no room, and would take 30 GiB of memory
    with pytest.raises(UserError, match=rf"{name} is larger than {most} MiB; valid is at most that\.$"):
        printed(tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds a list; valid is an object"),
        ("{}", "has no key 'labels'"),
        ('{"labels": [1]}', "has 1 under key 'labels'; valid is a string"),
        ('{"labels": ["a", "a"]}', "has 'a' under key 'labels'; valid are different folder names"),
        ('{"labels": ["../a"]}', "has '../a' under key 'labels'"),
        ('{"labels": [".."]}', "has '..' under key 'labels'"),
        ('{"labels": [""]}', "has '' under key 'labels'"),
    ],
)
def test_a_malformed_comparison(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        printed(tmp_path)


def test_a_path_that_is_no_run_is_answered_with_what_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "other"):
        write_run(Path("runs") / name)
    Path("notes.txt").touch()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").touch()
    cases = {
        "runs/quikstart": "runs/quikstart does not exist; valid is a run folder (with rounds.jsonl) or a comparison "
        "folder (with comparison.json); did you mean 'runs/quickstart'?",
        "quickstrat": "did you mean 'runs/quickstart'?",
        "notes.txt": "notes.txt is neither a run folder (with rounds.jsonl) nor a comparison folder (with "
        "comparison.json).",
        "begun": "begun is a run that has finished no round yet; there is nothing to report.",
    }
    for path, sentence in cases.items():
        with pytest.raises(UserError) as caught:
            report(Path(path), Console(file=io.StringIO()))
        assert str(caught.value).endswith(sentence), path


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "c" / "run")
    write_comparison(tmp_path / "c", ["run"])
    for path in (folder, tmp_path / "c"):
        (path / "plots").write_text("in the way")
        with pytest.raises(
            UserError, match=r"plots cannot be written: .*; valid is a run folder that can be written to\.$"
        ):
            printed(path)
