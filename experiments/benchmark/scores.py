"""What a finished run scored, by the names that a protocol's ``scores`` may have; all in percent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Any

from experiments.reproduce.plan import Run
from fedmoe.errors import UserError
from fedmoe.report.run import Run as Record
from fedmoe.report.run import read_run

Each = Mapping[int, float]  # client -> percent


@dataclass(frozen=True)
class Score:
    """A number of a run: where it stands, and what the leaderboard says of it.

    Attributes:
        formula: in words.
        place: keys in evaluation.json; () for what rounds.jsonl has.
        each: (record, evaluation.json) -> the same of each client alone, for paired tests; a composite is then that of
            the client's own numbers.
        same_images: whether all clients are scored on the same images, at least in part.
    """

    label: str
    formula: str
    each: Callable[[Record, Mapping[str, Any]], Each]
    place: tuple[str, ...] = ()
    same_images: bool = False


def _last(field: str) -> Callable[[Record, Mapping[str, Any]], Each]:
    def each(record: Record, evaluation: Mapping[str, Any]) -> Each:
        scores = record.clients[record.last.round] if record.last else ()
        return {score.client: value for score in scores if (value := getattr(score, field)) is not None}

    return each


def _listed(*place: str) -> Callable[[Record, Mapping[str, Any]], Each]:
    def each(record: Record, evaluation: Mapping[str, Any]) -> Each:
        found: Any = evaluation
        for key in place:
            found = found.get(key, {})
        return dict(enumerate(found))

    return each


def _composite(formula: Callable[[float, float, float], float]) -> Callable[[Record, Mapping[str, Any]], Each]:
    def each(record: Record, evaluation: Mapping[str, Any]) -> Each:
        numbers = evaluation.get("classes", {}).get("clients", {})
        parts = zip(*(numbers.get(name, ()) for name in ("local", "base", "novel")), strict=True)
        return {client: formula(*part) for client, part in enumerate(parts)}

    return each


def _of_classes(label: str, formula: str, name: str) -> Score:
    each = _listed("classes", "clients", name)
    return Score(label, formula, each, ("classes", name, "mean"), same_images=name != "local")


SCORES = {
    "accuracy": Score("Accuracy", "own test images among all classes of the run, last round", _last("accuracy")),
    "others": Score(
        "Others",
        "test images of classes that the client has no training images of (in its domain), last round",
        _last("accuracy_others"),
    ),
    "local": _of_classes("Local", "own classes' test images among all base classes", "local"),
    "base": _of_classes("Base", "all base classes' test images among all base classes", "base"),
    "novel": _of_classes("Novel", "all novel classes' test images among all novel classes", "novel"),
    "harmonic_mean": Score(
        "HM",
        "HM(Base, Novel) = 2 · Base · Novel / (Base + Novel) (CoCoOp)",
        _composite(lambda local, base, novel: harmonic_mean([base, novel])),
        ("classes", "harmonic_mean"),
        same_images=True,
    ),
    "harmonic_mean_with_local": Score(
        "HM of three",
        "3 / (1/Local + 1/Base + 1/Novel) (pFedMMA)",
        _composite(lambda local, base, novel: harmonic_mean([local, base, novel])),
        ("classes", "harmonic_mean_with_local"),
        same_images=True,
    ),
    "combined": Score(
        "CM",
        "(Local + HM) / 2 (FedMGP)",
        _composite(lambda local, base, novel: (local + harmonic_mean([base, novel])) / 2),
        ("classes", "combined"),
        same_images=True,
    ),
    "late": Score(
        "Left out",
        "test images of the domain left out, with what the others learned",
        _listed("late", "each"),
        ("late", "as_they_come", "mean"),
    ),
    "transfer": Score(
        "Targets",
        "all test images of each target, with each client's own model; mean over clients and targets",
        _listed("transfer", "clients"),
        ("transfer", "mean"),
        same_images=True,
    ),
}


def check_scores(names: tuple[str, ...]) -> None:
    """Raise a UserError where a protocol names no score, or one that does not exist."""
    unknown = [name for name in names if name not in SCORES]
    if unknown or not names:
        raise UserError(f"scores has {unknown[0] if unknown else 'no name'!r}; valid is {', '.join(SCORES)}.")


def asked(names: tuple[str, ...], targets: bool) -> set[str]:
    """The sections of evaluation.json that the scores stand in; those of targets only where there are some."""
    found = {SCORES[name].place[0] for name in names if SCORES[name].place}
    return found if targets else found - {"transfer"}


def evaluation(run: Run) -> Mapping[str, Any]:
    """What the run's evaluation.json holds; nothing where there is none."""
    path = run.folder / "evaluation.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@dataclass(frozen=True, eq=False)
class Result:
    """A finished run and its scores; None where it has no such score.

    Attributes:
        each: the first score of each client.
    """

    run: Run
    record: Record
    scores: Mapping[str, float | None]
    each: Each

    @property
    def megabytes(self) -> float:
        """Of all rounds and clients, down and up, without evaluations."""
        return self.course[-1][1]

    @property
    def seconds(self) -> float:
        return self.record.seconds["train"]

    @property
    def course(self) -> list[tuple[int, float, float, float | None]]:
        """(round, MB so far, seconds of training so far, accuracy in percent if the round was evaluated)."""
        found, sent, passed = [], 0.0, 0.0
        for record in self.record.rounds:
            if record.round > 0:
                sent += (record.bytes.get("down", 0) + record.bytes.get("up", 0)) / 1e6
                passed += record.seconds["train"]
            found.append((record.round, sent, passed, record.accuracy["mean"] if record.accuracy else None))
        return found

    def within(self, megabytes: float) -> float | None:
        """The accuracy of the last evaluated round up to which at most so much had been sent."""
        reached = [
            accuracy for _, sent, _, accuracy in self.course if accuracy is not None and sent <= megabytes + 1e-9
        ]
        return reached[-1] if reached else None


def read_result(run: Run, names: tuple[str, ...]) -> Result:
    """The scores of a finished run."""
    record, found = read_run(run.folder), evaluation(run)
    last = record.last
    scores: dict[str, float | None] = {}
    for name in names:
        value: Any = found
        if SCORES[name].place:
            for key in SCORES[name].place:
                value = value.get(key) if isinstance(value, Mapping) else None
        else:
            means = last and (last.accuracy if name == "accuracy" else last.accuracy_others)
            value = means["mean"] if means else None
        scores[name] = None if value is None else float(value)
    return Result(run, record, scores, SCORES[names[0]].each(record, found))
