"""One page about a run or a comparison, in one file: no network, no script, light and dark.

The page is drawn from the folder's files alone. page.html holds its style and forbids, by its content security policy,
everything but that style; what the pointer shows over a chart are titles of SVG elements.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template

from matplotlib.colors import to_hex, to_rgb

from fedmoe.errors import UserError
from fedmoe.io import write_text_atomic
from fedmoe.report import page_charts, page_curves
from fedmoe.report.comparison import Comparison, Entry, is_comparison, read_comparison
from fedmoe.report.outside import require_own
from fedmoe.report.page_curves import Shown
from fedmoe.report.plot_style import clients_in_words, colours, dark
from fedmoe.report.plots import last_accuracies
from fedmoe.report.run import LabelCounts, Run, is_run, read_run
from fedmoe.report.svg import Html, el, join, text
from fedmoe.report.tables import Cell, Table, comparison_table, format_bytes, run_table

SUFFIXES = (".html", ".htm")
_PHASES = (("one", "training"), ("two", "evaluation"), ("three", "rest"))
_TRAFFIC = (("one", "down"), ("two", "up"), ("three", "down for the evaluation"))


def write_page(path: Path, page: Path) -> None:
    """Write the page about the run or comparison in ``path`` to the file ``page``, atomically.

    Raises:
        UserError: if ``path`` is neither, naming the nearest folder that is; if a file cannot be used; if ``page`` is
            not named as a page is, which keeps it from replacing a run's own files; or if it cannot be written.
    """
    path, page = Path(path), Path(page)
    if page.suffix.lower() not in SUFFIXES:
        raise UserError(f"{page} is no name for a page; valid is one that ends in .html.")
    contents = render(read(path))
    require_own(path, page)
    try:
        write_text_atomic(page, contents)
    except OSError as error:
        where = f"{page} cannot be written: {error.strerror}"
        raise UserError(f"{where}; valid is a file in a folder that can be written to.") from None


def read(path: Path) -> Comparison:
    """The comparison in ``path``, or its run as a comparison of one."""
    if is_comparison(path):
        return read_comparison(path)
    if is_run(path):
        run = read_run(path)
        return Comparison(path, (Entry(path.resolve().name, run.label, run),), {})
    from fedmoe.report import neither_sentence

    raise UserError(neither_sentence(path))


def render(comparison: Comparison) -> Html:
    """The whole page."""
    alone = len(comparison.entries) == 1 and not comparison.manifest
    runs = comparison.runs
    shown: Shown = {label: (f"s{i}", run) for i, (label, run) in enumerate(runs.items())}
    table = comparison_table(comparison)
    title = comparison.entries[0].label if alone else table.title
    only = next(iter(runs.values())) if alone else None
    head = [el("h1", title), el("p", _subtitle(comparison, only), class_="soft")]
    sections = [
        _result(table, only),
        _over_rounds({label: pair for label, pair in shown.items() if pair[1].last}, only),
        _distribution({label: pair for label, pair in shown.items() if last_accuracies(pair[1]) is not None}),
        _labels(comparison),
        _experts(shown),
        _attention(shown),
        _cost(runs),
        _settings(comparison),
    ]
    template = Template(files("fedmoe.report").joinpath("page.html").read_text(encoding="utf-8"))
    body = "\n".join(map(join, filter(None, [head, *sections])))
    return Html(template.substitute(title=text(title), colours=page_style(runs), body=body))


def page_style(runs: dict[str, Run]) -> str:
    """For each run a class ``s<i>`` with the colour of its marks and of its name, both for light and for dark."""
    chosen = list(colours(runs).values())
    light = "".join(f".s{i} {{ --c: {c}; --t: {to_hex(dark(c))}; }}\n" for i, c in enumerate(chosen))
    night = "".join(f".s{i} {{ --c: {bright(c)}; --t: {bright(c)}; }}\n" for i, c in enumerate(chosen))
    return f"{light}@media (prefers-color-scheme: dark) {{\n{night}}}\n"


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


def _subtitle(comparison: Comparison, only: Run | None) -> str:
    if only is None:
        number = len(comparison.entries)
        return f"Comparison of {number} runs" if number != 1 else "Comparison of 1 run"
    state = "finished" if only.finished else "unfinished"
    words = [f"Run {comparison.path.resolve().name}", clients_in_words(only.num_clients)]
    words += [f"seed {only.seed}"] if only.seed is not None else []
    return ", ".join([*words, f"round {only.rounds[-1].round}", state]) + "."


def _result(table: Table, only: Run | None) -> list[Html]:
    notes = table.notes if only is None else run_table(only).notes
    return [el("h2", "Result"), _html_table(table.columns, table.rows), _list(notes)]


def _over_rounds(shown: Shown, only: Run | None) -> list[Html]:
    runs = {label: run for label, (_, run) in shown.items()}
    if not any(len(run.evaluated) > 1 for run in runs.values()):
        return []
    ylim = page_curves.shared_limits(runs)
    end = max(run.rounds[-1].round for run in runs.values())
    head = el("h2", "Accuracy over rounds")
    kinds = " or ".join(dict.fromkeys(f"{page_curves.band_of(run)} of clients" for run in runs.values()))
    if only is not None:
        (style, run), *_ = shown.values()
        words = el("p", f"Line: mean over clients. Band: {kinds}.", class_="soft")
        table = run_table(only, max_rows=11)
        details = el("details", el("summary", "Numbers"), _html_table(table.columns, table.rows))
        return [head, words, _wide(page_curves.with_band(run, style, end, ylim, 840, 330)), details]
    words = el("p", "Mean over clients. Dashed: a method without rounds.", class_="soft")
    small = []
    for label, (style, run) in shown.items():
        picture = page_curves.with_band(run, style, end, ylim, 270, 170)
        small.append(el("div", el("h3", el("span", class_=f"key {style}"), label), picture))
    spread = el("p", f"The same with its spread. Band: {kinds}.", class_="soft")
    return [head, words, _wide(page_curves.means(shown)), spread, el("div", *small, class_="several")]


def _distribution(shown: Shown) -> list[Html]:
    if not shown:
        return []
    words = "Last round. Dot: a client; box: middle half of the clients; line and number: mean over clients."
    parts = [el("h2", "Distribution over clients"), el("p", words, class_="soft")]
    return [*parts, _wide(page_curves.distribution(shown))]


def _labels(comparison: Comparison) -> list[Html]:
    runs = comparison.runs
    chosen = dict(list(runs.items())[:1]) if comparison.same_clients else runs
    parts = [el("h2", "Label distribution")] if chosen else []
    for label, run in chosen.items():
        parts += [el("h3", label)] if len(chosen) > 1 else []
        parts += [_levels(run.labels), _wide(page_charts.label_distribution(run.labels))]
    return parts


def _levels(labels: LabelCounts) -> Html:
    """The legend of the heat map: which counts have which colour."""
    bounds = page_charts.level_bounds(int(labels.train.max()))
    starts = [1, *(bound + 1 for bound in bounds[:-1])]
    names = [str(a) if a == b else f"{a}–{b}" for a, b in zip(starts, bounds, strict=True)]
    styles = [f"h{page_charts.shade(level, len(bounds))}" for level in range(len(bounds))]
    return _legend(zip(styles, names, strict=True), "Training examples of a class on a client; bars: sum of a client.")


def _experts(shown: Shown) -> list[Html]:
    parts: list[Html] = []
    for label, (_, run) in shown.items():
        found = page_charts.last_experts(run)
        if found is not None:
            experts = {int(client): ids for client, ids in found.experts.items()}
            words = f"{label}, round {found.round}: {len(experts)} of {clients_in_words(run.num_clients)} "
            words += "have experts. A cell: the row's client uses the column's prompt; bars: clients that use a prompt."
            parts.append(el("p", words, class_="soft"))
            parts.append(_wide(page_charts.expert_assignment(experts, run.num_clients)))
    return [el("h2", "Expert assignment"), *parts] if parts else []


def _attention(shown: Shown) -> list[Html]:
    parts: list[Html] = []
    for label, (style, run) in shown.items():
        found = next((r for r in reversed(run.rounds) if r.attention), None)
        if found is not None and found.attention is not None:
            words = f"{label}, round {found.round}: mean over the clients' test images; non-local experts sorted."
            parts += [el("p", words, class_="soft"), _wide(page_charts.attention(found.attention, style))]
    return [el("h2", "Attention per expert"), *parts] if parts else []


def _cost(runs: dict[str, Run]) -> list[Html]:
    if not runs:
        return []
    seconds = {label: tuple(run.seconds.values()) for label, run in runs.items()}
    means = {label: tuple(run.bytes_per_round.values()) for label, run in runs.items()}
    parts = [el("h2", "Cost"), el("h3", "Seconds by phase, sum over all rounds"), _legend(_PHASES)]
    parts.append(_wide(page_charts.stacked_runs(seconds, _PHASES, _seconds, "Seconds by phase")))
    if len(runs) == 1:
        rounds = next(iter(runs.values())).rounds
        numbers = [r.round for r in rounds]
        spent = [[r.seconds[k] for k in ("train", "evaluate", "other")] for r in rounds]
        parts.append(_wide(page_charts.stacked_rounds(numbers, spent, _PHASES, _seconds, "seconds")))
    words = "Bytes per round: mean over the rounds of training, and over the evaluations"
    parts += [el("h3", words), _legend(_TRAFFIC)]
    parts.append(_wide(page_charts.stacked_runs(means, _TRAFFIC, format_bytes, "Bytes per round")))
    if len(runs) == 1:
        sent = [[r.bytes[k] for k in ("down", "up", "evaluate_down")] for r in rounds]
        parts.append(_wide(page_charts.stacked_rounds(numbers, sent, _TRAFFIC, format_bytes, "bytes")))
    return parts


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 or value == 0 else f"{value:.3g} s"


def _settings(comparison: Comparison) -> list[Html]:
    """config.yaml as it is, of every run that has one, with the versions that the run noted."""
    parts: list[Html] = []
    for label, run in comparison.runs.items():
        if run.settings is None:
            continue
        try:
            config = (run.path / "config.yaml").read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"{run.path / 'config.yaml'} cannot be read: {error.strerror}.") from None
        versions = ", ".join(f"{name} {value}" for name, value in (run.summary.versions if run.summary else {}).items())
        noted = el("p", f"Versions: {versions}.", class_="soft") if versions else Html("")
        parts.append(el("details", el("summary", f"{label}: config.yaml"), noted, el("pre", config)))
    return [el("h2", "Settings"), *parts] if parts else []


def _html_table(columns: Iterable[str], rows: Iterable[tuple[Cell, ...]]) -> Html:
    head = el("thead", el("tr", *(el("th", column, scope="col") for column in columns)))
    body = [el("tr", *(el("td", el("strong", c.text) if c.bold else c.text) for c in row)) for row in rows]
    return _wide(el("table", head, el("tbody", *body)))


def _list(notes: Iterable[str]) -> Html:
    return el("ul", *(el("li", note) for note in notes), class_="notes")


def _legend(names: Iterable[tuple[str, str]], before: str = "") -> Html:
    keys = [el("span", el("span", class_=f"key {style}"), name) for style, name in names]
    return el("div", *([el("span", before)] if before else []), *keys, class_="legend")


def _wide(content: Html) -> Html:
    """What may be wider than a narrow screen, scrolling by itself."""
    return el("div", content, class_="wide")
