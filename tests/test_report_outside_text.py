"""Text and links that a run folder from outside brings: shown as they are, and followed nowhere."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from report_helpers import printed, write_comparison, write_run

from fedmoe.errors import UserError
from fedmoe.report.html import write_page
from fedmoe.report.outside import csv_cell, latex
from fedmoe.report.partition_view import partition_text
from fedmoe.report.tables import Cell, Table, to_markdown

HOSTILE = [
    "![t](http://example.org/x.png)",
    "[t](http://example.org)",
    "<http://example.org> www.example.org https://example.org a@example.org",
    "<img src=x onerror=y>",
    "**b** __b__ *e* _e_ ~~s~~ `c`",
    "a | b\n| c |\n\n# h",
    "# h",
    "- one",
    "1. one",
    "> quote",
    "&lt; &amp; \\\\* \\",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_shows_text_from_outside_as_it_is(text: str) -> None:
    table = Table(text, ("head", text), ((Cell(text), Cell(text, bold=True)),), (text,))
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(to_markdown(table))
    assert set(re.findall(r"<(\w+)", html)) == {"h2", "table", "thead", "tbody", "tr", "th", "td", "strong", "ul", "li"}
    shown = [unescape(found).strip() for found in re.findall(r"<(?:h2|th|td|li)[^>]*>(.*?)</(?:h2|th|td|li)>", html)]
    line = " ".join(text.split())
    assert shown == [line, "head", line, line, f"<strong>{line}</strong>", line]


def test_latex_and_csv_show_text_from_outside_as_it_is() -> None:
    assert latex(r"\input{x} ~^<>| ±") == (
        r"\textbackslash{}input\{x\} \textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{} $\pm$"
    )
    assert latex("a\n\x1b[2Jb") == r"a \textbackslash{}x1b[2Jb"
    formulas = ["=1+1", "+a", "-a", "@a", "\t=1", "\r=1", " =1"]
    assert [str(csv_cell(text))[0] for text in formulas] == ["'"] * len(formulas)
    assert [csv_cell(value) for value in ("-1.5", "+2", "1e-3", "a=b", -1.5, None)] == [
        *("-1.5", "+2", "1e-3", "a=b", -1.5),
        None,
    ]


def test_no_control_sequence_from_a_file_reaches_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;title\x07\x1b]52;c;YQ==\x07[bold]x[/b]\u202e"
    run = write_run(tmp_path / "c" / "A", label=hostile)
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    rounds[1]["failed"] = {"0": hostile}
    rounds = [record | {"accuracy_per_domain": {hostile: 1.0}} for record in rounds]
    (run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds))
    write_comparison(tmp_path / "c", ["A"])
    shown = r"\x1b]0;title\x07\x1b]52;c;YQ==\x07[bold]x[/b]\u202e"
    for path in (tmp_path / "c", run):
        for lines in (printed(path, width=400), printed(path, width=400, terminal=True)):
            assert all(line.isprintable() for line in lines) and capfd.readouterr() == ("", "")
            assert any("client" in line and f"(round 1: {shown})" in line for line in lines)
    text = (tmp_path / "c" / "comparison.md").read_text()
    assert all(line.isprintable() for line in text.splitlines())
    text = partition_text({"class_names": [hostile, "[/b]"], "counts_train": [[1, 2]], "counts_test": [[1, 1]]})
    assert shown in text and "[/b]" in text and all(line.isprintable() for line in text.splitlines())


def test_links_in_a_received_folder_lead_nowhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "c" / "A")
    write_comparison(tmp_path / "c", ["A"])
    target = tmp_path / "elsewhere"
    target.mkdir()
    for file in ("label_distribution.png", "page.html"):
        (target / file).write_text("mine")
    for folder in (run, tmp_path / "c"):
        (folder / "plots").symlink_to(target)
        with pytest.raises(UserError, match=r"plots is a symbolic link; valid is a folder or file of the run's own\.$"):
            printed(folder)
        with pytest.raises(UserError, match="plots is a symbolic link"):
            write_page(folder, folder / "plots" / "page.html")
        (folder / "plots").unlink()
    for name in ("comparison.md", "comparison.json"):
        path = tmp_path / "c" / name
        before = path.read_bytes() if path.exists() else b""
        path.unlink(missing_ok=True)
        (target / name).write_bytes(before)
        path.symlink_to(target / name)
        with pytest.raises(UserError, match=f"{name} is a symbolic link"):
            printed(tmp_path / "c")
        path.unlink()
        path.write_bytes(before)
    assert (target / "label_distribution.png").read_text() == (target / "page.html").read_text() == "mine"
    (tmp_path / "way").symlink_to(tmp_path / "c")  # a link of the user's own, outside of the folder
    printed(tmp_path / "way")
    write_page(tmp_path / "way", tmp_path / "way" / "page.html")
    assert (tmp_path / "c" / "page.html").exists()
