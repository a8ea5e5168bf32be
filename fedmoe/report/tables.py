"""The tables of a run and of a comparison: built once as plain data, then shown by rich or written as Markdown.

Every accuracy is that of the last evaluated round, never of the best one, and every ``±`` is the population's standard
deviation over clients; the notes under a table say so. Another output format is one more function of a ``Table``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from fedmoe.display import format_bytes
from fedmoe.errors import printable, some
from fedmoe.report.comparison import Comparison
from fedmoe.report.outside import markdown
from fedmoe.report.run import Run
from fedmoe.runs.records import RoundRecord

NONE = "–"
_COSTS = ("rounds", "seconds", "down/round", "up/round")
_WIDEST = 10_000


@dataclass(frozen=True)
class Cell:
    """The text of a cell, and whether it is set in bold."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A title, column heads, rows of as many cells, and notes to print below. The first column holds names."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]


_FURTHER: Mapping[str, tuple[str, str, str]] = {  # group and key in a round's record, and how the number is printed
    "others'\nclasses": ("accuracy_others", "mean", "{:.2f}"),
    "gate's\nentropy": ("gate", "entropy", "{:.4f}"),
    "largest\nweight": ("gate", "top_share", "{:.4f}"),
    "experts\ncontribute": ("gate", "expert_contribution", "{:+.2f}"),
    "honest\nclients": ("attack", "honest_accuracy", "{:.2f}"),
    "attackers": ("attack", "attackers_accuracy", "{:.2f}"),
    "attack's\nsuccess": ("attack", "success", "{:.2f}"),
    "attackers as\nexperts": ("attack", "expert_share", "{:.2f}"),
}
_MEANINGS = {
    "others'\nclasses": "others' classes: accuracy in % on test images of classes that the client does not train on.",
    "gate's\nentropy": "gate's entropy: of an image's weights over the experts, 1 if all are equal.",
    "honest\nclients": "honest clients, attackers: mean accuracy of each in %, own test splits.",
    "attack's\nsuccess": "attack's success: % of honest clients' test images, of those that it aims at.",
    "attackers as\nexperts": "attackers as experts: their share of the experts that honest clients predict with, %.",
    "experts\ncontribute": "experts contribute: accuracy minus that with the local expert in their place, points.",
}


def _further(records: Sequence[RoundRecord]) -> tuple[str, ...]:
    """The further columns that any of the rounds has a number for."""
    return tuple(
        name for name, (group, key, _) in _FURTHER.items() if any(key in (getattr(r, group) or {}) for r in records)
    )


def _cells(record: RoundRecord, columns: Sequence[str]) -> list[str]:
    found = [(getattr(record, group), key, form) for group, key, form in map(_FURTHER.__getitem__, columns)]
    return [form.format(numbers[key]) if numbers and key in numbers else NONE for numbers, key, form in found]


def _meanings(columns: Sequence[str]) -> list[str]:
    return [_MEANINGS[name] for name in columns if name in _MEANINGS]


def run_table(run: Run, max_rows: int = 6) -> Table:
    """Some rounds from the first to the last, the last one in bold, with costs and what is missing below."""
    evaluated = run.evaluated
    steps = min(max_rows, len(evaluated)) - 1
    chosen = sorted({round(i * (len(evaluated) - 1) / max(1, steps)) for i in range(steps + 1)})
    rows, further = [], _further(evaluated)
    for record in (evaluated[i] for i in chosen):
        a = record.accuracy
        assert a is not None
        values = [f"{v:.2f}" for v in (a[k] for k in ("mean", "std", "min", "worst_decile"))]
        loss = NONE if record.train_loss is None else f"{record.train_loss:.4f}"
        texts = (str(record.round), *values, loss, *_cells(record, further))
        rows.append(tuple(Cell(text, record is run.last) for text in texts))
    clients = "1 client" if run.num_scored == 1 else f"{run.num_scored} clients"
    notes = [f"Accuracy in %, over {clients}, each on its own test split; {_LAST_ROUND}; {_STD}."]
    notes += _meanings(further)
    if run.last and run.last.accuracy_per_domain:
        domains = (f"{name} {mean:.2f}" for name, mean in run.last.accuracy_per_domain.items())
        notes.append(f"Mean over the clients of each domain, round {run.last.round}: {', '.join(domains)}.")
    s, b = run.seconds, run.bytes_per_round
    phases = f"training {s['train']:.1f}, evaluation {s['evaluate']:.1f}, rest {s['other']:.1f}"
    notes.append(f"Seconds: {phases}; sum {sum(s.values()):.1f}.")
    added = f"; each evaluation adds {format_bytes(b['evaluate_down'])} down" if b["evaluate_down"] else ""
    notes.append(
        f"Bytes per round, sum over the cohort: {format_bytes(b['down'])} down, {format_bytes(b['up'])} up{added}."
    )
    title = run.label + (f", seed {run.seed}" if run.seed is not None else "")
    columns = ("round", "mean", "std over\nclients", "min", "worst 10 %", "train loss", *further)
    return Table(title, columns, tuple(rows), (*notes, *_states([(run.label, run, "")])))


