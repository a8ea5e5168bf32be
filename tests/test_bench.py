"""The benchmark's pieces on a tiny CLIP: what it counts, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.bench.__main__ import main
from experiments.bench.measure import Spread, flop, interleaved
from experiments.bench.rounds import bench_round
from experiments.bench.steps import bench_cohort, bench_step
from experiments.exits import exit_code
from fedmoe.models.clip import FrozenCLIP


def test_operations_of_a_product() -> None:
    """[2, 3] by [3, 4]: 24 multiplications and as many additions; its gradient by the left factor takes 48 more."""
    left, right = torch.ones(2, 3, requires_grad=True), torch.ones(3, 4)
    assert flop(lambda: left @ right) == 48
    assert flop(lambda: (left @ right).sum().backward()) == 96


def test_runs_take_turns() -> None:
    seen: list[str] = []
    times = interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=2, least=0.0)
    assert seen == ["a", "b"] * 3  # the first are not counted
    assert [len(found.processor) for found in times.values()] == [2, 2]
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(median=3.0, least=1.0, largest=8.0)


def test_what_is_written(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    clip = tiny_clip(embed_dim=128)
    found = bench_step(clip, 3, 2, peak=1e9)
    assert {"default", "images", "text"} <= found["runs"].keys()
    for name in ("default", "packed"):
        row = found["runs"].get(name, found["runs"]["default"])
        assert row["speed_up"]["least"] <= row["speed_up"]["median"] <= row["speed_up"]["largest"]
        assert row["flop_per_second"] == pytest.approx(row["flop"] / row["processor_seconds"]["median"])
        assert row["share_of_best_product"] == pytest.approx(row["flop_per_second"] / 1e9)
    assert found["speed_up"] == found["runs"][found["auto"]]["speed_up"]
    assert found["runs"]["text"]["flop"] > found["runs"]["default"]["flop"]
    assert not clip.text.packed
    assert "default, together" in bench_cohort(clip, 3, 1)["processor_ms_a_prompt"]
    assert 0 < bench_round(clip, 3, rounds=1)["outside_mathematics"]["median"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--device", "cuda", "--json", str(tmp_path / "out.json")])
    assert exit_code(main) == 2
    assert capsys.readouterr().err == "Error: --device is cuda, but torch finds no CUDA device here; valid is cpu.\n"
    assert not (tmp_path / "out.json").exists()
