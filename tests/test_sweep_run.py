"""A shipped sweep, run for real: the commands that W&B's agent starts, on the embedded data, against a local server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_sweeps import ROOT, SWEEPS, commands
from wandb_server import WandbServer

# What makes a run of the sweep one of seconds; all else is as W&B's agent starts it.
SMALL = ["--data=Digits", "--data.subset.train=60", "--data.subset.test=60", "--clip.architecture=fedmoe-tiny"]
SMALL += ["--clip.pretrained=glyphs", "--federation.clients=3", "--federation.rounds=2", "--federation.local_epochs=1"]
SMALL += ["--method.num_experts=2", "--optim.prompt_lr=0.02", "--optim.gating_lr=0.02"]


@pytest.mark.slow
def test_a_sweep_is_decided_by_validation_end_to_end(tmp_path: Path) -> None:
    sweep = SWEEPS["lambda"]
    metric = sweep["metric"]["name"]
    lines = [line for line in commands(sweep) if {"--data=DTD", "--seed=1"} <= set(line)]
    chosen = [line for line in lines if {"--method.init_args.lmbda=0.0", "--method.init_args.lmbda=1.0"} & set(line)]
    assert len(chosen) == 2
    server = WandbServer()
    found = {}
    try:
        for number, line in enumerate(chosen):
            name = f"sweep{number}"
            environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
            environment |= {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0123456789" * 4, "WANDB_ENTITY": "me"}
            environment |= {"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": name, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
            command = [sys.executable if word == "python" else word for word in line]
            own = [f"--output.dir={tmp_path}", f"--features.cache_dir={tmp_path / 'cache'}"]
            done = subprocess.run(
                [*command, *SMALL, *own], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            [folder] = tmp_path.glob(f"*-{name}")  # the agent's runs differ in what the name does not show
            records = [json.loads(text) for text in (folder / "rounds.jsonl").read_text().splitlines()]
            config = server.config(name)["method.init_args.lmbda"]
            found[config] = records
            # What the agent's server ranks by is the last value that the run logged: the held-out images' accuracy.
            assert server.runs[name]["summary"][metric] == pytest.approx(records[-1]["validation"]["mean"])
            assert [row[metric] for row in server.history(name)] == pytest.approx(
                [record["validation"]["mean"] for record in records]
            )
    finally:
        server.close()
    assert set(found) == {0.0, 1.0}
    # Validation is not the test split under another name.
    assert any(r["validation"]["mean"] != r["accuracy"]["mean"] for records in found.values() for r in records)
