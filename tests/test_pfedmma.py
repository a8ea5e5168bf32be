"""pFedMMA: its release's values and federation, its gradient rule by hand, and zero-shot CLIP as a special case."""

from __future__ import annotations

import pytest
import torch
from golden_helpers import case_client, difference, fit, gradients, read_case, with_rows
from torch import Tensor, nn

from fedmoe.client.module import ClientModule
from fedmoe.errors import UserError
from fedmoe.methods import PFedMMA
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import template_features
from fedmoe.protocol.records import ClientState, Loadout, RoundContext
from fedmoe.seeds import torch_generator
from fedmoe.server.state import ServerState

CONTEXT = RoundContext(1, (0, 1, 2), 0)


def theirs(name: str) -> str:
    """The release's name of one of our tensors: its blocks count from 1."""
    part, block, *rest = name.split(".")
    kind = {"middle": "shared", "text_adapters": "text", "image_adapters": "visual"}[part]
    inner = {"down": "down.0.", "up": "up."}[rest[0]] if kind != "shared" else "0."
    return f"{kind}_adapter.{int(block) + 1}.{inner}{rest[-1]}"


class Golden:
    def __init__(self, clips: dict[str, FrozenCLIP]) -> None:
        self.settings, self.tensors = read_case("pfedmma_vit")
        s = self.settings
        self.method = PFedMMA(
            s["adapter_start"], s["adapter_end"], s["adapter_dim"], s["adapter_scale"], gradients="scaled"
        )
        self.clip = with_rows(clips["vit"], self.tensors)
        self.module = case_client(self.clip, s, self.method, 4)
        self.start = {name: self.tensors[theirs(name)] for name in self.module.tensors()}


def compare(found: dict[str, Tensor], golden: dict[str, Tensor], prefix: str, bound: float = 1e-5) -> None:
    for name, tensor in found.items():
        assert difference(tensor, golden[f"{prefix}{theirs(name)}"]) < bound, name


def test_values_are_the_releases(golden_clips: dict[str, FrozenCLIP]) -> None:
    made = Golden(golden_clips)
    golden, method, module = made.tensors, made.method, made.module
    assert len(made.start) == 2 * (2 + 4 + 4)
    module.load(0, Loadout(made.start))
    tokens, labels = golden["tokens"], golden["labels"].long()
    with torch.no_grad():
        assert difference(method.text(module), golden["text_features"]) < 1e-5
        assert difference(method.images(module, tokens), golden["image_features"]) < 1e-5
        assert difference(module(tokens), golden["logits"]) < 1e-5
    loss = method.loss(module, tokens, labels)
    assert difference(loss[None], golden["loss"]) < 1e-5
    # The release's own rounding: recomputed in float64, a gradient differs by up to 1.5e-5, in float32 by 1.7e-5 on one
    # processor and 2.4e-5 on another.
    compare(gradients(module, loss), golden, "grad.", 3e-5)
    fit(module, tokens, labels, made.settings["steps"])
    assert difference(torch.stack(module.losses), golden["after.losses"]) < 1e-5
    compare(module.export(), golden, "after.")
    with torch.no_grad():
        assert difference(module(tokens), golden["after.logits"]) < 1e-5


def test_the_federation_is_the_releases(golden_clips: dict[str, FrozenCLIP]) -> None:
    made = Golden(golden_clips)
    golden, method, module = made.tensors, made.method, made.module
    counts = [int(n) for n in golden["fed.n"]]
    middle = {name: tensor for name, tensor in made.start.items() if name.startswith("middle.")}
    own = {name: tensor for name, tensor in made.start.items() if name not in middle}
    server, states = ServerState(dict(middle)), [ClientState(own) for _ in counts]
    for number in range(made.settings["rounds"]):
        updates = []
        for i, state in enumerate(states):
            downlink = method.configure(server, i, CONTEXT)
            assert downlink.parameters.keys() == middle.keys()
            module.load(i, method.start(state, downlink))
            fit(module, golden[f"fed.client{i}.tokens"], golden[f"fed.client{i}.labels"], made.settings["local_epochs"])
            update, states[i] = method.finish(module, state, downlink, counts[i])
            trained = {**update.parameters, **states[i].parameters}
            compare(trained, golden, f"fed.round{number}.client{i}.trained.")
            updates.append(update)
        method.aggregate(server, updates, CONTEXT)
        compare(server.shared, golden, f"fed.round{number}.server.")
        for i, state in enumerate(states):
            module.load(i, method.inference(state, method.deploy(server, i, CONTEXT)))
            with torch.no_grad():
                logits = module(golden[f"fed.client{i}.test_tokens"])
            assert difference(logits, golden[f"fed.round{number}.client{i}.logits"]) < 1e-5


