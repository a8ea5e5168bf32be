"""The workspace of experiments/dashboard, which shows in W&B what is tracked."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from wandb_server import WandbServer

from experiments.dashboard import workspace
from experiments.dashboard.workspace import SECTIONS
from fedmoe.tracking.names import MEDIA, METRICS
from tracking.helpers import README


def test_workspace_shows_every_number_and_picture() -> None:
    shown = {name for panels in SECTIONS.values() for panel in panels for name in panel.metrics}
    assert {*METRICS, *MEDIA} - {"round"} <= shown


def test_workspace_without_its_package_or_an_account_is_one_sentence() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "experiments.dashboard.workspace", "--entity", "me"],
        cwd=README.parents[2], stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
    assert "pip install wandb-workspaces" in found.stderr or "did not take the workspace" in found.stderr


def test_workspace_is_saved_with_every_panel(server: WandbServer, capsys: pytest.CaptureFixture[str]) -> None:
    """To the last call that the script makes, with the package that makes it."""
    pytest.importorskip("wandb_workspaces")
    assert workspace.main(["--entity", "me", "--project", "fedmoe"]) == 0
    (view,) = server.views
    assert (view["entityName"], view["projectName"], view["type"]) == ("me", "fedmoe", "project-view")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert {section["name"]: len(section["panels"]) for section in sections} == {
        name: len(panels) for name, panels in SECTIONS.items()
    }
    saved = json.dumps(sections)
    assert all(f'"{name}"' in saved for name in {*METRICS, *MEDIA} - {"round"})
    assert capsys.readouterr().out.startswith(f"{server.url}/me/fedmoe?nw=")
