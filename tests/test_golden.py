"""Golden parity: the released implementation's values for the same inputs (see tests/golden/README.md).

Shape letters: b images, C classes, d feature width, g gating width, K non-local experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from fedmoe.config import PromptConfig
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.functional import combine, local_logits, moe_logits, strided
from fedmoe.models.gating import AttentionGate
from fedmoe.models.prompt import PromptLearner

GOLDEN = Path(__file__).parent / "golden"
MAPS = {"query": "W_q", "key": "W_k", "value": "W_v", "output": "W_o"}  # ours, the release's
STORED_ROWS = 8  # every 8th row of the gate's matrices after the first step is stored


@dataclass
class Case:
    """One golden case, and fedmoe's parts in its state."""

    settings: dict[str, Any]
    golden: dict[str, Tensor]
    config: PromptConfig
    clip: FrozenCLIP
    learner: PromptLearner
    gate: AttentionGate
    image_features: Tensor  # [b, d]
    experts: Tensor  # [K, C, d]

    def tokens(self, text_features: Tensor) -> Tensor:
        return torch.cat([text_features.unsqueeze(0), self.experts])  # [K + 1, C, d]

    def logits(self) -> Tensor:
        text = self.learner()
        mixed = self.gate(self.image_features, self.tokens(text))
        return moe_logits(self.image_features, text, mixed, self.clip.logit_scale, self.settings["lmbda"])

    def folded_logits(self) -> Tensor:
        text = self.learner()
        mixed = self.gate.similarity(self.image_features, self.tokens(text))
        return combine(mixed, self.image_features, text, self.clip.logit_scale, self.settings["lmbda"])

    def loss(self) -> Tensor:
        return cross_entropy(self.logits(), self.golden["labels"].long())

    def gate_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Under the release's names."""
        for name, parameter in self.gate.named_parameters():
            layer, kind = name.split(".")
            yield f"gating.{MAPS[layer]}.{kind}", parameter


@pytest.fixture(params=["full", "cut", "shared"])
def text_pass(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["rn_cifar", "rn_pets", "vit_cifar", "vit_pets"])
def case(request: pytest.FixtureRequest, text_pass: Any, golden_clips: dict[str, FrozenCLIP]) -> Case:
    settings = json.loads((GOLDEN / f"{request.param}.json").read_text())
    golden = load_file(GOLDEN / f"{request.param}.safetensors")
    clip = golden_clips[settings["backbone"]]
    config = PromptConfig(length=settings["n_ctx"], position=settings["class_token_position"], text_pass=text_pass)
    learner = PromptLearner(clip, settings["class_names"], config)
    gate = AttentionGate(
        clip.feature_dim, settings["gating_dim"], settings["gating_heads"], settings["attention_scale"]
    )
    with torch.no_grad():
        learner["prompt"].copy_(golden["ctx"])
        experts = learner(golden["experts"])
    made = Case(settings, golden, config, clip, learner, gate, clip.encode_image(golden["images"]), experts)
    with torch.no_grad():
        for name, parameter in made.gate_parameters():
            parameter.copy_(golden[name])
    return made


def difference(ours: Tensor, golden: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference, relative to the largest entry of the golden tensor (or of ``scale``)."""
    assert ours.shape == golden.shape
    return float((ours - golden).abs().max() / (golden if scale is None else scale).abs().max())


def stored(parameter: Tensor) -> Tensor:
    return parameter[::STORED_ROWS] if parameter.ndim == 2 else parameter


def test_forward(case: Case) -> None:
    golden, scale = case.golden, case.clip.logit_scale
    assert torch.equal(case.learner.token_ids, golden["token_ids"].long())
    assert scale == pytest.approx(float(golden["logit_scale_exp"]), rel=1e-6)
    with torch.no_grad():
        text = case.learner()
        assert difference(case.image_features, golden["image_features"]) < 2e-6
        assert difference(text, golden["text_features"]) < 2e-6
        pooled = strided(case.experts, case.settings["gating_dim"])
        assert difference(pooled, golden["expert_text_features_pooled"]) < 2e-6
        local = local_logits(case.image_features, text, scale)
        assert difference(local, golden["logits_local_only"]) < 5e-6
        assert difference(case.logits(), golden["logits_moe"]) < 5e-6
        assert difference(case.folded_logits(), golden["logits_moe"]) < 5e-6
        assert difference(case.loss().unsqueeze(0), golden["loss"]) < 5e-6


def check_gradients(case: Case, context: float, gate: float) -> None:
    """Compare gradients with the release's, within those tolerances."""
    case.loss().backward()
    assert case.learner["prompt"].grad is not None
    assert difference(case.learner["prompt"].grad, case.golden["grad.ctx"]) < context
    gradients = {name: parameter.grad for name, parameter in case.gate_parameters() if parameter.grad is not None}
    assert len(gradients) == len(list(case.gate_parameters()))
    largest = torch.stack([gradient.abs().max() for gradient in gradients.values()]).max()
    for name, gradient in gradients.items():
        golden = case.golden[f"grad.{name}"]
        if name in ("gating.W_k.bias", "gating.W_v.bias", "gating.W_o.bias"):
            # Zero in exact arithmetic, as a softmax does not feel a constant; both sides hold rounding alone.
            assert difference(stored(gradient), golden, largest) < 2e-4, name
        else:
            assert difference(stored(gradient), golden, gradient) < gate, name


def test_gradients(case: Case) -> None:
    check_gradients(case, context=1e-5, gate=5e-5)


@pytest.mark.parametrize("text_pass", ["full", "shared"], indirect=True)
def test_gradients_without_rounding_of_our_own(case: Case) -> None:
    # What is left is the rounding of the release's float32: at most 1.5e-5 of a gate tensor's largest entry.
    clip = deepcopy(case.clip).double()
    learner = PromptLearner(clip, case.settings["class_names"], case.config).double()
    with torch.no_grad():
        learner["prompt"].copy_(case.golden["ctx"])
        experts = learner(case.golden["experts"].double())
    images = clip.encode_image(case.golden["images"].double())
    check_gradients(
        replace(case, clip=clip, learner=learner, gate=case.gate.double(), image_features=images, experts=experts),
        context=6e-6,
        gate=1.6e-5,
    )


def test_after_sgd(case: Case) -> None:
    settings, golden = case.settings, case.golden
    optimizer = torch.optim.SGD(
        [
            {"params": [case.learner["prompt"]], "lr": settings["prompt_lr"]},
            {"params": list(case.gate.parameters()), "lr": settings["gating_lr"]},
        ],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    losses = []
    for _ in range(settings["steps"]):
        loss = case.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert difference(torch.stack(losses), golden["after.losses"]) < 1e-5
    assert difference(case.learner["prompt"].detach(), golden["after.ctx"]) < 1e-5
    for name, parameter in case.gate_parameters():
        assert difference(stored(parameter.detach()), golden[f"after.{name}"]) < 1e-5, name
    with torch.no_grad():
        assert difference(case.logits(), golden["after.logits"]) < 1e-5
    moved = difference(golden["after.ctx"], golden["ctx"])
    assert moved > 1e-3  # the steps were large enough for the comparison to mean something
