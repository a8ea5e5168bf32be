"""Scoring the last checkpoint of a run again, also on classes and data that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedmoe.config import (
    EngineConfig,
)
from fedmoe.data.base import DataSet
from fedmoe.errors import UserError
from fedmoe.experiment.session import Session
from fedmoe.experiment.settings import Experiment
from fedmoe.federation.fleet import LocalFleet
from fedmoe.federation.late import score_late_clients
from fedmoe.federation.novel import TestImages, score_classes
from fedmoe.federation.restore import read_state, restore
from fedmoe.federation.transfer import score_transfer
from fedmoe.io import write_json_atomic
from fedmoe.protocol.method import Method
from fedmoe.protocol.records import RoundContext
from fedmoe.runs.checkpoint import StateStore
from fedmoe.runs.folder import packed_before, require_format


def evaluate(
    session: Session,
    method: Method,
    folder: Path,
    classes: bool = False,
    join_rounds: int = 1,
    best: bool = False,
    targets: Mapping[str, DataSet] | None = None,
) -> dict[str, Any]:
    """Score the clients of a run folder again from its last checkpoint; returns the contents of evaluation.json.

    With ``best``, from the checkpoint of the round with the best validation accuracy instead.

    ``accuracy``: over clients in percent: mean, std, min, max, worst_decile. ``classes``, if asked for: a
    ``ClassScores``. ``late``, where there are late clients: a ``LateScores`` after ``join_rounds`` rounds.
    ``transfer``, if there are ``targets`` (name -> data set): a ``TransferScores``.

    Raises:
        UserError: the folder holds no checkpoint, the run held out no classes, or its prompts fit no other classes.
    """
    require_format(folder)
    state = read_state(StateStore(folder / "state"), best)
    if state is None and best:
        raise UserError(
            f"{folder} holds no checkpoint chosen by validation; valid is a run with federation.validation."
        )
    if state is None:
        raise UserError(f"{folder} holds no checkpoint; valid is the folder of a run that fit has started.")
    if join_rounds < 1:
        raise UserError(f"join_rounds is {join_rounds}; valid is an integer of at least 1.")
    novel = novel_classes(session.experiment) if classes else None
    session.packed = packed_before(folder)
    if targets:
        require_generic(session.experiment)
    federation = session.federation(method, engine=EngineConfig())  # its checkpoint holds what simulated clients keep
    restore(federation, state, folder)
    context = RoundContext(state.round, (), session.experiment.seed)
    found: dict[str, Any] = {"round": state.round, "accuracy": federation.evaluate(context).accuracy}
    fleet, server = federation.fleet, federation.server
    assert isinstance(fleet, LocalFleet)
    if novel is not None:
        images, known = session.test_images(method, novel), len(session.data(method).class_names)
        base = images.labels < known
        base_images = TestImages(images.features[base], images.labels[base])
        novel_images = TestImages(images.features[~base], images.labels[~base] - known)
        module = session.module(method, novel.class_names[known:])
        scores = score_classes(fleet, module, server, context, base_images, novel_images, federation.defences)
        found["classes"] = asdict(scores)
    if federation.config.late_clients:
        late = score_late_clients(fleet, method, server, federation.config, context, join_rounds, federation.defences)
        found["late"] = asdict(late)
    if targets:
        ready = {name: session.target(method, data) for name, data in targets.items()}
        found["transfer"] = asdict(score_transfer(fleet, server, context, ready, federation.defences))
    write_json_atomic(folder / "evaluation.json", found)
    return found


def novel_classes(experiment: Experiment) -> DataSet:
    """The run's data set with all of its classes; those after the run's own are novel.

    Raises:
        UserError: the run used all classes, or has class-specific contexts.
    """
    base, whole = experiment.data, replace(experiment.data, subset=replace(experiment.data.subset, classes=None))
    count, total = base.subset.classes, len(whole.class_names)
    if count is None or count >= total:
        raise UserError(
            f"data.subset.classes is {count}, so the run held no class of {base.name!r} out; novel classes need a run "
            f"with 1 to {total - 1} of its {total}."
        )
    require_generic(experiment)
    return whole


def require_generic(experiment: Experiment) -> None:
    """Raise a UserError where prompts belong to classes, and so know no others."""
    if experiment.prompt.class_specific:
        raise UserError("prompt.class_specific is true: such prompts know no novel classes; valid is false.")
