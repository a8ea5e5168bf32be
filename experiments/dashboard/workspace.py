"""Creates the W&B workspace of fedmoe: ``python -m experiments.dashboard.workspace --entity NAME [--project fedmoe]``.

Needs a W&B account and the package wandb-workspaces. The panels are data (``SECTIONS``), named as in the README.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fedmoe.tracking.names import FINAL, MEDIA, METRICS


@dataclass(frozen=True)
class Panel:
    """A panel: a line plot over rounds (``lines``), bars of the summary (``bars``), pictures or a table (``media``), or
    two numbers of each run against each other (``scatter``: x, then y)."""

    title: str
    kind: str
    metrics: tuple[str, ...]
    unit: str = ""

    def __post_init__(self) -> None:
        assert self.kind in ("lines", "bars", "media", "scatter")
        unknown = set(self.metrics) - {*METRICS, *FINAL, *MEDIA}
        assert not unknown, unknown


SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Result": (
        Panel("Mean accuracy over clients", "lines", ("accuracy/mean",), "%"),
        Panel("Worst tenth of the clients", "lines", ("accuracy/worst_decile",), "%"),
        Panel("Spread over clients (standard deviation)", "lines", ("accuracy/std",), "%"),
        Panel("Worst and best client", "lines", ("accuracy/min", "accuracy/max"), "%"),
        Panel("On the validation splits", "lines", ("validation/accuracy/mean", "validation/accuracy/std"), "%"),
        Panel("On classes that only others hold", "lines", ("accuracy_others/mean", "accuracy_others/std"), "%"),
        Panel("Training minus test accuracy", "lines", ("generalization/gap",), "points"),
        Panel("On the training images", "lines", ("generalization/train_accuracy",), "%"),
        Panel("Over all test examples", "lines", ("quality/weighted", "quality/balanced", "quality/ece"), "%"),
        Panel("Last round: mean accuracy", "bars", ("final/accuracy_mean",), "%"),
    ),
    "Classes": (
        Panel("Accuracy of each class", "media", ("classes/table",)),
        Panel("True and predicted classes", "media", ("classes/confusion",)),
    ),
    "Training": (
        Panel("Training loss", "lines", ("train/loss",)),
        Panel("Prompt drift", "lines", ("train/prompt_drift",), "l2 distance to the global prompt"),
        Panel("Share of clients that took part", "lines", ("clients/seen_share",)),
        Panel("Clients that failed", "lines", ("clients/failed",)),
        Panel("Privacy spent", "lines", ("privacy/epsilon",), "epsilon"),
    ),
    "Experts": (
        Panel("Attention on the local expert", "lines", ("attention/local",)),
        Panel("Entropy of the weights", "lines", ("gate/entropy", "gate/entropy_p10"), "1: uniform"),
        Panel("Largest weight", "lines", ("gate/top_share",)),
        Panel("Contribution of the experts", "lines", ("gate/expert_contribution",), "points"),
        Panel("Who uses whose prompt", "media", ("experts/assignment",)),
        Panel("Attention per expert (figure 6)", "media", ("experts/attention",)),
    ),
    "Attack": (
        Panel("Honest clients and attackers", "lines", ("attack/honest_accuracy", "attack/attackers_accuracy"), "%"),
        Panel("Success of the attack", "lines", ("attack/success",), "%"),
        Panel("Attackers among the experts", "lines", ("attack/expert_share",), "%"),
    ),
    "Clients": (
        Panel("Labels on each client", "media", ("clients/labels",)),
        Panel("All clients", "media", ("clients/table",)),
    ),
    "Cost": (
        Panel("Seconds by phase", "lines", ("seconds/train", "seconds/evaluate", "seconds/other"), "s"),
        Panel("Bytes of a round", "lines", ("bytes/down", "bytes/up", "bytes/evaluate_down"), "bytes"),
        Panel("Accuracy against seconds", "scatter", ("final/seconds", "final/accuracy_mean")),
        Panel("Accuracy against upload", "scatter", ("final/bytes_up", "final/accuracy_mean")),
    ),
}


def build(entity: str, project: str) -> Any:
    """The workspace, not saved yet: one section for each entry of ``SECTIONS``, runs grouped by their W&B group.

    Raises:
        ImportError: wandb-workspaces is not installed.
    """
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    def panel(p: Panel) -> Any:
        if p.kind == "lines":
            return reports.LinePlot(
                title=p.title, x="round", y=list(p.metrics), title_x="round", title_y=p.unit or None,
                groupby_aggfunc="mean", groupby_rangefunc="stddev",
            )  # fmt: skip
        if p.kind == "bars":
            return reports.BarPlot(
                title=p.title, metrics=[reports.SummaryMetric(m) for m in p.metrics], title_x=p.unit or None
            )
        if p.kind == "scatter":
            x, y = (reports.SummaryMetric(m) for m in p.metrics)
            return reports.ScatterPlot(title=p.title, x=x, y=y)
        if p.metrics[0].endswith("/table"):
            return reports.WeavePanelSummaryTable(table_name=p.metrics[0])
        return reports.MediaBrowser(title=p.title, media_keys=list(p.metrics))

    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="fedmoe",
        sections=[
            workspaces.Section(name=name, panels=[panel(p) for p in panels], is_open=True)
            for name, panels in SECTIONS.items()
        ],
        settings=workspaces.WorkspaceSettings(x_axis="round", smoothing_type="none"),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric("Group")],
            order=[workspaces.Ordering(workspaces.Summary("final/accuracy_mean"), ascending=False)],
        ),
    )


def main(args: Sequence[str] | None = None) -> int:
    """Create the workspace; the exit code: 0, or 2 with one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dashboard.workspace", description=__doc__)
    parser.add_argument("--entity", required=True, help="W&B's user or team")
    parser.add_argument("--project", default="fedmoe", help="W&B's project (default: fedmoe)")
    given = parser.parse_args(args)
    try:
        workspace = build(given.entity, given.project)
    except ImportError as error:
        print(f"The package wandb-workspaces is missing ({error}); pip install wandb-workspaces.", file=sys.stderr)
        return 2
    try:
        workspace.save()
    except Exception as error:  # the library and the server raise many kinds
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        print(f"W&B did not take the workspace: {reason}.", file=sys.stderr)
        return 2
    print(workspace.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
