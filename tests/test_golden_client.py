"""The client module as its users have it: golden values on images through module, method, optimizer and Trainer.

The golden values are the released implementation's (see tests/golden/README.md); the rest is worked out by hand.
Shape letters: b images, C classes, d feature width, g gating width, K experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, TensorDataset

from fedmoe.client.module import ClientModule
from fedmoe.config import OptimConfig, PromptConfig
from fedmoe.methods import (
    DPFPL,
    CoOp,
    FedAMP,
    FedOTP,
    FedPer,
    FedPGP,
    FedPHA,
    FedProx,
    FedSEPT,
    FedTPG,
    Method,
    PFedMoAP,
    PromptFL,
    PromptFolio,
)
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.parameters import Scope
from fedmoe.protocol.records import Loadout

GOLDEN = Path(__file__).parent / "golden"
MAPS = {"W_q": "query", "W_k": "key", "W_v": "value", "W_o": "output"}  # the release's names, ours
STORED_ROWS = 8  # every 8th row of the gate's matrices after the steps is stored


def golden_client(name: str, clips: dict[str, FrozenCLIP], **changes: Any) -> tuple[ClientModule, dict[str, Tensor]]:
    """A client of pFedMoAP in the state of a golden case, and the case's values."""
    settings = json.loads((GOLDEN / f"{name}.json").read_text())
    golden = load_file(GOLDEN / f"{name}.safetensors")
    clip = clips[settings["backbone"]]
    method = PFedMoAP(
        num_experts=settings["num_nonlocal_experts"],
        **{
            "lmbda": settings["lmbda"],
            "attention_scale": settings["attention_scale"],
            "heads": settings["gating_heads"],
            "gating_dim": settings["gating_dim"],
            **changes,
        },
    )
    config = PromptConfig(length=settings["n_ctx"], position=settings["class_token_position"])
    optim = OptimConfig(
        prompt_lr=settings["prompt_lr"],
        gating_lr=settings["gating_lr"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    )
    module = ClientModule(clip, PromptLearner(clip, settings["class_names"], config), method=method, optim=optim)
    parameters = {"prompt": golden["ctx"]}
    for theirs, ours in MAPS.items():
        for kind in ("weight", "bias"):
            parameters[f"gate.{ours}.{kind}"] = golden[f"gating.{theirs}.{kind}"]
    module.load(0, Loadout(parameters, {"prompt": golden["experts"]}))
    return module, golden


def difference(ours: Tensor, golden: Tensor) -> float:
    """Largest difference, relative to the largest entry of the golden tensor."""
    assert ours.shape == golden.shape
    return float((ours - golden).abs().max() / golden.abs().max())


@pytest.fixture(params=["rn_cifar", "rn_pets", "vit_cifar", "vit_pets"])
def case(request: pytest.FixtureRequest, golden_clips: dict[str, FrozenCLIP]) -> tuple[ClientModule, dict[str, Tensor]]:
    return golden_client(request.param, golden_clips)


def test_images_go_in_and_logits_come_out(case: tuple[ClientModule, dict[str, Tensor]]) -> None:
    module, golden = case
    with torch.no_grad():
        assert difference(module(golden["images"]), golden["logits_moe"]) < 5e-6
        assert difference(module(golden["image_features"]), golden["logits_moe"]) < 5e-6
        labels = golden["labels"].long()
        assert difference(module.method.loss(module, golden["image_features"], labels)[None], golden["loss"]) < 5e-6
        module.expert_text = None  # no experts: the local prompt alone
        assert difference(module(golden["images"]), golden["logits_local_only"]) < 5e-6


def test_a_plain_trainer_fits_and_tests_it_on_images(case: tuple[ClientModule, dict[str, Tensor]]) -> None:
    """Three full-batch steps of SGD end where the release's do: loss, prompt, gate, predictions."""
    module, golden = case
    labels = golden["labels"].long()
    images = DataLoader(TensorDataset(golden["images"], labels), batch_size=len(labels))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=len(golden["after.losses"]), enable_model_summary=False, **quiet)
    trainer.fit(module, images)
    assert difference(torch.stack(module.losses), golden["after.losses"]) < 1e-5
    trained = module.export()
    assert difference(trained["prompt"], golden["after.ctx"]) < 1e-5
    for theirs, ours in MAPS.items():
        weight, bias = trained[f"gate.{ours}.weight"], trained[f"gate.{ours}.bias"]
        assert difference(weight[::STORED_ROWS], golden[f"after.gating.{theirs}.weight"]) < 1e-5
        assert difference(bias, golden[f"after.gating.{theirs}.bias"]) < 1e-5
    with torch.no_grad():
        assert difference(module(golden["images"]), golden["after.logits"]) < 1e-5
    (found,) = trainer.test(module, images, verbose=False)
    right = (golden["after.logits"].argmax(dim=1) == labels).float().mean()
    assert found["test/accuracy"] == pytest.approx(float(right))
    (found,) = trainer.validate(module, images, verbose=False)
    assert found["validation/loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(golden["after.logits"], labels)), rel=1e-5
    )


