"""The parts that the pages have in common: frame, tables, notes, charts."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from string import Template

from fedmoe.report.elements import Html, el, join, text
from fedmoe.report.plot_style import Chart
from fedmoe.report.svg import inline, night_rules
from fedmoe.report.tables import Cell


def whole_page(title: str, sections: Iterable[Iterable[Html]]) -> Html:
    """The whole page. page.html holds its style and forbids, by its content security policy, everything else."""
    template = Template(files("fedmoe.report").joinpath("page.html").read_text(encoding="utf-8"))
    body = "\n".join(join(section) for section in sections if section)
    return Html(template.substitute(title=text(title), night=night_rules(body), body=body))


def html_table(columns: Iterable[str], rows: Iterable[tuple[Cell, ...]]) -> Html:
    head = el("thead", el("tr", *(el("th", column, scope="col") for column in columns)))
    body = [el("tr", *(el("td", el("strong", c.text) if c.bold else c.text) for c in row)) for row in rows]
    return wide(el("table", head, el("tbody", *body)))


def notes_list(notes: Iterable[str]) -> Html:
    return el("ul", *(el("li", note) for note in notes), class_="notes")


def charted(chart: Chart, name: str, before: str = "") -> list[Html]:
    """The chart under its caption; ``before`` says what it is about, ``name`` is unique in the page."""
    words = f"{before}: {chart.caption[:1].lower()}{chart.caption[1:]}" if before else chart.caption
    return [*([el("p", f"{words}.", class_="soft")] if words else []), wide(inline(chart, name))]


def wide(content: Html) -> Html:
    """What may be wider than a narrow screen, scrolling by itself."""
    return el("div", content, class_="wide")
