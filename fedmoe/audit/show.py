"""An audit's numbers as tables, a chart and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fedmoe.display import say
from fedmoe.io import write_json_atomic, write_text_atomic
from fedmoe.report.elements import el
from fedmoe.report.page import charted, html_table, notes_list, whole_page
from fedmoe.report.plot_style import AXIS, METHOD_COLOURS, OTHER_COLOURS, Chart, save, short, styled
from fedmoe.report.tables import NONE, Cell, Table, show

Found = Mapping[str, Any]  # the contents of audit.json for one method
CURVE = "LiRA offline"  # the attack whose curves are drawn, whatever the others achieve: it needs the fewest shadows


def membership_table(audits: Sequence[Found]) -> Table:
    """All attacks on membership."""
    rows = [
        (
            Cell(found["label"]),
            Cell(row["threat"]),
            Cell(row["attack"]),
            Cell(f"{row['auc']:.3f}"),
            Cell(_interval(row["interval"])),
            Cell(_rate(row["tpr_at_1"])),
            Cell(_rate(row["tpr_at_0.1"])),
            Cell(_span(row["per_client"].values())),
            Cell(f"{100 * row['reached']:.0f}"),
            Cell(f"{row['control']:.3f}"),
        )
        for found in audits
        for row in found["membership"]
    ]
    first = audits[0]
    made, shadows = first["settings"]["audited"], first["settings"]["trials"] - 1
    notes = (
        f"{first['pairs']} pairs of targets of {first['clients']} clients; one of each pair is in, by a fair coin. "
        f"{made} federations are attacked, each with {shadows} others as shadows.",
        "AUC: 0.5 is guessing; 95 % interval over clients. TPR: % of members found where so many % of "
        "non-members are taken for members, with its exact 95 % interval.",
        "clients: least and largest AUC of an owner. seen: % of targets whose owner's prompt the attacker has. "
        "control: AUC of the same scores against coins that nobody used.",
    )
    columns = (
        "method",
        "attacker",
        "attack",
        "AUC",
        "95 %",
        "TPR at 1 %",
        "TPR at 0.1 %",
        "clients",
        "seen",
        "control",
    )
    return Table("Membership: was this image in its owner's training set?", columns, tuple(rows), notes)


def properties_table(audits: Sequence[Found]) -> Table | None:
    """Errors of inferred class proportions."""
    rows, notes = [], []
    for found in audits:
        inferred = found["properties"] or {}
        if "not_inferred" in inferred:
            notes.append(f"{found['label']}: {inferred['not_inferred']}")
        for row in inferred.get("rows", []):
            cells = [f"{row[name]['mean']:.3f}" for name in ("error", "prior", "control")]
            gain = f"{row['gain']['mean']:+.3f} [{row['gain']['low']:+.3f}, {row['gain']['high']:+.3f}]"
            texts = (found["label"], row["threat"], *cells, gain, f"{row['presence_auc']:.3f}")
            rows.append(tuple(map(Cell, texts)))
            notes = notes or [
                f"l1 distance of inferred and true proportions, 0 to 2, mean over {row['victims']} clients; prior: the "
                f"mean over {row['shadow_clients']} shadow clients; control: the same regression on shuffled shadows.",
                "gain: prior minus error, 95 % bootstrap interval over clients. presence: AUC of the estimate for "
                "whether the client has a class.",
            ]
    columns = ("method", "attacker", "error", "prior", "control", "gain", "presence")
    title = "Properties: in what proportions does an owner hold the classes?"
    return Table(title, columns, tuple(rows), tuple(notes)) if rows or notes else None


def privacy_table(audits: Sequence[Found]) -> Table | None:
    """Bounds on epsilon that the attacks prove, beside the ones that are claimed."""
    rows, notes = [], []
    for found in audits:
        audited = found["privacy"]
        for row in audited["rows"] if audited else ():
            texts = (row["threat"], row["attack"], f"{row['correct']} of {row['guesses']}")
            claimed = "∞" if audited["claimed_epsilon"] is None else f"{audited['claimed_epsilon']:.3g}"
            bound = Cell(f"{row['epsilon_at_least']:.3f}", row["epsilon_at_least"] > 0)
            rows.append((Cell(found["label"]), *map(Cell, texts), bound, Cell(claimed)))
        if audited:
            verdict = "REFUTED: the mechanism does not do what it claims" if audited["refuted"] else "not refuted"
            notes.append(f"{found['label']}, {audited['mechanism']}, δ = {audited['delta']:g}: {verdict}.")
    columns = ("method", "attacker", "attack", "right guesses", "ε at least", "ε claimed")
    kept = "ε at least: one-run bound; the probability that any of a method's is wrong is at most 5 %."
    return Table("Privacy: what the attacks prove", columns, tuple(rows), (kept, *notes)) if rows else None


@styled
def curves(audits: Sequence[Found]) -> Chart:
    """ROC curves of one attack, a panel for each attacker and a line for each method, both axes logarithmic."""
    threats = list(dict.fromkeys(r["threat"] for found in audits for r in found["membership"] if r["attack"] == CURVE))
    chart = Chart(3.9, "What prompts reveal of membership", f"{CURVE}; dashed: guessing")
    free = iter(OTHER_COLOURS * len(audits))
    colours = [METHOD_COLOURS.get(found["method"]) or next(free) for found in audits]
    panels = chart.subplots(1, max(1, len(threats)), sharey=True, squeeze=False)[0]
    told = []
    for axes, threat in zip(panels, threats, strict=False):
        axes.plot([1e-3, 1], [1e-3, 1], color=AXIS, linestyle=(0, (4, 2)), linewidth=1)
        for found, colour in zip(audits, colours, strict=True):
            for row in found["membership"]:
                if (row["threat"], row["attack"]) == (threat, CURVE):
                    false, true = zip(*row["roc"], strict=True)
                    axes.plot(false, true, color=colour, label=short(found["label"], 30), linewidth=1.5)
                    told.append(f"{found['label']}, {threat}: AUC {row['auc']:.3f}")
        axes.set(xscale="log", yscale="log", xlim=(1e-3, 1), ylim=(1e-3, 1), xlabel="false positive rate")
        axes.set_title(threat, fontsize=9)
        axes.grid(True)
    panels[0].set_ylabel("true positive rate")
    lines: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, handle)
    chart.legend(list(lines.values()), list(lines), loc="outside lower left", ncols=4)
    chart.description = f"ROC curves. {'; '.join(told)}."
    return chart


def tables(audits: Sequence[Found]) -> list[Table]:
    """All tables that the audits have."""
    found = (membership_table(audits), properties_table(audits), privacy_table(audits))
    return [table for table in found if table is not None]


def write(audits: Sequence[Found], folder: Path, console: Console) -> None:
    """Print the tables; write audit.json, roc.png and audit.html."""
    write_json_atomic(folder / "audit.json", list(audits))
    drawn, shown = curves(audits), tables(audits)
    save(drawn, folder / "roc.png")
    parts = [
        [el("h1", "Audit"), el("p", f"{', '.join(found['label'] for found in audits)}.", class_="soft")],
        *([el("h2", table.title), html_table(table.columns, table.rows), notes_list(table.notes)] for table in shown),
        [el("h2", "Curves"), *charted(drawn, "roc")],
    ]
    write_text_atomic(folder / "audit.html", whole_page("Audit", parts))
    for table in shown:
        show(table, console)
    say(console, f"  Audit: {folder / 'audit.json'}, audit.html, roc.png")


def _interval(values: Sequence[float]) -> str:
    return f"[{values[0]:.3f}, {values[1]:.3f}]"


def _rate(found: Mapping[str, float] | None) -> str:
    if found is None:
        return NONE
    return f"{100 * found['value']:.2f} [{100 * found['low']:.2f}, {100 * found['high']:.2f}]"


def _span(values: Any) -> str:
    known = [value for value in values if value == value]
    return f"{min(known):.2f}–{max(known):.2f}" if known else NONE
