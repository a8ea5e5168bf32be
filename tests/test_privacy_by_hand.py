"""The privacy mechanisms without a federation: one client that is handed its gradients, values and seeds.

Expected noise comes from torch's generator, its deviation from torch's SGD and Opacus (``privacy_helpers``), totals of
epsilon from Opacus.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import GOLDEN
from opacus.accountants.analysis import gdp
from privacy_helpers import OPTIM, deviation, gdp_multiplier
from streams import derived, stream

from fedmoe.client.module import ClientModule
from fedmoe.client.work import light_trainer
from fedmoe.config import ClipConfig, FederationConfig, OptimConfig, PrivacyConfig, PromptConfig, RuntimeConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import FeatureBatches
from fedmoe.methods import FedPGP, Method, PFedMoAP, PromptFL
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.privacy.accounting import opacus_epsilon
from fedmoe.privacy.gradients import ClippedShared, NoisySum, WithheldData, _stack, per_example_gradients
from fedmoe.privacy.mechanism import DPSGD, Privacy, UploadNoise, build_privacy, participations
from fedmoe.protocol.records import ClientState, Downlink, Loadout, Update

FEDERATION = FederationConfig(clients=4, participation=0.5, rounds=6, local_epochs=3)
UPLOAD = PrivacyConfig("upload", epsilon=2.0, delta=1e-3, clip=0.3)
BUDGET = PrivacyConfig("dpsgd", epsilon=2.0, delta=1e-3, clip=0.3)
SEED = 5


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    """The smaller one of the golden values alone: `make mutants` loads it again for each mutant."""
    weights, config = GOLDEN / "vit.clip.safetensors", GOLDEN / "golden-vit.json"
    return FrozenCLIP.load(ClipConfig(weights=str(weights), model_config=str(config)))


def client_of(clip: FrozenCLIP, method: Method | None = None) -> ClientModule:
    """Client 2 of two classes, whose prompt is the common start."""
    learner = PromptLearner(clip, ["cat", "dog"], PromptConfig(length=2), torch.Generator().manual_seed(1))
    module = ClientModule(clip, learner, method=method or PromptFL(), optim=OPTIM)
    module.load(2, Loadout(module.shared_start(), received=module.shared_start()))
    return module


def upload_of(module: ClientModule, *names: str) -> Update:
    trained = module.export()
    return Update(2, {name: trained[name] for name in names or ("prompt",)}, 30, {"loss": 1.0})


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    return str(caught.value)


# Settings


def test_the_settings_choose_the_mechanism() -> None:
    kinds = {"none": Privacy, "upload": UploadNoise, "dpsgd": DPSGD}
    for config in (PrivacyConfig(), UPLOAD, BUDGET):
        made = build_privacy(config, FEDERATION, SEED)
        assert type(made) is kinds[config.mechanism]
        assert (made.config, made.federation, made.seed) == (config, FEDERATION, SEED)
        assert (made.epsilon, made.clip) == (config.epsilon, config.clip)
        assert made.sends
    assert type(build_privacy(None, FEDERATION, SEED)) is Privacy
    for kind in (UploadNoise, DPSGD):
        unbounded = kind(PrivacyConfig(epsilon=None, clip=None), FEDERATION, SEED)
        assert (unbounded.epsilon, unbounded.clip, unbounded.multiplier) == (math.inf, math.inf, 0.0)


def test_no_mechanism_protects_and_records_nothing(clip: FrozenCLIP) -> None:
    privacy, module = Privacy(None, FEDERATION, SEED), client_of(clip, PFedMoAP())
    assert privacy.config == PrivacyConfig()
    privacy.fits(PFedMoAP(), OptimConfig(optimizer="adam"))
    privacy.begin(module, ClientState(rounds_seen=99), Downlink({"prompt": torch.ones(1)}), 1)
    assert module.gradients is None
    update = Update(2, {"strange": torch.ones(1)}, 30)
    privacy.check(module, Downlink(), Loadout(), update)
    assert privacy.protect(module, update, 1) == (update, 0.0)
    assert (privacy.releases(9), privacy.record(9, [1.0]), privacy.summary(9)) == (0, None, None)


def test_participations_are_counted_from_the_cohorts_to_come() -> None:
    cohorts = [stream(f'[5,"cohort",{number}]').choice(4, size=2, replace=False) for number in range(1, 7)]
    expected = Counter(int(client) for cohort in cohorts for client in cohort)
    assert participations(FEDERATION, SEED) == expected
    assert max(expected.values()) < 6  # somebody sits out
    late = replace(FEDERATION, clients=5, late_clients=1)  # who only comes later is in no cohort
    assert participations(late, SEED) == expected
    privacy = DPSGD(BUDGET, FEDERATION, SEED)
    assert privacy.most_rounds == max(expected.values())
    assert privacy.multiplier == pytest.approx(gdp_multiplier(2.0, 1e-3) * math.sqrt(3 * privacy.most_rounds), rel=1e-9)
    assert DPSGD(BUDGET, replace(FEDERATION, rounds=0), SEED).most_rounds == 0


class OwnOptimizer(PromptFL):
    def optimizer(self, groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(groups)


class OwnCohort(PromptFL):
    def cohort(self, *args: Any) -> tuple[int, ...]:
        return (0,)


def test_what_does_not_fit_the_mechanisms() -> None:
    upload, dpsgd = UploadNoise(UPLOAD, FEDERATION, SEED), DPSGD(BUDGET, FEDERATION, SEED)
    sgd, adam = OptimConfig(), OptimConfig(optimizer="adam")
    text = (
        "privacy.mechanism is 'upload', whose noise follows from the steps of SGD, but the optimizer is {}; valid is "
        "optim.optimizer = sgd, or dpsgd, or none."
    )
    upload.fits(PromptFL(), sgd), upload.fits(OwnCohort(), sgd)
    assert refusal(upload.fits, PromptFL(), adam) == text.format("'adam'")
    for optim in (sgd, adam):
        assert refusal(upload.fits, OwnOptimizer(), optim) == text.format("OwnOptimizer's own")
        dpsgd.fits(PromptFL(), optim), dpsgd.fits(OwnOptimizer(), optim)
        assert refusal(dpsgd.fits, OwnCohort(), optim) == (
            "privacy.mechanism is 'dpsgd', whose noise is set for cohorts that are known beforehand, but OwnCohort "
            "samples its own; valid is a method that does not, or upload, or none."
        )


# Mechanism upload


def test_the_upload_gets_noise_of_the_seeds_stream(clip: FrozenCLIP) -> None:
    module, privacy = client_of(clip), UploadNoise(UPLOAD, FEDERATION, SEED)
    assert privacy.multiplier == pytest.approx(gdp_multiplier(2.0, 1e-3), rel=1e-9)
    privacy.begin(module, ClientState(), Downlink(module.shared_start()), 3)
    assert isinstance(module.gradients, ClippedShared)
    assert (module.gradients.clip, module.gradients.rates) == (0.3, [])
    module.gradients.rates += [OPTIM.prompt_lr] * 4
    update = upload_of(module)
    sent, noise = privacy.protect(module, update, 3)
    assert noise == pytest.approx(deviation(4, UPLOAD), rel=1e-6)
    generator = torch.Generator().manual_seed(derived('[5,"privacy",3,2]'))
    start = module.shared_start()["prompt"]
    assert sent.parameters.keys() == {"prompt"}
    torch.testing.assert_close(sent.parameters["prompt"], start + noise * torch.randn(2, 64, generator=generator))
    assert (sent.client_id, sent.num_examples, sent.metrics) == (2, 30, {"loss": 1.0})


def test_without_an_upload_or_a_budget_nothing_is_noised(clip: FrozenCLIP) -> None:
    module, privacy = client_of(clip), UploadNoise(UPLOAD, FEDERATION, SEED)
    privacy.begin(module, ClientState(), Downlink(), 3)  # nothing came down, so nothing may go up
    assert module.gradients is None
    nothing = Update(2, {}, 30)
    assert privacy.protect(module, nothing, 3) == (nothing, 0.0)
    update = upload_of(module)
    open_ = UploadNoise(PrivacyConfig("upload", epsilon=None, clip=None), FEDERATION, SEED)
    open_.begin(module, ClientState(), Downlink(module.shared_start()), 3)
    assert isinstance(module.gradients, ClippedShared) and module.gradients.clip == math.inf
    sent, noise = open_.protect(module, update, 3)
    assert sent is update and noise == 0.0


def test_an_upload_must_be_the_trained_prompt_that_was_sent(clip: FrozenCLIP) -> None:
    module, privacy = client_of(clip), UploadNoise(UPLOAD, FEDERATION, SEED)
    start = module.shared_start()
    other = {"prompt": start["prompt"] + 1}
    sent, began, update = Downlink(start), Loadout(start), upload_of(module)
    privacy.check(module, sent, began, update)
    privacy.check(module, Downlink(), Loadout(), Update(2, {}, 30))
    text = (
        "privacy.mechanism is 'upload', but a client of PromptFL does not train and upload the {} that the server "
        "sent; valid is a method that does, such as PromptFL or PFedMoAP, or dpsgd, or none."
    )
    for downlink, loadout, wrong in [
        (Downlink(), began, update),  # it was not sent
        (sent, Loadout(), update),  # training did not start from it
        (sent, Loadout(other), update),
        (Downlink(other), began, update),
        (sent, began, Update(2, other, 30)),  # not what was trained
    ]:
        assert refusal(privacy.check, module, downlink, loadout, wrong) == text.format("prompt")
    counts = {"counts": torch.ones(1)}  # no parameter at all
    downlink, loadout = Downlink(start | counts), Loadout(start | counts)
    strange = Update(2, {**update.parameters, **counts}, 30)
    assert refusal(privacy.check, module, downlink, loadout, strange) == text.format("counts")


def test_an_upload_of_a_gate_is_named(clip: FrozenCLIP) -> None:
    method = PFedMoAP(gating_dim=32, heads=4, gate_sharing="averaged")
    module, privacy = client_of(clip, method), UploadNoise(UPLOAD, FEDERATION, SEED)
    sent = Downlink(module.shared_start())
    privacy.check(module, sent, Loadout(sent.parameters), upload_of(module))  # the prompt alone
    update = upload_of(module, "prompt", "gate.query.bias", "gate.key.bias")
    assert refusal(privacy.check, module, sent, Loadout(sent.parameters), update) == (
        "privacy.mechanism is 'upload', which adds noise to prompts only, but PFedMoAP also uploads gate.key.bias, "
        "gate.query.bias; valid is a method that uploads its prompt alone, dpsgd, or none."
    )


def test_a_step_clips_the_shared_prompt_and_leaves_the_personal_part(clip: FrozenCLIP) -> None:
    """One step of FedPGP: p - lr (clip g / |g| + decay p) of the prompt, u - lr (g + decay u) of U and V."""
    method = FedPGP(rank=2, mu=0.0)
    module, plain = client_of(clip, method), client_of(clip, method)
    features = torch.nn.functional.normalize(torch.randn(4, clip.feature_dim, generator=torch.Generator()), dim=-1)
    labels = torch.tensor([0, 1, 1, 0])
    method.loss(plain, features, labels).backward()
    module.gradients = ClippedShared(1e-3)
    batches = FeatureBatches(features, labels, 4, torch.Generator())
    light_trainer(RuntimeConfig(accelerator="cpu"), max_epochs=1).fit(module, batches)
    assert isinstance(module.gradients, ClippedShared)
    assert module.gradients.rates == [OPTIM.prompt_lr]
    for name, rate in (("prompt", OPTIM.prompt_lr), ("U", OPTIM.gating_lr), ("V", OPTIM.gating_lr)):
        start, gradient = plain.prompts[name].detach(), plain.prompts[name].grad
        assert gradient is not None and gradient.norm() > 2e-3
        clipped = gradient / gradient.norm() * 1e-3 if name == "prompt" else gradient
        expected = start - rate * (clipped + OPTIM.weight_decay * start)
        torch.testing.assert_close(module.export()[name], expected, rtol=1e-5, atol=1e-7)


# Mechanism dpsgd


def test_dpsgd_sets_the_noise_of_each_step(clip: FrozenCLIP) -> None:
    module, privacy = client_of(clip), DPSGD(BUDGET, FEDERATION, SEED)
    most = privacy.most_rounds
    privacy.begin(module, ClientState(rounds_seen=most - 1), Downlink(), 3)
    rule = module.gradients
    assert isinstance(rule, NoisySum)
    expected = 2 * 0.3 * gdp_multiplier(2.0, 1e-3) * math.sqrt(3 * most)
    assert (rule.clip, rule.noise) == (0.3, pytest.approx(expected, rel=1e-9))
    assert rule.generator.initial_seed() == derived('[5,"privacy",3,2]')
    assert isinstance(module.data, WithheldData)
    update = upload_of(module)
    sent, noise = privacy.protect(module, update, 3)
    assert sent is update and noise == rule.noise
    for seen in (most, most + 2):
        assert refusal(privacy.begin, module, ClientState(rounds_seen=seen), Downlink(), 3) == (
            f"Client 2 would train in {seen + 1} rounds, but the noise of privacy.mechanism = 'dpsgd' was set for "
            f"{most}; valid is no more rounds than that."
        )
    open_ = DPSGD(PrivacyConfig("dpsgd", epsilon=None, clip=None), FEDERATION, SEED)
    open_.begin(module, ClientState(), Downlink(), 3)
    assert isinstance(module.gradients, NoisySum)
    assert (module.gradients.clip, module.gradients.noise) == (math.inf, 0.0)


def test_dpsgd_sends_trained_parameters_only(clip: FrozenCLIP) -> None:
    module, privacy = client_of(clip), DPSGD(BUDGET, FEDERATION, SEED)
    privacy.check(module, Downlink(), Loadout(), upload_of(module))
    prompt = module.export()["prompt"]
    strange = Update(2, {"prompt": prompt + 1, "counts": torch.ones(1)}, 30)
    assert refusal(privacy.check, module, Downlink(), Loadout(), strange) == (
        "privacy.mechanism is 'dpsgd', which protects trained parameters only, but prompt, counts of PromptFL's upload "
        "is none; valid is a method that uploads what it trains."
    )


def test_withheld_data_say_so() -> None:
    assert refusal(lambda: WithheldData().train_labels) == (
        "privacy.mechanism is 'dpsgd', but the method's local training looks at all of a client's data at once, where "
        "one example's gradient depends on the others; valid is upload or none."
    )


class Squares(PromptFL):
    """Image [1, 2] with the loss (image . the prompt's first two numbers), whose gradient is the image."""

    def loss(self, client: Any, image_features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return image_features[0] @ client.prompts["prompt"][0, :2]


@pytest.mark.parametrize("bound", [1.0, 2.0, math.inf])
def test_examples_are_clipped_summed_noised_and_divided(clip: FrozenCLIP, bound: float) -> None:
    """Gradients (3, 4), (0, 0) and (0.6, 0) of lengths 5, 0 and 0.6."""
    module = client_of(clip, Squares())
    images = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.6, 0.0]])
    rule = NoisySum(bound, 0.7, torch.Generator().manual_seed(8))
    rule.backward(module, torch.tensor(0.0), (images, torch.zeros(3, dtype=torch.long)))
    total = torch.zeros(2, 64)
    total[0, :2] = min(1.0, bound / 5) * images[0] + images[2]
    noise = 0.7 * torch.randn(2, 64, generator=torch.Generator().manual_seed(8))
    gradient = module.prompts["prompt"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient, (total + noise) / 3)


