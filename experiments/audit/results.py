"""The finished audits as CSV files and pictures.

An AUC is the mean over clients, of all seeds, each over all of its targets in all audited federations; its interval
(95 %) is Student's t over these clients. What all targets together give is in the column pooled.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import t

from experiments.audit.plan import DEFENCES, METHODS
from fedmoe.report.plot_style import AXIS, INK, OTHER_COLOURS, Chart, limits, styled

THREATS = ("recipient of the average", "recipient of experts", "server", "outsider")
ATTACKS = ("LiRA offline", "LiRA online")


@dataclass(frozen=True)
class Area:
    """The mean AUC over clients, with half the width of its 95 % interval."""

    value: float
    half: float


def read(out: Path, group: str) -> list[dict[str, Any]]:
    """The finished audits of a group, by file name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob(f"{group}-*-seed*.json"))]


def area(audits: Sequence[Mapping[str, Any]], key: str, threat: str, attack: str) -> Area | None:
    """The AUC of an attack on the audits of this key; None where there is none."""
    rows = _rows(audits, key, threat, attack)
    return over_clients(rows) if rows else None


def over_clients(rows: Sequence[Mapping[str, Any]]) -> Area:
    """The mean over the clients of all rows, one of each seed."""
    values = np.array([value for row in rows for value in row["per_client"].values()])
    values = values[np.isfinite(values)]
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Area(float(values.mean()), float(half))