def comparison_table(comparison: Comparison) -> Table:
    """One row per run in the comparison's order; the best of the finished runs in bold.

    Where the clients have domains, each domain has a column: the mean over its clients.
    """
    runs = comparison.runs
    domains = tuple(dict.fromkeys(name for run in runs.values() if run.last for name in run.last.accuracy_per_domain))
    finished = [_scores(run.last, domains) for run in runs.values() if run.finished and run.last]
    best = [
        max((value for value in column if value is not None), default=None) for column in zip(*finished, strict=True)
    ]
    unit = max((max(run.bytes_per_round["down"], run.bytes_per_round["up"]) for run in runs.values()), default=0)
    further = _further([run.last for run in runs.values() if run.last])
    columns = ("method", "mean ± std\nover clients", "worst 10 %", *domains, *further, *_COSTS)
    rows = []
    for entry in comparison.entries:
        run = entry.run
        if run is None or run.last is None or run.last.accuracy is None:
            rows.append((Cell(entry.label), Cell(entry.state or "not evaluated"), *[Cell(NONE)] * (len(columns) - 2)))
            continue
        b, last, scores = run.bytes_per_round, run.rounds[-1].round, _scores(run.last, domains)
        texts = [NONE if value is None else f"{value:.2f}" for value in scores]
        texts[0] += f" ± {run.last.accuracy['std']:.2f}"
        contest = run.finished and len(finished) > 1
        bolds = [contest and score is not None and score == best[i] for i, score in enumerate(scores)]
        rows.append(
            (
                Cell(entry.label),
                *map(Cell, texts, bolds),
                *map(Cell, _cells(run.last, further)),
                Cell(f"{last}" if run.finished else f"{last}, unfinished"),
                Cell(f"{sum(run.seconds.values()):.1f}"),
                Cell(format_bytes(b["down"], unit)),
                Cell(format_bytes(b["up"], unit)),
            )
        )
    notes = [f"mean ± std: accuracy in % over clients, each on its own test split; {_LAST_ROUND}; {_STD}."]
    notes.append("worst 10 %: mean over the worst tenth of the clients, at least one. Bold: best of the finished runs.")
    if domains:
        notes.append(f"{', '.join(domains)}: mean over the clients of the domain.")
    notes += _meanings(further)
    extra: dict[str, list[str]] = {}
    for label, run in runs.items():
        if evaluate_down := run.bytes_per_round["evaluate_down"]:
            extra.setdefault(format_bytes(evaluate_down), []).append(label)
    added = "".join(f"; each evaluation adds {size} down for {', '.join(labels)}" for size, labels in extra.items())
    notes.append(f"down/round, up/round: bytes of training, sum over a round's cohort, mean over rounds{added}.")
    seeds = {run.seed for run in runs.values() if run.seed is not None}
    for word, found in (("seed", seeds), ("number of clients", {run.num_clients for run in runs.values()})):
        if len(found) > 1:
            notes.append(f"Not the same in all runs: {word} ({', '.join(map(str, sorted(found)))}).")
        elif found:
            notes.append(f"{word.capitalize()}: {found.pop()}.")
    if runs and not comparison.same_clients:
        notes.append("Not the same in all runs: the clients' training examples.")
    states = [(entry.label, entry.run, entry.problem) for entry in comparison.entries]
    return Table(comparison.path.resolve().name, columns, tuple(rows), (*notes, *_states(states)))


def show(table: Table, console: Console) -> None:
    """Print ``table``: no number is ever cut or broken, and no text is read as markup.

    On a terminal that is too narrow the columns follow in several parts, each with the names in front; elsewhere the
    lines are as long as they have to be. The notes are a line each, for the terminal to wrap.
    """
    console.print(Text(printable(table.title), style="bold"), soft_wrap=True)
    columns = list(range(1, len(table.columns)))
    while columns:
        number = len(columns)
        if console.is_terminal:
            widths = {n: _rich(table, columns[:n], console).width or 0 for n in range(1, number + 1)}
            number = max((n for n, width in widths.items() if width <= console.width), default=1)
        console.print(_rich(table, columns[:number], console), soft_wrap=True)
        columns = columns[number:]
    for note in table.notes:
        console.print(Text(f"  {printable(note)}", style="dim"), soft_wrap=True)


