"""Several seeds by one command: a run for each, what is missing resumed, and a comparison over seeds."""

from __future__ import annotations

import json
import shutil
import statistics as plain
from pathlib import Path

import pytest
import yaml

from compare.helpers import METHODS, SEEDS, SMALL, lines, rows, sentence
from fedmoe.cli import main


def test_a_run_for_each_seed_by_one_command(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", *SMALL, *METHODS["a"], f"--output.dir={tmp_path}", f"--features.cache_dir={runs}-cache"]
    capsys.readouterr()
    assert main([*fit, "--seeds", "0,2"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "digits-promptfl-seeds"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["over_seeds", "seed0", "seed2"]
    logs = {}
    for seed in (0, 2):  # the same bits as of a run by itself
        own, alone = (
            [{k: v for k, v in record.items() if k != "seconds"} for record in lines(path / "rounds.jsonl")]
            for path in (folder / f"seed{seed}", runs / f"a{seed}")
        )
        assert own == alone
        logs[seed] = own[-1]["accuracy"]["mean"]
    values = list(logs.values())
    assert "PromptFL   2: 0, 2" in printed
    assert f"{sum(values) / 2:.2f} ± {plain.stdev(values):.2f}" in printed
    assert "std over seeds" in printed and "std over clients" in printed
    assert (folder / "over_seeds/curves.svg").is_file() and not (folder / "over_seeds/comparison_tests.csv").exists()

    before = (folder / "seed0/rounds.jsonl").read_bytes()
    assert main([*fit, "--seeds=[0,1,2]"]) == 0  # one more; the others are finished
    assert (folder / "seed0/rounds.jsonl").read_bytes() == before
    assert [row["seeds"] for row in rows(folder / "over_seeds/comparison.csv")] == ["0 1 2"]
    # A seed's settings are those of a run of its own: the same folder goes on by itself, too.
    assert main(["fit", f"--resume={folder / 'seed1'}", "--federation.rounds=3"]) == 0
    assert len(lines(folder / "seed1/rounds.jsonl")) == 4
    # And the folder is one of the arguments of compare.
    others = [str(runs / f"b{seed}") for seed in SEEDS]
    assert "unfinished" not in capsys.readouterr().err
    shutil.rmtree(folder / "seed1")
    assert main(["compare", str(folder), *others, f"--output={tmp_path / 'out'}"]) == 0
    assert [row["seeds"] for row in rows(tmp_path / "out/comparison.csv")] == ["0 2", "0 1 2"]


def test_what_is_missing_of_several_seeds_is_resumed(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"--features.cache_dir={runs}-cache"
    fit = ["fit", *SMALL, *METHODS["a"], f"--output.dir={tmp_path}", "--output.name=many", cache]
    assert main([*fit, "--seeds=0,1,2"]) == 0
    folder = tmp_path / "many"
    before = {seed: (folder / f"seed{seed}/rounds.jsonl").read_bytes() for seed in SEEDS}
    table = (folder / "over_seeds/comparison.csv").read_bytes()
    shutil.rmtree(folder / "seed2")  # as if it had been stopped before the last one
    shutil.rmtree(folder / "over_seeds")
    assert main(["fit", "--resume", str(folder)]) == 0
    assert (folder / "over_seeds/comparison.csv").read_bytes() == table
    assert (folder / "seed0/rounds.jsonl").read_bytes() == before[0]
    again = (folder / "seed2/rounds.jsonl").read_bytes()
    own, first = (
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]
        for text in (again, before[2])
    )
    assert own == first
    moved = folder.rename(tmp_path / "elsewhere")
    assert main(["fit", f"--resume={moved}", "--federation.rounds=3"]) == 0  # further, and from another place
    assert [len(lines(moved / f"seed{seed}/rounds.jsonl")) for seed in SEEDS] == [4, 4, 4]
    assert not folder.exists()
    assert main([*fit[:-2], "--output.name=elsewhere", cache, "--federation.rounds=3", "--seeds=4"]) == 0
    assert yaml.safe_load((moved / "seeds.yaml").read_text())["seeds"] == [0, 1, 2, 4]

    assert "optim.momentum = 0.9, not 0.5" in sentence(["fit", f"--resume={moved}", "--optim.momentum=0.5"], capsys)
    assert "output.overwrite is true" in sentence(["fit", f"--resume={moved}", "--output.overwrite=true"], capsys)
    plain_fit = [*fit[:-2], "--output.name=elsewhere", cache]
    said = sentence(plain_fit, capsys)
    assert f"{moved} holds runs of several seeds; valid is --seeds, which goes on with them, or another" in said
    (moved / "seeds.yaml").unlink()  # made by an earlier version
    assert "holds runs of several seeds" in sentence(plain_fit, capsys)
    assert not (moved / "rounds.jsonl").exists() and not (moved / "config.yaml").exists()
    assert "is a folder of runs; valid is one of them" in sentence(["fit", f"--resume={moved}"], capsys)
    assert "seeds is given beside resume" in sentence(["fit", f"--resume={moved / 'seed0'}", "--seeds=1,2"], capsys)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--seeds=0,x"], "seeds is '0,x'; valid are different integers of at least 0, such as 0,1,2."),
        (["--seeds=1,1"], "seeds is '1,1'; valid are different"),
        (["--seeds=[]"], "seeds is []; valid are different"),
        (["--seeds=[0,x]"], "seeds is '[0,x]'"),
        (["--seeds=-1"], "seeds is '-1'"),
        (["--seeds"], "--seeds needs a value"),
        (["--seeds=0,1", "--methods=[CoOp,PromptFL]"], "seeds is given beside methods"),
        (["--seeds=0,1", "--method=PFedMoAP", "--method.num_experts=9"], "num_experts is 9"),
    ],
)
def test_wrong_seeds(given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"--output.dir={tmp_path / 'runs'}", f"--features.cache_dir={tmp_path / 'cache'}"]
    assert words in sentence(["fit", *SMALL, *where, *given], capsys)
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_seeds_is_no_runs_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"--output.dir={runs}", "--output.name=a0", f"--features.cache_dir={runs}-cache"]
    assert "holds a run or a comparison" in sentence(["fit", *SMALL, *METHODS["a"], *where, "--seeds=0,1"], capsys)
