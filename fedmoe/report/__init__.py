"""What people see of a run or a comparison: a table in the terminal, plots, a Markdown table, and a page.

``report`` works on finished, interrupted and running runs alike, and only reads and writes their folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.display import say
from fedmoe.errors import UserError, did_you_mean, some

if TYPE_CHECKING:
    from rich.console import Console

    from fedmoe.report.comparison import Comparison
    from fedmoe.report.plot_style import Chart
    from fedmoe.report.run import Run

__all__ = ["plan_comparison", "report"]


def report(path: Path, console: Console, pdf: bool = False, *, svg: bool = False, latex: bool = False) -> None:
    """Write the plots of the run, the comparison or the folder of runs in ``path`` anew and print its table.

    A run gets plots/*.png. A comparison gets plots/*.png, comparison.md and the ``results`` in comparison.json; a
    folder of runs gets the first two. With ``pdf`` and ``svg``, each plot is written in these formats, too; with
    ``latex``, the table is written as table.tex, or comparison.tex.

    Raises:
        UserError: if ``path`` is none of them, naming the nearest folder that is; or if a file cannot be used.
    """
    from fedmoe.report.comparison import is_comparison, read_comparison, read_folder
    from fedmoe.report.run import is_run, read_run

    path = Path(path)
    suffixes = [".png", *([".pdf"] if pdf else []), *([".svg"] if svg else [])]
    if is_comparison(path):
        _report_comparison(read_comparison(path), console, suffixes, latex)
    elif is_run(path):
        _report_run(read_run(path), console, suffixes, latex)
    elif runs := [name for name, folder in _reportable(path).items() if is_run(folder)]:
        _report_comparison(read_folder(path, runs), console, suffixes, latex)
    else:
        raise UserError(neither_sentence(path))


def plan_comparison(path: Path, labels: Sequence[str]) -> None:
    """Make ``path`` a comparison folder: its comparison.json names the sub-folders of the runs that belong to it.

    To be called before the first run, so that runs that are still missing can be told from runs that were never meant.
    """
    from fedmoe.io import write_json_atomic

    write_json_atomic(Path(path) / "comparison.json", {"labels": list(labels), "results": []})


def _report_run(run: Run, console: Console, suffixes: Sequence[str], latex: bool) -> None:
    from fedmoe.io import write_text_atomic
    from fedmoe.report import accuracy, compare_tables, plots, tables
    from fedmoe.report.outside import require_own
    from fedmoe.report.plot_style import save

    figures = {"label_distribution": plots.label_distribution(run.labels)}
    if run.evaluated:
        figures["accuracy_over_rounds"] = accuracy.accuracy_over_rounds(run)
    if accuracy.last_accuracies(run) is not None:
        figures["client_accuracies"] = accuracy.client_accuracies({run.label: run})
    if any(r.attention for r in run.rounds):
        figures["expert_attention"] = plots.expert_attention(run)
    files, table = _plot_files(run.path, figures, suffixes), tables.run_table(run)
    tex = require_own(run.path, run.path / "table.tex")
    try:
        for file, figure in files.items():
            save(figure, file)
        if latex:
            write_text_atomic(tex, compare_tables.latex_of([table]))
    except OSError as error:
        raise UserError(_not_written(run.path, error)) from None
    tables.show(table, console)
    say(console, f"  Plots: {run.path / 'plots'}{f'; LaTeX: {tex}' if latex else ''}")


def _report_comparison(comparison: Comparison, console: Console, suffixes: Sequence[str], latex: bool) -> None:
    from fedmoe.io import write_json_atomic, write_text_atomic
    from fedmoe.report import accuracy, compare_tables, plots, tables
    from fedmoe.report.comparison import is_comparison
    from fedmoe.report.outside import require_own
    from fedmoe.report.plot_style import save

    path, figures = comparison.path, {}
    runs = {label: run for label, run in comparison.runs.items() if run.last}
    if runs:
        figures["accuracy_over_rounds"] = accuracy.compare_over_rounds(runs)
    if any(accuracy.last_accuracies(run) is not None for run in runs.values()):
        figures["client_accuracies"] = accuracy.client_accuracies(runs)
    if comparison.same_clients:
        figures["label_distribution"] = plots.label_distribution(next(iter(comparison.runs.values())).labels)
    table = tables.comparison_table(comparison)
    files = _plot_files(path, figures, suffixes)
    for name in ("comparison.json", "comparison.md", "comparison.tex"):
        require_own(path, path / name)
    try:
        for file, figure in files.items():
            save(figure, file)
        if is_comparison(path):  # a folder of runs does not become one by being looked at
            results = {**comparison.manifest, "results": tables.comparison_results(comparison)}
            write_json_atomic(path / "comparison.json", results)  # keeps what others wrote there
        if latex:
            write_text_atomic(path / "comparison.tex", compare_tables.latex_of([table]))
        write_text_atomic(path / "comparison.md", tables.to_markdown(table))
    except OSError as error:
        raise UserError(_not_written(path, error)) from None
    tables.show(table, console)
    say(console, (f"  Plots: {path / 'plots'}; table: " if figures else "  Table: ") + str(path / "comparison.md"))


def _plot_files(path: Path, figures: Mapping[str, Chart], suffixes: Sequence[str]) -> dict[Path, Chart]:
    """Where each figure goes; no part of it may be a link."""
    from fedmoe.report.outside import require_own

    places = {path / "plots" / f"{name}{suffix}": figure for name, figure in figures.items() for suffix in suffixes}
    return {require_own(path, place): figure for place, figure in places.items()}


def _not_written(path: Path, error: OSError) -> str:
    return (
        f"{error.filename or path} cannot be written: {error.strerror}; valid is a run folder that can be written to."
    )


def neither_sentence(path: Path) -> str:
    """The sentence for a path that is no run and no comparison, with what is near it."""
    valid = "a run folder (with rounds.jsonl) {} a comparison folder (with comparison.json)"
    inside = _reportable(path)
    if inside:
        return f"{path} is a folder of runs; valid is one of them: {some([*map(str, inside.values())])}."
    near = {**_reportable(Path("runs")), **_reportable(path.parent)}
    hint = did_you_mean(path.name, near)
    for name, folder in near.items():
        hint = hint.replace(repr(name), repr(str(folder)))
    found = f"is neither {valid.format('nor')}" if path.exists() else f"does not exist; valid is {valid.format('or')}"
    return f"{path} {found}{hint or '.'}"


def _reportable(folder: Path) -> dict[str, Path]:
    """Name -> path of the runs and comparisons in ``folder``; none where it is no folder that can be read."""
    from fedmoe.report.comparison import is_comparison
    from fedmoe.report.run import is_run

    try:
        return {child.name: child for child in sorted(folder.iterdir()) if is_run(child) or is_comparison(child)}
    except OSError:
        return {}