def named_gradients(clip: FrozenCLIP, **settings: object) -> tuple[dict[str, Tensor], ClientModule]:
    made_settings, golden = read_case("pfedmma_vit")
    method = PFedMMA(1, 2, 8, 0.05, **settings)  # type: ignore[arg-type]
    module = case_client(clip, made_settings, method, 4)
    module.load(0, Loadout())
    return gradients(module, method.loss(module, golden["tokens"], golden["labels"].long())), module


def test_scaled_gradients_are_the_plain_ones_over_the_scale(golden_clips: dict[str, FrozenCLIP]) -> None:
    """Of every adapter's tensor, also of lower ones, whose gradient runs through the upper adapters."""
    clip = with_rows(golden_clips["vit"], read_case("pfedmma_vit")[1])
    plain, _ = named_gradients(clip)
    scaled, _ = named_gradients(clip, gradients="scaled")
    assert len(plain) == 20
    for name, gradient in plain.items():
        bound = 1e-5 * float(scaled[name].abs().max())
        torch.testing.assert_close(scaled[name], gradient / 0.05, rtol=1e-3, atol=bound)


def test_the_branch_by_hand(golden_clips: dict[str, FrozenCLIP]) -> None:
    """s U act(S act(D x)) with plain matrix products, for both activations."""
    clip = with_rows(golden_clips["vit"], read_case("pfedmma_vit")[1])
    for activation, act in (("relu", nn.functional.relu), ("gelu", nn.functional.gelu)):
        _, module = named_gradients(clip, activation=activation)
        tensors = module.export()
        x = torch.randn(1, 3, 64, generator=torch_generator(1))
        block = clip.model.visual.transformer.resblocks[0]
        a = act(block.ln_1(x) @ tensors["image_adapters.0.down.weight"].T + tensors["image_adapters.0.down.bias"])
        a = act(a @ tensors["middle.0.weight"].T + tensors["middle.0.bias"])
        a = a @ tensors["image_adapters.0.up.weight"].T + tensors["image_adapters.0.up.bias"]
        with torch.no_grad():
            found = module.method.image_edits(module)[0](block, x, None)  # type: ignore[attr-defined]
            torch.testing.assert_close(found, block(x) + 0.05 * a, rtol=1e-5, atol=1e-5)


def test_adapters_that_give_nothing_leave_zero_shot_clip(golden_clips: dict[str, FrozenCLIP]) -> None:
    settings, golden = read_case("pfedmma_vit")
    clip = with_rows(golden_clips["vit"], golden)
    module = case_client(clip, settings, PFedMMA(2, 2), 4)
    silent = {name: 0 * t if ".up." in name else t for name, t in module.export().items()}
    module.load(0, Loadout(silent))
    images = torch.randn(3, 3, 64, 64, generator=torch_generator(1))
    template = template_features(clip, settings["class_names"], "a photo of a {class}.")
    with torch.no_grad():
        expected = clip.logit_scale * clip.encode_image(images) @ template.T
        torch.testing.assert_close(module(images), expected, rtol=0, atol=1e-4)
        assert module.encoder.name == "tokens1"  # cached below the only adapter


def test_blocks_and_sizes(golden_clips: dict[str, FrozenCLIP]) -> None:
    """Towers of 2 and 3 blocks: from 2 // 3 + 1 = 1 to 2. All clients start equal."""
    settings, golden = read_case("pfedmma_vit")
    clip = with_rows(golden_clips["vit"], golden)
    method = PFedMMA()
    assert method.blocks(clip) == range(2)
    module = case_client(clip, settings, method, 4)
    module.load(0, Loadout())
    one = module.export()
    module.load(5, Loadout())
    assert all(torch.equal(one[name], tensor) for name, tensor in module.export().items())
    assert float(one["image_adapters.0.up.weight"].std()) == pytest.approx((2 / 64) ** 0.5, rel=0.1)
    assert float(one["image_adapters.0.down.weight"].std()) == pytest.approx((2 / 32) ** 0.5, rel=0.1)
    assert not any(tensor.any() for name, tensor in one.items() if name.endswith("bias"))
    with pytest.raises(UserError, match=r"first is 2 and method\.last 3, but .* valid is 1 <= first <= last <= 2"):
        PFedMMA(2, 3).blocks(clip)


@pytest.mark.parametrize("name", ["first", "last", "rank", "scale"])
def test_mistakes_are_told(name: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{name} is 0"):
        PFedMMA(**{name: 0})  # type: ignore[arg-type]
