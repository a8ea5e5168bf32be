"""Per-example gradients against separate backward passes, and the clipped and noisy sums made of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.config import OptimConfig, PromptConfig
from fedmoe.errors import UserError
from fedmoe.methods import FedPGP, FedProx, Method, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.privacy.gradients import NoisySum, WithheldData, per_example_gradients
from fedmoe.protocol.records import Loadout

NAMES = ["zero", "one", "two", "three", "four"]
b = 6


def client(clip: FrozenCLIP, method: Method, experts: int = 0) -> ClientModule:
    """A client whose prompt has moved away from the server's."""
    learner = PromptLearner(clip, NAMES, PromptConfig(length=4), torch.Generator().manual_seed(1))
    module = ClientModule(clip, learner, method=method, optim=OptimConfig())
    generator = torch.Generator().manual_seed(2)
    start = module.shared_start()["prompt"]
    draws = [start + 0.1 * torch.randn(start.shape, generator=generator) for _ in range(experts + 1)]
    others = {"prompt": torch.stack(draws[1:])} if experts else {}
    module.load(3, Loadout({"prompt": draws[0]}, others, received={"prompt": start}))
    return module


def batch(clip: FrozenCLIP) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    features = torch.nn.functional.normalize(torch.randn(b, clip.feature_dim, generator=generator), dim=-1)
    return features, torch.arange(b) % len(NAMES)


def separately(module: ClientModule, features: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """The gradients of a plain backward pass of each example alone."""
    found = []
    for image, label in zip(features.split(1), labels.split(1), strict=True):
        module.zero_grad(set_to_none=True)
        module.method.loss(module, image, label).backward()
        found.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
    module.zero_grad(set_to_none=True)
    return found


PROMPT = {"prompts.learned.prompt"}
GATE = {f"gate.{part}.{kind}" for part in ("query", "key", "value", "output") for kind in ("weight", "bias")}
CASES = {
    "PromptFL": (PromptFL, 0, PROMPT),
    "FedProx": (lambda: FedProx(mu=3.0), 0, PROMPT),
    "pFedMoAP without experts": (PFedMoAP, 0, PROMPT),
    "pFedMoAP": (PFedMoAP, 3, PROMPT | GATE),
    "FedPGP, with text features of its own": (
        lambda: FedPGP(2, mu=0.0),
        0,
        PROMPT | {"prompts.learned.U", "prompts.learned.V"},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_per_example_gradients_are_those_of_separate_passes(embedded_clip: FrozenCLIP, case: tuple) -> None:
    make, experts, trained = case
    module = client(embedded_clip, make(), experts)
    expected = separately(module, *batch(embedded_clip))
    names = {parameter: name for name, parameter in module.named_parameters()}
    found = {names[p]: gradient for p, gradient in per_example_gradients(module, *batch(embedded_clip)).items()}
    assert set(found) == set(expected[0]) == trained
    for name, gradients in found.items():
        plain = torch.stack([of_example[name] for of_example in expected])
        # A key's bias adds the same to all experts: its gradient is zero but for rounding.
        close = 1e-5 * plain.norm() if name != "gate.key.bias" else 1e-5
        assert gradients.shape == plain.shape and (gradients - plain).norm() <= close
    assert module.text is None and all(p.grad is None for p in module.parameters())


def test_no_example_moves_the_sum_by_more_than_the_clip(embedded_clip: FrozenCLIP) -> None:
    module = client(embedded_clip, PFedMoAP(), experts=3)
    alone = separately(module, *batch(embedded_clip))
    norms = [torch.cat([g.flatten() for g in of_example.values()]).norm().item() for of_example in alone]
    clip = sorted(norms)[b // 2]  # some are longer, some shorter
    NoisySum(clip, 0.0, torch.Generator()).backward(module, torch.tensor(0.0), batch(embedded_clip))
    for name, parameter in module.named_parameters():
        terms = [min(1.0, clip / norm) * of_example[name] for norm, of_example in zip(norms, alone, strict=True)]
        expected = torch.stack(terms).sum(dim=0) / b
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_noise_of_the_sum_has_the_asked_deviation_on_every_parameter(embedded_clip: FrozenCLIP) -> None:
    module = client(embedded_clip, PFedMoAP(), experts=3)
    grads = []
    for noise in (0.0, 0.7):
        module.zero_grad(set_to_none=True)
        NoisySum(0.1, noise, torch.Generator().manual_seed(8)).backward(module, torch.tensor(0.0), batch(embedded_clip))
        grads.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
    assert list(grads[0]) == list(grads[1]) == [name for name, _ in module.named_parameters()]
    for name, quiet in grads[0].items():
        draws = (grads[1][name] - quiet) * b / 0.7
        assert abs(draws.std().item() - 1) < 5 / (2 * draws.numel()) ** 0.5, name
        assert abs(draws.mean().item()) < 5 / draws.numel() ** 0.5, name


def test_a_parameter_that_takes_no_part_gets_no_noise(embedded_clip: FrozenCLIP) -> None:
    module = client(embedded_clip, PFedMoAP())  # no experts, so the gate is not trained
    NoisySum(0.1, 1.0, torch.Generator()).backward(module, torch.tensor(0.0), batch(embedded_clip))
    assert {name for name, p in module.named_parameters() if p.grad is not None} == PROMPT


def test_withheld_data_are_told() -> None:
    with pytest.raises(UserError, match="all of a client's data at once"):
        _ = WithheldData().train_features
