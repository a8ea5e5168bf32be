"""The plots of a report: what is drawn where, in which colour, and that no text runs into another."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from report_helpers import HUNDRED, OTHER, RUN, band, printed, write_comparison, write_run
from rich.console import Console

from fedmoe.report import report
from fedmoe.report.accuracy import accuracy_over_rounds, client_accuracies, compare_over_rounds
from fedmoe.report.plot_style import METHOD_COLOURS, colours, save
from fedmoe.report.plots import expert_attention, label_distribution
from fedmoe.report.run import read_run


def test_curve_and_band_of_a_run(tmp_path: Path) -> None:
    figure = accuracy_over_rounds(read_run(write_run(tmp_path / "run")))
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xydata(), [[0, 50], [2, 75]])
    # 20 40 60 80: 0.3 of the way from the first to the second, and from the fourth to the third; 50 70 90 90 likewise
    np.testing.assert_allclose(band(figure), [[26, 56], [74, 90]])


def test_attention_is_that_of_the_last_round(tmp_path: Path) -> None:
    figure = expert_attention(read_run(write_run(tmp_path / "run")))
    assert [bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)] == [0.5, 0.3, 0.2]
    assert np.asarray(figure.axes[0].lines[0].get_ydata())[0] == pytest.approx(1 / 3)


def test_a_dot_for_each_client_and_none_on_another(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", HUNDRED, domains=False))
    figure = client_accuracies({"run": run})
    figure.draw_without_rendering()
    dots = np.asarray(figure.axes[0].collections[0].get_offsets())
    np.testing.assert_array_equal(np.sort(dots[:, 0]), np.repeat(np.arange(0, 100, 10), 10))
    places = figure.axes[0].transData.transform(dots) * 72 / figure.dpi  # points
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1) + 99 * np.eye(100)
    assert distance.min() > 2.0  # dots are 3 points wide; ten on one value may touch, not hide each other


@pytest.mark.parametrize(
    "names",
    [
        ["pFedMoAP", "Zero-shot CLIP", "Prompt+FedProx", "PromptFL", "CoOp"],
        ["W" * 60, "pFedMoAP (num_experts=10, gating_dim=128)", "M (assignment=nearest)"],
        [f"pFedMoAP (num_experts={i})" for i in range(12)],
    ],
    ids=["usual", "long", "many"],
)
@pytest.mark.parametrize("finished", [True, False])
def test_no_text_runs_into_a_panel_or_out_of_the_picture(names: list[str], finished: bool, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", finished=finished))
    figure = compare_over_rounds(dict.fromkeys(names, run))
    figure.draw_without_rendering()
    left, middle, right = figure.axes
    boxes = [text.get_window_extent() for text in middle.texts]
    assert len(boxes) == len(names)
    assert all(left.bbox.x1 < box.x0 and box.x1 < right.bbox.x0 for box in boxes)
    assert all(a.y0 > b.y1 for a, b in pairwise(boxes))  # from the top down, none over another
    assert all(
        right.bbox.x1 < t.get_window_extent().x0 and t.get_window_extent().x1 < figure.bbox.x1 for t in right.texts
    )
    assert left.bbox.width > 0.3 * figure.bbox.width


def test_runs_without_rounds_are_dashed_and_a_run_stopped_in_round_0_is_a_dot(tmp_path: Path) -> None:
    runs = {
        "pFedMoAP": read_run(write_run(tmp_path / "a")),
        "Zero-shot CLIP": read_run(write_run(tmp_path / "b", {0: OTHER[0]}, method="ZeroShot")),
        "PromptFL": read_run(write_run(tmp_path / "c", {0: RUN[0]}, method="PromptFL", finished=False)),
    }
    left = compare_over_rounds(runs).axes[0]
    lines = {tuple(map(tuple, np.asarray(line.get_xydata()))): line for line in left.lines}
    assert lines[((0, 50), (2, 75))].get_linestyle() == "-"
    assert lines[((0, 70), (2, 70))].get_linestyle() == "--"
    assert lines[((0, 50),)].get_marker() == "o"


def test_a_method_has_its_colour_in_every_plot(tmp_path: Path) -> None:
    make: Callable[[str, str], Any] = lambda folder, method: read_run(write_run(tmp_path / folder, method=method))  # noqa: E731
    ours, prox, mine = make("a", "PFedMoAP"), make("b", "FedProx"), make("c", "MyMethod")
    assert colours({"x": ours}) == {"x": METHOD_COLOURS["PFedMoAP"]}
    found = colours({"x": mine, "y": prox, "z": ours})
    assert list(found) == ["x", "y", "z"] and len(set(found.values())) == 3
    assert (found["y"], found["z"]) == (METHOD_COLOURS["FedProx"], METHOD_COLOURS["PFedMoAP"])
    assert found["x"] == colours({"alone": mine})["alone"] and found["x"] not in METHOD_COLOURS.values()
    shades = colours({"a": ours, "p": prox, "b": ours, "c": ours})
    assert len(set(shades.values())) == 4 and shades["p"] == METHOD_COLOURS["FedProx"]


def test_dollar_signs_in_names_are_no_formulas(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", label=r"$\frac{ and $")
    text = (folder / "partition.json").read_text()
    (folder / "partition.json").write_text(text.replace('"cat"', r'"$\\alpha{ or $"'))
    printed(folder)
    assert (folder / "plots" / "label_distribution.png").exists()


def test_names_that_no_font_can_draw_are_no_reason_to_fail(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", label="a\ud800\x00\n\x1b[2J")
    text = (folder / "partition.json").read_text()
    (folder / "partition.json").write_text(text.replace('"cat"', r'"\ud800\u0000"'))
    printed(folder)
    assert (folder / "plots" / "label_distribution.png").exists()
    figure = accuracy_over_rounds(read_run(folder))
    assert figure.heading == r"a\ud800\x00 \x1b[2J: accuracy over rounds"


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".pdf", b"%PDF-")])
def test_files_of_both_kinds_are_the_same_every_time(suffix: str, magic: bytes, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    files = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for file in files:
        save(label_distribution(run.labels, test=True), file)
    assert files[0].read_bytes() == files[1].read_bytes() and files[0].read_bytes().startswith(magic)
    assert b"Date" not in files[0].read_bytes()


def test_plots_are_written_as_pdf_on_request(tmp_path: Path) -> None:
    run = write_run(tmp_path / "c" / "run")
    for path in (run, write_comparison(tmp_path / "c", ["run"])):
        report(path, Console(file=io.StringIO()), pdf=True)
        kinds = [{file.stem for file in (path / "plots").iterdir() if file.suffix == kind} for kind in (".png", ".pdf")]
        assert kinds[0] == kinds[1] and len(kinds[0]) >= 3


def test_the_picture_of_a_partition_has_test_examples_too(tmp_path: Path) -> None:
    labels = read_run(write_run(tmp_path / "run")).labels  # on each client 1 cat, 2 dogs; for tests 5 of both
    train_only, both = label_distribution(labels), label_distribution(labels, test=True)
    assert len(train_only.axes) == 2 and len(both.axes) == 3
    heights = [[bar.get_height() for bar in bars] for bars in both.axes[2].containers]
    assert heights == [[3] * 4, [10] * 4]
    upper, lower = ([len(np.asarray(patch.get_path().codes)) // 5 for patch in axes.patches] for axes in both.axes[:2])
    assert upper == [4, 4] and lower == [8]  # squares of each colour
    assert both.caption == "12 training and 40 test examples, 4 clients, 2 classes"
