"""What tests of the page share: a page's elements, and what is drawn in its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from fedmoe.report.html import write_page
from fedmoe.report.plot_style import METHOD_COLOURS, PALE

OURS, COOP, PROMPTFL = (METHOD_COLOURS[name].lower() for name in ("PFedMoAP", "CoOp", "PromptFL"))
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """The elements of a page in order, each with its text; every tag must be closed by its own."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {[tag for tag, *_ in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append((tag, dict(attrs), []))
        else:
            self.elements.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        for _, _, words in self.open:
            words.append(data)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1][0] if self.open else 'nothing'}"
        name, attributes, words = self.open.pop()
        self.elements.append((name, attributes, "".join(words)))

    def texts(self, tag: str) -> list[str]:
        return [text for name, _, text in self.elements if name == tag]

    def charts(self) -> list[Element]:
        """The pictures in order; each is XML of its own."""
        return [ElementTree.fromstring(found) for found in re.findall(r"<svg .*?</svg>", self.source, re.DOTALL)]

    def chart(self, words: str) -> Element:
        """The first picture whose description contains ``words``."""
        return next(chart for chart in self.charts() if words in chart.attrib["aria-label"])

    @property
    def hovers(self) -> list[str]:
        """What the pointer can find in the charts."""
        return self.texts("title")


def page_of(path: Path) -> Page:
    page = path.parent / "pages" / "page.html"
    write_page(path, page)
    assert [file.name for file in page.parent.iterdir()] == ["page.html"]  # nothing temporary is left
    return Page(page)


Mark = tuple[str, dict[str, str], str, str]  # tag, attributes with those of its groups, title, text
Points = list[tuple[float, float]]


def marks(node: Element, **wanted: str) -> list[Mark]:
    """What is drawn, in order, where the attributes have the wanted values; ``stroke_width`` is stroke-width."""

    def walk(node: Element, known: Mapping[str, str]) -> Iterator[Mark]:
        for child in node:
            attributes = {**known, **child.attrib}
            if child.tag in ("path", "use", "text"):
                yield child.tag, attributes, child.findtext("title") or "", child.text or ""
            elif child.tag == "g":
                yield from walk(child, attributes)

    pairs = {key.replace("_", "-"): value for key, value in wanted.items()}
    return [mark for mark in walk(node, {}) if all(mark[1].get(key) == value for key, value in pairs.items())]


def outlines(data: str) -> list[Points]:
    """The corners of each part of a path of straight lines."""
    parts: list[Points] = []
    for command, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", data):
        numbers = [float(number) for number in rest.split()]
        if command == "M":
            parts.append([(numbers[0], numbers[1])])
        elif command != "z":
            x, y = parts[-1][-1]
            parts[-1].append({"L": tuple(numbers), "H": (numbers[0], y), "V": (x, numbers[0])}[command])  # type: ignore[arg-type]
    return parts


def scale(chart: Element) -> tuple[float, float]:
    """Of the accuracy axis: the y coordinate of 0, and by how much it falls with each point, from grid and labels."""
    grid = sorted({outlines(attributes["d"])[0][0][1] for _, attributes, *_ in marks(chart, stroke=PALE)})
    labels = sorted((float(words) for *_, words in marks(chart, text_anchor="end") if words), reverse=True)
    assert len(grid) == len(labels) >= 2
    slope = (grid[-1] - grid[0]) / (labels[0] - labels[-1])
    return grid[-1] + slope * labels[-1], slope


def cells(chart: Element, colour: str) -> list[tuple[str, str]]:
    """Names of column and row of each cell of a colour."""
    named = [(a, words) for tag, a, _, words in marks(chart) if tag == "text" and "transform" not in a]
    across = {float(a["x"]): words for a, words in named if a.get("text-anchor") == "middle"}
    down = {float(a["y"]): words for a, words in named if a.get("text-anchor") == "end"}
    found = []
    for _, attributes, *_ in marks(chart, fill=colour):
        for corners in outlines(attributes.get("d", "")) if len(outlines(attributes.get("d", ""))[0]) > 3 else ():
            x, y = np.mean(corners[:4], axis=0)
            # a label's y is its base line, below the middle of its row
            found.append(
                (across[min(across, key=lambda at: abs(at - x))], down[min(down, key=lambda at: abs(at - 3 - y))])
            )
    return found


def dots(chart: Element, colour: str = OURS) -> list[Mark]:
    return [mark for mark in marks(chart, fill=colour, fill_opacity="0.75") if mark[0] == "use"]
