"""FedOTP: its release's values, one prompt worked out by hand, and federations on real data.

Shape letters: b images, M places of an image, N prompts, C classes, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from conftest import GOLDEN, tiny_config
from federation_helpers import Log, after_one_round, assert_same_bits, build_federation, work_of
from safetensors.torch import load_file
from torch import Tensor

from fedmoe.cli import main
from fedmoe.client.module import ClientModule
from fedmoe.config import ClipConfig, FeatureConfig, FederationConfig, OptimConfig, PromptConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.federation.orchestrator import Federation
from fedmoe.methods import FedOTP
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.functional import local_logits
from fedmoe.models.prompt import PromptLearner
from fedmoe.models.spatial import SpatialEncoder
from fedmoe.protocol.records import Loadout, RoundContext, Update
from fedmoe.seeds import torch_generator
from fedmoe.server.state import ServerState

ROOT = Path(__file__).parents[1]
CLIENTS = 5
CONFIG = FederationConfig(clients=CLIENTS, participation=0.6, rounds=2, local_epochs=1, batch_size=64)
CASES = ["rn_partial", "rn_balanced", "vit_partial"]


def difference(ours: Tensor, golden: Tensor) -> float:
    """Largest difference, relative to the golden tensor's largest entry."""
    assert ours.shape == golden.shape
    return float((ours.detach() - golden).abs().max() / golden.abs().max())


def unit(*shape: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch_generator(seed)), dim=-1)


# The release


class Golden:
    """One golden case, and fedmoe's client in its state."""

    def __init__(self, clips: dict[str, FrozenCLIP], case: str, dtype: torch.dtype = torch.float32) -> None:
        self.settings = json.loads((GOLDEN / f"fedotp_{case}.json").read_text())
        self.tensors = load_file(GOLDEN / f"fedotp_{case}.safetensors")
        clip = deepcopy(clips[self.settings["backbone"]]).to(dtype)
        self.method = FedOTP(
            self.settings["transport"].partition(" ")[0],
            *(self.settings[key] for key in ("mass", "epsilon", "stop_threshold", "max_iterations")),
        )
        self.learner = PromptLearner(clip, self.settings["class_names"], PromptConfig(length=self.settings["n_ctx"]))
        rate = self.settings["prompt_lr"]
        self.module = ClientModule(
            clip,
            self.learner,
            method=self.method,
            optim=OptimConfig(
                prompt_lr=rate,
                gating_lr=rate,
                momentum=self.settings["momentum"],
                weight_decay=self.settings["weight_decay"],
            ),
        ).to(dtype)
        start = self.tensors["ctx"]
        self.module.load(0, Loadout({"prompt": start[0], "local": start[1]}))
        assert list(self.learner.learned) == ["prompt", "local"]
        assert self.learner["local"].dtype == dtype
        self.images = SpatialEncoder(clip)(self.tensors["images"].to(dtype))
        self.labels = self.tensors["labels"].long()

    def prompts(self) -> Tensor:
        return torch.stack([self.learner["prompt"], self.learner["local"]])

    def stop_as_the_release(self) -> None:
        """The release rescales all plans of a batch until the mean change over all of them is small: count."""
        with torch.no_grad():
            similarity = torch.einsum("bmd,ncd->bcmn", self.images, self.learner(self.prompts()))
        kernel = torch.exp((similarity.double() - 1) / self.settings["epsilon"])
        places, prompts = kernel.shape[-2:]
        balanced = self.method.transport == "balanced"
        r, c = torch.ones_like(kernel[..., :1]), torch.ones_like(kernel[..., :1, :])
        for count in range(1, self.settings["max_iterations"] + 1):
            old = r if balanced else c
            r = (1 / places / (kernel * c).sum(-1, keepdim=True)).clamp(max=torch.inf if balanced else 1)
            c = self.settings["mass"] / prompts / (kernel * r).sum(-2, keepdim=True)
            self.method.max_iterations = count
            if ((r if balanced else c) - old).abs().mean() < self.settings["stop_threshold"]:
                break
        self.method.stop_threshold = 0.0


