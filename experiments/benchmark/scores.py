"""What a finished run scored, by the names that a protocol's ``scores`` may have; all in percent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.reproduce.plan import Run
from fedmoe.errors import UserError
from fedmoe.report.run import Run as Record
from fedmoe.report.run import read_run


@dataclass(frozen=True)
class Score:
    """A number of a run: where it stands, and what the leaderboard says of it.

    Attributes:
        place: keys in evaluation.json; () for what rounds.jsonl has.
        formula: in words.
    """

    label: str
    formula: str
    place: tuple[str, ...] = ()


SCORES = {
    "accuracy": Score("Accuracy", "own test images among all classes of the run, last round"),
    "others": Score("Others", "test images of classes that the client has no training images of, last round"),
    "local": Score("Local", "own classes' test images among all base classes", ("classes", "local", "mean")),
    "base": Score("Base", "all base classes' test images among all base classes", ("classes", "base", "mean")),
    "novel": Score("Novel", "all novel classes' test images among all novel classes", ("classes", "novel", "mean")),
    "harmonic_mean": Score("HM", "harmonic mean of Base and Novel (CoCoOp)", ("classes", "harmonic_mean")),
    "harmonic_mean_with_local": Score(
        "HM of three", "harmonic mean of Local, Base and Novel (pFedMMA)", ("classes", "harmonic_mean_with_local")
    ),
    "combined": Score("CM", "(Local + HM) / 2 (FedMGP)", ("classes", "combined")),
    "late": Score("Left out", "the domain left out, with what the others learned", ("late", "as_they_come", "mean")),
}


def check_scores(names: tuple[str, ...]) -> None:
    """Raise a UserError where a protocol names no score, or one that does not exist."""
    unknown = [name for name in names if name not in SCORES]
    if unknown or not names:
        raise UserError(f"scores has {unknown[0] if unknown else 'no name'!r}; valid is {', '.join(SCORES)}.")


def evaluate(run: Run, names: tuple[str, ...]) -> int:
    """Score a finished run in the ways that its training did not; the exit code of ``evaluate``."""
    from fedmoe.cli import main

    asked = {SCORES[name].place[0] for name in names if SCORES[name].place}
    found = _evaluation(run)
    if not asked - found.keys():
        return 0
    return main(["evaluate", str(run.folder), f"--classes={str('classes' in asked).lower()}"])


def _evaluation(run: Run) -> Mapping[str, Any]:
    path = run.folder / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run and its scores; None where it has no such score."""

    run: Run
    record: Record
    scores: Mapping[str, float | None]

    @property
    def megabytes(self) -> float:
        """Of all rounds and clients, down and up, without evaluations."""
        return sum(r.bytes.get("down", 0) + r.bytes.get("up", 0) for r in self.record.rounds if r.round > 0) / 1e6

    @property
    def seconds(self) -> float:
        return self.record.seconds["train"]


def read_result(run: Run, names: tuple[str, ...]) -> Result:
    """The scores of a finished run."""
    record, evaluation = read_run(run.folder), _evaluation(run)
    last = record.last
    scores: dict[str, float | None] = {}
    for name in names:
        found: Any = evaluation
        if SCORES[name].place:
            for key in SCORES[name].place:
                found = found.get(key) if isinstance(found, Mapping) else None
        else:
            means = last and (last.accuracy if name == "accuracy" else last.accuracy_others)
            found = means["mean"] if means else None
        scores[name] = None if found is None else float(found)
    return Result(run, record, scores)
