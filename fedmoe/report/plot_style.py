"""How the charts look: fonts, colours by day and by night, the frame with heading and caption, and saving.

Charts are 8 inches wide, so that at 800 pixels the text has the size of the text around it. They are made without
pyplot: there is no global state, and no display is needed.
"""

from __future__ import annotations

import colorsys
import io
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import TextPath
from PIL import Image

from fedmoe.io import replacing
from fedmoe.report.outside import one_line
from fedmoe.report.run import Run

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
INK, GREY, PALE, AXIS, PAPER = "#222222", "#666666", "#e4e4e4", "#a0a0a0", "#ffffff"
QUIET, CELL = "#a9b8c4", "#3d7ea6"  # bars and cells without a method's colour
PARTS = ("#2f6f9f", "#d98c21", "#8c9aa5")  # of a stacked bar
COUNTS = ("#d3e6f3", "#a9cfe8", "#78b3da", "#3d90c6", "#00629b", "#00263d")  # from few to many
# What is not a method's colour, on a dark page; that of a method is made bright.
NIGHT = {INK: "#e6e9ec", GREY: "#a3adb8", PALE: "#323a43", AXIS: "#6b7682", PAPER: "#14181d"}
NIGHT |= {QUIET: "#5d7182", CELL: "#6fb1d8"}
NIGHT |= dict(zip(PARTS, ("#6aaee0", "#eeb054", "#7d8996"), strict=True))
NIGHT |= dict(zip(COUNTS, ("#1d3a50", "#245576", "#2f759f", "#4a9bc9", "#8cc7e8", "#e2f3fd"), strict=True))
HEADING = "heading"  # id of the texts that a page says itself
FONT = "DejaVu Sans"  # comes with matplotlib
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.edgecolor": AXIS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": AXIS,
    "ytick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "fedmoe",  # the same ids every time
    "pdf.fonttype": 42,
}

ROUND_STEPS = [1, 2, 5, 10]  # of ticks: none every 2.5 points of accuracy


@contextmanager
def style() -> Iterator[None]:
    """Draw in this style. Text that the font cannot show is no reason to write its characters to the terminal."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from ", UserWarning)
        yield


styled = style()  # as a decorator: the function draws in this style


class Chart(Figure):
    """A figure with a heading and a caption above it, in constrained layout, and what a page needs besides.

    Without a heading, as for a small chart in a row of them, there is nothing above the plot.

    Attributes:
        description: a sentence for those who cannot see the chart.
        hovers: id of an artist -> what the pointer finds on each of its marks.
        hidden: those of them that are not seen before the pointer is over them.
        head: height in inches of heading and caption.
    """

    def __init__(self, height: float, heading: str = "", caption: str = "", width: float = WIDTH) -> None:
        self.heading, self.caption, self.description = one_line(heading), one_line(caption), ""
        self.hovers: dict[str, Sequence[str]] = {}
        self.hidden: set[str] = set()
        self.head = 0.62 if heading else 0.0
        top = 1 - (0.72 if heading else 0.02) / height
        super().__init__(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0.005, 0.01, 0.985, top)))
        self.text(0.012, 1 - 0.1 / height, self.heading, va="top", fontsize=12.5, weight="bold", gid=HEADING)
        self.text(0.012, 1 - 0.36 / height, self.caption, va="top", fontsize=9.5, color=GREY, gid=HEADING)

    def hover(self, artist: Artist, *words: str) -> None:
        """Let the pointer find ``words`` on the artist's marks, in the order in which they are drawn."""
        gid = f"hover{len(self.hovers)}"
        artist.set_gid(gid)
        self.hovers[gid] = words

    def strips(
        self, axes: Axes, places: Sequence[float], words: Sequence[str], top: float = 1.0, rows: bool = False
    ) -> None:
        """Let the pointer find ``words[i]`` all over the column of width 1 around ``places[i]``; with ``rows``, row.

        The axes' limits must have been set. ``top`` is where columns end, as a share of the axes' height.
        """
        low, high = sorted(axes.get_ylim() if rows else axes.get_xlim())
        spans = [(max(low, place - 0.5), min(high, place + 0.5)) for place in places]
        boxes: Any = np.array([[(a, 0), (b, 0), (b, top), (a, top)] for a, b in spans])
        transform = axes.get_yaxis_transform() if rows else axes.get_xaxis_transform()
        strips = PolyCollection(
            boxes[..., ::-1] if rows else boxes, transform=transform, alpha=0, facecolor=PAPER, linewidth=0, zorder=9
        )
        strips.set_in_layout(False)
        axes.add_collection(strips, autolim=False)
        self.hover(strips, *words)
        self.hidden.add(str(strips.get_gid()))


# What says when and with what a file was made, by format.
_STAMPS = {"png": ("Software",), "pdf": ("CreationDate", "Creator", "Producer"), "svg": ("Date", "Creator")}


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` atomically: as a PDF or SVG where ``path`` ends so, else as a PNG, 200 pixels per inch.

    Missing folders are made. The same figure gives the same bytes.
    """
    kind = path.suffix.lower().removeprefix(".")
    kind = kind if kind in _STAMPS else "png"
    with style(), replacing(path) as temporary:  # ticks are made only now
        stamps = dict.fromkeys(_STAMPS[kind])
        figure.savefig(temporary, format=kind, dpi=200, facecolor=PAPER, metadata=stamps)


def image(figure: Figure) -> Image.Image:
    """The figure as a picture, 960 pixels wide at the usual width."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", dpi=120, facecolor=PAPER)
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")


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


def night(colour: str) -> str:
    """The colour's counterpart on a dark page."""
    return NIGHT.get(colour) or bright(colour)


def bright(colour: str) -> str:
    """The colour made light enough to be read on the dark page: a luminance of at least 0.26."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
    while luminance(colour) < 0.26 and lightness < 1:
        lightness = min(1.0, lightness + 0.02)
        colour = to_hex(colorsys.hls_to_rgb(hue, lightness, saturation))
    return to_hex(colour)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, from 0 to 1."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def short(text: str, length: int) -> str:
    """The text in one printable line, cut to ``length`` characters."""
    line = one_line(text)
    return line if len(line) <= length else line[: length - 1] + "…"


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
    name, _, details = one_line(label).partition(" (")
    more = [details.removesuffix(")")] if details else []
    more += [] if run.finished else [f"round {run.rounds[-1].round}"]
    line = f"{name} ({', '.join(more)})" if more else name
    if len(line) <= 24:
        return line
    return "\n".join(fitting(part, 9.5, 2.2) for part in ([name, f"({', '.join(more)})"] if more else [name]))
