"""Independent runs side by side: tables, paired tests and curves, printed and written to a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedmoe import __version__
from fedmoe.errors import UserError, printable
from fedmoe.io import write_json_atomic, write_text_atomic
from fedmoe.readers.regular import MIB, read_regular
from fedmoe.report import compare_figure, compare_page, compare_tables, tables
from fedmoe.report.groups import Group, read_groups
from fedmoe.report.outside import require_own
from fedmoe.report.plot_style import save

_PROOF = "compare.json"  # written first: what shows that the folder is ours
_FILES = ("comparison.md", "comparison.csv", "comparison_tests.csv", "comparison.tex", "comparison.html")
_CURVES = tuple(f"curves.{kind}" for kind in compare_figure.FORMATS)


def compare_runs(paths: Sequence[Path], output: Path, console: Console) -> None:
    """Compare the runs in ``paths``, at least two groups of them.

    Raises:
        UserError: a run cannot be used or paired with the others, all have the same settings, or ``output`` holds
            something else.
    """
    require_ours(output)
    groups = read_groups(paths)
    if len(groups) < 2:
        seeds = ", ".join(map(str, groups[0].seeds))
        raise UserError(
            f"All runs have the same settings ({groups[0].label}, seeds {seeds}); valid are runs of at least two "
            "settings, beside the seed."
        )
    _write(groups, output, "Comparison", console)


def summarize_seeds(folders: Sequence[Path], output: Path, console: Console) -> None:
    """The table and curve of runs that differ in nothing but their seed; errors as in ``compare_runs``."""
    require_ours(output)
    _write(read_groups(folders), output, "Over seeds", console)


def require_ours(output: Path) -> None:
    """Refuse a folder that holds anything but an earlier comparison.

    Raises:
        UserError: it does, or is no folder.
    """
    if not os.path.lexists(output):
        return
    valid = "valid is a new folder, an empty one, or that of an earlier comparison"
    try:
        names = {path.name for path in output.iterdir() if not path.match(".*.tmp*")}
    except OSError as error:
        raise UserError(f"{output} cannot be written to: {error.strerror}; {valid}.") from None
    foreign = sorted(names - {_PROOF, *_FILES, *_CURVES})
    if foreign or (names and not _is_proof(output / _PROOF)):
        named = foreign or sorted(names)
        raise UserError(f"{output} holds {named[0]!r}, which no comparison has written; {valid}.")
    for name in names:
        require_own(output, output / name)


def _is_proof(path: Path) -> bool:
    try:
        said = json.loads(read_regular(path, MIB))
    except (UserError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and isinstance(said.get("fedmoe"), str) and isinstance(said.get("groups"), list)


def _write(groups: Sequence[Group], output: Path, title: str, console: Console) -> None:
    pairs = compare_tables.compare_pairs(groups)
    shown = [compare_tables.group_table(groups, title), *([compare_tables.pair_table(pairs)] if pairs else [])]
    figure = compare_figure.curves(groups)
    texts = {
        "comparison.md": compare_tables.markdown_of(shown),
        "comparison.csv": compare_tables.groups_csv(groups),
        "comparison_tests.csv": compare_tables.pairs_csv(pairs) if pairs else None,
        "comparison.tex": compare_tables.latex_of(shown),
        "comparison.html": compare_page.render(groups, pairs, shown),
    }
    proof = [
        {"label": group.label, "seeds": list(group.seeds), "runs": [str(run.path) for run in group.runs.values()]}
        for group in groups
    ]
    try:
        write_json_atomic(output / _PROOF, {"fedmoe": __version__, "groups": proof})
        for name, text in texts.items():
            if text is not None:
                write_text_atomic(output / name, text)
        for name in _CURVES:
            save(figure, output / name)
    except OSError as error:
        raise UserError(
            f"{error.filename or output} cannot be written: {error.strerror}; valid is a folder that can be written to."
        ) from None
    for table in shown:
        tables.show(table, console)
    line = f"  Tables, curves and page: {output}"
    console.print(printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)
