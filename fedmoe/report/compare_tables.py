"""Tables of groups of runs: one row a group, and one row for each pair of groups that are compared.

Two standard deviations, each named wherever it is printed: over seeds (of the sample, n − 1, as in the paper's tables)
and over clients (of the population, as in a single run's).
"""

from __future__ import annotations

import csv
import io
import statistics as plain
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from fedmoe.report.groups import Group
from fedmoe.report.outside import csv_cell, latex
from fedmoe.report.statistics import FEWEST, RESAMPLES, Paired, by_client, by_seed, holm, paired
from fedmoe.report.tables import NONE, Cell, Table, to_markdown

_RESAMPLING_SEED = 0
_UNITS = {"clients": by_client, "seeds": by_seed}


@dataclass(frozen=True)
class PairResult:
    """A − B, over one kind of unit."""

    a: str
    b: str
    over: str  # clients or seeds
    result: Paired | None  # None: the groups share no seed
    p_holm: float | None  # for all pairs of groups over this kind of unit


def compare_pairs(groups: Sequence[Group]) -> list[PairResult]:
    """Every pair of groups, first over clients, then over seeds."""
    found: list[PairResult] = []
    pairs = list(combinations(groups, 2))
    for over, averaged in _UNITS.items():
        samples = [averaged(a.scores, b.scores) for a, b in pairs]
        results = [paired(*sample, seed=_RESAMPLING_SEED) if sample[0] else None for sample in samples]
        corrected = holm([result.p if result else None for result in results])
        found += [
            PairResult(a.label, b.label, over, result, p)
            for (a, b), result, p in zip(pairs, results, corrected, strict=True)
        ]
    return found


def mean_and_std(values: Mapping[int, float]) -> tuple[float, float | None]:
    """The mean over seeds, and the sample's standard deviation (n − 1), None of one seed."""
    numbers = list(values.values())
    return plain.fmean(numbers), plain.stdev(numbers) if len(numbers) > 1 else None


def group_table(groups: Sequence[Group], title: str) -> Table:
    """One row a group: its accuracy in the last round, over the last five, and where validation was best."""
    validated = any(group.best_by_validation for group in groups)
    columns = ["group", "seeds", "last round:\nmean ± std over seeds", "last round:\nstd over clients"]
    columns += ["mean of last five:\nmean ± std over seeds"]
    columns += ["best by validation:\nmean ± std over seeds"] if validated else []
    rows = []
    for group in groups:
        texts = [group.label, _seeds(group), _spread(group.last), f"{plain.fmean(group.client_stds.values()):.2f}"]
        texts += [_spread(group.last_five)] + [_spread(group.best_by_validation)] * validated
        rows.append(tuple(map(Cell, texts)))
    notes = [
        "Accuracy in %, mean over clients, each on its own test split.",
        "std over seeds: of the sample (n − 1); std over clients: the population's in one run, mean over seeds.",
        "mean of last five: over a run's last five evaluated rounds, or as many as it has.",
    ]
    if validated:
        notes.append("best by validation: test accuracy of the round with the best validation accuracy of a run.")
    notes += [
        f"{group.label}, seed {s}: {note}." for group in groups for s, r in group.runs.items() for note in r.notes
    ]
    return Table(title, tuple(columns), tuple(rows), tuple(notes))


