"""The page about a run or a comparison. Its runs are those of report_helpers, with numbers worked out by hand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from html_helpers import COOP, OURS, PROMPTFL, Page, cells, dots, marks, outlines, page_of, scale
from matplotlib.colors import to_hex
from report_helpers import OTHER, write_comparison, write_run

from fedmoe.report.elements import el
from fedmoe.report.plot_style import (
    COUNTS,
    INK,
    METHOD_COLOURS,
    NIGHT,
    OTHER_COLOURS,
    PALE,
    PAPER,
    QUIET,
    Chart,
    bright,
    dark,
    luminance,
    night,
)
from fedmoe.report.plots import level_bounds, shade
from fedmoe.report.svg import _path, inline, night_rules

SECTIONS = [
    "Result",
    "Accuracy over rounds",
    "Distribution over clients",
    "Label distribution",
    "Expert assignment",
    "Attention per expert",
    "Cost",
    "Settings",
]
NASTY = '<script>alert("1")</script>&\'" onload="x'


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(write_run(tmp_path_factory.mktemp("page") / "mine"))


# What a page says


def test_page_of_a_run(mine: Page) -> None:
    page = mine
    assert page.texts("h1") == ["pFedMoAP"] and page.texts("h2") == SECTIONS
    assert "Run mine, 4 clients, seed 7, round 2, finished." in page.texts("p")
    # down: (3000 + 5000) / 2; seconds: 2 x 2 + 2 x 0.5 + 3 x 0.25
    result = ["pFedMoAP", "75.00 ± 16.58", "50.00", "60.00", "90.00", "2", "5.8", "4.0 kB", "1.0 kB"]
    assert page.texts("td")[:9] == result
    assert page.texts("strong") == ["2", "75.00", "16.58", "50.00", "50.00", "0.5000"]  # last of the rounds


def test_curve_and_band(mine: Page) -> None:
    # 20 40 60 80: the 10th percentile lies 0.3 of the way from 20 to 40; 50 70 90 90: 0.3 of the way from 50 to 70
    assert "round 0: mean 50.00 %; 10th to 90th percentile of clients 26.00 to 74.00 %" in mine.hovers
    assert "round 2: mean 75.00 %; 10th to 90th percentile of clients 56.00 to 90.00 %" in mine.hovers
    chart = mine.chart("mean accuracy over clients from round 0 to round 2")
    zero, slope = scale(chart)
    (curve,) = [mark for mark in marks(chart, stroke=OURS, fill="none") if mark[0] == "path"]
    ((x0, y0), (x2, y2)), *_ = outlines(curve[1]["d"])
    assert x0 < x2 and [(zero - y) / slope for y in (y0, y2)] == pytest.approx([50, 75], abs=0.05)
    (band,) = [
        mark for mark in marks(chart, fill=OURS) if mark[1].get("fill-opacity", mark[1].get("opacity")) == "0.18"
    ]
    (outline,) = [path for path in chart.iter("path") if f"#{path.get('id')}" == band[1]["href"]]
    right, up = (float(band[1][key]) for key in ("x", "y"))
    edges = {(x + right, round((zero - up - y) / slope, 1)) for x, y in outlines(outline.attrib["d"])[0]}
    assert edges == {(x0, 26.0), (x0, 74.0), (x2, 56.0), (x2, 90.0)}
    assert {"communication round", "accuracy, %", "75.0"} <= set(mine.texts("text"))


def test_without_every_client_the_band_is_a_standard_deviation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mine")
    (run / "clients.jsonl").write_text("")
    page = page_of(run)
    words = "4 clients, each on its own test split. Line: mean over clients; band: ± one standard deviation of clients."
    assert words in page.texts("p")
    assert "round 2: mean 75.00 %; ± one standard deviation of clients 58.42 to 91.58 %" in page.hovers  # 75 ± 16.58
    assert "Distribution over clients" not in page.texts("h2")
    assert "pFedMoAP: clients.jsonl has 0 of 4 clients in round 2." in page.texts("li")


def test_dots_are_the_clients_of_the_last_round(mine: Page) -> None:
    found = dots(mine.chart("Accuracy of every client"))
    assert [title for _, _, title, _ in found] == [
        "client 0 (photo): 50.00 %, 5 of 10 right",
        "client 1 (photo): 70.00 %, 7 of 10 right",
        "client 2 (sketch): 90.00 %, 9 of 10 right",
        "client 3 (sketch): 90.00 %, 9 of 10 right",
    ]
    x = [float(attributes["x"]) for _, attributes, *_ in found]
    assert x[2] == x[3] and x[2] - x[1] == pytest.approx(x[1] - x[0], abs=0.02)
    assert found[2][1]["y"] != found[3][1]["y"]  # equal ones lie beside each other


def test_heat_map_of_labels(mine: Page) -> None:
    chart = mine.chart("Label distribution")  # each of 4 clients has 1 cat and 2 dogs
    legend = {"1": COUNTS[0], "2": COUNTS[5]}
    assert sorted(cells(chart, legend["1"]))[:4] == [(str(client), "cat") for client in range(4)]
    assert sorted(cells(chart, legend["2"]))[:4] == [(str(client), "dog") for client in range(4)]
    assert not any(marks(chart, fill=colour) for colour in COUNTS[1:5])
    assert {"examples of a class on a client", *legend} <= {words for *_, words in marks(chart)}
    assert "client 3 (sketch): 3 training examples\ndog 2\ncat 1" in mine.hovers
    titled = {(words, title) for _, _, title, words in marks(chart)}
    assert {("cat", "cat"), ("dog", "dog"), ("photo", "photo"), ("sketch", "sketch")} <= titled


def test_colours_of_counts() -> None:
    assert level_bounds(36) == [1, 4, 9, 16, 25, 36]
    assert level_bounds(2) == [1, 2] and level_bounds(1) == [1] and level_bounds(0) == [1]
    assert [shade(i, 2) for i in range(2)] == [0, 5] and [shade(i, 6) for i in range(6)] == [0, 1, 2, 3, 4, 5]
    assert shade(0, 1) == 5


def test_experts_and_attention(mine: Page) -> None:
    chart = mine.chart("have experts in round 2")
    assert cells(chart, "#3d7ea6") == [("1", "0"), ("2", "0")]  # client 0 uses the prompts of 1 and 2
    assert "client 0 uses the prompts of 1, 2" in mine.hovers
    assert {"local expert: 0.5000", "non-local expert 1: 0.3000", "non-local expert 2: 0.2000"} <= set(mine.hovers)
    bars = {title: attributes for _, attributes, title, _ in marks(mine.chart("mean attention")) if "expert" in title}
    sides = {title: [y for _, y in outlines(attributes["d"])[0]] for title, attributes in bars.items()}
    local, first = (np.ptp(sides[title]) for title in ("local expert: 0.5000", "non-local expert 1: 0.3000"))
    assert first / local == pytest.approx(0.6, abs=0.001)
    assert [attributes["fill"] for attributes in bars.values()] == [OURS, QUIET, QUIET]
    assert "0.3333" in mine.texts("text")  # equal shares of three


def test_costs(mine: Page) -> None:
    assert {"training: 4 s", "evaluation: 1 s", "rest: 0.75 s"} <= set(mine.hovers)
    assert "5.75 s" in mine.texts("text")
    assert {"down: 4.0 kB", "up: 1.0 kB", "down for the evaluation: 1.0 kB"} <= set(mine.hovers)
    assert "round 1\ntraining 2 s\nevaluation 0.0 s\nrest 0.25 s" in mine.hovers
    assert "round 2\ndown 5.0 kB\nup 1.0 kB\ndown for the evaluation 2.0 kB" in mine.hovers
    parts = {title: attributes for _, attributes, title, _ in marks(mine.chart("Seconds by phase")) if title}
    wide = [np.ptp([x for x, _ in outlines(parts[name]["d"])[0]]) for name in ("training: 4 s", "evaluation: 1 s")]
    assert wide[0] / wide[1] == pytest.approx(4, abs=0.01)
    assert mine.chart("Seconds by phase").attrib["aria-label"].endswith("pFedMoAP 5.75 s.")


def test_comparison_with_missing_and_unfinished_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "c" / "A")
    write_run(tmp_path / "c" / "B", OTHER, method="PromptFL", label="PromptFL", finished=False)
    page = page_of(write_comparison(tmp_path / "c", ("A", "B", "C")))
    assert page.texts("h1") == ["c"] and page.texts("h2") == SECTIONS
    assert "Comparison of 3 runs" in page.texts("p")
    cells = page.texts("td")
    assert cells[:2] == ["pFedMoAP", "75.00 ± 16.58"] and cells[9:11] == ["PromptFL", "70.00 ± 14.14"]
    assert cells[14] == "2, unfinished" and cells[18:20] == ["C", "missing"]
    assert {"C: has not begun yet."} <= set(page.texts("li"))
    assert "round 2\npFedMoAP 75.00 %\nPromptFL 70.00 %" in page.hovers
    assert [h for h in page.texts("h3") if h in ("pFedMoAP", "PromptFL")] == ["pFedMoAP", "PromptFL"]
    chart = page.chart("Accuracy of every client")
    assert len(dots(chart)) == len(dots(chart, PROMPTFL)) == 4


def test_level_lines_are_the_last_result(tmp_path: Path) -> None:
    write_run(tmp_path / "c" / "A")
    write_run(tmp_path / "c" / "B", {0: OTHER[0], 1: OTHER[2]}, method="CoOp", label="CoOp")
    page = page_of(write_comparison(tmp_path / "c", ("A", "B")))
    dashed = [mark[1]["stroke"] for chart in page.charts() for mark in marks(chart, stroke_width="2")
              if "stroke-dasharray" in mark[1]]  # fmt: skip
    assert dashed == [COOP, COOP]  # among the means, and with its band
    assert "round 0\npFedMoAP 50.00 %\nCoOp 70.00 %" in page.hovers
    assert "round 2\npFedMoAP 75.00 %\nCoOp 70.00 %" in page.hovers


def test_pages_of_runs_with_little_to_tell(tmp_path: Path) -> None:
    bare = write_run(tmp_path / "bare", {0: OTHER[0]}, method="ZeroShot", label="Zero-shot CLIP", domains=False)
    (bare / "config.yaml").unlink()
    page = page_of(bare)
    assert page.texts("h2") == ["Result", "Distribution over clients", "Label distribution", "Cost"]
    nothing = write_run(tmp_path / "nothing", last=0)
    record = json.loads((nothing / "rounds.jsonl").read_text()) | {"accuracy": None, "evaluated": False}
    (nothing / "rounds.jsonl").write_text(json.dumps(record) + "\n")
    page = page_of(nothing)
    assert page.texts("td")[:2] == ["pFedMoAP", "not evaluated"]
    assert page.texts("h2") == ["Result", "Label distribution", "Cost", "Settings"]
    page = page_of(write_comparison(tmp_path / "empty", ("A",)))
    assert page.texts("h2") == ["Result"] and page.texts("td")[:2] == ["A", "missing"]


# What a page must not do


def test_nothing_in_the_files_becomes_markup(tmp_path: Path) -> None:
    for name in ("A", "B"):
        run = write_run(tmp_path / "c" / name, label=NASTY, method=NASTY)
        partition = json.loads((run / "partition.json").read_text())
        partition |= {"class_names": [NASTY, "\ud800\x00$body"], "domains": [NASTY] * 4}
        (run / "partition.json").write_text(json.dumps(partition))
        clients = [json.loads(line) | {"domain": NASTY} for line in (run / "clients.jsonl").read_text().splitlines()]
        (run / "clients.jsonl").write_text("".join(json.dumps(client) + "\n" for client in clients))
        rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
        rounds = [record | {"accuracy_per_domain": {NASTY: 1.0}} for record in rounds]
        (run / "rounds.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rounds))
        settings = {"seed": 1, "x": f"</pre>{NASTY}", "method": {"class_path": NASTY, "init_args": {}}}
        (run / "config.yaml").write_text(yaml.safe_dump(settings, width=200))
    (tmp_path / "c" / "B").rename(tmp_path / "c" / "<b>")
    for path in (tmp_path / "c" / "A", write_comparison(tmp_path / "c", ("A", "<b>", "<i>gone"))):
        page = page_of(path)
        assert {tag for tag, *_ in page.elements}.isdisjoint({"script", "img", "b", "i"})
        assert not any(key.startswith("on") for _, attributes, _ in page.elements for key in attributes)
        assert "<script" not in page.source and "</pre>&lt;script&gt;" not in page.source
        assert any(NASTY in text for text in page.texts("td")) and any(NASTY in text for text in page.texts("pre"))
        assert f"client 0 ({NASTY}): 3 training examples\n\ufffd\ufffd$body 2\n{NASTY} 1" in page.hovers


def test_a_page_stands_alone(mine: Page) -> None:
    page = mine
    assert {tag for tag, *_ in page.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "image"})
    assert not any({"src", "xlink:href", "srcset"} & set(attributes) for _, attributes, _ in page.elements)
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = [(tag, attributes["href"]) for tag, attributes, _ in page.elements if "href" in attributes]
    assert links and {tag for tag, _ in links} == {"use"} and {link for _, link in links} <= {f"#{one}" for one in ids}
    assert not re.search(r"https?:|url\(|@import|@font-face", page.source)
    policy = next(a for tag, a, _ in page.elements if tag == "meta" and "http-equiv" in a)
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert not any("style" in attributes for _, attributes, _ in page.elements)


def test_every_picture_is_described_and_grows_with_the_page(mine: Page) -> None:
    assert len(mine.charts()) == 9
    for chart in mine.charts():
        assert chart.attrib["role"] == "img" and re.fullmatch(r".{30,}\.", chart.attrib["aria-label"])
        wide, high = (float(side) for side in chart.attrib["viewBox"].split()[2:])
        assert float(chart.attrib["width"]) / float(chart.attrib["height"]) == pytest.approx(wide / high, abs=0.01)
    strips = [mark for chart in mine.charts() for mark in marks(chart, **{"class": "hit"})]
    assert len(strips) == 2 + 4 + 1 + 3 + 3  # rounds evaluated, clients, client with experts, rounds twice
    assert all(title and "fill" not in attributes for _, attributes, title, _ in strips)  # the style sheet's business
    assert "svg.chart { display: block; max-width: 100%; height: auto;" in mine.source


def test_the_same_run_gives_the_same_page(mine: Page, tmp_path: Path) -> None:
    assert page_of(write_run(tmp_path / "mine")).source == mine.source


def test_light_and_dark_have_the_same_variables(mine: Page) -> None:
    style = mine.texts("style")[0]
    light, night_part = style.split("@media (prefers-color-scheme: dark)")[:2]
    names = [set(re.findall(r"(--\w+): #", part.split("}")[0])) for part in (light, night_part)]
    assert names[0] == names[1] and "--paper" in names[0]
    assert set(re.findall(r"var\((--\w+)\)", style)) <= names[0]


def test_every_colour_of_a_picture_changes_in_the_dark(mine: Page) -> None:
    rules = mine.texts("style")[0].split("@media (prefers-color-scheme: dark)")[2]
    found = re.findall(r'svg \[(fill|stroke)="(#\w{6})"\] \{ (fill|stroke): (#\w{6}); \}', rules)
    assert all(key == also for key, _, also, _ in found)
    changed = {(key, day): new for key, day, _, new in found}
    used = {(key, mark[1][key]) for chart in mine.charts() for mark in marks(chart) for key in ("fill", "stroke")
            if mark[1].get(key, "none") != "none"}  # fmt: skip
    assert {("fill", INK), ("stroke", PALE), ("fill", OURS), ("stroke", OURS), ("fill", COUNTS[5])} <= used
    assert changed == {pair: night(pair[1]) for pair in used if night(pair[1]) != pair[1]}
    assert changed["fill", OURS] == bright(OURS) and changed["fill", INK] == NIGHT[INK]


def test_colours_can_be_read_on_the_dark_page(mine: Page) -> None:
    assert (luminance("#000000"), luminance("#ffffff")) == (0.0, pytest.approx(1.0))
    assert luminance("#808080") == pytest.approx(0.2159, abs=1e-4)
    paper = re.findall(r"--paper: (#\w{6})", mine.texts("style")[0])[1]
    assert night(PAPER) == paper
    for colour in (*METHOD_COLOURS.values(), *OTHER_COLOURS):
        for shown in (colour.lower(), to_hex(dark(colour)), INK):  # marks, names
            contrast = (luminance(night(shown)) + 0.05) / (luminance(paper) + 0.05)
            assert contrast >= 4.5, colour  # WCAG 2, level AA


def test_size_of_a_long_run_with_many_clients(tmp_path: Path) -> None:
    right = [n % 11 for n in range(100)]
    evaluations = {r: (right, (50.0, 30.0, 0.0), ()) for r in range(121)}
    page = page_of(write_run(tmp_path / "long", evaluations, domains=False))
    assert len([title for *_, title, _ in dots(page.chart("Accuracy of every client")) if title]) == 100
    assert len(page.source) < 300_000
    evaluations = {0: ([n % 11 for n in range(500)], (50.0, 30.0, 0.0), ())}
    page = page_of(write_run(tmp_path / "wide", evaluations, domains=False))
    found = dots(page.chart("Accuracy of every client"))
    assert len(found) == 500 and not any(title for *_, title, _ in found)


# Parts


def test_elements_escape() -> None:
    assert el("a", "<&>", el("b"), x="1", title='"', class_="c", aria_label="d") == (
        '<a x="1" title="&quot;" class="c" aria-label="d">&lt;&amp;&gt;<b></b></a>'
    )
    assert el("a", "x" + el("b")) == "<a>x&lt;b&gt;&lt;/b&gt;</a>"  # what was glued to plain text is plain text


def test_black_is_a_colour_like_others() -> None:
    chart = Chart(2.0, "heading", "caption")
    chart.hover(chart.add_subplot().bar([0], [1], color="black").patches[0], "a <bar>")
    picture = ElementTree.fromstring(inline(chart, "one"))
    assert [attributes["fill"] for _, attributes, title, _ in marks(picture) if title == "a <bar>"] == ["#000000"]
    assert f'svg [fill="#000000"] {{ fill: {bright("#000000")}; }}' in night_rules(inline(chart, "one"))
    assert not {"heading", "caption"} & {words for *_, words in marks(picture)}  # which the page says


def test_paths_are_shortened() -> None:
    assert _path("M 0 1.006 \nL 10.5 1.006 \nL 10.5 -0.001 \nL 3 4 \nz\nM 1 2 \nC 1 2 3 4 5 6 \n") == (
        "M0 1.01H10.5V0L3 4zM1 2C1 2 3 4 5 6"
    )
