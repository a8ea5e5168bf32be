"""How the plots look: fonts, colours, the frame with title and subtitle, and saving.

Figures are 8 inches wide, so that at 800 pixels the text has the size of the text around it. They are made without
pyplot: there is no global state, and no display is needed.
"""

from __future__ import annotations

import colorsys
import functools
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath

from fedmoe.io import replacing
from fedmoe.report.run import Run

P = ParamSpec("P")

WIDTH = 8.0  # inches
# Okabe and Ito's palette and darker relatives: they can be told apart with any colour vision.
METHOD_COLOURS = {
    "PFedMoAP": "#D55E00",
    "PromptFL": "#0072B2",
    "FedProx": "#56B4E9",
    "CoOp": "#CC79A7",
    "ZeroShot": "#7A7A7A",
}
OTHER_COLOURS = ("#009E73", "#E69F00", "#332288", "#882255", "#999933", "#000000", "#44AA99", "#AA4499")
INK, GREY, PALE = "#222222", "#666666", "#E4E4E4"
COUNTS = LinearSegmentedColormap.from_list("counts", ["#D3E6F3", "#8FC0E0", "#3D90C6", "#00629B", "#00263D"])
FONT = "DejaVu Sans"  # comes with matplotlib
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.edgecolor": "#A0A0A0",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": "#A0A0A0",
    "ytick.color": "#A0A0A0",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}

ROUND_STEPS = [1, 2, 5, 10]  # of ticks: none every 2.5 points of accuracy


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style. Text that the font cannot show is no reason to write its characters to the terminal."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from ", UserWarning)
        yield


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a function draw in this style."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style():
            return function(*args, **kwargs)

    return wrapper


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG of 1600 pixels' width, atomically; missing folders are made."""
    with style(), replacing(path) as temporary:  # ticks are made only now
        figure.savefig(temporary, format="png", dpi=200, facecolor="white", metadata={"Software": None})


def frame(height: float, title: str, subtitle: str) -> Figure:
    """An empty figure of ``height`` inches with a title and a line below it; constrained layout for the rest."""
    figure = Figure(
        figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(rect=(0.005, 0.01, 0.985, 1 - 0.72 / height))
    )
    figure.text(0.012, 1 - 0.1 / height, title, va="top", fontsize=12.5, weight="bold")
    figure.text(0.012, 1 - 0.36 / height, subtitle, va="top", fontsize=9.5, color=GREY)
    return figure


def colours(runs: Mapping[str, Run]) -> dict[str, str]:
    """A colour for each label: that of the run's method; several runs of one method get shades of it, dark to light.

    Methods that come with the package have their own colours. Another one's follows from its class name, so that it
    has the same in all plots, unless a second method in the plot has it already.
    """
    methods: dict[str, str] = {}
    for method in dict.fromkeys(run.method for run in runs.values()):
        start = zlib.crc32(method.encode())
        others = [OTHER_COLOURS[(start + i) % len(OTHER_COLOURS)] for i in range(len(OTHER_COLOURS))]
        free = [colour for colour in others if colour not in methods.values()]
        methods[method] = METHOD_COLOURS.get(method) or (free or others)[0]
    result: dict[str, str] = {}
    for method, colour in methods.items():
        labels = [label for label, run in runs.items() if run.method == method]
        result |= dict(zip(labels, _shades(colour, len(labels)), strict=True))
    return {label: result[label] for label in runs}


def _shades(colour: str, number: int) -> list[str]:
    if number == 1:
        return [colour]
    hue, _, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    return [to_hex(colorsys.hls_to_rgb(hue, lightness, saturation)) for lightness in np.linspace(0.22, 0.7, number)]


def dark(colour: str) -> tuple[float, float, float]:
    """The colour as text: dark enough to be read on white."""
    red, green, blue = to_rgb(colour)
    factor = min(0.72, 0.36 / max(1e-9, 0.21 * red + 0.72 * green + 0.07 * blue))
    return (factor * red, factor * green, factor * blue)


def short(text: str, length: int) -> str:
    """The text, cut to ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def fitting(text: str, size: float, inches: float) -> str:
    """The text, cut to what is at most ``inches`` wide in bold."""
    length = len(text)
    while length > 1 and text_width(short(text, length), size, bold=True) > inches:
        length -= 1
    return short(text, length)


def text_width(text: str, size: float, bold: bool) -> float:
    """Width in inches of the widest line."""
    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    return max(TextPath((0, 0), line, prop=font).get_extents().width if line else 0.0 for line in text.split("\n")) / 72


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of an accuracy axis: all values with some air, at least 10 points, within 0 and 100 %."""
    low, high = min(values, default=0), max(values, default=100)
    air = max(0.06 * (high - low), (10 - (high - low)) / 2, 0.5)
    return max(0.0, low - air), min(100.0, high + air)


def clients_in_words(number: int) -> str:
    return "1 client" if number == 1 else f"{number} clients"


def row_name(run: Run, label: str) -> str:
    """The label, with the round reached for a run that has not finished.

    A long one gets what is in parentheses on a second line; a line is cut where it would leave too little for the plot.
    """
    name, _, details = label.partition(" (")
    more = [details.removesuffix(")")] if details else []
    more += [] if run.finished else [f"round {run.rounds[-1].round}"]
    line = f"{name} ({', '.join(more)})" if more else name
    if len(line) <= 24:
        return line
    return "\n".join(fitting(part, 9.5, 2.2) for part in ([name, f"({', '.join(more)})"] if more else [name]))
