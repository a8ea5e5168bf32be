"""Fed-VPT, Fed-MaPLe, FedLoRA and FedMGP as federations, and the cases in which one is another. Values by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from federation_helpers import Backwards, build_federation, build_module, differences, results
from torch import Tensor

from fedmoe.cli import main
from fedmoe.client.module import ClientModule
from fedmoe.config import FeatureConfig, FederationConfig
from fedmoe.data import Digits, Dirichlet, SubsetConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.state import FederationState
from fedmoe.methods import FedLoRA, FedMaPLe, FedMGP, FedVPT, PFedMMA
from fedmoe.methods.towers import TowerMethod
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import template_features
from fedmoe.privacy.gradients import per_example_gradients
from fedmoe.protocol.records import Loadout
from fedmoe.runs.checkpoint import StateStore
from fedmoe.seeds import torch_generator

ROOT = Path(__file__).parents[1]
CONFIG = FederationConfig(clients=4, participation=0.5, rounds=2, local_epochs=1, batch_size=32)
METHODS: list[Callable[[], TowerMethod]] = [FedVPT, FedMaPLe, FedMGP, PFedMMA, FedLoRA]
TEMPLATE = "a photo of a {class}."
W, V, LAYERS, TEXT_LAYERS, PLACES = 64, 64, 4, 2, 17  # of fedmoe-tiny-vit: widths, blocks, tokens of an image


@pytest.fixture(scope="module")
def data(vit_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    digits = Digits(subset=SubsetConfig(train=80, test=60))
    return prepare(digits, Dirichlet(0.5, 5), vit_clip, CONFIG, cache, seed=0, encoder=FedVPT().encoder(vit_clip))


def module_of(clip: FrozenCLIP, data: FederatedData, method: TowerMethod, **tensors: Tensor) -> ClientModule:
    module = build_module(clip, data, method)
    module.load(0, Loadout({**module.export(), **tensors}))
    return module


def zero_shot(clip: FrozenCLIP, data: FederatedData, tokens: Tensor) -> Tensor:
    """Plain open_clip behind the tokens that enter its first block."""
    visual = clip.model.visual
    features = visual.ln_post(visual.transformer(tokens))[:, 0] @ visual.proj
    text = template_features(clip, data.class_names, TEMPLATE)
    return clip.logit_scale * torch.nn.functional.normalize(features, dim=-1) @ text.T


@pytest.mark.parametrize(
    "method",
    [
        FedVPT(vectors=0),
        FedLoRA(),
        FedLoRA(towers="image", first=3),
        FedLoRA(towers="text"),
    ],
    ids=["no tokens", "B = 0", "images, from block 3", "texts"],
)
def test_what_changes_nothing_is_zero_shot_clip(vit_clip: FrozenCLIP, data: FederatedData, method: TowerMethod) -> None:
    module = module_of(vit_clip, data, method)
    images = torch.randn(3, 3, 32, 32, generator=torch_generator(1))
    tokens = FedVPT().encoder(vit_clip).encode(images)
    with torch.no_grad():
        torch.testing.assert_close(module(images), zero_shot(vit_clip, data, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("towers", "first"), [("both", 1), ("both", 2), ("image", 3), ("text", 2)])
def test_low_rank_changes_are_those_of_open_clips_weights(
    vit_clip: FrozenCLIP, data: FederatedData, towers: Any, first: int
) -> None:
    """open_clip with W + (3 / 2) B A in place of each block's stacked query, key and value maps from ``first`` on."""
    method = FedLoRA(rank=2, alpha=3.0, towers=towers, first=first)
    module = module_of(vit_clip, data, method)
    draws = {
        name: 0.1 * torch.randn(t.shape, generator=torch_generator(7, name)) for name, t in module.export().items()
    }
    module.load(0, Loadout(draws))
    changed = deepcopy(vit_clip)
    for tower, blocks in (("image", changed.model.visual.transformer.resblocks), ("text", changed.text.blocks)):
        if f"{tower}_A" not in draws:
            continue
        for j, block in enumerate(blocks[first - 1 :]):
            products = [b @ a for a, b in zip(draws[f"{tower}_A"][j], draws[f"{tower}_B"][j], strict=True)]
            block.attn.in_proj_weight += 1.5 * torch.cat(products)
    images = torch.randn(3, 3, 32, 32, generator=torch_generator(1))
    with torch.no_grad():
        expected, plain = (
            clip.logit_scale * clip.encode_image(images) @ template_features(clip, data.class_names, TEMPLATE).T
            for clip in (changed, vit_clip)
        )
        torch.testing.assert_close(module(images), expected, rtol=0, atol=1e-4)
        assert float((expected - plain).abs().max()) > 0.02


