"""The command line from end to end, on the embedded CLIP and data: what a user types and what lies there afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fedmoe.cli import build_parser, main
from fedmoe.cli.settings import as_plain
from fedmoe.config import flatten
from fedmoe.io import read_jsonl

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def options(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of seconds: four clients, two rounds, one epoch."""
    cache = tmp_path_factory.getbasetemp() / "features"  # shared by the tests of this process
    return [
        f"--config={CONFIGS / 'embedded.yaml'}",
        f"--features.cache_dir={cache}",
        f"--output.dir={tmp_path / 'runs'}",
        "--output.name=run",
        "--federation.clients=4",
        "--federation.participation=0.5",
        "--federation.rounds=2",
        "--federation.local_epochs=1",
        "--runtime.threads=1",
        "--runtime.accelerator=cpu",
    ]


def fails(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence that a mistake is answered with."""
    capsys.readouterr()
    assert main(args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def lines_of(folder: Path) -> list[dict]:
    return [{**record, "seconds": None} for record in read_jsonl(folder / "rounds.jsonl")]


def test_fit_leaves_a_whole_run_folder_and_ends_with_a_table(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *options, "--method.num_experts=1"]) == 0
    out = capsys.readouterr().out
    run = tmp_path / "runs" / "run"
    names = {"config.yaml", "rounds.jsonl", "clients.jsonl", "partition.json", "summary.json", "state", "plots"}
    assert names <= {path.name for path in run.iterdir()}
    assert {"accuracy_over_rounds.png", "label_distribution.png"} <= {path.name for path in (run / "plots").iterdir()}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["federation"]["clients"] == 4
    assert config["method"]["init_args"]["num_experts"] == 1
    rounds = read_jsonl(run / "rounds.jsonl")
    assert [record["round"] for record in rounds] == [0, 1, 2]
    clients = [record for record in read_jsonl(run / "clients.jsonl") if record["round"] == 2]
    means = [100 * record["correct"] / record["total"] for record in clients]
    assert rounds[2]["accuracy"]["mean"] == pytest.approx(sum(means) / len(means))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["accuracy"] == rounds[2]["accuracy"]
    assert summary["label"] == "pFedMoAP"
    assert f"{summary['accuracy']['mean']:.2f}" in out
    assert "round 1/2" in out
    assert "s left" in out


def test_the_same_command_again_changes_nothing_and_evaluate_agrees(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "run"
    assert main(["fit", *options, "--method=PromptFL"]) == 0
    before = {name: (run / name).read_bytes() for name in ("rounds.jsonl", "clients.jsonl", "summary.json")}
    assert main(["fit", *options, "--method=PromptFL"]) == 0
    assert before == {name: (run / name).read_bytes() for name in before}
    assert main(["evaluate", str(run)]) == 0
    assert (
        json.loads((run / "evaluation.json").read_text())["accuracy"]
        == read_jsonl(run / "rounds.jsonl")[-1]["accuracy"]
    )
    assert main(["report", str(run)]) == 0
    assert main(["fit", "--config", str(run / "config.yaml"), "--output.name=again"]) == 0
    assert lines_of(run) == lines_of(run.parent / "again")


def test_more_rounds_go_on_from_where_the_run_stopped(options: list[str], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert main(["fit", *options, "--method.num_experts=1"]) == 0
    assert main(["fit", *options, "--method.num_experts=1", "--federation.rounds=4"]) == 0
    assert main(["fit", *options, "--method.num_experts=1", "--federation.rounds=4", "--output.name=whole"]) == 0
    assert lines_of(runs / "run") == lines_of(runs / "whole")
    assert (runs / "run/clients.jsonl").read_bytes() == (runs / "whole/clients.jsonl").read_bytes()


def test_other_settings_in_the_same_folder_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *options, "--method=PromptFL"]) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs").rglob("*"))
    sentence = fails(["fit", *options, "--method=PromptFL", "--optim.prompt_lr=0.5"], capsys)
    assert "optim.prompt_lr = 0.002, not 0.5" in sentence
    assert "output.name" in sentence
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "runs").rglob("*"))
    assert main(["fit", *options, "--method=PromptFL", "--optim.prompt_lr=0.5", "--output.overwrite=true"]) == 0


def test_a_second_process_in_the_same_folder_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *options, "--method=PromptFL"]) == 0
    run = tmp_path / "runs" / "run"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    hold = "import sys, fedmoe.io\nwith fedmoe.io.locked(sys.argv[1]):\n    print('held', flush=True)\n    input()"
    command = [sys.executable, "-c", hold, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for more in (["--federation.rounds=3"], ["--output.overwrite=true"]):
            assert f"{run} is in use by another process" in fails(["fit", *options, "--method=PromptFL", *more], capsys)
        other.communicate("\n")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["fit", *options, "--method=PromptFL", "--federation.rounds=3"]) == 0


def test_overwrite_deletes_only_runs(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = tmp_path / "runs" / "run" / "thesis.tex"
    precious.parent.mkdir(parents=True)
    precious.write_text("years of work")
    assert "holds no run" in fails(["fit", *options, "--method=PromptFL", "--output.overwrite=true"], capsys)
    assert precious.read_text() == "years of work"


def test_several_methods_are_compared(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = "--methods=[ZeroShot, {class_path: CoOp, init_args: {epochs: 1}}, PromptFL, PromptFL]"
    assert main(["fit", *options, methods]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "run"
    assert json.loads((folder / "comparison.json").read_text())["labels"] == [
        "ZeroShot",
        "CoOp",
        "PromptFL-1",
        "PromptFL-2",
    ]
    assert lines_of(folder / "PromptFL-1") == lines_of(folder / "PromptFL-2")
    assert all((folder / name).exists() for name in ("comparison.md", "plots/accuracy_over_rounds.png"))
    assert "Zero-shot CLIP" in out
    again = folder / "CoOp" / "config.yaml"  # each run is one by itself
    assert main(["fit", "--config", str(again), f"--output.dir={tmp_path}", "--output.name=coop"]) == 0
    assert lines_of(tmp_path / "coop") == lines_of(folder / "CoOp")


def test_config_files_layer_and_the_command_line_wins(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("seed: 1\nfederation: {rounds: 11, clients: 12}\nmethod: {class_path: PFedMoAP}\n")
    second.write_text("federation: {rounds: 22}\n")
    args = ["fit", f"--config={first}", f"--config={second}", "--seed=3", "--method.num_experts=5", "--print_config"]
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["seed"], config["federation"]["rounds"], config["federation"]["clients"]) == (3, 22, 12)
    assert config["method"]["init_args"]["num_experts"] == 5


def test_settings_as_plain_values(tmp_path: Path) -> None:
    """What config.yaml holds is all settings, of one method of a comparison alone, and reads back as the same."""
    args = ["--methods=[CoOp, {class_path: FedProx, init_args: {mu: 1e-5}}]", "--output.overwrite=true"]
    given = build_parser("fit").parse_args([*args, "--output.name=2024-01-02", "--resume=here"])
    plain = as_plain(given, 1)
    expected = {"mu": 1e-5, "proximal": "gradient"}
    assert plain["method"] == {"class_path": "fedmoe.methods.FedProx", "init_args": expected}
    assert (plain["methods"], plain["output"]["overwrite"], plain["output"]["name"]) == (None, False, "2024-01-02")
    assert "resume" not in plain
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(as_plain(given, 1)))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == plain
    assert as_plain(build_parser("fit").parse_args([f"--config={tmp_path / 'config.yaml'}"])) == plain


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {"d": [{"e": 2}], "f": {}}}, "g": None}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [{"e": 2}], "a.c.f": {}, "g": None}


def test_partition_needs_no_clip(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.png"
    args = ["--clip.architecture=RN50", "--clip.weights=missing.pt", f"--picture={picture}"]
    assert main(["partition", *options, *args]) == 0
    assert "4 clients, 10 classes, 1258 training" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--method.num_experts=1", "--method.assignment=same_domain"], ["same_domain", "the data has no domains"]),
        (["--method.num_experts=4"], ["method.num_experts is 4", "federation.clients = 4", "0 to 3"]),
        (["--method.num_experts=1", "--method.heads=7"], ["method.heads is 7", "gating_dim = 128", "1, 2, 4, 8"]),
        (["--method.num_experts=1", "--method.gating_dim=48"], ["method.gating_dim is 48", "width 128", "32, 64"]),
        (["--federation.participation=0"], ["federation.participation is 0", "(0, 1]"]),
        (["--federation.participation=1.5"], ["federation.participation is 1.5", "(0, 1]"]),
        (["--federation.clients=200"], ["partition.min_size", "200"]),
        (["--partition=Pathological", "--federation.clients=11"], ["11", "10"]),
        (["--clip.weights=missing.safetensors"], ["missing.safetensors"]),
        (["--clip.pretrained=glyps"], ["clip.pretrained is 'glyps'", "glyphs"]),
        (["--clip.architecture=RN51"], ["clip.architecture is 'RN51'", "RN50"]),
        (["--methods=[]"], ["methods is an empty list"]),
        (["--method.num_experts=1", "--prompt.length=75"], ["prompt.length = 75", "77"]),
        (
            ["--method=PromptFL", "--optim.prompt_lr=1e30", "--federation.on_failure=stop"],
            ["Client", "nan", "optim.prompt_lr"],
        ),
        (["--runtime.accelerator=warp"], ["runtime.accelerator is 'warp'", "cpu"]),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_no_run(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    sentence = fails(["fit", *options, *args], capsys)
    assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "runs/run/summary.json").exists()


def test_offline_weights_name_the_option_for_a_local_file(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sentence = fails(["fit", *options, "--clip.architecture=RN50", "--clip.pretrained=cc12m"], capsys)
    assert "clip.weights" in sentence


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(options: list[str], tmp_path: Path, sign: int) -> None:
    """A real process is killed after its third round; the same command finishes the run."""
    runs = tmp_path / "runs"
    rest = ["--method.num_experts=1", "--federation.rounds=8"]
    command = [sys.executable, "-m", "fedmoe.cli", "fit", *options, *rest]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "round 3/" in line:
            os.kill(process.pid, sign)
            break
    process.communicate()
    assert process.returncode == (130 if sign == signal.SIGINT else -sign)
    stopped = len(read_jsonl(runs / "run/rounds.jsonl"))
    assert 4 <= stopped < 9
    assert main(["fit", *options, *rest]) == 0
    assert main(["fit", *options, *rest, "--output.name=whole"]) == 0
    assert lines_of(runs / "run") == lines_of(runs / "whole")
    assert (runs / "run/clients.jsonl").read_bytes() == (runs / "whole/clients.jsonl").read_bytes()
