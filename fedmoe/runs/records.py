"""The files of a run folder as records: one model for writing and for reading a file.

Records are validated strictly, both when they are made and when they are read: no string is accepted as a number, no
float as an integer. Unknown keys are ignored, so that an older fedmoe can read a folder. Writing: ``to_json`` and
``fedmoe.io``, which refuses NaN. Reading: ``read_rounds``, ``read_clients`` and ``read_document``; what cannot be used
is a UserError of one sentence that names file, line and key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from fedmoe.errors import UserError, did_you_mean
from fedmoe.readers.regular import MIB, open_regular, read_regular

LOG_BYTES = 256 * MIB  # of rounds.jsonl or clients.jsonl: 2 million lines of clients
DOCUMENT_BYTES = 64 * MIB  # of any other file

Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _with_keys(*keys: str) -> AfterValidator:
    """A mapping that must have these keys."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            if key not in value:
                raise PydanticCustomError("missing_key", "missing", {"key": key})
        return value

    return AfterValidator(check)


def _by_client(value: dict[str, Any]) -> dict[str, Any]:
    if not all(key.isdecimal() and key.isascii() and len(key) < 19 for key in value):
        raise PydanticCustomError("keys", "has a key that is not a client's number")
    return value


ByClient = AfterValidator(_by_client)


class Record(BaseModel):
    """What all records share."""

    model_config = ConfigDict(strict=True, extra="ignore")
    LATER: ClassVar[frozenset[str]] = frozenset()
    """Fields with a default that may be missing in files: those added later, or not used by any reader."""

    def to_json(self) -> dict[str, Any]:
        return self.model_dump()


class Attention(Record):
    """Mean attention over all clients' test images: on the local expert, and on the other ones, which are sorted in
    descending order for each client (``experts``), or anew for each image (``ranked``)."""

    local: Number
    experts: list[Number]
    ranked: list[Number] = []

    LATER = frozenset({"ranked"})


GateNumbers = Annotated[dict[str, Number], _with_keys("entropy", "entropy_p10", "top_share", "expert_contribution")]
"""What a gate over experts does on the test images: mean and 10th percentile of its normalized entropy, and mean of its
largest weight, all in [0, 1]; accuracy with the experts minus that with the local one in their place, in points."""


AttackNumbers = Annotated[dict[str, Number], _with_keys("honest_accuracy")]
"""What an attack does, in percent: mean accuracy over the honest clients (``honest_accuracy``) and over the attackers
(``attackers_accuracy``), share of the honest clients' test images on which it succeeds, of those on which it could
(``success``), and attackers' share of honest clients' experts (``expert_share``); the last three where there are."""


GeneralizationNumbers = Annotated[dict[str, Number], _with_keys("train_accuracy", "gap")]
"""Means over the clients of the accuracy on each client's own training images, in percent, and of that minus the
accuracy on its test split, in points."""


