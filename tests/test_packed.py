"""Packed weights: equal to plain products in values, gradients and after training, and a choice that a run keeps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fedmoe
from fedmoe.client.module import ClientModule
from fedmoe.config import OptimConfig, PromptConfig
from fedmoe.data import Digits
from fedmoe.data.subset import SubsetConfig
from fedmoe.errors import UserError
from fedmoe.methods import Method, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.packed import PackedLinear, available, thin_product, worthwhile
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import Loadout
from fedmoe.seeds import torch_generator

WEIGHT = torch.randn(24, 40, generator=torch_generator(1)) / 6
needs_packing = pytest.mark.skipif(not available(WEIGHT), reason="this torch packs no weights")
NAMES = ["airplane", "american_bulldog", "cat", "german_shorthaired"]


@needs_packing
@pytest.mark.parametrize("shape", [(1, 7, 40), (3, 40)])
def test_a_map_is_its_matrix(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch_generator(2), dtype=torch.float64).requires_grad_()
    bias, sums = (torch.randn(n, generator=torch_generator(3)) for n in ((24,), (*shape[:-1], 24)))
    expected = 0.5 * x @ WEIGHT.double().T + bias.double()
    (slope,) = torch.autograd.grad((expected * sums.double()).sum(), x)
    ours = x.detach().float().requires_grad_()
    found = PackedLinear(WEIGHT, bias, 0.5)(ours)
    (gradient,) = torch.autograd.grad((found * sums).sum(), ours)
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, slope.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("operation", ["as it is", "nowhere"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_product_of_few_rows(count: int, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN's kernel, and where the torch in use has none under that name."""
    if operation == "nowhere":
        monkeypatch.setattr("fedmoe.models.packed._PRODUCT", "_no_such_operation")
    rows = torch.randn(count, 40, generator=torch_generator(2))
    expected = rows.double().numpy() @ WEIGHT.double().numpy().T
    np.testing.assert_allclose(thin_product(rows, WEIGHT).numpy(), expected, rtol=1e-5, atol=1e-5)


def trained(clip: FrozenCLIP, method: Method, packed: bool, config: PromptConfig) -> tuple[dict[str, Tensor], Tensor]:
    """The client's tensors after three steps of SGD with momentum, and its losses."""
    clip.text.packed = packed
    prompts = PromptLearner(clip, NAMES, config, torch_generator(0))
    module = ClientModule(clip, prompts, method=method, optim=OptimConfig(prompt_lr=0.1, gating_lr=0.1))
    experts = 0.1 * torch.randn(2, *prompts.start.shape, generator=torch_generator(4))
    module.load(0, Loadout(experts={"prompt": experts} if isinstance(method, PFedMoAP) else {}))
    optimizer: Any = module.configure_optimizers()
    features = F.normalize(torch.randn(8, clip.feature_dim, generator=torch_generator(5)), dim=-1)
    labels, losses = torch.arange(8) % len(NAMES), []
    for _ in range(3):
        loss = method.loss(module, features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return module.export(), torch.stack(losses)


@needs_packing
@pytest.mark.parametrize("method", [PFedMoAP(2), PromptFL()])
@pytest.mark.parametrize("config", [PromptConfig(length=3), PromptConfig(length=3, class_specific=True)])
def test_training_is_that_of_plain_products(
    golden_clips: dict[str, FrozenCLIP], method: Method, config: PromptConfig
) -> None:
    """OpenAI's activation and GELU; also one block's weights can be told from another's."""
    for name in ("rn", "vit"):
        if isinstance(method, PFedMoAP) and config.class_specific:
            continue
        clip = deepcopy(golden_clips[name])
        (plain, losses), (packed, again) = (trained(clip, method, on, config) for on in (False, True))
        torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-6)
        for key, value in plain.items():
            torch.testing.assert_close(packed[key], value, rtol=1e-4, atol=2e-5, msg=key)
        assert not torch.equal(losses[0], losses[-1])  # it has learned something


def test_other_formats_stay_plain(golden_clips: dict[str, FrozenCLIP]) -> None:
    clip = deepcopy(golden_clips["rn"]).double()
    clip.text.packed = True
    assert clip.text.packed_maps() is None


def clock(*steps: float) -> Callable[[], float]:
    """Seconds that pass between one look and the next: plain, nothing, packed, nothing, and so on."""
    now: Iterator[float] = (sum(steps[j % len(steps)] for j in range(i)) for i in count())
    return lambda: next(now)


@needs_packing
def test_packing_has_to_be_faster() -> None:
    assert worthwhile(WEIGHT, 5, clock=clock(2.0, 0.0, 1.0, 0.0))
    assert not worthwhile(WEIGHT, 5, clock=clock(1.0, 0.0, 1.0, 0.0))
    assert not worthwhile(WEIGHT, 5, clock=clock(1.0, 0.0, 2.0, 0.0))
    assert not worthwhile(WEIGHT.double(), 5, clock=clock(2.0, 0.0, 1.0, 0.0))


def test_a_resumed_run_keeps_the_choice(tmp_path: Path) -> None:
    def run(rounds: int, name: str, packed: str) -> Path:
        return fedmoe.run(
            PromptFL(),
            Digits(subset=SubsetConfig(train=60, test=40)),
            config="fedmoe:embedded",
            federation={"clients": 2, "participation": 1.0, "rounds": rounds, "local_epochs": 1},
            features={"cache_dir": str(tmp_path / "features")},
            output={"dir": str(tmp_path), "name": name},
            runtime={"packed_weights": packed},
        ).folder

    folder = run(0, "auto", "auto")
    said = json.loads((folder / "run.json").read_text())
    assert json.loads((folder / "summary.json").read_text())["provenance"]["packed_weights"] == said["packed_weights"]
    other = not said["packed_weights"]  # not what a measurement here would choose again
    (folder / "run.json").write_text(json.dumps({**said, "packed_weights": other}))
    run(1, "auto", "auto")
    assert json.loads((folder / "run.json").read_text())["packed_weights"] is other
    alone = run(1, "alone", "on" if other else "off")
    lines = [(f / "rounds.jsonl").read_text().splitlines()[-1] for f in (folder, alone)]
    losses = [json.loads(line)["train_loss"] for line in lines]
    assert losses[0] == losses[1]
    with pytest.raises(UserError, match=r"runtime\.packed_weights"):
        run(2, "alone", "auto")
