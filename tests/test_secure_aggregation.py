"""Secure aggregation as far as it needs no cryptography: fixed-point means, and which runs it fits."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from federation_helpers import build_federation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_line import CONFIG, data_of

from fedmoe.cli import main
from fedmoe.config import FeatureConfig
from fedmoe.federation.fleet import sum_in_the_open
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.protocol.records import Update
from fedmoe.secure.fixed_point import add, decode, encode, encode_all, mean, nothing, require_examples

SMOKE = ("fit", "--config=configs/smoke.yaml", "--federation.secure_aggregation=true", "--federation.participation=1")
NUMBERS = st.floats(-256, 256, width=32)


def test_a_number_is_its_weighted_multiple_of_two_to_the_minus_32() -> None:
    found = encode(torch.tensor([0.5, -1.25, 2.0**-33, 0.0]), 3)
    assert found.tolist() == [3 * 2**31, -15 * 2**30, 2, 0]  # 3 x 2^-33 = 1.5 units, to the even neighbour
    assert decode(torch.tensor([3 * 2**31]), 3, torch.zeros(1)).tolist() == [0.5]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(NUMBERS, st.integers(1, 1000)), min_size=1, max_size=8))
def test_means_are_exact_to_two_to_the_minus_33(pairs: list[tuple[float, int]]) -> None:
    uploads = [{"prompt": torch.tensor([x], dtype=torch.float64)} for x, _ in pairs]
    weights = [n for _, n in pairs]
    exact = sum((n * Fraction(x) for x, n in pairs), Fraction(0)) / sum(weights)
    total, backwards = nothing(uploads[0]), nothing(uploads[0])
    for upload, n in zip(uploads, weights, strict=True):
        add(total, encode_all(upload, n))
    for upload, n in zip(uploads[::-1], weights[::-1], strict=True):
        add(backwards, encode_all(upload, n))
    found = Fraction(float(mean(total, sum(weights), uploads[0])["prompt"]))
    assert abs(found - exact) <= Fraction(1, 2**33) + abs(exact) * Fraction(1, 2**51)
    assert torch.equal(backwards["prompt"], total["prompt"])


@pytest.mark.parametrize("value", [256.001, -300.0, float("nan"), float("inf")])
def test_what_would_leave_the_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not between -256 and 256"):
        encode(torch.tensor([0.0, value]), 1)


def test_no_sum_of_what_is_accepted_wraps_around() -> None:
    largest = encode(torch.tensor([256.0]), require_examples(2**22))
    assert largest.item() == 2**62
    with pytest.raises(ValueError, match="at most 4,194,304"):
        require_examples(2**22 + 1)
    with pytest.raises(ValueError, match="not that of the uploads"):
        decode(torch.tensor([2**62]), 2**21, torch.zeros(1))


def test_a_run_differs_from_a_plain_one_by_rounding_alone(embedded_clip: FrozenCLIP, tmp_path: Path) -> None:
    data = data_of(embedded_clip, PromptFL(), FeatureConfig(cache_dir=str(tmp_path)))
    config = replace(CONFIG, participation=1.0, rounds=2)
    plain, log = build_federation(embedded_clip, data, PromptFL(), config)
    plain.run()
    secure, secret = build_federation(embedded_clip, data, PromptFL(), replace(config, secure_aggregation=True))
    secure.run()
    expected, found = (one.server.shared["prompt"] for one in (plain, secure))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert [record.bytes["up"] for record in secret.records[1:]] == [
        2 * record.bytes["up"] for record in log.records[1:]
    ]
    assert secret.records[-1].prompt_drift is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--method=PFedMoAP",), "PFedMoAP hands single clients' prompts to others"),
        (("--method=FedTPG",), "FedTPG does more with uploads than to average them"),
        (("--method=CoOp",), "CoOp averages nothing"),
        (("--method=PromptFL", "--aggregation=Median"), "aggregation looks at single uploads"),
        (("--method=PromptFL", "--federation.share_momentum=true"), "hands on what single clients leave"),
    ],
)
def test_what_needs_single_uploads_is_refused(
    options: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMOKE, *options, f"--output.dir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert why in told
    assert "such as PromptFL." in told


def test_two_clients_are_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--method=PromptFL", "--federation.participation=0.4", f"--output.dir={tmp_path}")
    assert main([*SMOKE, *options]) == 2
    assert "the cohort has 2 clients; valid are at least 3" in capsys.readouterr().err


def test_what_cannot_be_summed_is_no_sum_and_says_why() -> None:
    def upload(client_id: int, value: float, examples: int) -> Update:
        return Update(client_id, {"prompt": torch.tensor([value])}, examples)

    found = sum_in_the_open([upload(0, 1.0, 2), upload(1, 2.0, 1), upload(2, 300.0, 1), upload(3, 4.0, 1)])
    assert found.parameters["prompt"].tolist() == [2.0]  # (2 + 2 + 4) / 4
    assert (found.num_examples, found.nbytes) == (4, 3 * 8)
    assert list(found.missing) == [2]
    few = sum_in_the_open([upload(0, 1.0, 2), upload(1, 300.0, 1), upload(2, 3.0, 1)])
    assert not few.parameters
    assert few.missing[0] == "there is no sum in this round: 2 clients are left, and 3 must be"
    many = sum_in_the_open([upload(i, 1.0, 2**21) for i in range(3)])
    assert not many.parameters
    assert many.missing == dict.fromkeys(
        range(3), "the cohort has 6,291,456 examples; secure aggregation takes at most 4,194,304"
    )
