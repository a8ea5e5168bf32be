"""The finished runs as a table and a picture.

Everything is over seeds: means, and the sample standard deviation. A change is against the same seeds' runs of the
same method without attack and without defence.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.robustness.plan import ATTACKS, CONTROLS, DEFENCES, METHODS, Choice, Planned
from fedmoe.errors import UserError
from fedmoe.report.plot_style import styled

Key = tuple[str, str, str]  # method, attack, defence
_NUMBERS = ("honest_accuracy", "attackers_accuracy", "success", "expert_share")
_NONE = "none"


@dataclass(frozen=True)
class Row:
    """What a method, an attack and a defence gave: each number by seed."""

    method: Choice
    attack: Choice
    defence: Choice
    numbers: Mapping[str, Mapping[int, float]]
    change: Mapping[int, float]  # of the honest clients' accuracy, in points
    success_never: Mapping[int, float]  # the share of images that look like successes without any attack

    @property
    def seeds(self) -> list[int]:
        return sorted(self.numbers["honest_accuracy"])

    def mean(self, name: str) -> float | None:
        return _mean(self.numbers[name])

    @property
    def std(self) -> float | None:
        values = list(self.numbers["honest_accuracy"].values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def read(runs: Sequence[Planned], out: Path) -> list[Row]:
    """The rows of all finished runs, in the order of methods, attacks and defences.

    Raises:
        UserError: there are none.
    """
    found: dict[Key, dict[int, dict[str, float]]] = {}
    for one in runs:
        try:
            summary = json.loads((out / one.name / "summary.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        if summary["rounds"] == one.rounds and summary["attack"]:
            found.setdefault((one.method.key, one.attack.key, one.defence.key), {})[one.seed] = summary["attack"]
    rows = []
    for method in METHODS:
        base = found.get((method.key, _NONE, _NONE), {})
        for attack in ATTACKS:
            for defence in DEFENCES:
                own = found.get((method.key, attack.key, defence.key), {})
                own = {seed: numbers for seed, numbers in own.items() if seed in base}
                if not own:
                    continue
                numbers = {name: {s: n[name] for s, n in own.items() if name in n} for name in _NUMBERS}
                change = {s: n["honest_accuracy"] - base[s]["honest_accuracy"] for s, n in own.items()}
                never = found.get((method.key, _control(attack), _NONE), {})
                expected = {s: n["success"] for s, n in never.items() if s in numbers["success"]}
                rows.append(Row(method, attack, defence, numbers, change, expected))
    if not rows:
        raise UserError(f"{out} holds no finished run; valid is a folder that this command has filled.")
    return rows


def _control(attack: Choice) -> str:
    """The attack that counts the same successes, and never begins."""
    key = attack.key.removesuffix("_scaled")
    return CONTROLS[key].key if key in CONTROLS else _NONE


def to_csv(rows: Sequence[Row]) -> str:
    """A line for each row."""
    text = io.StringIO()
    names = [
        "method",
        "attack",
        "defence",
        "seeds",
        "honest_accuracy",
        "std",
        "change",
        "attackers_accuracy",
        "success",
    ]
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow([*names, "success_without_attack", "expert_share"])
    for row in rows:
        values = [row.mean("honest_accuracy"), row.std, _mean(row.change), row.mean("attackers_accuracy")]
        values += [row.mean("success"), _mean(row.success_never), row.mean("expert_share")]
        labels = [row.method.label, row.attack.label, row.defence.label, len(row.seeds)]
        lines.writerow([*labels, *("" if value is None else f"{value:.2f}" for value in values)])
    return text.getvalue()


def to_markdown(rows: Sequence[Row], seeds: int, rounds: int, machine: str) -> str:
    """The page: the table, and what the experts are to blame for."""
    counts = sorted({len(row.seeds) for row in rows})
    told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lines = [
        f"`python -m experiments.robustness --seeds {seeds} --rounds {rounds}` on {machine}; {told} seeds a cell.",
        "",
        "Mean accuracy of the honest clients in % ± sample standard deviation over seeds; after the bar, the attack's "
        "success in %, and in brackets what looks like it in a run without any attack.",
        "",
        *main_table(rows),
        "",
        "Change of the honest clients' accuracy under attack, in points, without defence. In brackets, the "
        "attackers' share of the honest clients' experts in %.",
        "",
        *experts_table(rows),
        "",
    ]
    return "\n".join(lines)


def main_table(rows: Sequence[Row]) -> list[str]:
    """Rows: method and attack. Columns: defences."""
    found = {(row.method.key, row.attack.key, row.defence.key): row for row in rows}
    lines = ["| method | attack | " + " | ".join(defence.label for defence in DEFENCES) + " |"]
    lines.append("|---|---|" + "---:|" * len(DEFENCES))
    for method in METHODS:
        for attack in ATTACKS:
            cells = [_cell(found.get((method.key, attack.key, defence.key))) for defence in DEFENCES]
            if any(cells):
                lines.append(f"| {method.label} | {attack.label} | " + " | ".join(cells) + " |")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    accuracy = f"{row.mean('honest_accuracy'):.1f}" + ("" if row.std is None else f" ± {row.std:.1f}")
    success, never = row.mean("success"), _mean(row.success_never)
    if success is None or row.attack.key == _NONE:
        return accuracy
    expected = f" ({never:.0f})" if never is not None and row.defence.key == _NONE else ""
    return f"{accuracy} \\| {success:.0f}{expected}"


def experts_table(rows: Sequence[Row]) -> list[str]:
    """Rows: attacks. Columns: methods, whose experts, if they have any, may be attackers'."""
    found = {(row.method.key, row.attack.key): row for row in rows if row.defence.key == _NONE}
    lines = ["| attack | " + " | ".join(method.label for method in METHODS) + " |"]
    lines.append("|---|" + "---:|" * len(METHODS))
    for attack in ATTACKS:
        cells = []
        for method in METHODS:
            row = found.get((method.key, attack.key))
            change, share = (_mean(row.change), row.mean("expert_share")) if row else (None, None)
            cells.append(("" if change is None else f"{change:+.1f}") + ("" if share is None else f" ({share:.0f})"))
        lines.append(f"| {attack.label} | " + " | ".join(cells) + " |")
    return lines


