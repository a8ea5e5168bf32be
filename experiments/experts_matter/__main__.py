"""The table of ``README.md`` and its picture: ``python -m experiments.experts_matter runs/experts_matter``.

Reads the runs that ``make reproduce-experts_matter`` left behind. A client's score is the mean of two accuracies: on
its own test images, and on its domain's test images of classes that only others hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments.reproduce.manifest import load_manifest
from experiments.reproduce.plan import Options, Run, make_plan
from fedmoe.errors import UserError
from fedmoe.report.plot_style import save, styled
from fedmoe.report.statistics import Scores, by_client, by_seed, holm, paired
from fedmoe.runs.records import ClientScore, read_clients

REFERENCE = "neighbours"
MEASURES: Mapping[str, Callable[[ClientScore], float]] = {
    "own": lambda score: score.accuracy or 0.0,
    "others": lambda score: score.accuracy_others or 0.0,
    "both": lambda score: ((score.accuracy or 0.0) + (score.accuracy_others or 0.0)) / 2,
}


@dataclass(frozen=True)
class Measured:
    """A row of the table: every client's accuracies in percent, by (seed, client)."""

    key: str
    label: str
    scores: Mapping[str, Scores]  # own, others, both

    def mean(self, measure: str) -> float:
        return float(np.mean(list(self.scores[measure].values())))

    def std(self, measure: str) -> float:
        """Sample standard deviation over seeds of the mean over clients."""
        seeds, _ = by_seed(self.scores[measure], self.scores[measure])
        return float(np.std(seeds, ddof=1)) if len(seeds) > 1 else 0.0


def read(out: Path, preset: str | None) -> list[Measured]:
    """The finished runs of the manifest; a row without any is left out."""
    plan = make_plan(load_manifest("experts_matter", preset), Options(out))
    rows = []
    for cell in plan.cells:
        last = {run.seed: _last(run) for run in cell.runs if run.finished}
        if last:
            scores = {
                name: {(seed, score.client): of(score) for seed, found in last.items() for score in found}
                for name, of in MEASURES.items()
            }
            rows.append(Measured(cell.row.key, cell.row.label, scores))
    if not rows:
        raise UserError(f"{out} holds no finished run; make them with make reproduce-experts_matter.")
    return rows


def _last(run: Run) -> list[ClientScore]:
    """Every client's scores in the last round."""
    return list(read_clients(run.folder, run.settings["federation.clients"])[run.rounds].values())


def against_the_reference(
    rows: Sequence[Measured], measure: str
) -> dict[str, tuple[float, float | None, float | None]]:
    """The reference against every other row: difference in points, p over clients and p over seeds.

    Over clients: Wilcoxon signed-rank, corrected by Holm for the number of rows. Over seeds: the paired t-test, since
    with five pairs no rank test can fall below 0.0625; not corrected. Both are over the seeds that both rows have.
    """
    (reference,) = (row for row in rows if row.key == REFERENCE)
    others = [row for row in rows if row.key != REFERENCE]
    found = [paired(*by_client(reference.scores[measure], row.scores[measure]), seed=0) for row in others]
    corrected = holm([one.p for one in found])
    result = {}
    for row, one, p in zip(others, found, corrected, strict=True):
        a, b = by_seed(reference.scores[measure], row.scores[measure])
        result[row.key] = one.difference, p, float(stats.ttest_rel(a, b).pvalue) if len(a) > 1 else None
    return result


def table(rows: Sequence[Measured]) -> str:
    """Markdown."""
    found = {measure: against_the_reference(rows, measure) for measure in MEASURES}
    lines = [
        "| row | own classes | others' classes | mean of both | difference of the means | p, clients | p, seeds |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row.mean(measure):.2f} ± {row.std(measure):.2f}" for measure in MEASURES]
        if row.key == REFERENCE:
            cells += ["", "", ""]
        else:
            difference, p, p_seeds = found["both"][row.key]
            cells += [f"{difference:+.2f}", _p(p), _p(p_seeds)]
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    lines += ["", "Difference: the first row minus this one.", ""]
    for measure in ("own", "others"):
        words = [
            f"{row.label} {found[measure][row.key][0]:+.2f} (p = {_p(found[measure][row.key][1])} over clients, "
            f"{_p(found[measure][row.key][2])} over seeds)"
            for row in rows
            if row.key != REFERENCE
        ]
        lines += [f"The same for {measure} classes alone: " + "; ".join(words) + ".", ""]
    return "\n".join(lines)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


@styled
def picture(rows: Sequence[Measured]) -> Figure:
    """Own classes against others' classes, a point for each row, with one standard deviation over seeds."""
    figure = Figure(figsize=(8.5, 6.4), layout="constrained")
    axes = figure.subplots()
    groups = (("neighbours", "#1b6ca8", "o"), ("pfedmoap", "#c0392b", "s"), ("", "#555555", "D"))
    for number, row in enumerate(rows, start=1):
        _, colour, marker = next(group for group in groups if row.key.startswith(group[0]))
        x, y, across, up = row.mean("own"), row.mean("others"), row.std("own"), row.std("others")
        name = f"{number}  {row.label}"
        axes.errorbar(x, y, xerr=across, yerr=up, fmt=marker, color=colour, markersize=7, elinewidth=0.8, label=name)
        axes.annotate(str(number), (x, y), xytext=(7, 5), textcoords="offset points", fontsize=10, color=colour)
    axes.set_xlabel("accuracy on own classes, %")
    axes.set_ylabel("accuracy on classes that only others of the domain hold, %")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Table, paired tests and picture of finished runs.", allow_abbrev=False
    )
    parser.add_argument("out", type=Path, help="folder that make reproduce-experts_matter wrote")
    parser.add_argument("--preset", help="preset of the manifest that was run")
    parser.add_argument("--picture", type=Path, help="where to write the picture (PNG)")
    options = parser.parse_args(arguments)
    try:
        rows = read(options.out, options.preset)
        print(table(rows))
        if options.picture is not None:
            save(picture(rows), options.picture)
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
