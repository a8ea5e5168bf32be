"""Runs: one method into a folder, several side by side, and one for each of several seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fedmoe.display import say
from fedmoe.engine.kinds import keep_run_name, run_name
from fedmoe.errors import UserError
from fedmoe.experiment.session import Session
from fedmoe.experiment.settings import Experiment
from fedmoe.federation.callbacks import Checkpoint, ProgressDisplay, RunLog
from fedmoe.federation.restore import read_state, restore
from fedmoe.io import write_json_atomic, write_text_atomic
from fedmoe.protocol.method import Method
from fedmoe.report import plan_comparison, report
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.folder import clear, held, packed_before, require_format, stamp
from fedmoe.runs.provenance import provenance, versions
from fedmoe.runs.records import RoundRecord, Summary, best_by_validation, last_five, read_rounds
from fedmoe.runs.resume import cut_logs, require_same_settings
from fedmoe.tracking.trackers import trackers

Settings = Mapping[str, Any]  # nested, of plain values: the contents of a config.yaml
Resolve = Callable[[Path], Settings]  # a config.yaml -> its settings, with current defaults for missing ones


def read_settings(path: Path) -> Settings:
    """The settings in a config.yaml, unchanged."""
    settings: Settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings


def run(session: Session, method: Method, settings: Settings, folder: Path, resolve: Resolve = read_settings) -> None:
    """Run one method into ``folder``, or resume where an earlier command with the same settings stopped.

    Args:
        settings: all settings of this run, saved as config.yaml.
        resolve: reads the settings of a run that is resumed.

    Raises:
        UserError: the folder holds a run with other settings or of another format, or the settings do not fit each
            other.
    """
    overwrite = session.experiment.output.overwrite
    if not overwrite:
        require_format(folder)
    store = StateStore(folder / "state", mapped=session.experiment.runtime.client_states == "mapped")
    progress = ProgressDisplay(session.console, method.label)
    tracked = {**settings, "provenance": provenance(type(method))}
    tracking = trackers(session.experiment.tracking, folder, tracked)
    chosen = None if overwrite else packed_before(folder)
    session.packed = session.packed if chosen is None else chosen
    # Built before anything is written or deleted: what does not fit leaves everything as it is.
    federation = session.federation(method, callbacks=[RunLog(folder), Checkpoint(store, folder), *tracking, progress])
    with closing(federation.fleet):
        name = run_name(folder, overwrite)
        federation.clients = federation.fleet.open(name) or federation.clients
        if overwrite:
            clear(folder)
        with held(folder):
            earlier = resolve(folder / "config.yaml") if (folder / "config.yaml").exists() else None
            state = None
            if earlier is not None:
                require_same_settings(folder, earlier, settings)
                state = read_state(store)
                if state is not None:
                    restore(federation, state, folder)
                cut_logs(folder, federation.rounds_done)
            if store.mapped:
                federation.server.scratch = store.folder
            stamp(folder, session.packed)
            if session.experiment.engine.kind == "flower":
                keep_run_name(folder, name)
            write_text_atomic(folder / "config.yaml", yaml.safe_dump(settings, sort_keys=False))
            write_json_atomic(folder / "partition.json", federation.clients)
            if state is not None and state.round < federation.config.rounds:
                say(session.console, f"{method.label}: resuming {folder} after round {state.round}")
            try:
                federation.run()
            finally:
                progress.close()
                for tracker in tracking:
                    tracker.close()
            known = federation.server.clients.values()
            privacy = federation.privacy.summary(max((client.rounds_seen for client in known), default=0))
            _write_summary(folder, method, session, privacy, federation.attackers)


def compare(
    session: Session,
    methods: Sequence[Method],
    each: Sequence[Settings],
    whole: Settings,
    folder: Path,
    resolve: Resolve = read_settings,
) -> None:
    """Run several methods, each in its own folder under ``folder``, with the same clients, data and seed.

    Finished runs are not repeated. ``each`` holds the settings of each single run, and ``whole`` those of the
    comparison, saved as comparison.yaml. The folder is locked against other processes meanwhile.

    Raises:
        UserError: a method does not fit the settings or the data (found before the first one runs).
    """
    labels = _labels(methods)
    for method in methods:
        session.federation(method)
    if session.experiment.output.overwrite:
        clear(folder)
    for label in labels:
        require_format(folder / label)
    with held(folder):
        plan_comparison(folder, labels)
        write_text_atomic(folder / "comparison.yaml", yaml.safe_dump(whole, sort_keys=False))
        for label, method, settings in zip(labels, methods, each, strict=True):
            run(session, method, settings, folder / label, resolve)
            report(folder / label, Console(quiet=True))  # draws its plots; the comparison's table comes at the end


@dataclass(frozen=True)
class SeedRun:
    """One of the runs of several seeds; ``settings`` are kept as its config.yaml."""

    experiment: Experiment
    method: Method
    settings: Settings


def run_seeds(
    plans: Sequence[SeedRun], folder: Path, console: Console, whole: Settings, resolve: Resolve = read_settings
) -> list[Path]:
    """Run one method with several seeds, each in ``folder``/seed<k>, and return these folders.

    Finished runs are not run again. CLIP is loaded once; the data are prepared anew for each seed, on which the
    partition depends. No other process can work in the folder meanwhile. ``whole`` holds the settings beside the seed;
    they are saved as seeds.yaml, with these seeds and those of earlier commands.

    Raises:
        UserError: the folder is a run's or a comparison's, or the settings do not fit each other.
    """
    if any(os.path.lexists(folder / name) for name in ("rounds.jsonl", "config.yaml", "comparison.json")):
        raise UserError(f"{folder} holds a run or a comparison, and no runs of seeds; choose another output.name.")
    folders = [folder / f"seed{plan.experiment.seed}" for plan in plans]
    if not plans[0].experiment.output.overwrite:
        for own in folders:
            require_format(own)
    first = Session(plans[0].experiment, console)
    first.federation(plans[0].method)  # what does not fit leaves everything as it is
    with held(folder):
        kept = folder / "seeds.yaml"
        earlier = read_settings(kept).get("seeds", []) if kept.exists() else []
        seeds = sorted({*earlier, *(plan.experiment.seed for plan in plans)})
        write_text_atomic(kept, yaml.safe_dump({**whole, "seeds": seeds}, sort_keys=False))
        for own, plan in zip(folders, plans, strict=True):
            session = first if plan is plans[0] else Session(plan.experiment, console, first.clip)
            run(session, plan.method, plan.settings, own, resolve)
            report(own, Console(quiet=True))  # its plots; the table over seeds comes at the end
    return folders


def _labels(methods: Sequence[Method]) -> list[str]:
    """A folder name for each method: its class, numbered if a class occurs more than once."""
    names = [type(method).__name__ for method in methods]
    return [name if names.count(name) == 1 else f"{name}-{names[: i + 1].count(name)}" for i, name in enumerate(names)]


def _write_summary(
    folder: Path, method: Method, session: Session, privacy: dict[str, Any] | None, attackers: frozenset[int]
) -> None:
    chosen = {} if session.packed is None else {"packed_weights": session.packed}
    rounds = read_rounds(folder)
    last = [record for record in rounds if record.evaluated][-1]
    summary = Summary(
        method=type(method).__name__,
        label=method.label,
        seed=session.experiment.seed,
        rounds=last.round,
        accuracy=last.accuracy,
        accuracy_per_domain=last.accuracy_per_domain,
        seconds={phase: sum(r.seconds[phase] for r in rounds) for phase in ("train", "evaluate", "other")},
        bytes_down=sum(r.bytes["down"] for r in rounds),
        bytes_up=sum(r.bytes["up"] for r in rounds),
        bytes_evaluate_down=sum(r.bytes["evaluate_down"] for r in rounds),
        failed_clients=_failed_clients(rounds),
        privacy=privacy,
        last_five=last_five(rounds),
        best_by_validation=best_by_validation(rounds),
        quality=last.quality,
        attack=last.attack,
        attackers=sorted(attackers),
        provenance={**provenance(type(method)), **chosen},
        versions=versions(),
    )
    write_json_atomic(folder / "summary.json", summary.to_json())


def _failed_clients(rounds: Sequence[RoundRecord]) -> list[dict[str, Any]]:
    """Which clients were dropped, from which rounds, and the reason of the last time."""
    found: dict[int, dict[str, Any]] = {}
    for record in rounds:
        for client, reason in record.failed.items():
            entry = found.setdefault(int(client), {"client": int(client), "rounds": []})
            entry["rounds"].append(record.round)
            entry["reason"] = reason
    return [found[client] for client in sorted(found)]