# In float64 only the rounding of the release's own float32 is left: in the gradients up to 5.6e-6; in float32 8.5e-6.
@pytest.mark.parametrize(("dtype", "gradient"), [(torch.float32, 2e-5), (torch.float64, 6e-6)])
@pytest.mark.parametrize("case", CASES)
def test_values_are_the_releases(
    golden_clips: dict[str, FrozenCLIP], case: str, dtype: torch.dtype, gradient: float
) -> None:
    made = Golden(golden_clips, case, dtype)
    golden, method, module = made.tensors, made.method, made.module
    assert torch.equal(made.learner.token_ids, golden["token_ids"].long())
    made.stop_as_the_release()
    with torch.no_grad():
        assert difference(made.learner(made.prompts()), golden["text_features"]) < 1e-5
        assert difference(method.logits(module, made.images), golden["logits"]) < 1e-5  # through the cache
    assert difference(method.logits(module, made.images), golden["logits"]) < 1e-5  # with gradient

    optimizer, losses = module.configure_optimizers(), []
    for step in range(made.settings["steps"]):
        made.stop_as_the_release()
        loss = method.loss(module, made.images, made.labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert difference(loss.unsqueeze(0), golden["loss"]) < 1e-5
            first, second = made.learner["prompt"].grad, made.learner["local"].grad
            assert first is not None and second is not None
            found = torch.stack([first, second])
            assert difference(found, golden["grad.ctx"]) < gradient
        optimizer.step()
        losses.append(loss.detach())
    assert difference(torch.stack(losses), golden["after.losses"]) < 1e-5
    assert difference(made.prompts(), golden["after.ctx"]) < 1e-5
    assert difference(golden["ctx"], golden["after.ctx"]) > 1e-3  # the steps were not too small to tell
    made.stop_as_the_release()
    with torch.no_grad():
        assert difference(method.logits(module, made.images), golden["after.logits"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_stopping_image_by_image_changes_little(golden_clips: dict[str, FrozenCLIP], case: str) -> None:
    made = Golden(golden_clips, case)
    with torch.no_grad():
        together = made.method.logits(made.module, made.images)
        alone = torch.cat([made.method.logits(made.module, image) for image in made.images.split(1)])
    assert difference(alone, together) < 1e-6
    assert difference(together, made.tensors["logits"]) < 5e-5


# By hand and by POT


def test_one_prompt_and_balanced_transport_is_the_plain_logit_of_the_mean_place() -> None:
    """With one column T is 1 / M: exp(logit_scale) times mean_m F_m . T_text."""
    images, text = unit(6, 9, 16, seed=1), unit(1, 5, 16, seed=2)
    method = FedOTP("balanced", mass=1.0)
    plain = local_logits(images.mean(dim=1), text[0], 100.0)
    assert torch.allclose(100.0 * method.match(images, text), plain, rtol=0, atol=1e-4)
    partial = FedOTP("partial", mass=1.0, stop_threshold=0.0, max_iterations=2000)
    assert torch.allclose(100.0 * partial.match(images, text), plain, rtol=0, atol=1e-3)


def test_equal_prompts_share_the_mass() -> None:
    """Balanced, twice the same text: each place gives half of itself to each, which is the mean place again."""
    images, text = unit(6, 9, 16, seed=1), unit(1, 5, 16, seed=2)
    twice = FedOTP("balanced", mass=1.0).match(images, text.expand(2, -1, -1))
    assert torch.allclose(twice, images.mean(dim=1) @ text[0].T, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("epsilon", "mass"), [(0.1, 0.8), (0.05, 0.5)])
def test_similarity_is_that_of_pots_partial_plan(epsilon: float, mass: float) -> None:
    images, text = unit(3, 6, 8, seed=1).double(), unit(2, 4, 8, seed=2).double()
    method = FedOTP("partial", mass, epsilon, 0.0, 2000)
    ours = method.match(images, text)
    for i in range(3):
        for c in range(4):
            similarity = (images[i] @ text[:, c].T).numpy()  # [M, N]
            u, v = np.full(6, 1 / 6), np.full(2, mass / 2)
            plan = ot.partial.entropic_partial_wasserstein(u, v, 1 - similarity, epsilon, m=mass, numItermax=2000)
            assert float(ours[i, c]) == pytest.approx((plan * similarity).sum(), abs=1e-8)


def test_no_gradient_runs_through_the_plan() -> None:
    """The gradient of a class's similarity with respect to its two texts is sum_m T_mn F_m, as if T were fixed."""
    images, text = unit(1, 6, 8, seed=1).double(), unit(2, 1, 8, seed=2).double().requires_grad_()
    method = FedOTP("balanced", 1.0, 0.05, 0.0, 2000)
    method.match(images, text).sum().backward()
    similarity = (images[0] @ text.detach()[:, 0].T).numpy()
    u, v = np.full(6, 1 / 6), np.full(2, 1 / 2)
    plan = torch.from_numpy(ot.sinkhorn(u, v, 1 - similarity, 0.05, numItermax=5000, stopThr=1e-14))
    assert text.grad is not None
    assert torch.allclose(text.grad[:, 0], plan.T @ images[0], rtol=0, atol=1e-8)


# Federations


@pytest.fixture(scope="module")
def clips(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> dict[str, FrozenCLIP]:
    """The embedded CLIP, whose feature map has one place, and a random ViT with four."""
    path = tmp_path_factory.mktemp("clip") / "vit.json"
    path.write_text(json.dumps(tiny_config("vit")))
    return {"embedded": embedded_clip, "vit": FrozenCLIP.load(ClipConfig(model_config=str(path), pretrained=None))}


@pytest.fixture(scope="module")
def prepared(
    clips: dict[str, FrozenCLIP], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[FrozenCLIP, FederatedData]]:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))

    def get(name: str) -> tuple[FrozenCLIP, FederatedData]:
        clip = clips[name]
        data = prepare(Digits(), Dirichlet(0.5, 10), clip, CONFIG, cache, 0, encoder=FedOTP().encoder(clip))
        return clip, data

    return get


def run(clip: FrozenCLIP, data: FederatedData, method: FedOTP, **kwargs) -> tuple[Federation, Log]:
    federation, log = build_federation(clip, data, method, kwargs.pop("config", CONFIG), **kwargs)
    federation.run()
    return federation, log


@pytest.mark.parametrize("name", ["embedded", "vit"])
def test_neither_order_nor_the_global_generator_nor_an_interruption_changes_a_bit(
    prepared, name: str, tmp_path: Path
) -> None:
    clip, data = prepared(name)
    first = after_one_round(*build_federation(clip, data, FedOTP(), CONFIG))
    assert_same_bits(lambda **how: run(clip, data, FedOTP(), **how), first, tmp_path)
    assert first[0].rounds_done == 1


class Recorded(FedOTP):
    """Keeps the last round's uploads."""

    uploads: Sequence[Update] = ()

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        self.uploads = updates
        super().aggregate(server, updates, context)


def test_the_global_prompt_travels_and_the_local_one_stays(prepared) -> None:
    clip, data = prepared("vit")
    method = Recorded()
    federation, log = run(clip, data, method, config=replace(CONFIG, participation=0.4, rounds=1))
    prompt = 16 * 32 * 4  # bytes of l x w float32
    # Two clients train; all five download the global prompt to be evaluated.
    assert log.records[1].bytes == {"down": 2 * prompt, "up": 2 * prompt, "evaluate_down": CLIENTS * prompt}
    cohort, state, shared = log.records[1].cohort, federation.state, federation.server.shared
    assert list(state.clients) == cohort and len(cohort) == 2
    assert [set(client.parameters) for client in state.clients.values()] == [{"local"}] * 2
    assert [update.client_id for update in method.uploads] == cohort
    assert [set(update.parameters) for update in method.uploads] == [{"prompt"}] * 2
    sent = [update.parameters["prompt"] for update in method.uploads]
    assert state.clients[cohort[0]].parameters["local"].shape == sent[0].shape == (16, 32)
    weights = [len(data.client(i).train_labels) for i in cohort]
    total = torch.stack([n * tensor.double() for n, tensor in zip(weights, sent, strict=True)]).sum(0)
    mean = math.fsum(weights) ** -1 * total
    assert torch.allclose(shared["prompt"].double(), mean, rtol=0, atol=1e-7)

    # A client predicts with the current global prompt and its own local one; who never took part, with its start.
    for client_id in (cohort[0], next(i for i in range(CLIENTS) if i not in cohort)):
        client, module = data.client(client_id), work_of(federation).module
        own = state.clients[client_id].parameters if client_id in cohort else {}
        module.load(client_id, Loadout({**shared, **own}))
        local = module.prompts["local"].detach()
        if own:
            assert torch.equal(local, own["local"])
        text = module.prompts(torch.stack([shared["prompt"], local])).detach()
        plans = FedOTP().match(client.test_features, text)
        correct = int((plans.argmax(1) == client.test_labels).sum())
        assert log.evaluations[-1].clients[client_id].correct == correct


def test_local_prompts_start_apart_and_both_prompts_learn(prepared) -> None:
    clip, data = prepared("vit")
    optim = OptimConfig(prompt_lr=0.1, gating_lr=0.2, momentum=0.0, weight_decay=0.0)
    federation, _ = build_federation(clip, data, FedOTP(std=0.5), CONFIG, optim=optim)
    module, starts = work_of(federation).module, []
    for client_id in range(3):
        module.load(client_id, Loadout(federation.server.shared))
        starts.append(module.prompts["local"].detach().clone())
    assert 0.4 < float(torch.stack(starts).std()) < 0.6
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])
    client = data.client(2)
    before = module.export()
    loss = module.method.loss(module, client.train_features[:16], client.train_labels[:16])
    optimizer = module.configure_optimizers()
    loss.backward()
    gradients = [grad.clone() for name in ("prompt", "local") if (grad := module.prompts[name].grad) is not None]
    assert len(gradients) == 2
    optimizer.step()
    after = module.export()
    assert torch.allclose(after["prompt"] - before["prompt"], -0.1 * gradients[0], rtol=1e-4, atol=1e-7)
    assert torch.allclose(after["local"] - starts[2], -0.2 * gradients[1], rtol=1e-4, atol=1e-7)
    assert all(float(gradient.abs().max()) > 1e-6 for gradient in gradients)


