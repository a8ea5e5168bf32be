"""One page about a run or a comparison, in one file: no network, no script, light and dark.

The page is drawn from the folder's files alone; what the pointer shows over a chart are titles of SVG elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedmoe.display import format_bytes
from fedmoe.errors import UserError
from fedmoe.io import write_text_atomic
from fedmoe.report import accuracy, plots
from fedmoe.report.comparison import Comparison, Entry, is_comparison, read_comparison
from fedmoe.report.elements import Html, el
from fedmoe.report.outside import require_own
from fedmoe.report.page import charted, html_table, notes_list, whole_page
from fedmoe.report.plot_style import clients_in_words
from fedmoe.report.run import Run, is_run, read_run
from fedmoe.report.svg import inline
from fedmoe.report.tables import Table, comparison_table, run_table
from fedmoe.runs.records import RoundRecord

SUFFIXES = (".html", ".htm")
_PHASES = {"train": "training", "evaluate": "evaluation", "other": "rest"}
_TRAFFIC = {"down": "down", "up": "up", "evaluate_down": "down for the evaluation"}


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
    table = comparison_table(comparison)
    title = comparison.entries[0].label if alone else table.title
    only = next(iter(runs.values())) if alone else None
    head = [el("h1", title), el("p", _subtitle(comparison, only), class_="soft")]
    sections = [
        _result(table, only),
        _over_rounds({label: run for label, run in runs.items() if run.last}, only),
        _distribution({label: run for label, run in runs.items() if accuracy.last_accuracies(run) is not None}),
        _labels(comparison),
        _experts(runs),
        _attention(runs),
        _cost(runs),
        _settings(comparison),
    ]
    return whole_page(title, filter(None, [head, *sections]))


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
    return [el("h2", "Result"), html_table(table.columns, table.rows), notes_list(notes)]


def _over_rounds(runs: Mapping[str, Run], only: Run | None) -> list[Html]:
    if not any(len(run.evaluated) > 1 for run in runs.values()):
        return []
    head = el("h2", "Accuracy over rounds")
    if only is not None:
        table = run_table(only, max_rows=11)
        details = el("details", el("summary", "Numbers"), html_table(table.columns, table.rows))
        return [head, *charted(accuracy.accuracy_over_rounds(only), "rounds"), details]
    ylim = accuracy.shared_limits(runs)
    end = max(run.rounds[-1].round for run in runs.values())
    small = []
    for i, (label, run) in enumerate(runs.items()):
        chart = accuracy.accuracy_over_rounds(run, end, ylim, small=True)
        small.append(el("div", el("h3", label), inline(chart, f"spread{i}")))
    kinds = " or ".join(dict.fromkeys(f"{accuracy.band_of(run)} of clients" for run in runs.values()))
    spread = el("p", f"The same with its spread. Band: {kinds}.", class_="soft")
    return [head, *charted(accuracy.compare_over_rounds(runs), "rounds"), spread, el("div", *small, class_="several")]


def _distribution(runs: Mapping[str, Run]) -> list[Html]:
    if not runs:
        return []
    return [el("h2", "Distribution over clients"), *charted(accuracy.client_accuracies(runs), "clients")]


def _labels(comparison: Comparison) -> list[Html]:
    runs = comparison.runs
    chosen = dict(list(runs.items())[:1]) if comparison.same_clients else runs
    parts = [el("h2", "Label distribution")] if chosen else []
    for i, (label, run) in enumerate(chosen.items()):
        parts += [el("h3", label)] if len(chosen) > 1 else []
        parts += charted(plots.label_distribution(run.labels), f"labels{i}")
    return parts


def _experts(runs: Mapping[str, Run]) -> list[Html]:
    parts: list[Html] = []
    for i, (label, run) in enumerate(runs.items()):
        found = last_experts(run)
        if found is not None:
            experts = {int(client): ids for client, ids in found.experts.items()}
            parts += charted(plots.expert_assignment(experts, run.num_clients, found.round), f"experts{i}", label)
    return [el("h2", "Expert assignment"), *parts] if parts else []


def last_experts(run: Run) -> RoundRecord | None:
    """The last round with an assignment of experts.

    Raises:
        UserError: if it names a client that the run does not have.
    """
    found = next((r for r in reversed(run.rounds) if any(r.experts.values())), None)
    if found is None:
        return None
    for client in {*map(int, found.experts), *(i for ids in found.experts.values() for i in ids)}:
        if not 0 <= client < run.num_clients:
            where = (
                f"{run.path / 'rounds.jsonl'}, round {found.round}, names client {client} in an assignment of experts"
            )
            raise UserError(f"{where}; partition.json has {run.num_clients} clients, from 0.")
    return found


def _attention(runs: Mapping[str, Run]) -> list[Html]:
    parts: list[Html] = []
    for i, (label, run) in enumerate(runs.items()):
        if any(r.attention for r in run.rounds):
            parts += charted(plots.expert_attention(run), f"attention{i}", label)
    return [el("h2", "Attention per expert"), *parts] if parts else []


def _cost(runs: Mapping[str, Run]) -> list[Html]:
    if not runs:
        return []
    seconds = {label: list(run.seconds.values()) for label, run in runs.items()}
    means = {label: list(run.bytes_per_round.values()) for label, run in runs.items()}
    spent, sent = "Seconds by phase, sum over all rounds", "Bytes per round"
    words = f"{sent}: mean over the rounds of training, and over the evaluations"
    time = [el("h3", spent), *charted(plots.cost_of_runs(spent, [*_PHASES.values()], seconds, _seconds), "seconds")]
    traffic = [el("h3", words), *charted(plots.cost_of_runs(words, [*_TRAFFIC.values()], means, format_bytes), "bytes")]
    if len(runs) == 1:
        rounds = next(iter(runs.values())).rounds
        numbers = [r.round for r in rounds]
        each = [[r.seconds[phase] for phase in _PHASES] for r in rounds]
        chart = plots.cost_of_rounds("Seconds by round", [*_PHASES.values()], numbers, each, _seconds, "seconds")
        time += charted(chart, "seconds-rounds")
        each = [[r.bytes[way] for way in _TRAFFIC] for r in rounds]
        chart = plots.cost_of_rounds("Bytes by round", [*_TRAFFIC.values()], numbers, each, format_bytes, "bytes")
        traffic += charted(chart, "bytes-rounds")
    return [el("h2", "Cost"), *time, *traffic]


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
