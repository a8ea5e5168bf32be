"""The page that compare writes."""

from __future__ import annotations

import html
import re
from pathlib import Path

from compare.helpers import SEEDS, change, lines, rows
from fedmoe.cli import main
from fedmoe.report.compare_page import render
from fedmoe.report.compare_tables import group_table
from fedmoe.report.groups import read_groups


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