def _rich(table: Table, columns: Sequence[int], console: Console) -> RichTable:
    """The first column and the given ones, in their full width whatever the console's."""
    rich = RichTable(box=box.SIMPLE_HEAD)
    for i in (0, *columns):
        rich.add_column(
            Text(printable(table.columns[i])), justify="right" if i else "left", vertical="bottom", no_wrap=True
        )
    for row in table.rows:
        rich.add_row(*(Text(printable(row[i].text), style="bold" if row[i].bold else "") for i in (0, *columns)))
    rich.width = Measurement.get(console, console.options.update(max_width=_WIDEST), rich).maximum
    return rich


def to_markdown(table: Table) -> str:
    """A heading, a GitHub table and the notes as a list."""
    lines = [f"## {markdown(table.title)}", ""]
    lines.append("| " + " | ".join(markdown(column) for column in table.columns) + " |")
    lines.append("|" + "|".join(":---" if i == 0 else "---:" for i in range(len(table.columns))) + "|")
    for row in table.rows:
        cells = (f"**{markdown(cell.text)}**" if cell.bold else markdown(cell.text) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in table.notes)]) + "\n"


def comparison_results(comparison: Comparison) -> list[dict[str, Any]]:
    """The same facts as plain JSON data, one object per label; null where there is no result."""
    results: list[dict[str, Any]] = []
    for entry in comparison.entries:
        run = entry.run
        result: dict[str, Any] = {"folder": entry.folder, "label": entry.label, "problem": entry.problem or None}
        if run is not None:
            accuracy = run.last.accuracy if run.last else None
            result |= {
                "method": run.method,
                "seed": run.seed,
                "finished": run.finished,
                "rounds": run.rounds[-1].round,
                "clients": run.num_clients,
                "accuracy": accuracy,
                "accuracy_per_domain": dict(run.last.accuracy_per_domain) if run.last else {},
                "seconds": run.seconds,
                "bytes_per_round": run.bytes_per_round,
            }
        results.append(result)
    return results


def _scores(last: RoundRecord, domains: Sequence[str]) -> list[float | None]:
    """Mean, worst decile and each domain's mean, to the two decimals printed: what looks equal is equal."""
    assert last.accuracy is not None
    scores = (last.accuracy["mean"], last.accuracy["worst_decile"], *map(last.accuracy_per_domain.get, domains))
    return [None if score is None else round(score, 2) for score in scores]


_LAST_ROUND = "last round, not the best one"
_STD = "std is the population's over clients"


def _states(entries: Sequence[tuple[str, Run | None, str]]) -> list[str]:
    """A note for every run that is missing, damaged or unfinished, lost clients, has privacy, or lacks something."""
    notes = []
    for label, run, problem in entries:
        if run is None:
            notes.append(f"{label}: {problem}")
            continue
        if not run.finished:
            result = f"the accuracy is that of round {run.last.round}" if run.last else "no round was evaluated"
            notes.append(f"{label}: unfinished, round {run.rounds[-1].round} is the last on record; {result}.")
        if run.failed:
            notes.append(f"{label}: clients that failed and were dropped from rounds: {_failures(run)}.")
        if run.summary and run.summary.privacy:
            notes.append(f"{label}: {run.summary.privacy['text']}.")
        notes += [f"{label}: {note}." for note in run.notes]
    empty = {client for _, run, _ in entries if run for client in np.flatnonzero(run.labels.test.sum(axis=1) == 0)}
    if empty:
        notes.append(f"Without test examples, left out of accuracies: client {', '.join(map(str, sorted(empty)))}.")
    return notes


def _failures(run: Run, most: int = 5) -> str:
    """Who failed, when and why; at most ``most`` clients and rounds."""

    def several(rounds: Sequence[int]) -> str:
        listed = ", ".join(map(str, rounds[:most])) + (", ..." if len(rounds) > most else "")
        return f"round{'s' if len(rounds) > 1 else ''} {listed}"

    told = [f"{client} ({several(rounds)}: {reason})" for client, (rounds, reason) in run.failed.items()]
    return some(told, most, "; ")