def test_clip_is_neither_trained_nor_saved(case: tuple[ClientModule, dict[str, Tensor]]) -> None:
    module, _ = case
    assert {name.split(".")[0] for name in module.state_dict()} == {"prompts", "gate"}
    assert isinstance(module.clip, FrozenCLIP)
    assert sum(p.numel() for p in module.parameters()) == module.prompts["prompt"].numel() + 66_048


def test_lambda_and_the_attention_scale_by_hand(golden_clips: dict[str, FrozenCLIP]) -> None:
    """Eq. 9 to 11 with lambda = 0.25 and scale = 3 at gating width 1, where every map is one number.

    Image I = e_0; C = 1 class; the local text feature begins with 0.6, the only expert's with -0.8. Width 256 is pooled
    to 1 by keeping coordinate 0. The maps x -> a x + c: query 2x + 1, key x - 0.5, value 4x + 1, output -x + 2.
    """
    clip = golden_clips["rn"]
    method = PFedMoAP(num_experts=1, lmbda=0.25, attention_scale=3.0, gating_dim=1, heads=1)
    module = ClientModule(clip, PromptLearner(clip, ["cat"], PromptConfig(length=2)), method=method)
    maps = {"query": (2.0, 1.0), "key": (1.0, -0.5), "value": (4.0, 1.0), "output": (-1.0, 2.0)}
    parameters: dict[str, Tensor] = {}
    for name, (weight, bias) in maps.items():
        parameters |= {f"gate.{name}.weight": torch.tensor([[weight]]), f"gate.{name}.bias": torch.tensor([bias])}
    module.load(0, Loadout(parameters))
    unit = torch.eye(clip.feature_dim)
    module.text = (0.6 * unit[0] + 0.8 * unit[1])[None]  # T_L [1, d]
    module.expert_text = (-0.8 * unit[0] + 0.6 * unit[2])[None, None]  # [1, 1, d]
    # query = 2 * 1 + 1 = 3; keys = 0.6 - 0.5 = 0.1 and -0.8 - 0.5 = -1.3; scores 3 * 3 * key = 0.9 and -11.7.
    # weights = softmax = 1 / (1 + e^-12.6) and the rest; values = 4 * 0.6 + 1 = 3.4 and 4 * -0.8 + 1 = -2.2.
    # T_MoE = 2 - (3.4 w - 2.2 (1 - w)); logit = s * (1 * T_MoE + 0.25 * 0.6).
    w = 1 / (1 + 2.718281828459045**-12.6)
    expected = module.logit_scale * (2 - (3.4 * w - 2.2 * (1 - w)) + 0.25 * 0.6)
    with torch.no_grad():
        assert float(module(unit[:1])) == pytest.approx(expected, rel=1e-5)
        # With scale 10 the far expert's weight would be e^-42; a coordinate where it matters tells the two apart:
        # an image -0.4 e_0 has query 0.2, scores 3 * 0.2 * 0.1 = 0.06 and 3 * 0.2 * -1.3 = -0.78.
        w = 1 / (1 + 2.718281828459045**-0.84)
        mixed = 2 - (3.4 * w - 2.2 * (1 - w))
        expected = module.logit_scale * (-0.4 * mixed + 0.25 * -0.4 * 0.6)
        assert float(module(-0.4 * unit[:1])) == pytest.approx(expected, rel=1e-5)
        weights = method.analyse(module, -0.4 * unit[:1])["attention"]
        assert weights.tolist() == pytest.approx([w, 1 - w], rel=1e-5)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (PromptFL(), [(0.03, {"prompt"})]),
        (FedProx(), [(0.03, {"prompt"})]),
        (CoOp(), [(0.03, {"prompt"})]),
        (FedAMP(), [(0.03, {"prompt"})]),
        (FedPer(), [(0.03, {"prompt", "own"})]),
        (FedPGP(), [(0.03, {"prompt"}), (0.2, {"U", "V"})]),
        (FedOTP(), [(0.03, {"prompt"}), (0.2, {"local"})]),
        (PromptFolio(), [(0.03, {"prompt"}), (0.2, {"local"})]),
        (FedPHA(), [(0.03, {"prompt"}), (0.2, {"local"})]),
        (DPFPL(), [(0.03, {"prompt"}), (0.2, {"local"})]),
        (FedSEPT(), [(0.03, {"factors"}), (0.2, {"residual", "router"})]),
        (FedTPG(), [(0.03, {"generator"})]),
        (PFedMoAP(2), [(0.03, {"prompt"}), (0.2, {"gate"})]),
        (PFedMoAP(2, gate="linear", gate_sharing="averaged"), [(0.03, {"prompt"}), (0.2, {"gate"})]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Method) else "",
)
@pytest.mark.parametrize("schedule", ["constant", "cosine_federation"])
def test_every_parameter_has_its_learning_rate(
    embedded_clip: FrozenCLIP, method: Method, expected: list[tuple[float, set[str]]], schedule: Any
) -> None:
    optim = OptimConfig(prompt_lr=0.03, gating_lr=0.2, momentum=0.7, weight_decay=0.01, schedule=schedule)
    module = ClientModule(
        embedded_clip, PromptLearner(embedded_clip, ["zero", "one"], PromptConfig()), method=method, optim=optim
    )
    module.load(0, Loadout(), progress=0.5)
    half = 1.0 if schedule == "constant" else 0.5  # a cosine to zero, half way: (1 + cos(pi / 2)) / 2
    names = {
        id(tensor): name.split(".")[0]
        for name, tensor in module.trained(module.parts(Scope.SHARED, Scope.PERSONAL)).items()
    }
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    found = []
    for group in optimizer.param_groups:
        assert (group["momentum"], group["weight_decay"], group["nesterov"], group["dampening"]) == (
            0.7,
            0.01,
            False,
            0,
        )
        found.append((group["lr"], {names[id(parameter)] for parameter in group["params"]}))
    assert found == [(pytest.approx(half * rate), parts) for rate, parts in expected]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.parameters()))


