"""A chart as inline SVG: matplotlib's own, made small and fit for a page that holds several.

The page's style sheet recolours it for the dark: matplotlib's inline styles become presentation attributes, over which
any rule takes precedence, and ``night_rules`` has a rule for each colour in use.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from fedmoe.report.elements import Html, el, join
from fedmoe.report.plot_style import HEADING, WIDTH, Chart, night, style

PAGE_WIDTH = 840  # pixels of a chart that is WIDTH inches wide

_MARKS = ("path", "use", "text")
_DROPPED = ("metadata", "style", "clipPath")
_NUMBER = re.compile(r"-?\d+\.\d+")
_COLOUR = re.compile(r'\b(fill|stroke)="(#[0-9a-f]{6})"')


def inline(chart: Chart, name: str) -> Html:
    """The chart without its heading and caption, which are for the page to say; ``name`` is unique in the page."""
    buffer = io.StringIO()
    with style():
        chart.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    for group in list(root.iter("g")):
        gid = group.get("id", "")
        if gid == HEADING:
            group.clear()
        for mark, words in zip(_marks(group), chart.hovers.get(gid, ()), strict=False):
            ElementTree.SubElement(mark, "title").text = words
    _tidy(root, f"{name}-", chart.hidden)
    width, height = (72 * side for side in chart.get_size_inches())
    top = 72 * chart.head
    size = {
        "width": _short(width * PAGE_WIDTH / 72 / WIDTH),
        "height": _short((height - top) * PAGE_WIDTH / 72 / WIDTH),
    }
    box = " ".join(map(_short, (0, top, width, height - top)))
    known = {"role": "img", "aria_label": chart.description, "class_": "chart", "stroke_linejoin": "round"}
    return el("svg", *map(_written, root), viewBox=box, **size, **known)


def night_rules(page: str) -> str:
    """A rule for each colour of the page's charts that differs in the dark."""
    pairs = sorted(set(_COLOUR.findall(page)))
    return "".join(f'svg [{key}="{day}"] {{ {key}: {night(day)}; }}\n' for key, day in pairs if night(day) != day)


def _marks(node: Element) -> Iterator[Element]:
    """What is drawn below ``node``, in order."""
    for child in node:
        if child.tag in _MARKS:
            yield child
        elif child.tag != "defs":
            yield from _marks(child)


def _tidy(node: Element, prefix: str, hidden: set[str], *, defined: bool = False, strip: bool = False) -> None:
    """Make the attributes of ``node`` and of all below it plain and short, and drop what is not needed.

    Args:
        prefix: of all ids, so that those of two charts differ.
        hidden: ids of the groups of strips, which the style sheet paints.
        defined: whether the node is a shape for others to use.
        strip: whether it is in one of ``hidden``.
    """
    opens = node.get("id") in hidden
    strip = strip or opens
    for child in list(node):
        if child.tag not in _DROPPED:
            _tidy(child, prefix, hidden, defined=node.tag == "defs", strip=strip)
        unseen = child.get("fill") == "none" and "stroke" not in child.attrib and not strip and node.tag != "defs"
        hollow = child.tag in ("g", "defs") and not len(child)
        if child.tag in _DROPPED or hollow or unseen:
            node.remove(child)
    found = dict(pair.split(": ", 1) for pair in node.attrib.pop("style", "").split("; ") if pair)
    found |= {key.rpartition("}")[2]: value for key, value in node.attrib.items()}
    name = found.pop("id", "")
    for key in ("font-family", "clip-path", *(["fill"] if strip else [])):
        found.pop(key, None)
    if found.get("transform", "").startswith("rotate(-0 "):
        del found["transform"]
    if node.tag in _MARKS and not defined and not strip:
        found.setdefault("fill", "#000000")  # which matplotlib leaves out
    found = {key: _path(value) if key == "d" else _NUMBER.sub(_rounded, value) for key, value in found.items()}
    if "href" in found:
        found["href"] = f"#{prefix}{found['href'][1:]}"
    if defined:
        found["id"] = prefix + name
    if opens:
        found["class"] = "hit"
    node.attrib.clear()
    node.attrib.update(found)


def _written(node: Element) -> Html:
    children = [node.text] if node.text and node.tag in ("text", "title") else []
    inner = join([*children, *map(_written, node)])
    return inner if node.tag == "g" and not node.attrib else el(node.tag, inner, **node.attrib)


def _path(data: str) -> str:
    """Path data with two decimals, and horizontal and vertical lines as such."""
    parts: list[str] = []
    x = y = ""
    for command, rest in re.findall(r"([A-Za-z])([^A-Za-z]*)", data):
        numbers = [_short(float(value)) for value in rest.split()]
        if command == "L" and numbers[1] == y:
            parts.append(f"H{numbers[0]}")
        elif command == "L" and numbers[0] == x:
            parts.append(f"V{numbers[1]}")
        else:
            parts.append(command + " ".join(numbers))
        x, y = numbers[-2:] or (x, y)
    return "".join(parts)


def _rounded(match: re.Match[str]) -> str:
    return _short(float(match[0]))


def _short(value: float) -> str:
    """At most two decimals, no trailing zeros."""
    short = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if short == "-0" else short
