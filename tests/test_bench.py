"""The benchmark's pieces on a tiny CLIP: what it counts, and what it writes."""

from __future__ import annotations

import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from experiments.bench import images, steady
from experiments.bench.__main__ import main
from experiments.bench.measure import Spread, flop, interleaved
from experiments.bench.release import Released
from experiments.bench.rounds import bench_round
from experiments.bench.setting import BATCH, class_names, client, step
from experiments.bench.steady import bench_steady
from experiments.bench.steps import bench_cohort, bench_step, text_gradient
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
    seen.clear()
    interleaved({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=2, warmed_up=True)
    assert seen == ["a", "b"] * 2


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


def test_a_step_asks_for_no_value_on_the_host(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    """So that a CUDA graph can hold it: tensors without values raise wherever one is asked for."""
    clip = tiny_clip(embed_dim=128)
    module = client(clip, class_names(3), "shared")
    optimizer = module.configure_optimizers()
    features, labels = torch.randn(BATCH, 128), torch.randint(3, (BATCH,))
    step(module, optimizer, features, labels)  # the optimizer's buffers are there then
    with FakeTensorMode(allow_non_fake_inputs=True) as without_values:
        features, labels = (without_values.from_tensor(tensor) for tensor in (features, labels))
        several = without_values.from_tensor(module.prompts.start.detach()).repeat(2, 1, 1)
        assert text_gradient(several, module)[1].shape == several.shape
        loss = module.method.loss(module, features, labels)
        loss.backward()
        with pytest.raises(DataDependentOutputException):
            loss.item()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--device", "cuda", "--json", str(tmp_path / "out.json")])
    assert exit_code(main) == 2
    assert capsys.readouterr().err == "Error: --device is cuda, but torch finds no CUDA device here; valid is cpu.\n"
    assert not (tmp_path / "out.json").exists()


def test_a_steady_round(tiny_clip: Callable[..., FrozenCLIP]) -> None:
    found = bench_steady(tiny_clip(embed_dim=128), 3, 1)
    assert found["largest_difference"].keys() == {"plain"}
    assert found["largest_difference"]["plain"] < 1e-4
    rows = found["ways"]
    assert {"default", "default, 3 clients at once", "plain"} <= rows.keys()
    factor = rows["plain"]["processor_seconds"]["median"] / rows["default"]["processor_seconds"]["median"]
    assert rows["default"]["speed_up"]["plain"]["median"] == pytest.approx(factor)
    assert "speed_up" not in rows["plain"]


def test_images(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["images", "2", "--one", "kept"])
    assert images.main() == 0
    busy, wall, peak = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert min(busy, wall) > 0 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 >= peak > 100
    monkeypatch.setattr("sys.argv", ["images", "8", "0"])
    assert exit_code(images.main) == 2
    assert capsys.readouterr().err == "Error: sizes is [8, 0]; valid is integers of at least 1.\n"


# What the bench uses of a checkout of the release, with a model small enough to compute by hand: every image's logit of
# a class is lambda (here 2) times the prompt's first number, plus the sum of the experts' first numbers.
CLIP_MODEL = """
from torch import nn
def build_model(state, details):
    assert details["language_depth"] == 0
    model = nn.Linear(1, 1)
    model.load_state_dict(state)
    return model.half()
"""
TRAINER = """
import torch
from torch import nn
class PromptLearner(nn.Module):
    def __init__(self):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(16, 4))
class CustomCLIP(nn.Module):
    def __init__(self, cfg, classnames, clip_model):
        super().__init__()
        print("not to be seen")
        self.clip_model, self.prompt_learner, self.classes = clip_model, PromptLearner(), len(classnames)
        self.factor = 4 * cfg.TRAINER.PFEDMOAP.LMBDA
        self.gating = nn.Module()
        for name in ("W_q", "W_k", "W_v", "W_o"):
            setattr(self.gating, name, nn.Linear(2, 2))
        self.experts = None
    def load_ctx(self, ctx):
        self.prompt_learner.load_state_dict({"ctx": ctx})
    def _compute_nonlocal_text_features(self):
        self.experts = sum(ctx[0, 0] for ctx in self.nonlocal_ctx)
    def forward(self, image):
        gate = self.gating.W_q.weight.sum() + 0 * self.gating.W_o.bias.sum()
        logit = self.factor * self.prompt_learner.ctx[0, 0] + self.experts + 0 * gate
        other = self.clip_model(torch.ones(len(image), 1)) * 0
        return torch.cat([logit + other] + [other] * (self.classes - 1), dim=1)
"""


def test_the_release_is_what_its_checkout_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {"clip/model.py": CLIP_MODEL, "trainers/pfedmoap.py": TRAINER}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in ("clip", "clip.model", "trainers", "trainers.pfedmoap"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    released = Released(tmp_path, {"weight": torch.tensor([[1 / 3]]), "bias": torch.zeros(1)}, ["a", "b"])
    assert capsys.readouterr().out == ""
    assert released.weights()["weight"].item() == torch.tensor(1 / 3).half().item()  # as the release rounds it

    gate = {
        f"gate.{layer}.weight": torch.full((2, 2), i) for i, layer in enumerate(("query", "key", "value", "output"))
    }
    gate |= {name.replace("weight", "bias"): torch.zeros(2) for name in gate}
    released.become(torch.full((16, 4), 0.5), [torch.full((16, 4), 3.0), torch.full((16, 4), -1.0)], gate)
    assert [getattr(released.model.gating, f"W_{kind}").weight[0, 0].item() for kind in "qkvo"] == [0, 1, 2, 3]
    assert released.logits(torch.zeros(2, 3, 4, 4)).tolist() == [[3.0, 0.0], [3.0, 0.0]]  # 2 x 0.5 + 3 - 1

    before = released.weights()
    released.step(released.optimizers(), torch.zeros(2, 3, 4, 4), torch.tensor([1, 1]))
    # The slope of cross-entropy by the first logit is its probability p, so the number falls by lr x 2 p.
    probability = math.exp(3) / (math.exp(3) + 1)
    assert released.prompt()[0, 0].item() == pytest.approx(0.5 - 0.002 * 2 * probability)
    assert released.prompt()[1:].unique().tolist() == [0.5]
    assert all(value.equal(before[name]) for name, value in released.weights().items())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "where there is no trainers/pfedmoap.py; expected is a checkout of the release."),
        (["import not_installed_here"], "whose trainers.pfedmoap cannot be imported here (No module named"),
    ],
)
def test_no_checkout_of_the_release(
    files: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "trainers").mkdir()
    for text in files:
        (tmp_path / "trainers" / "pfedmoap.py").write_text(text)
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in ("trainers", "trainers.pfedmoap"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr("sys.argv", ["steady", "--release", str(tmp_path)])
    assert exit_code(steady.main) == 2
    assert capsys.readouterr().err.startswith(f"Error: --release is {tmp_path}, {expected}")
