"""The chart of a confusion matrix.

Shape letters: C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from fedmoe.report.plot_style import COUNTS, ROUND_STEPS, Chart, short, styled
from fedmoe.report.plots import cells, shade

_BOUNDS = (10, 25, 50, 75, 100)  # percent, the largest share of each colour


@styled
def confusion(counts: Sequence[Sequence[int]], class_names: Sequence[str], number: int) -> Chart:
    """Which classes (columns) the test examples of each class (rows) are taken for; empty: none of them.

    Args:
        counts: [C, C] of all clients together, true classes in rows.
        number: the round.
    """
    matrix = np.asarray(counts, dtype=np.int64)
    all_of_class = matrix.sum(axis=1, keepdims=True)
    shares = 100 * matrix / np.maximum(all_of_class, 1)
    total, right = int(matrix.sum()), int(matrix.trace())
    caption = f"round {number}: {right:,} of {total:,} test examples of all clients are on the diagonal"
    chart = Chart(7.0, "Confusion: true classes in rows, predicted ones in columns", caption)
    axes = chart.add_subplot()
    palette = [COUNTS[shade(i, len(_BOUNDS))] for i in range(len(_BOUNDS))]
    cells(axes, np.searchsorted(_BOUNDS, shares - 1e-9), matrix > 0, palette)
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(class_names) <= 24:
        names, places = [short(name, 20) for name in class_names], range(len(class_names))
        axes.set_yticks(places, names)
        axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=ROUND_STEPS))
    starts = (0, *_BOUNDS[:-1])
    keys = [Patch(color=palette[i], label=f"{starts[i]}–{end} %") for i, end in enumerate(_BOUNDS)]
    chart.legend(handles=keys, title="share of a class's examples", loc="outside lower right", ncols=len(keys))
    chart.description = f"Confusion matrix of {len(class_names)} classes; {caption}."
    return chart