def test_the_command_line_compares_it_with_a_method_on_other_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--federation.clients=3", "--federation.rounds=1", "--federation.local_epochs=1", "--runtime.threads=1"]
    where = [f"--output.dir={tmp_path}", "--output.name=both", f"--features.cache_dir={tmp_path / 'cache'}"]
    fit = ["fit", f"--config={ROOT / 'configs/embedded.yaml'}", *small, *where]
    assert main([*fit, "--methods=[PromptFL, FedOTP]"]) == 0
    summary = json.loads((tmp_path / "both/FedOTP/summary.json").read_text())
    assert summary["label"] == "FedOTP"
    assert summary["bytes_up"] == 3 * 16 * 64 * 4
    assert main(["evaluate", str(tmp_path / "both/FedOTP")]) == 0
    again = json.loads((tmp_path / "both/FedOTP/evaluation.json").read_text())
    assert again["accuracy"] == summary["accuracy"]
    assert "FedOTP" in capsys.readouterr().out


def test_class_specific_prompts_have_local_ones_of_their_shape(clips: dict[str, FrozenCLIP]) -> None:
    clip, method = clips["vit"], FedOTP()
    learner = PromptLearner(clip, ["cat", "dog"], PromptConfig(length=4, class_specific=True))
    module = ClientModule(clip, learner, method=method, optim=OptimConfig())
    assert module.prompts["local"].shape == (2, 4, 32)
    images = unit(3, 4, 48, seed=1)
    with torch.no_grad():
        cached = method.logits(module, images)
    assert cached.shape == (3, 2)
    assert torch.allclose(cached, method.logits(module, images).detach(), rtol=1e-5, atol=1e-5)


def test_an_evaluation_does_not_depend_on_the_size_of_its_batches() -> None:
    images, text = unit(300, 9, 16, seed=1), unit(2, 5, 16, seed=2)
    for method in (FedOTP(), FedOTP("balanced", 1.0), FedOTP(epsilon=0.01)):
        whole = method.match(images, text)
        parts = torch.cat([method.match(part, text) for part in images.split(7)])
        assert torch.allclose(whole, parts, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mass": 0.0}, r"method\.mass is 0\.0; valid is a number in \(0, 1\]"),
        ({"mass": 1.5}, r"method\.mass is 1\.5; valid is a number in \(0, 1\]"),
        ({"transport": "balanced"}, r"method\.mass is 0\.8, but the balanced transport moves all mass; .* it is 1"),
        ({"epsilon": 0.0005}, r"method\.epsilon is 0\.0005; valid is a number of at least 0\.001"),
        ({"stop_threshold": -1.0}, r"method\.stop_threshold is -1\.0; valid is a number of at least 0"),
        ({"max_iterations": 0}, r"method\.max_iterations is 0; valid is an integer of at least 1"),
        ({"std": -0.1}, r"method\.std is -0\.1; valid is a number of at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedOTP(**settings)