@styled
def picture(rows: Sequence[Row]) -> Figure:
    """A panel for each method: attacks against defences, the change of the honest clients' accuracy as colour."""
    present = [method for method in METHODS if any(row.method is method for row in rows)]
    columns = min(3, len(present))
    figure = Figure(figsize=(5.0 * columns, 4.0 * -(-len(present) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(present) // columns), columns, squeeze=False).ravel()
    image = None
    for axes in grid[len(present) :]:
        axes.axis("off")
    for axes, method in zip(grid, present, strict=False):
        own = {(row.attack.key, row.defence.key): row for row in rows if row.method is method}
        tried = [defence for defence in DEFENCES if any(key == defence.key for _, key in own)]
        values = np.full((len(ATTACKS), len(tried)), np.nan)
        for i, attack in enumerate(ATTACKS):
            for j, defence in enumerate(tried):
                row = own.get((attack.key, defence.key))
                values[i, j] = np.nan if row is None else _mean(row.change) or 0.0
        image = axes.imshow(values, cmap="RdBu", vmin=-30, vmax=30, aspect="auto")
        _label(axes.text, values)
        axes.set_title(method.label)
        axes.set_xticks(range(len(tried)), [defence.label for defence in tried], rotation=35, ha="right")
        axes.set_yticks(range(len(ATTACKS)), [attack.label for attack in ATTACKS])
        axes.grid(visible=False)
    if image is not None:
        figure.colorbar(image, ax=list(grid), label="change of honest accuracy, points", shrink=0.6, extend="min")
    return figure


def _label(text: Callable[..., object], values: np.ndarray) -> None:
    """Write each number into its field."""
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 18 else "black"
            text(j, i, f"{value:+.1f}", ha="center", va="center", color=colour, fontsize=8)


def _mean(values: Mapping[int, float]) -> float | None:
    return float(np.mean(list(values.values()))) if values else None
