"""Readers of run folders on random input: checkpoints, logs and other records, as in test_fuzz."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import strategies as st

from fedmoe.errors import UserError
from fedmoe.federation.restore import read_state
from fedmoe.federation.state import FederationState
from fedmoe.io import read_jsonl
from fedmoe.protocol.records import ClientState
from fedmoe.report.run import read_run
from fedmoe.report.tables import run_table
from fedmoe.runs.checkpoint import StateStore
from fedmoe.server.state import Known, ServerState
from malformed.random_input import PART, SHARE, Edit, drawn, edited, edits, fuzz, is_sentence, with_value

pytestmark = pytest.mark.usefixtures("bounded")


def save_state(folder: Path) -> None:
    prompts = [torch.full((2, 4), float(i)) for i in range(4)]
    server = ServerState({"prompt": prompts[0]}, {"prompt": {}}, frozenset({"prompt"}))
    state, store = FederationState(0, 3, server), StateStore(folder)
    for number in (0, 1):
        state.round = number + 1
        server.shared["prompt"] = prompts[number]
        server.pool["prompt"][number] = prompts[2 + number]
        server.clients[number] = Known(1, (2,), state.round)
        state.clients[number] = ClientState({"prompt": prompts[2 + number], "gate.weight": torch.ones(2)}, {}, 1)
        store.save(state.round, *state.flatten())


def loads_or_says(folder: Path) -> None:
    try:
        state = read_state(StateStore(folder))
    except UserError as error:
        is_sentence(error)
    else:
        assert state is None or (state.num_clients == 3 and state.server.shared["prompt"].shape == (2, 4))


@drawn(150, 1000)
def test_damaged_states(count: int) -> None:
    whole, spoilt = Path("whole"), Path("spoilt")
    save_state(whole)
    names = sorted(path.name for path in whole.iterdir())

    def check(damages: dict[str, list[Edit]]) -> None:
        shutil.rmtree(spoilt, ignore_errors=True)
        shutil.copytree(whole, spoilt)
        for name, changes in damages.items():
            (spoilt / name).write_bytes(edited((whole / name).read_bytes(), changes))
        loads_or_says(spoilt)

    fuzz(count, check, st.dictionaries(st.sampled_from(names), edits(), min_size=1))


@drawn(200, 1000)
def test_states_of_other_contents(count: int) -> None:
    """Manifests that carry the checksum of what they say, whatever that is."""
    whole, spoilt = Path("whole"), Path("spoilt")
    save_state(whole)
    shutil.copytree(whole, spoilt)
    newest = spoilt / "round-00002.json"
    (spoilt / "round-00001.json").unlink()
    manifest = json.loads(newest.read_text())
    del manifest["checksum"]

    def check(share: float, part: Any) -> None:
        changed = with_value(manifest, share, part)
        if isinstance(changed, dict):
            changed["checksum"] = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        newest.write_text(json.dumps(changed))
        try:
            read_state(StateStore(spoilt))
        except UserError as error:
            is_sentence(error)

    fuzz(count, check, SHARE, PART)


@drawn(150, 1000)
def test_reports_of_other_contents(count: int, whole_run: Path) -> None:
    run = Path("run")
    shutil.copytree(whole_run / "runs" / "run", run)
    names = ["rounds.jsonl", "clients.jsonl", "partition.json", "summary.json", "run.json"]
    texts = {name: (run / name).read_text() for name in names}

    def check(name: str, line: float, share: float, part: Any) -> None:
        for other, text in texts.items():
            (run / other).write_text(text)
        lines = texts[name].splitlines(keepends=True) if name.endswith("l") else [texts[name]]
        number = int(line * len(lines))
        lines[number] = json.dumps(with_value(json.loads(lines[number]), share, part)) + "\n"
        (run / name).write_text("".join(lines))
        try:
            run_table(read_run(run))
        except UserError as error:
            is_sentence(error)

    fuzz(count, check, st.sampled_from(names), SHARE, SHARE, PART)


@drawn(150, 1000)
def test_damaged_logs(count: int, whole_run: Path) -> None:
    whole = (whole_run / "runs" / "run" / "rounds.jsonl").read_bytes()

    def check(changes: list[Edit]) -> None:
        Path("rounds.jsonl").write_bytes(edited(whole, changes))
        try:
            assert all(isinstance(record, dict) for record in read_jsonl("rounds.jsonl"))
        except UserError as error:
            is_sentence(error)

    fuzz(count, check, edits())
