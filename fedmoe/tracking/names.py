"""The stable names under which a run's numbers, tables and pictures are tracked in rounds.csv, W&B and TensorBoard.

experiments/dashboard/README.md documents the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedmoe.runs.records import read_rounds

Row = dict[str, Any]  # numbers, or None where there is none

METRICS: Mapping[str, str] = {
    "round": "communication round, the step of all other metrics; 0 is the evaluation before training",
    "accuracy/mean": "mean over clients of the accuracy on each client's own test split, percent",
    "accuracy/std": "standard deviation over clients (population), percent",
    "accuracy/min": "the worst client, percent",
    "accuracy/max": "the best client, percent",
    "accuracy/worst_decile": "mean over the worst tenth of the clients, percent",
    "validation/accuracy/mean": "accuracy/mean on the validation splits, for choosing settings; percent",
    "validation/accuracy/std": "accuracy/std on the validation splits, percent",
    "quality/weighted": "accuracy over all test examples together, so that large clients weigh more; percent",
    "quality/balanced": "mean over classes of the share of their test examples that is found, percent",
    "quality/ece": "expected calibration error over all test examples, 15 bins; percent",
    "accuracy_others/mean": "accuracy/mean on test images of classes that the client does not train on, percent",
    "accuracy_others/std": "accuracy/std on these images, percent",
    "train/loss": "mean over the cohort of each client's mean loss over its local steps",
    "train/prompt_drift": "mean l2 distance of the cohort's prompts from the new global prompt",
    "clients/seen_share": "fraction of all clients that have taken part so far, in [0, 1]",
    "clients/failed": "clients that failed in the round and were dropped",
    "privacy/epsilon": "total epsilon that the client with the most rounds has spent so far",
    "attention/local": "mean attention on the local expert, in [0, 1]",
    "gate/entropy": "normalized entropy of an image's weights over the experts; mean over images, then clients",
    "gate/entropy_p10": "10th percentile over a client's images of that entropy, mean over clients",
    "gate/top_share": "largest of an image's weights over the experts; mean over images, then clients",
    "gate/expert_contribution": "accuracy minus that with the local expert in the others' place, percentage points",
    "generalization/train_accuracy": "mean over clients of the accuracy on each client's training images, percent",
    "generalization/gap": "mean over clients of training minus test accuracy, percentage points",
    "attack/honest_accuracy": "accuracy/mean over the clients that do not attack, percent",
    "attack/attackers_accuracy": "accuracy/mean over the clients that attack, percent",
    "attack/success": "share of honest clients' test images on which the attack succeeds, of those it aims at; percent",
    "attack/expert_share": "attackers' share of the experts that honest clients predict with, percent",
    "seconds/train": "seconds of local training",
    "seconds/evaluate": "seconds of the evaluation of all clients",
    "seconds/other": "seconds of the round outside training and evaluation",
    "bytes/down": "bytes from the server to the cohort",
    "bytes/up": "bytes from the cohort to the server",
    "bytes/evaluate_down": "bytes from the server to all evaluated clients, for the evaluation alone",
}
"""Name and description of each number of a round. Also the columns of rounds.csv."""

DOMAIN = "accuracy_domain/{domain}"
"""Name of the mean accuracy over the clients of a domain, percent; after ``METRICS``, for data with domains."""

METHOD = "method/{metric}"
"""Name of one of the method's own metrics."""

MEDIA: Mapping[str, str] = {
    "clients/table": "a row per client: domain, accuracy, correct and all test examples, training examples, experts",
    "clients/labels": "training examples of each class on each client; logged once",
    "classes/table": "a row per class: test examples of all clients together, and accuracy on them, percent",
    "classes/confusion": "heat map of true against predicted classes, of all clients' test examples together",
    "experts/assignment": "heat map of who uses whose prompt",
    "experts/attention": "mean attention on the local expert and on the others, sorted (figure 6 of the paper)",
}
"""Tables and pictures, every ``tracking.detail_every`` rounds."""

FINAL: Mapping[str, str] = {
    "final/accuracy_mean": "accuracy/mean of the last round, which is the run's result",
    "final/accuracy_std": "accuracy/std of the last round",
    "final/accuracy_worst_decile": "accuracy/worst_decile of the last round",
    "final/rounds": "number of rounds",
    "final/seconds": "seconds of all rounds",
    "final/bytes_down": "bytes/down of all rounds",
    "final/bytes_up": "bytes/up of all rounds",
    "final/bytes_evaluate_down": "bytes/evaluate_down of all rounds",
}
"""W&B's summary of a finished run, next to the last value of each metric."""


def past_rounds(folder: Path) -> list[dict[str, Any]]:
    """The lines of rounds.jsonl; none if it does not exist."""
    return [record.to_json() for record in read_rounds(folder)] if (folder / "rounds.jsonl").exists() else []


def round_row(record: Mapping[str, Any], num_clients: int) -> Row:
    """A line of rounds.jsonl as numbers by metric name; None if the round has no value."""
    groups = {"accuracy": record["accuracy"] or {}, "attention": record["attention"] or {}}
    groups["privacy"] = record.get("privacy") or {}
    groups |= {"seconds": record["seconds"], "bytes": record["bytes"], "train": {}, "clients": {}}
    groups |= {
        name: record.get(name) or {} for name in ("quality", "accuracy_others", "generalization", "gate", "attack")
    }
    groups["validation"] = {f"accuracy/{key}": value for key, value in (record.get("validation") or {}).items()}
    own = {
        "round": record["round"],
        "train/loss": record["train_loss"],
        "train/prompt_drift": record["prompt_drift"],
        "clients/seen_share": record["clients_seen"] / num_clients,
        "clients/failed": len(record.get("failed", {})),
    }
    row: Row = {}
    for name in METRICS:
        group, _, key = name.partition("/")
        row[name] = own[name] if name in own else groups[group].get(key)
    row |= {METHOD.format(metric=name): value for name, value in record.get("metrics", {}).items()}
    return row | {DOMAIN.format(domain=name): value for name, value in record["accuracy_per_domain"].items()}


def final_row(records: list[dict[str, Any]]) -> Row:
    """The values of ``FINAL``, computed from all lines of rounds.jsonl."""
    last = [record for record in records if record["accuracy"]][-1]
    row: Row = {f"final/accuracy_{key}": last["accuracy"][key] for key in ("mean", "std", "worst_decile")}
    row["final/rounds"] = records[-1]["round"]
    row["final/seconds"] = sum(sum(record["seconds"].values()) for record in records)
    for key in ("down", "up", "evaluate_down"):
        row[f"final/bytes_{key}"] = sum(record["bytes"][key] for record in records)
    return row