def test_adam_is_an_option(embedded_clip: FrozenCLIP) -> None:
    optim = OptimConfig(prompt_lr=0.03, weight_decay=0.01, optimizer="adam")
    prompts = PromptLearner(embedded_clip, ["zero", "one"], PromptConfig())
    module = ClientModule(embedded_clip, prompts, method=PromptFL(), optim=optim)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.03, 0.01, (0.9, 0.999))


def test_a_gate_of_ones_own_takes_the_place_of_the_declared_one(embedded_clip: FrozenCLIP) -> None:
    own = PFedMoAP(1)._gate(embedded_clip.feature_dim)
    prompts = PromptLearner(embedded_clip, ["zero", "one"], PromptConfig())
    module = ClientModule(embedded_clip, prompts, own, method=PFedMoAP(1))
    assert module.gate is own
    images = normalize(torch.randn(3, embedded_clip.feature_dim, generator=torch.Generator().manual_seed(0)), dim=-1)
    module.load(0, Loadout(experts={"prompt": torch.zeros(1, 16, embedded_clip.token_width)}))
    assert module(images).shape == (3, 2)


def test_load_refuses_what_is_not_the_methods(embedded_clip: FrozenCLIP) -> None:
    prompts = PromptLearner(embedded_clip, ["zero", "one"], PromptConfig())
    module = ClientModule(embedded_clip, prompts, method=PromptFL())
    with pytest.raises(ValueError, match=r"the parameters gate\.weight are not those of PromptFL"):
        module.load(0, Loadout({"gate.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"the parameter prompt has shape \[3, 4\], not \[16, 64\]"):
        module.load(0, Loadout({"prompt": torch.ones(3, 4)}))