class RoundRecord(Record):
    """One line of rounds.jsonl: a finished round; round 0 is the state before training."""

    round: Integer
    cohort: list[Integer] = []
    evaluated: bool = False
    accuracy: Annotated[dict[str, Number], _with_keys("mean", "std", "min", "max", "worst_decile")] | None = None
    accuracy_per_domain: dict[str, Number] = {}
    train_loss: Number | None = None
    seconds: Annotated[dict[str, Number], _with_keys("train", "evaluate", "other")] = {}
    bytes: Annotated[dict[str, Integer], _with_keys("down", "up", "evaluate_down")] = {}
    clients_seen: Integer = 0
    prompt_drift: Number | None = None  # mean l2 distance of the cohort's prompts from the new global prompt
    experts: Annotated[dict[str, list[Integer]], ByClient] = {}  # client -> whose prompts it used in the evaluation
    attention: Annotated[dict[str, Any], AfterValidator(lambda v: Attention.model_validate(v).to_json())] | None = None
    failed: Annotated[dict[str, str], ByClient] = {}  # client -> why it was dropped
    privacy: dict[str, Number | None] | None = None  # epsilon spent so far, standard deviation of the noise
    metrics: dict[str, Number] = {}  # a method's own, by name
    validation: dict[str, Number] | None = None  # as accuracy, on the validation splits
    quality: dict[str, Number] | None = None  # over all test examples, percent: weighted, balanced, ece
    # As accuracy, on test images of classes that the client itself does not train on.
    accuracy_others: Annotated[dict[str, Number], _with_keys("mean", "std")] | None = None
    gate: GateNumbers | None = None  # means over the clients with a gate over experts
    generalization: GeneralizationNumbers | None = None  # with federation.evaluate_train
    attack: AttackNumbers | None = None  # where clients attack
    line: dict[str, Number] = {}  # clients elsewhere: messages, their bytes down and up, seconds trained and waited

    LATER = frozenset(
        {"evaluated", "failed", "privacy", "metrics", "validation", "quality", "accuracy_others", "gate", "line"}
        | {"attack", "generalization"}
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.round < 0:
            raise PydanticCustomError(
                "value", "is of round {round}; valid is an integer of at least 0", {"round": self.round}
            )
        if self.accuracy and not all(0 <= value <= 100 for value in self.accuracy.values()):
            words = "has accuracy {found}; valid is 0 to 100 percent"
            raise PydanticCustomError("value", words, {"found": str(self.accuracy)})
        return self


class ClientScore(Record):
    """One line of clients.jsonl: one client's part of an evaluation; ``accuracy`` in percent, None without test
    examples."""

    model_config = ConfigDict(frozen=True)

    round: Integer
    client: Integer
    domain: str | None
    accuracy: Number | None
    correct: Integer
    total: Integer
    train_examples: Integer
    accuracy_others: Number | None = None  # on test images of classes that it does not train on
    gate: GateNumbers | None = None

    LATER = frozenset({"accuracy_others", "gate"})

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 <= self.correct <= self.total:
            words = "has {correct} of {total} right; valid is 0 to {total}"
            raise PydanticCustomError("value", words, {"correct": self.correct, "total": self.total})
        expected = 100.0 * self.correct / self.total if self.total else None
        if (expected is None) != (self.accuracy is None) or abs((self.accuracy or 0.0) - (expected or 0.0)) > 0.01:
            words = "has accuracy {found}; {correct} of {total} right is {expected}"
            found = {"found": str(self.accuracy), "expected": str(expected)}
            raise PydanticCustomError("value", words, {**found, "correct": self.correct, "total": self.total})
        return self


class Failure(Record):
    """One line of failures.jsonl: a failed local training."""

    model_config = ConfigDict(frozen=True)

    round: Integer
    client: Integer
    attempt: Integer  # from 0
    reason: str
    traceback: str


class PartitionSummary(Record):
    """partition.json: who holds how many examples of which class. C classes, N clients."""

    class_names: list[str]  # [C]
    counts_train: list[list[Any]]  # [N][C]
    counts_test: list[list[Any]]  # [N][C]
    domains: list[str] | None  # [N]

    @model_validator(mode="after")
    def _check(self) -> Self:
        number = len(self.class_names)
        for key, rows in (("counts_train", self.counts_train), ("counts_test", self.counts_test)):
            valid = (len(row) == number and all(type(n) is int and 0 <= n < 2**53 for n in row) for row in rows)
            if not (number and rows and all(valid)):
                words = "has wrong counts under '{key}'; valid is {number} counts for each client"
                raise PydanticCustomError("value", words, {"key": key, "number": number})
        sizes = [len(rows) for rows in (self.counts_train, self.counts_test, self.domains) if rows is not None]
        if len(set(sizes)) > 1:
            words = "has {sizes} clients in its lists; valid is one and the same number"
            raise PydanticCustomError("value", words, {"sizes": str(sizes)})
        return self


class Summary(Record):
    """summary.json, written when a run has finished; ``rounds`` is its last round."""

    method: str  # its class
    label: str
    seed: Integer
    rounds: Integer
    accuracy: dict[str, Number] | None = None
    accuracy_per_domain: dict[str, Number] = {}
    seconds: dict[str, Number] = {}
    bytes_down: Integer = 0
    bytes_up: Integer = 0
    bytes_evaluate_down: Integer = 0
    failed_clients: list[dict[str, Any]] = []
    privacy: Annotated[dict[str, Any], _with_keys("text")] | None = None  # text: what was spent, in words
    last_five: dict[str, Number] | None = None  # mean accuracy over clients, mean of the last ``rounds`` evaluated
    best_by_validation: dict[str, Number] | None = None  # round, its validation and its test accuracy; null without
    quality: dict[str, Number] | None = None
    attack: AttackNumbers | None = None
    attackers: list[Integer] = []  # clients that attack
    provenance: dict[str, Any] | None = None
    versions: dict[str, Any]

    LATER = frozenset({"last_five", "best_by_validation", "quality", "attack", "attackers", "provenance"}) | frozenset(
        {"accuracy", "accuracy_per_domain", "seconds", "bytes_down", "bytes_up", "bytes_evaluate_down"}
        | {"failed_clients", "privacy"}
    )


class ComparisonManifest(Record):
    """comparison.json: the sub-folders with the runs of a comparison, and what ``report`` found in them.

    Anything else in the file is kept.
    """

    model_config = ConfigDict(extra="allow")

    labels: list[str]
    results: list[Any] = []

    LATER = frozenset({"results"})

    @model_validator(mode="after")
    def _check(self) -> Self:
        for folder in self.labels:
            plain = Path(folder).name == folder and folder.isprintable() and folder not in ("", "..")
            if not plain or self.labels.count(folder) > 1:
                words = "has {folder} under key 'labels'; valid are different folder names"
                raise PydanticCustomError("value", words, {"folder": repr(folder)})
        return self


R = TypeVar("R", bound=Record)


def read_rounds(folder: Path, notes: list[str] | None = None) -> list[RoundRecord]:
    """The rounds in ``folder``/rounds.jsonl in ascending order; a round that was repeated replaces its first version.

    A last line without a line end was cut short by an interruption: it is left out, and a note is added to ``notes``.

    Raises:
        UserError: the file is missing, unreadable, too large or damaged.
    """
    rounds = {record.round: record for record in read_log(folder / "rounds.jsonl", RoundRecord, notes)}
    return [rounds[number] for number in sorted(rounds)]


def read_clients(folder: Path, num_clients: int, notes: list[str] | None = None) -> dict[int, dict[int, ClientScore]]:
    """Evaluated round -> client -> its score, from ``folder``/clients.jsonl; errors and ``notes`` as above.

    Raises:
        UserError: as above, or a client is not one of ``num_clients``.
    """
    path = folder / "clients.jsonl"
    scores: dict[int, dict[int, ClientScore]] = {}
    for number, score in enumerate(read_log(path, ClientScore, notes), start=1):
        if not 0 <= score.client < num_clients:
            words = f"names client {score.client}; partition.json has {num_clients} clients, from 0."
            raise UserError(f"{path}, line {number}, {words}")
        scores.setdefault(score.round, {})[score.client] = score
    return scores


def last_five(rounds: Sequence[RoundRecord]) -> dict[str, float]:
    """The mean of the mean accuracies of the last five evaluated rounds (or as many as there are) after training began.

    Beside the last round's, which a single round's luck moves more; never the best round's.
    """
    trained = [r for r in rounds if r.accuracy and r.round > 0] or [r for r in rounds if r.accuracy]
    last = trained[-5:]
    return {"accuracy": sum(r.accuracy["mean"] for r in last if r.accuracy) / len(last), "rounds": len(last)}


def best_by_validation(rounds: Sequence[RoundRecord]) -> dict[str, float] | None:
    """The round with the best validation accuracy, the earlier of equals; its test accuracy took no part in the choice.

    None without validation splits.
    """
    known = [r for r in rounds if r.validation and r.accuracy]
    if not known:
        return None
    best = max(known, key=lambda r: (r.validation or {})["mean"])
    assert best.accuracy and best.validation
    return {"round": best.round, "validation": best.validation["mean"], "accuracy": best.accuracy["mean"]}


def read_log(path: Path, kind: type[R], notes: list[str] | None = None) -> list[R]:
    """The records of a JSON Lines file of at most ``LOG_BYTES``, in the order of its lines; errors as above."""
    records = []
    with open_regular(path, LOG_BYTES) as file:
        number, left = 0, LOG_BYTES  # the file may be growing
        while line := file.readline(left):
            number, left = number + 1, left - len(line)
            if not line.endswith(b"\n"):
                if notes is not None:
                    notes.append(f"the last line of {path.name} is cut and left out")
                break
            try:
                value = _parse(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} is damaged, its line {number} is not valid JSON: {error}.") from None
            records.append(parse(kind, value, f"{path}, line {number},"))
    return records


def read_document(path: Path, kind: type[R]) -> R:
    """The record in a JSON file of at most ``DOCUMENT_BYTES``.

    Raises:
        UserError: the file is missing, unreadable, too large or damaged.
    """
    try:
        value = _parse(read_regular(path, DOCUMENT_BYTES))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or cut, it is not valid JSON: {error}.") from None
    return parse(kind, value, str(path))


def parse(kind: type[R], value: Any, where: str) -> R:
    """Turn ``value``, as read from a file, into a record; ``where`` is the file and line for error messages.

    Raises:
        UserError: a key is missing, or a value has the wrong type.
    """
    if isinstance(value, dict):
        for key, field in kind.model_fields.items():
            if key not in value and not field.is_required() and key not in kind.LATER:
                raise UserError(_missing(where, (), key, value))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise UserError(_sentence(error.errors(include_url=False)[0], where, value)) from None


def _sentence(error: ErrorDetails, where: str, whole: Any) -> str:
    place, found = [part for part in error["loc"] if part in _path(whole, error["loc"])], error.get("input")
    if error["type"] == "missing":
        return _missing(where, place, str(error["loc"][-1]), found)
    if error["type"] == "missing_key":
        return _missing(where, place, error["ctx"]["key"], found)
    if error["type"] in ("value", "keys"):
        return f"{_below(where, place)} {error['msg']}."
    if not place:
        kind = "nothing" if found is None else _KINDS.get(type(found), type(found).__name__)
        return f"{where} holds {kind}; valid is an object with keys."
    keys = [part for part in place if isinstance(part, str)]
    valid = next((words for kind, words in _VALID.items() if error["type"].startswith(kind)), "another type")
    text = json.dumps(found, default=str)[:60]
    return f"{_below(where, keys[:-1])} has {text} under key {keys[-1]!r}; valid is {valid}."


_KINDS = {float: "a number", int: "an integer", str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
_INTEGER = "an integer of at most 64 bits"
_VALID = {
    **{"float": "a number", "finite": "a number", "int": _INTEGER, "less": _INTEGER, "greater": _INTEGER},
    **{"string": "a string", "list": "a list", "dict": "an object", "model": "an object", "bool": "true or false"},
}


def _path(whole: Any, place: Sequence[int | str]) -> list[int | str]:
    """The parts of pydantic's location that are keys and indices of the value; the others name a type."""
    parts: list[int | str] = []
    for part in place:
        inside = isinstance(whole, list) and isinstance(part, int) and part < len(whole)
        if inside or (isinstance(whole, dict) and part in whole):
            parts.append(part)
            whole = whole[part]
    return parts


def _below(where: str, place: Sequence[int | str]) -> str:
    keys = "".join(f" key {part!r}," for part in place if isinstance(part, str))
    return f"{where.removesuffix(',')},{keys}" if keys else where


def _missing(where: str, place: Sequence[int | str], key: str, found: Any) -> str:
    near = did_you_mean(key, map(str, found)) if isinstance(found, dict) else ""
    return f"{_below(where, place)} has no key {key!r}{near or '.'}"


def _parse(data: bytes) -> Any:
    # Decoded here, because json.loads would guess another encoding if there are zero bytes.
    return json.loads(data.decode("utf-8"), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")