def pair_table(comparisons: Sequence[PairResult]) -> Table:
    """One row for each pair of groups and kind of unit."""
    columns = ("A − B", "over", "n", "difference", "95 % interval", "p", "p, Holm", "d_z", "rank-biserial")
    rows, apart, few = [], False, False
    for c in comparisons:
        texts = [f"{c.a} − {c.b}", c.over]
        if c.result is None:
            texts += ["0", *[NONE] * 6]
            apart = True
        else:
            r = c.result
            interval = f"{r.interval[0]:+.2f} to {r.interval[1]:+.2f}" if r.interval else NONE
            effect = NONE if r.cohen_dz is None else f"{r.cohen_dz:+.2f}"
            texts += [str(r.n), f"{r.difference:+.2f}", interval, _p(r.p), _p(c.p_holm), effect]
            texts += [f"{r.rank_biserial:+.2f}"]
            few |= r.p is None
        rows.append(tuple(map(Cell, texts)))
    notes = [
        "Last round, in points of accuracy, over the seeds and clients that A and B share.",
        "over clients: each client's difference, mean over its seeds; does a typical client gain?",
        "over seeds: each seed's difference, mean over its clients; would another repetition show it again?",
        f"95 % interval of the mean difference: percentile bootstrap, {RESAMPLES} resamples.",
        "p: Wilcoxon signed-rank, two-sided, without pairs of equal accuracy; Holm: corrected for all pairs of groups.",
        "d_z: Cohen's, mean difference / its standard deviation; rank-biserial: of matched pairs, from -1 to 1.",
    ]
    if few:
        notes.append(f"{NONE} in place of p: fewer than {FEWEST} pairs, with which no p could be below 0.05.")
    if apart:
        notes.append("n = 0: the two groups have no seed in common, so nothing pairs them.")
    return Table("Paired tests", columns, tuple(rows), tuple(notes))


def markdown_of(tables: Iterable[Table]) -> str:
    return "\n".join(map(to_markdown, tables))


def latex_of(tables: Iterable[Table]) -> str:
    """A tabular for each table, for \\input in a document with booktabs; the notes are paragraphs below."""
    lines = ["% Needs \\usepackage{booktabs}."]
    for table in tables:
        lines += ["", f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}", "\\toprule"]
        lines += [" & ".join(map(latex, table.columns)) + " \\\\", "\\midrule"]
        lines += [" & ".join(latex(cell.text) for cell in row) + " \\\\" for row in table.rows]
        lines += ["\\bottomrule", "\\end{tabular}", ""]
        lines += [f"{latex(note)}\\par" for note in table.notes]
    return "\n".join(lines) + "\n"


def groups_csv(groups: Sequence[Group]) -> str:
    """The numbers of ``group_table``, not rounded."""
    head = ["group", "seeds", "last_mean", "last_std_over_seeds", "last_std_over_clients"]
    head += ["last_five_mean", "last_five_std_over_seeds"]
    head += ["best_by_validation_mean", "best_by_validation_std_over_seeds"]
    rows: list[list[Any]] = [
        [
            *(group.label, " ".join(map(str, group.seeds)), *mean_and_std(group.last)),
            *(plain.fmean(group.client_stds.values()), *mean_and_std(group.last_five)),
            *(mean_and_std(group.best_by_validation) if group.best_by_validation else (None, None)),
        ]
        for group in groups
    ]
    return _csv(head, rows)


def pairs_csv(comparisons: Sequence[PairResult]) -> str:
    """The numbers of ``pair_table``, not rounded."""
    head = ["a", "b", "over", "n", "difference", "low", "high", "p", "p_holm", "cohen_dz", "rank_biserial"]
    rows: list[list[Any]] = []
    for c in comparisons:
        r = c.result
        numbers: list[float | None] = [0, *[None] * 7]
        if r is not None:
            numbers = [r.n, r.difference, *(r.interval or (None, None)), r.p, c.p_holm, r.cohen_dz, r.rank_biserial]
        rows.append([c.a, c.b, c.over, *numbers])
    return _csv(head, rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([csv_cell(value) for value in row] for row in rows)
    return text.getvalue()


def _spread(values: Mapping[int, float] | None) -> str:
    if values is None:
        return NONE
    mean, std = mean_and_std(values)
    return f"{mean:.2f} ± {NONE if std is None else f'{std:.2f}'}"


def _seeds(group: Group, most: int = 5) -> str:
    listed = ", ".join(map(str, group.seeds[:most])) + (", …" if len(group.seeds) > most else "")
    return f"{len(group.seeds)}: {listed}"


def _p(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.4f}" if value >= 0.00005 else "< 0.0001"
