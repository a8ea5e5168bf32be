"""Independent runs side by side: grouping, paired statistics, tables and what they are written to."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shutil
import statistics as plain
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedmoe.cli import main
from fedmoe.report.compare_page import render
from fedmoe.report.compare_tables import group_table
from fedmoe.report.groups import read_groups
from fedmoe.report.statistics import by_client, by_seed, holm, paired

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
METHODS = {"a": ["--method=PromptFL"], "b": ["--method=PFedMoAP", "--method.num_experts=2"]}


def against_zero(differences: list[float]):
    return paired(differences, [0.0] * len(differences), seed=0)


def test_signs_by_hand() -> None:
    # Ranks 1 to 6, of which only 6 is negative: R+ = 15, R- = 6. Of the 64 ways to set six signs, 14 give a sum of
    # negative ranks of at most 6 (1 + 1 + 1 + 2 + 2 + 3 + 4 subsets of 1..6 with sums 0 to 6): p = 2 * 14 / 64.
    found = against_zero([1, 2, 3, 4, 5, -6])
    assert found.p == pytest.approx(28 / 64)
    assert found.rank_biserial == pytest.approx((15 - 6) / 21)
    assert found.difference == 1.5
    assert found.cohen_dz == pytest.approx(1.5 / math.sqrt((91 - 6 * 1.5**2) / 5))
    assert found.n == 6
    every = against_zero([1, 2, 3, 4, 5, 6])
    assert (every.p, every.rank_biserial) == (pytest.approx(2 / 64), 1.0)


def test_pairs_without_difference_are_left_out_of_the_ranks_only() -> None:
    # Ranks 1 to 7, of which 7 is negative: 19 subsets of 1..7 have a sum of at most 7.
    found = against_zero([0, 1, 2, 3, 0, 4, 5, 6, -7, *[0] * 11])
    assert found.p == pytest.approx(2 * 19 / 128)
    assert found.rank_biserial == pytest.approx((21 - 7) / 28)
    assert (found.n, found.difference) == (20, pytest.approx(0.7))


def test_what_is_only_rounding_is_no_difference() -> None:
    found = paired([0.1 + 0.2] * 8, [0.3] * 8, seed=0)
    assert (found.difference, found.p, found.cohen_dz, found.rank_biserial) == (0.0, 1.0, 0.0, 0.0)


def test_no_difference_at_all() -> None:
    found = against_zero([0.0] * 7)
    assert (found.p, found.interval, found.cohen_dz, found.rank_biserial) == (1.0, (0.0, 0.0), 0.0, 0.0)


def test_three_pairs_have_an_effect_but_no_test() -> None:
    found = against_zero([1.0, 2.0, 6.0])
    assert found.p is None  # 2 / 8 is the smallest there is
    assert (found.difference, found.rank_biserial) == (3.0, 1.0)
    assert found.cohen_dz == pytest.approx(3 / math.sqrt((4 + 1 + 9) / 2))
    assert found.interval == (1.0, 6.0)  # all three draws the smallest, or the largest: 1 in 27 each, above 2.5 %
    assert against_zero([1.0] * 5).p is None
    assert against_zero([1.0] * 6).p is not None


def test_one_pair_and_pairs_that_do_not_vary() -> None:
    one = against_zero([2.0])
    assert (one.n, one.difference, one.interval, one.cohen_dz, one.rank_biserial) == (1, 2.0, None, None, 1.0)
    same = against_zero([2.0, 2.0])
    assert (same.interval, same.cohen_dz) == ((2.0, 2.0), None)


def test_a_large_sample_agrees_with_other_routes_to_the_same() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.normal(1.0, 4.0, 400), generator.normal(0.5, 4.0, 400)
    one, other, d = a.tolist(), b.tolist(), a - b
    found = paired(one, other, seed=0)
    half = 1.96 * d.std(ddof=1) / math.sqrt(400)
    assert found.interval == pytest.approx((d.mean() - half, d.mean() + half), abs=0.06 * half)
    assert found.p == pytest.approx(stats.wilcoxon(a, b, zero_method="wilcox").pvalue)
    assert found.cohen_dz == pytest.approx(stats.ttest_rel(a, b).statistic / math.sqrt(400))
    positive = sum((x + y > 0) for i, x in enumerate(d) for y in d[i:])  # Walsh averages: R+ by another definition
    assert found.rank_biserial == pytest.approx(2 * positive / (400 * 401 / 2) - 1)
    assert paired(one, other, seed=0) == found
    assert paired(one, other, seed=1).interval != found.interval


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=12))
def test_swapping_the_two_flips_every_sign(pairs: list[tuple[int, int]]) -> None:
    a, b = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    one, other = paired(a, b, seed=5), paired(b, a, seed=5)
    assert other.difference == pytest.approx(-one.difference)
    assert other.rank_biserial == pytest.approx(-one.rank_biserial)
    assert other.p == (one.p and pytest.approx(one.p))
    assert (other.cohen_dz is None) == (one.cohen_dz is None)
    assert other.cohen_dz is None or other.cohen_dz == pytest.approx(-(one.cohen_dz or 0.0))
    assert one.interval and other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert one.interval[0] <= one.difference + 1e-9 and one.difference <= one.interval[1] + 1e-9


def test_pairs_are_averaged_over_what_both_have() -> None:
    a = {(0, 0): 10.0, (0, 1): 20.0, (1, 0): 30.0, (1, 1): 60.0, (2, 0): 99.0}  # seed 2 only here
    b = {(0, 0): 1.0, (0, 1): 3.0, (1, 0): 5.0, (0, 7): 99.0}  # and (1, 1) only in a
    assert by_seed(a, b) == ([15.0, 30.0], [2.0, 5.0])
    assert by_client(a, b) == ([20.0, 20.0], [3.0, 3.0])
    assert by_seed(a, {(5, 0): 1.0}) == ([], [])


def test_holm_by_hand() -> None:
    # 0.01 * 3; 0.03 * 2; 0.04 * 1, which must not be below the one before it; None is not in the family.
    assert holm([0.01, 0.04, None, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), None, pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


# Two methods, three seeds each: all runs on their own, in folders of any name.
SMALL = [
    f"--config={ROOT / 'configs/embedded.yaml'}",
    *("--data.subset.train=60", "--data.subset.test=60", "--federation.clients=7", "--partition.min_size=2"),
    *("--federation.local_epochs=1", "--federation.rounds=2", "--federation.validation=0.25"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, method in METHODS.items():
        for seed in SEEDS:
            where = [f"--output.dir={folder}", f"--output.name={name}{seed}", f"--features.cache_dir={folder}-cache"]
            assert main(["fit", *SMALL, *method, *where, f"--seed={seed}"]) == 0
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


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


def change(run: Path, target: Path, **changes: object) -> Path:
    """A copy of a run with other settings, by dotted name."""
    shutil.copytree(run, target)
    config = yaml.safe_load((target / "config.yaml").read_text())
    for key, value in changes.items():
        *above, name = key.split("__")
        place = config
        for part in above:
            place = place[part]
        place[name] = value
    (target / "config.yaml").write_text(yaml.safe_dump(config))
    return target


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


def sentence(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("Error: ")
    return err


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


def test_the_page_has_what_the_tables_have(runs: Path, tmp_path: Path) -> None:
    faster = [change(runs / f"b{seed}", tmp_path / f"faster{seed}", optim__prompt_lr=0.5) for seed in (0, 1)]
    assert main(["compare", str(runs), *map(str, faster), f"--output={tmp_path / 'out'}"]) == 0
    page = (tmp_path / "out/comparison.html").read_text(encoding="utf-8")
    table, tests = rows(tmp_path / "out/comparison.csv"), rows(tmp_path / "out/comparison_tests.csv")
    assert len(table) == 3 and len(tests) == 6
    for row in table:
        assert f"<td>{html.escape(row['group'])}</td>" in page
        assert f"<td>{float(row['last_mean']):.2f} ± {float(row['last_std_over_seeds']):.2f}</td>" in page
    for row in tests:
        assert f"<td>{html.escape(row['a'])} − {html.escape(row['b'])}</td><td>{row['over']}</td>" in page
        # The chart of differences says the same where the pointer is.
        said = f"over {row['over']} (n = {row['n']}): {float(row['difference']):+.2f}"
        assert f"{said}, 95 % interval {float(row['low']):+.2f} to {float(row['high']):+.2f}" in page
    for seed in SEEDS:
        mean = lines(runs / f"a{seed}" / "rounds.jsonl")[-1]["accuracy"]["mean"]
        assert f"<td>{seed}</td><td>{mean:.2f}</td>" in page
    assert "<td>optim.prompt_lr</td>" in page and "<td>0.5</td>" in page  # where they differ
    assert "optim.prompt_lr:" not in page and "federation.rounds: 2" in page
    assert page.count("<svg ") == 2 and "<title>round 2\n" in page.replace("&#10;", "\n")
    assert "prefers-color-scheme: dark" in page and "default-src 'none'" in page
    assert not re.search(r"(?i)<script|<img|<link|\bsrc=|href=.http|url\(http|@import", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_the_page_of_seeds_alone_has_no_tests(runs: Path, tmp_path: Path) -> None:
    groups = read_groups([runs / f"a{seed}" for seed in SEEDS])
    page = render(groups, [], [group_table(groups, "Over seeds")])
    assert "<h1>Over seeds</h1>" in page and "1 group, 3 runs." in page
    assert "Differences" not in page and "Paired tests" not in page and page.count("<svg ") == 1
    assert "where they differ" not in page


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


@pytest.mark.slow
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
