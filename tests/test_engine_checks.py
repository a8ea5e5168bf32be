"""What the server believes of an answer that a client elsewhere sends."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedmoe.client.counts import BINS
from fedmoe.engine.check import Checks
from fedmoe.protocol.records import About, Failed, Scored, Trained, Update
from fedmoe.protocol.wire import from_bytes, to_bytes


def upload(**changes: Any) -> bytes:
    """An upload of client 1 with 20 examples, whose prompt is [2, 3]."""
    given = {
        "client_id": 1,
        "num_examples": 20,
        "metrics": {},
        "loss": 0.5,
        "seconds": 1.0,
        "noise_std": 0.0,
        **changes,
    }
    parameters = given.get("parameters") or {"prompt": given.get("prompt", torch.ones(2, 3))}
    update = Update(given["client_id"], parameters, given["num_examples"], given["metrics"])
    return to_bytes(Trained(update, given["loss"], given["seconds"], given["noise_std"]))


CHECKS = Checks({"prompt": torch.zeros(2, 3)}, 2)
ABOUT = About(20, 5)


def test_a_sound_upload_passes() -> None:
    found = CHECKS.trained(upload(metrics={"norm": 2}), 1, ABOUT)
    assert torch.equal(found.update.parameters["prompt"], torch.ones(2, 3))
    assert (found.update.num_examples, found.loss, found.update.metrics) == (20, 0.5, {"norm": 2.0})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (upload(prompt=torch.ones(3, 2)), "of shape"),
        (upload(prompt=torch.ones(2, 3, dtype=torch.float64)), "float64"),
        (upload(prompt=torch.full((2, 3), float("inf"))), "not finite"),
        (upload(num_examples=21), "counts 21 examples, but the client said 20"),
        (upload(num_examples=20.0), "counts 20.0 examples"),
        (upload(num_examples=True), "counts True"),
        (upload(client_id=2), "another client's"),
        (upload(loss="low"), "loss, seconds"),
        (upload(seconds=-1), "loss, seconds"),
        (upload(metrics={"norm": "x"}), "metrics"),
        (upload(metrics=[1]), "metrics"),
        (b"", "no Trained"),
        (b"\x80\x04cos\nsystem\n.", "no Trained"),
        (to_bytes(Failed("why", "")), "no Trained"),
        (upload(parameters={"gate": torch.ones(2)}), "'gate', which is not shared"),
        (b"x" * 2_000_000, "at most"),
    ],
)
def test_an_upload_that_no_client_could_make_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        CHECKS.trained(data, 1, ABOUT)


def scored(**changes: Any) -> bytes:
    """Client 1 has 3 of its 5 test examples right."""
    sums = {
        "confusion": torch.tensor([[2, 1], [1, 1]]),
        "calibration": torch.zeros(BINS, 3, dtype=torch.float64),
        **changes.pop("sums", {}),
    }
    return to_bytes(Scored(**{"client_id": 1, "correct": 3, "total": 5, **changes}, sums=sums))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (scored(correct=4), "add up"),
        (scored(total=6), "counts 6 test examples, but the client said 5"),
        (scored(sums={"confusion": torch.tensor([[2, 1], [1, 2]])}), "add up"),
        (
            scored(
                sums={
                    "confusion": torch.tensor([[3, -1], [2, 1]]),
                }
            ),
            "no confusion",
        ),
        (scored(sums={"confusion": torch.ones(3, 3, dtype=torch.int64)}), "its confusion is"),
        (scored(sums={"calibration": torch.full((BINS, 3), float("nan"), dtype=torch.float64)}), "not finite"),
        (scored(sums={"labels": torch.zeros(5, dtype=torch.int64)}), "'labels' is"),
        (scored(sums={"logits": torch.zeros(5, 2, dtype=torch.float64)}), "'logits' is"),
        (scored(sums={"validation": torch.tensor([3, 2])}), "validation"),
        (scored(failed=3), "no text"),
    ],
)
def test_a_score_that_no_client_could_have_is_refused(data: bytes, why: str) -> None:
    assert CHECKS.scored(scored(), 1, ABOUT).correct == 3
    with pytest.raises(ValueError, match=why):
        CHECKS.scored(data, 1, ABOUT)


def test_texts_of_a_failure_are_cut_and_cannot_command_a_terminal() -> None:
    found = CHECKS.failed(to_bytes(Failed("\x1b[2Jgone " * 200, "\x1b" * 50_000, 1.0)))
    assert "\x1b" not in found.reason + found.traceback
    assert len(found.reason) == 500
    assert len(found.traceback) == 20_000


def test_a_client_elsewhere_reports_only_what_it_is_asked_for() -> None:
    shared = {"prompt": torch.zeros(2)}
    about = About(4, 4)

    def message(weights: torch.Tensor) -> bytes:
        return to_bytes(Trained(Update(1, dict(shared), 4, {}, {"attention": weights}), 0.5, 0.1))

    good = torch.tensor([0.5, 0.25, 0.25])
    found = Checks(shared, 10, most_weights=5).trained(message(good), 1, about)
    assert torch.equal(found.update.extras["attention"], good)
    for checks, weights in (
        (Checks(shared, 10), good),
        (Checks(shared, 10, most_weights=2), good),
        (Checks(shared, 10, most_weights=5), good.double()),
        (Checks(shared, 10, most_weights=5), torch.tensor([float("nan")])),
    ):
        with pytest.raises(ValueError, match=r"extras|weights|finite"):
            checks.trained(message(weights), 1, about)
    assert from_bytes(Trained, message(good)).update.num_examples == 4
