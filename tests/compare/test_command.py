"""The command compare on runs made apart: groups, tables, tests, and mistakes."""

from __future__ import annotations

import json
import re
import statistics as plain
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from compare.helpers import METHODS, SEEDS, change, lines, rows, sentence
from fedmoe.cli import main


def test_runs_made_apart_are_compared_by_one_command(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    each = [str(runs / f"{name}{seed}") for seed in SEEDS for name in METHODS]  # in no order of groups
    assert main(["compare", *each[:2], f"--output={tmp_path / 'out'}", *each[2:]]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    table = {row["group"]: row for row in rows(out / "comparison.csv")}
    assert list(table) == ["PromptFL", "pFedMoAP"]
    for name, label in (("a", "PromptFL"), ("b", "pFedMoAP")):
        logs = [lines(runs / f"{name}{seed}" / "rounds.jsonl") for seed in SEEDS]
        last = [log[-1]["accuracy"]["mean"] for log in logs]
        five = [(log[1]["accuracy"]["mean"] + log[2]["accuracy"]["mean"]) / 2 for log in logs]
        best = [max(log, key=lambda r: r["validation"]["mean"])["accuracy"]["mean"] for log in logs]
        own = {key: float(value) for key, value in table[label].items() if key not in ("group", "seeds")}
        assert table[label]["seeds"] == "0 1 2"
        assert own["last_mean"] == pytest.approx(sum(last) / 3)
        assert own["last_std_over_seeds"] == pytest.approx(plain.stdev(last))
        over_clients = []
        for seed in SEEDS:
            scores = [r["accuracy"] for r in lines(runs / f"{name}{seed}" / "clients.jsonl") if r["round"] == 2]
            over_clients.append(plain.pstdev(scores))
        assert own["last_std_over_clients"] == pytest.approx(sum(over_clients) / 3)
        assert own["last_five_mean"] == pytest.approx(sum(five) / 3)
        assert own["last_five_std_over_seeds"] == pytest.approx(plain.stdev(five))
        assert own["best_by_validation_mean"] == pytest.approx(sum(best) / 3)
        assert own["best_by_validation_std_over_seeds"] == pytest.approx(plain.stdev(best))
        cells = [f"{sum(v) / 3:.2f} ± {plain.stdev(v):.2f}" for v in (last, five, best)]
        cells.insert(1, f"{sum(over_clients) / 3:.2f}")
        assert re.search(rf"{label} +3: 0, 1, 2 +{' +'.join(map(re.escape, cells))}", printed)
        assert f"| {label} | 3: 0, 1, 2 | {' | '.join(cells)} |" in (out / "comparison.md").read_text()
        assert " & ".join([label, "3: 0, 1, 2", *cells]).replace("±", "$\\pm$") in (out / "comparison.tex").read_text()
    assert "last round:" in printed and "best by validation:" in printed and "mean of last five:" in printed

    differences = np.array(  # [seeds, clients]
        [
            [a["accuracy"] - b["accuracy"] for a, b in zip(*both, strict=True)]
            for seed in SEEDS
            for both in [[lines(runs / f"{n}{seed}" / "clients.jsonl")[-7:] for n in METHODS]]
        ]
    )
    tests = {row["over"]: row for row in rows(out / "comparison_tests.csv")}
    for over, axis in (("clients", 0), ("seeds", 1)):
        d, row = differences.mean(axis=axis), tests[over]
        assert (row["a"], row["b"], int(row["n"])) == ("PromptFL", "pFedMoAP", len(d))
        assert float(row["difference"]) == pytest.approx(d.mean())
        assert float(row["cohen_dz"]) == pytest.approx(d.mean() / d.std(ddof=1))
        nonzero = d.round(9)[d.round(9) != 0]
        ranks = stats.rankdata(abs(nonzero))
        signed = ranks[nonzero > 0].sum() - ranks[nonzero < 0].sum()
        assert float(row["rank_biserial"]) == pytest.approx(signed / ranks.sum())
        assert re.search(rf"PromptFL − pFedMoAP +{over} +{len(d)} +{re.escape(f'{d.mean():+.2f}')} ", printed)
    by_clients = differences.mean(axis=0).round(9)
    p = float(stats.wilcoxon(by_clients[by_clients != 0]).pvalue)
    assert float(tests["clients"]["p"]) == float(tests["clients"]["p_holm"]) == pytest.approx(p)
    assert f"{p:.4f}" in printed
    assert tests["seeds"]["p"] == "" and "fewer than 6 pairs" in printed
    for kind, magic in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        assert (out / f"curves.{kind}").read_bytes().startswith(magic)


def test_a_comparison_is_made_again_byte_for_byte(runs: Path, tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        assert main(["compare", str(runs), f"--output={tmp_path / name}"]) == 0
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert main(["compare", str(runs), f"--output={tmp_path / 'one'}"]) == 0  # its own folder is written anew
    found.append({path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()})
    assert found[0] == found[1] == found[2] and len(found[0]) == 9


def test_runs_of_another_precision_are_a_group_of_their_own(runs: Path, tmp_path: Path) -> None:
    half = change(runs / "b0", tmp_path / "half", runtime__precision="bfloat16", runtime__threads=3)
    assert main(["compare", str(runs / "b0"), str(half), f"--output={tmp_path / 'out'}"]) == 0
    found = [row["group"] for row in rows(tmp_path / "out/comparison.csv")]
    assert len(found) == 2 and "runtime.precision=bfloat16" in found[1] and "threads" not in found[1]


def test_groups_are_told_apart_by_the_settings_in_which_they_differ(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in SEEDS:
        elsewhere = {"output__dir": "x", "runtime__threads": 7, "tracking__project": "y", "features__batch_size": 3}
        change(runs / f"a{seed}", tmp_path / "all" / f"slow{seed}", optim__prompt_lr=0.5)
        if seed < 2:
            change(runs / f"b{seed}", tmp_path / "all" / f"b{seed}", method__init_args__num_experts=1, **elsewhere)
    others = [str(runs / f"b{seed}") for seed in SEEDS]
    assert main(["compare", str(tmp_path / "all"), *others, f"--output={tmp_path / 'out'}"]) == 0
    found = [(row["group"], row["seeds"]) for row in rows(tmp_path / "out/comparison.csv")]
    default = yaml.safe_load((runs / "b0/config.yaml").read_text())["optim"]["prompt_lr"]
    assert found == [
        (f"pFedMoAP (num_experts=1, optim.prompt_lr={default})", "0 1"),
        ("PromptFL (optim.prompt_lr=0.5)", "0 1 2"),
        (f"pFedMoAP (num_experts=2, optim.prompt_lr={default})", "0 1 2"),
    ]
    tests = rows(tmp_path / "out/comparison_tests.csv")
    assert [row["n"] for row in tests if row["over"] == "seeds"] == ["2", "2", "3"]  # seeds that both have
    same = [row for row in tests if "num_experts=1" in row["a"] and "num_experts=2" in row["b"]]
    assert [float(row["difference"]) for row in same] == [0.0, 0.0]  # copies of one run
    capsys.readouterr()


def test_an_empty_init_args_is_no_difference(runs: Path, tmp_path: Path) -> None:
    assert yaml.safe_load((runs / "a1/config.yaml").read_text())["method"]["init_args"] == {}
    bare = change(runs / "a0", tmp_path / "a0", method={"class_path": "fedmoe.methods.PromptFL"})
    compared = [bare, runs / "a1", runs / "b0", runs / "b1"]
    assert main(["compare", *map(str, compared), f"--output={tmp_path / 'out'}"]) == 0
    found = [(row["group"], row["seeds"]) for row in rows(tmp_path / "out/comparison.csv")]
    assert found == [("PromptFL", "0 1"), ("pFedMoAP", "0 1")]


def test_mistakes_are_one_sentence_each(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = str(runs / "a0"), str(runs / "b0")

    def refused(*paths: object) -> str:
        said = sentence(["compare", *map(str, paths)], capsys)
        assert not (tmp_path / "compare").exists()
        return said

    assert "compare needs runs (run folders" in refused()
    assert f"{runs / 'bb0'} does not exist" in refused(a, runs / "bb0")
    assert "did you mean 'b0'?" in refused(a, runs / "bb0")
    (tmp_path / "empty").mkdir()
    assert "empty holds no run" in refused(a, "empty")
    assert "All runs have the same settings (PromptFL, seeds 0, 1)" in refused(a, runs / "a1")
    copy = change(runs / "a0", tmp_path / "copy")
    assert "copy are runs of the same settings and seed 0" in refused(a, copy, b)
    other = change(runs / "b0", tmp_path / "other", partition__init_args__alpha=0.1)
    assert "differ in partition.init_args.alpha (0.5 and 0.1)" in refused(a, other)
    data = change(runs / "b0", tmp_path / "data", data__init_args__subset__test=50)
    assert "differ in data.init_args.subset.test (60 and 50)" in refused(a, data)
    fewer = change(runs / "b0", tmp_path / "fewer", federation__clients=6)
    assert "differ in federation.clients (7 and 6)" in refused(a, fewer)
    moved = change(runs / "b0", tmp_path / "moved")
    partition = json.loads((moved / "partition.json").read_text())
    partition["counts_test"][0][0] += 1
    (moved / "partition.json").write_text(json.dumps(partition))
    assert "moved have seed 0 and different clients in partition.json" in refused(a, moved)
    unfinished = change(runs / "b0", tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    assert "unfinished is unfinished (round 2 is its last)" in refused(a, unfinished)
    (copy / "config.yaml").write_text("[" * 5000)
    assert "copy/config.yaml is damaged" in refused(copy, b)
    (copy / "config.yaml").unlink()
    assert "copy/config.yaml is missing" in refused(copy, b)


def test_nothing_of_others_is_overwritten(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(runs / "a0"), str(runs / "b0")]
    for name in ("thesis.docx", "comparison.md"):
        foreign = tmp_path / name
        foreign.mkdir()
        (foreign / name).write_text("mine")
        assert f"holds '{name}'" in sentence(["compare", *both, f"--output={foreign}"], capsys)
        assert [path.name for path in foreign.iterdir()] == [name] and (foreign / name).read_text() == "mine"
    assert "holds" in sentence(["compare", *both, f"--output={runs / 'a0'}"], capsys)
    assert main(["compare", *both, f"--output={tmp_path / 'out'}"]) == 0
    (tmp_path / "out/comparison.md").unlink()
    (tmp_path / "out/comparison.md").symlink_to(tmp_path / "thesis.docx/thesis.docx")
    assert "is a symbolic link" in sentence(["compare", *both, f"--output={tmp_path / 'out'}"], capsys)
    assert (tmp_path / "thesis.docx/thesis.docx").read_text() == "mine"


def test_a_hostile_label_is_only_text(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    label = "=HYPERLINK(1) | <b> [red]x[/red] \\input{y} $z$ \x1b[2J\nnew"
    evil = change(runs / "b0", tmp_path / "evil")
    summary = json.loads((evil / "summary.json").read_text())
    (evil / "summary.json").write_text(json.dumps({**summary, "label": label}))
    capsys.readouterr()
    assert main(["compare", str(runs / "a0"), str(evil), f"--output={tmp_path / 'out'}"]) == 0
    printed, out = capsys.readouterr().out, tmp_path / "out"
    assert "\x1b" not in printed and "[red]x[/red]" in printed
    markdown, tex = (out / "comparison.md").read_text(), (out / "comparison.tex").read_text()
    for text in (markdown, tex, (out / "comparison.csv").read_text(), (out / "curves.svg").read_text()):
        assert "\x1b" not in text
    row = next(line for line in markdown.splitlines() if "HYPERLINK" in line)
    assert "\\| \\<b> \\[red\\]x" in row and len(re.findall(r"(?<!\\)\|", row)) == 7
    assert "\\textbackslash{}input\\{y\\} \\$z\\$" in tex and "\\input{y}" not in tex
    assert rows(out / "comparison.csv")[1]["group"].startswith("'=HYPERLINK")
    assert "<b>" not in (out / "curves.svg").read_text().replace("&lt;b&gt;", "")
    page = (out / "comparison.html").read_text(encoding="utf-8")
    assert "\x1b" not in page and "&lt;b&gt; [red]x[/red]" in page and "<b>" not in page