@pytest.mark.parametrize("depth", [1, 2])
def test_maple_is_independent_prompting_with_coupled_tokens(
    vit_clip: FrozenCLIP, data: FederatedData, depth: int
) -> None:
    """Visual tokens F_j P_j put in as FedVPT's: equal logits, equal loss; the gradient of P_j is that of FedVPT's words
    plus F_j^T times that of its tokens, summed over the features of each."""
    maple = module_of(vit_clip, data, FedMaPLe(depth=depth))
    words = torch.randn(depth, 2, W, generator=torch_generator(1)) * 0.1
    maple.load(0, Loadout({**maple.export(), "text": words}))
    tensors = maple.export()
    weights = [tensors[f"couplings.{j}.weight"] for j in range(depth)]
    biases = [tensors[f"couplings.{j}.bias"] for j in range(depth)]
    visual = torch.stack([p @ a.T + c for p, a, c in zip(words, weights, biases, strict=True)])
    plain = module_of(vit_clip, data, FedVPT(2, depth, 2), text=words, visual=visual)
    tokens, labels = data.client(0).train_features[:8], data.client(0).train_labels[:8]
    torch.testing.assert_close(maple(tokens), plain(tokens), rtol=0, atol=1e-5)
    slopes = []
    for module in (maple, plain):
        tensors_ = dict(module.trained(module.declared))
        found = torch.autograd.grad(module.method.loss(module, tokens, labels), list(tensors_.values()))
        slopes.append(dict(zip(tensors_, found, strict=True)))
    ours, other = slopes
    expected = torch.stack([t + v @ a for t, v, a in zip(other["text"], other["visual"], weights, strict=True)])
    torch.testing.assert_close(ours["text"], expected, rtol=1e-4, atol=1e-6)
    for j in range(depth):
        torch.testing.assert_close(ours[f"couplings.{j}.bias"], other["visual"][j].sum(0), rtol=1e-4, atol=1e-6)


def test_what_is_declared(vit_clip: FrozenCLIP, data: FederatedData) -> None:
    """Shapes and starts; depths and blocks stop where a tower does."""
    words = vit_clip.text.token_embedding(vit_clip.tokenize(["a photo"]))[0, 1:3]
    found = module_of(vit_clip, data, FedVPT(depth=9, text_vectors=2)).export()
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "visual": (LAYERS, 4, V),
        "text": (TEXT_LAYERS, 2, W),
    }
    assert torch.equal(found["text"][0], words)
    assert float(found["visual"].std()) == pytest.approx(0.02, rel=0.1)
    found = module_of(vit_clip, data, FedMaPLe()).export()
    count = 2 * 2 * W + 2 * (W * V + V)  # n w J + J (w v + v) with J = 2, the text tower's blocks
    assert sum(t.numel() for t in found.values()) == count
    assert torch.equal(found["text"][0], words)
    assert not torch.equal(found["couplings.0.weight"], found["couplings.1.weight"])
    found = module_of(vit_clip, data, FedLoRA(rank=3)).export()
    assert {name: tuple(t.shape) for name, t in found.items()} == {
        "image_A": (LAYERS, 3, 3, V),
        "image_B": (LAYERS, 3, V, 3),
        "text_A": (TEXT_LAYERS, 3, 3, W),
        "text_B": (TEXT_LAYERS, 3, W, 3),
    }
    assert not found["image_B"].any()
    assert float(found["image_A"].abs().max()) == pytest.approx(1 / 8, rel=0.01)  # uniform up to 1 / sqrt(64)


def test_half_precision_tokens_are_kept_so(vit_clip: FrozenCLIP, data: FederatedData, tmp_path: Path) -> None:
    """In memory and in the cache, whence a second extraction reads the same; they are the float32 ones, rounded."""
    digits, cache = Digits(subset=SubsetConfig(train=80, test=60)), FeatureConfig(cache_dir=str(tmp_path))
    encoder = FedVPT(tokens="float16").encoder(vit_clip)
    for _ in range(2):
        half = prepare(digits, Dirichlet(0.5, 5), vit_clip, CONFIG, cache, seed=0, encoder=encoder).client(1)
        assert half.train_features.dtype == torch.float16
        assert torch.equal(half.train_features, data.client(1).train_features.half())
        assert torch.equal(half.test_features, data.client(1).test_features.half())
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_tokens_are_cached_below_the_first_change(vit_clip: FrozenCLIP) -> None:
    names = [method.encoder(vit_clip).name for method in (FedVPT(), FedLoRA(first=2), FedLoRA(towers="text"))]
    assert names == ["tokens0", "tokens1", f"tokens{LAYERS}"]
    assert FedVPT().encoder(vit_clip).shape == (PLACES, V)


