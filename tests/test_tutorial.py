"""The tutorial, executed: docs/tutorial.py, a notebook in jupytext's percent format."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.py"


def test_every_cell_runs_and_shows_what_its_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))  # where the cache of features lies
    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = []
    for cell in ast.parse(TUTORIAL.read_text()).body:  # a value that stands alone is what a notebook shows
        code = ast.Module([cell], [])
        if isinstance(cell, ast.Expr) and not (isinstance(cell.value, ast.Call) and _prints(cell.value)):
            shown.append(eval(compile(ast.Expression(cell.value), str(TUTORIAL), "eval"), names))
        else:
            exec(compile(code, str(TUTORIAL), "exec"), names)
    result, rounds, figure, clients, gate, compared, predicted = shown
    run = tmp_path / "runs/pfedmoap"
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
    assert last["round"] == 3 and f"{last['accuracy']['mean']:.2f} % after round 3" in repr(result)
    assert rounds.loc[3, "accuracy/mean"] == last["accuracy"]["mean"] and len(rounds) == 4
    assert figure.axes and len(clients) == 6
    assert gate["gate/entropy"] == last["gate"]["entropy"]
    assert isinstance(compared, pd.DataFrame) and list(compared["label"]) == ["pFedMoAP", "PromptFL", "Local adapter"]
    assert len(predicted) == 4 and predicted.filter(like="weight/").shape[1] == 4


def _prints(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id == "print"
