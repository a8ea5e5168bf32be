"""The table of experiments/experts_matter on made-up scores of two seeds and six clients, by hand."""

from __future__ import annotations

import pytest
from scipy import stats

from experiments.experts_matter.__main__ import Measured, against_the_reference, picture, table


def row(key: str, own: list[float], others: float) -> Measured:
    """Client i has ``own[i]`` on its own classes with seed 0, one point more with seed 1."""
    first = {(seed, i): value + seed for seed in (0, 1) for i, value in enumerate(own)}
    second = {(seed, i): others + seed for seed in (0, 1) for i in range(len(own))}
    both = {place: (first[place] + second[place]) / 2 for place in first}
    return Measured(key, f"row {key}", {"own": first, "others": second, "both": both})


ROWS = [
    row("neighbours", [60.0, 61.0, 62.0, 63.0, 64.0, 65.0], 40.0),
    row("pfedmoap", [59.0, 59.0, 59.0, 59.0, 59.0, 59.0], 10.0),  # 1 to 6 points behind, on others' classes 30
    row("promptfl", [61.0, 61.0, 62.0, 63.0, 64.0, 65.0], 40.0),  # one client is a point ahead
]


def test_differences_and_their_tests() -> None:
    found = against_the_reference(ROWS, "own")
    assert found.keys() == {"pfedmoap", "promptfl"}
    difference, clients, seeds = found["pfedmoap"]
    assert difference == pytest.approx(3.5)
    assert clients == pytest.approx(2 * 2 / 2**6)  # all six signs alike: 2 / 2^6, times two rows
    assert seeds is not None and seeds < 1e-6  # both seeds differ by exactly 3.5
    assert found["promptfl"][0] == pytest.approx(-1 / 6)
    assert found["promptfl"][1] == 1.0
    assert against_the_reference(ROWS, "both")["pfedmoap"][0] == pytest.approx((3.5 + 30) / 2)


def test_the_table_and_the_picture_have_every_row() -> None:
    lines = table(ROWS).splitlines()
    assert lines[2] == "| row neighbours | 63.00 ± 0.71 | 40.50 ± 0.71 | 51.75 ± 0.71 |  |  |  |"
    assert lines[3].startswith("| row pfedmoap | 59.50 ± 0.71 | 10.50 ± 0.71 | 35.00 ± 0.71 | +16.75 | 0.0625 |")
    figure = picture(ROWS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "3"]
    names = [text.get_text() for text in figure.legends[0].texts]
    assert names == ["1  row neighbours", "2  row pfedmoap", "3  row promptfl"]


def test_seeds_are_compared_by_the_paired_t_test() -> None:
    ahead = row("neighbours", [1.0, 2.0], 0.0)
    behind = row("local_adapter", [0.0, 0.0], 0.0)
    behind.scores["own"][0, 0] = -1.0  # type: ignore[index]
    found = against_the_reference([ahead, behind], "own")["local_adapter"]
    expected = stats.ttest_1samp([(2.0 + 2.0) / 2, (1.0 + 2.0) / 2], 0).pvalue
    assert found[2] == pytest.approx(expected)
    assert found[1] is None  # two clients are too few for the rank test