def test_noise_is_rounded_to_the_number_format_of_the_gradient(clip: FrozenCLIP) -> None:
    module = client_of(clip, Squares()).to(torch.bfloat16)
    rule = NoisySum(1.0, 2.0, torch.Generator().manual_seed(8))
    rule.backward(module, torch.tensor(0.0), (torch.zeros(1, 2, dtype=torch.bfloat16), torch.zeros(1)))
    gradient = module.prompts["prompt"].grad
    assert gradient is not None and gradient.dtype == torch.bfloat16
    assert torch.equal(gradient, 2 * torch.randn(2, 64, generator=torch.Generator().manual_seed(8)).to(torch.bfloat16))


@pytest.mark.parametrize(("images", "labels"), [(2, 3), (3, 2)])
def test_no_example_is_silently_left_out(clip: FrozenCLIP, images: int, labels: int) -> None:
    module = client_of(clip, Squares())
    with pytest.raises(ValueError, match="zip"):
        per_example_gradients(module, torch.zeros(images, 2), torch.zeros(labels))
    assert module.text is None  # nor is what was prepared left behind


def test_examples_without_a_gradient_count_as_zero() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    found = _stack((None, one, None, two))
    assert found is not None
    assert found.tolist() == [[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]
    assert _stack((None, None)) is None


# What is spent


def test_what_uploads_spend() -> None:
    privacy = UploadNoise(UPLOAD, FEDERATION, SEED)
    expected = gdp.eps_from_mu(mu=math.sqrt(3) / gdp_multiplier(2.0, 1e-3), delta=1e-3)
    assert privacy.releases(3) == 3
    assert privacy.record(3, [0.1, 0.4, 0.2]) == {"epsilon": pytest.approx(expected, rel=1e-6), "noise_std": 0.4}
    assert privacy.record(0, []) == {"epsilon": 0.0, "noise_std": 0.0}
    privacy.sends = False
    assert privacy.releases(3) == 0
    found = privacy.summary(3)
    assert found is not None
    assert (found["releases"], found["total_epsilon"], found["opacus_epsilon"]) == (0, 0.0, 0.0)
    assert found["text"] == "privacy (upload): nothing was sent that needs protection"


def test_the_summary_of_uploads() -> None:
    found = UploadNoise(UPLOAD, FEDERATION, SEED).summary(3)
    multiplier = gdp_multiplier(2.0, 1e-3)
    total = gdp.eps_from_mu(mu=math.sqrt(3) / multiplier, delta=1e-3)
    bound = opacus_epsilon(multiplier, 3, 1e-3)
    assert bound is not None
    assert found == {
        "mechanism": "upload",
        "epsilon": 2.0,
        "delta": 1e-3,
        "clip": 0.3,
        "noise_multiplier": pytest.approx(multiplier, rel=1e-6),
        "participations": 3,
        "releases": 3,
        "total_epsilon": pytest.approx(total, rel=1e-6),
        "opacus_epsilon": pytest.approx(bound, rel=1e-6),
        "opacus_note": None,
        "text": "privacy (upload): ε = 2 for each upload, δ = 0.001; spent by the client with the most rounds (3): "
        f"ε = {total:.4g} by exact composition, {bound:.4g} by Opacus's RDP accountant",
    }


def test_the_summary_of_dpsgd_without_opacus(monkeypatch: pytest.MonkeyPatch) -> None:
    privacy = DPSGD(BUDGET, FEDERATION, SEED)
    most = privacy.most_rounds
    assert privacy.releases(most) == 3 * most
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)  # an import of it fails, as where it is not installed
    found = privacy.summary(most)
    assert found is not None
    assert (found["releases"], found["participations"], found["opacus_epsilon"]) == (3 * most, most, None)
    assert found["total_epsilon"] == pytest.approx(2.0, rel=1e-6)
    assert found["opacus_note"] == "install fedmoe[privacy] for Opacus's own bound"
    assert found["text"] == (
        f"privacy (dpsgd): ε = 2 for the run, δ = 0.001; spent by the client with the most rounds ({most}): ε = 2 by "
        "exact composition, install fedmoe[privacy] for Opacus's own bound"
    )


def test_without_noise_epsilon_is_infinite() -> None:
    privacy = UploadNoise(PrivacyConfig("upload", epsilon=None, clip=None), FEDERATION, SEED)
    assert privacy.record(3, [0.0]) == {"epsilon": None, "noise_std": 0.0}
    found = privacy.summary(3)
    assert found is not None
    assert (found["epsilon"], found["clip"], found["total_epsilon"], found["opacus_epsilon"]) == (None,) * 4
    assert "ε = ∞ for each upload" in found["text"] and "ε = ∞ by exact composition, ∞ by Opacus's" in found["text"]
