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
from fedmoe.methods import PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.secure.fixed_point import decode, encode, mean, require_examples

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
    found = Fraction(float(mean(uploads, weights)["prompt"]))
    assert abs(found - exact) <= Fraction(1, 2**33) + abs(exact) * Fraction(1, 2**51)
    again = mean(uploads[::-1], weights[::-1])["prompt"]
    assert again.item() == float(found)


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