def difference(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> Area:
    """The mean over clients of the difference of their AUCs, rows minus others, paired by seed and client."""
    values = np.array(
        [
            row["per_client"][client] - other["per_client"][client]
            for row, other in zip(rows, others, strict=True)
            for client in row["per_client"].keys() & other["per_client"].keys()
        ]
    )
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Area(float(values.mean()), float(half))


def differences_csv(methods: Sequence[Mapping[str, Any]], defences: Sequence[Mapping[str, Any]]) -> str:
    """What individual prompts tell beyond the average, for each method and attack; and what each defence takes from the
    recipient of experts. Each over clients, paired."""
    lines = []

    def add(what: str, attack: str, rows: list[Any], others: list[Any]) -> None:
        if rows and len(rows) == len(others):
            found = difference(rows, others)
            lines.append(
                {
                    "difference": what,
                    "attack": attack,
                    "auc": f"{found.value:+.4f}",
                    "low": f"{found.value - found.half:+.4f}",
                    "high": f"{found.value + found.half:+.4f}",
                    "seeds": len(rows),
                }
            )

    for one in METHODS:
        for attack in ATTACKS:
            average = _rows(methods, one.key, "recipient of the average", attack)
            for threat in ("recipient of experts", "server", "outsider"):
                add(f"{one.label}: {threat} - average", attack, _rows(methods, one.key, threat, attack), average)
    for one in DEFENCES[1:]:
        for attack in ATTACKS:
            pair = [_rows(defences, key, "recipient of experts", attack) for key in (one.key, DEFENCES[0].key)]
            add(f"{one.label} - no defence", attack, pair[0], pair[1][: len(pair[0])])
    return _csv(lines)


def _rows(audits: Sequence[Mapping[str, Any]], key: str, threat: str, attack: str) -> list[Mapping[str, Any]]:
    """The rows of an attack, by seed."""
    return [
        row
        for found in audits
        if found["key"] == key
        for row in found["membership"]
        if (row["threat"], row["attack"]) == (threat, attack)
    ]


def membership_csv(audits: Sequence[Mapping[str, Any]]) -> str:
    """A line for each audit, attacker and attack."""
    lines = []
    for found in audits:
        for row in found["membership"]:
            rates = {
                f"{name}_{part}": "" if row[name] is None else f"{row[name][part]:.5f}"
                for name in ("tpr_at_1", "tpr_at_0.1")
                for part in ("value", "low", "high")
            }
            own = over_clients([row])
            lines.append(
                {
                    "what": found["name"],
                    "seed": found["seed"],
                    "accuracy": f"{found['accuracy']:.2f}",
                    "audited": found["settings"]["audited"],
                    "shadows": found["settings"]["trials"] - 1,
                    "attacker": row["threat"],
                    "attack": row["attack"],
                    "auc": f"{own.value:.4f}",
                    "low": f"{own.value - own.half:.4f}",
                    "high": f"{own.value + own.half:.4f}",
                    "pooled": f"{row['auc']:.4f}",
                    **rates,
                    "seen": f"{row['reached']:.3f}",
                    "control": f"{row['control']:.4f}",
                }
            )
    return _csv(lines)


def properties_csv(audits: Sequence[Mapping[str, Any]]) -> str:
    """A line for each audit and attacker."""
    lines = []
    for found in audits:
        for row in (found["properties"] or {}).get("rows", []):
            means = {name: f"{row[name]['mean']:.4f}" for name in ("error", "prior", "control", "gain")}
            lines.append(
                {
                    "what": found["name"],
                    "attacker": row["threat"],
                    "shadow_clients": row["shadow_clients"],
                    "victims": row["victims"],
                    **means,
                    "gain_low": f"{row['gain']['low']:.4f}",
                    "gain_high": f"{row['gain']['high']:.4f}",
                    "presence_auc": f"{row['presence_auc']:.4f}",
                }
            )
    return _csv(lines)


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


@styled
def methods_picture(audits: Sequence[Mapping[str, Any]]) -> Figure:
    """The AUC of both kinds of LiRA for each method (rows) and attacker (colours)."""
    names = [one for one in METHODS if any(found["key"] == one.key for found in audits)]
    chart = Chart(1.6 + 0.55 * len(names), "What prompts reveal of membership", "AUC; bars: 95 %; line: guessing")
    panels = chart.subplots(1, 2, sharey=True, sharex=True)
    for axes, attack in zip(panels, ATTACKS, strict=True):
        axes.axvline(0.5, color=AXIS, linewidth=1)
        for place, (threat, colour) in enumerate(zip(THREATS, OTHER_COLOURS, strict=False)):
            found = [(y, area(audits, one.key, threat, attack)) for y, one in enumerate(names)]
            known = [(y + 0.16 * (place - 1.5), a) for y, a in found if a is not None]
            axes.errorbar(
                *([a.value for _, a in known], [y for y, _ in known]),
                xerr=[a.half for _, a in known],
                fmt="o",
                markersize=4,
                linewidth=1.5,
                color=colour,
                label=threat,
            )
        axes.set_title(attack, fontsize=9)
        axes.set(yticks=range(len(names)), yticklabels=[one.label for one in names], ylim=(len(names) - 0.5, -0.5))
        axes.set_xlabel("AUC")
        axes.grid(axis="x")
    chart.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
    return chart


@styled
def defences_picture(audits: Sequence[Mapping[str, Any]], attack: str = "LiRA offline") -> Figure:
    """Accuracy against the AUC of the recipient of experts, a point for each defence."""
    chart = Chart(4.2, "Defences of pFedMoAP's experts", f"{attack} by a recipient of experts; bars: 95 %")
    axes = chart.add_subplot()
    axes.axvline(0.5, color=AXIS, linewidth=1)
    free, seen = iter(OTHER_COLOURS * 2), list[float]()
    for one in DEFENCES:
        found = area(audits, one.key, "recipient of experts", attack)
        if found is None:
            continue
        own = [audit["accuracy"] for audit in audits if audit["key"] == one.key]
        colour = INK if one.key == "none" else next(free)
        mean = sum(own) / len(own)
        seen.append(mean)
        axes.errorbar([found.value], [mean], xerr=[found.half], fmt="o", color=colour, linewidth=1.5, label=one.label)
    axes.set(xlabel="AUC", ylabel="accuracy, %", ylim=limits(seen))
    axes.grid(True)
    chart.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=5)
    return chart