@pytest.mark.parametrize("make", METHODS)
def test_the_loss_falls_and_memory_may_be_saved(vit_clip: FrozenCLIP, data: FederatedData, make: Any) -> None:
    """Checkpointed activations give the same loss and gradients."""
    client = data.client(0)
    found = []
    for save_memory in (False, True):
        module = module_of(vit_clip, data, make(save_memory=save_memory))
        loss = module.method.loss(module, client.train_features[:6], client.train_labels[:6])
        named = dict(module.trained(module.declared))
        slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        found.append([loss, *(slope for slope in slopes if slope is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert any(slope.any() for slope in found[0][1:])


@pytest.mark.parametrize("make", [FedVPT, PFedMMA])
def test_each_examples_gradient_is_known_for_privacy(vit_clip: FrozenCLIP, data: FederatedData, make: Any) -> None:
    """DP-SGD's gradients of single examples: their mean is the batch's."""
    module = module_of(vit_clip, data, make())
    tokens, labels = data.client(0).train_features[:3], data.client(0).train_labels[:3]
    found = per_example_gradients(module, tokens, labels)
    parameters = list(module.trained(module.declared).values())
    expected = torch.autograd.grad(module.method.loss(module, tokens, labels), parameters)
    for parameter, whole in zip(parameters, expected, strict=True):
        bound = 1e-5 * float(whole.abs().max())
        torch.testing.assert_close(found[parameter].mean(dim=0), whole, rtol=1e-3, atol=bound)


def test_groups_drawn_at_random_are_the_same_in_any_order_and_after_a_break(
    vit_clip: FrozenCLIP, data: FederatedData, tmp_path: Path
) -> None:
    def build(**settings: Any) -> Any:
        return build_federation(vit_clip, data, FedMGP(groups=3), CONFIG, **settings)

    (whole, log), (again, log_again) = build(), build(kind=Backwards)
    whole.run()
    torch.manual_seed(1234)
    again.run()
    assert differences(whole.state, again.state) == []
    assert results(log) == results(log_again)
    first, _ = build()
    first._before_training()
    first.round(1)
    StateStore(tmp_path).save(1, *first.state.flatten())
    resumed, _ = build(state=StateStore(tmp_path).load(FederationState.unflatten))
    resumed.run()
    assert differences(whole.state, resumed.state) == []
    sent = 2 * 4 * (2 * W + 2 * V)  # bytes of two groups of two words and two tokens
    assert [record.bytes["up"] for record in log.records] == [0, 2 * sent, 2 * sent]
    assert [record.bytes["down"] for record in log.records] == [0, 0, 2 * sent]
    seen = len(set(log.records[1].cohort) | set(log.records[2].cohort))
    assert log.records[2].bytes["evaluate_down"] == seen * sent


@pytest.mark.parametrize("name", ["fedvpt", "fedmaple", "fedmgp", "pfedmma", "fedlora"])
def test_its_config_runs_on_the_embedded_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--output.name=own"]
    files = [f"--config={ROOT / 'configs' / file}" for file in ("embedded.yaml", f"methods/{name}.yaml")]
    clip = ["--clip.architecture=fedmoe-tiny-vit", "--clip.pretrained=null", "--data.subset.train=60"]
    assert main(["fit", *files, *clip, *small, f"--features.cache_dir={tmp_path / 'cache'}"]) == 0
    assert math.isfinite(json.loads((tmp_path / "runs/own/summary.json").read_text())["accuracy"]["mean"])


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (FedVPT, {"vectors": -1}, "vectors is -1"),
        (FedVPT, {"depth": 0}, "depth is 0"),
        (FedMaPLe, {"vectors": 0}, "vectors is 0"),
        (FedLoRA, {"rank": 0}, "rank is 0"),
        (FedLoRA, {"alpha": 0.0}, "alpha is 0"),
        (FedLoRA, {"template": "a photo"}, "template is 'a photo'"),
    ],
)
def test_mistakes_are_told(make: Any, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{said}"):
        make(**settings)


def test_what_does_not_fit_the_towers_is_told(vit_clip: FrozenCLIP, data: FederatedData) -> None:
    with pytest.raises(UserError, match=r"method\.first is 3, but .* has 2 text blocks; valid is 1 to 2"):
        build_module(vit_clip, data, FedLoRA(first=3))
    with pytest.raises(UserError, match=r"with 4 tokens before the class name, but 5 of them are learned"):
        build_module(vit_clip, data, FedMaPLe(vectors=5))
