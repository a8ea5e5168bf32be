"""FedTPG: the generator by hand, whose classes a client trains with, and a prompt as a special case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from federation_helpers import build_federation, build_module
from torch import nn
from toy_client import server_of

from fedmoe.config import FeatureConfig, FederationConfig, PromptConfig
from fedmoe.data import Digits, Dirichlet
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData, prepare
from fedmoe.methods import FedTPG
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.generator import PromptGenerator
from fedmoe.models.prompt import PromptLearner, template_features
from fedmoe.privacy.gradients import per_example_gradients
from fedmoe.protocol.parameters import ModelSpec
from fedmoe.protocol.records import Loadout, RoundContext, Update
from fedmoe.seeds import torch_generator

CONFIG = FederationConfig(clients=5, participation=0.6, rounds=2, local_epochs=1, batch_size=32)


@pytest.fixture(scope="module")
def data(embedded_clip: FrozenCLIP, tmp_path_factory: pytest.TempPathFactory) -> FederatedData:
    cache = FeatureConfig(cache_dir=str(tmp_path_factory.mktemp("features")))
    return prepare(Digits(), Dirichlet(0.5, 10), embedded_clip, CONFIG, cache, seed=0)


@pytest.mark.parametrize(("length", "count"), [(4, 4_206_080), (8, 4_208_128)])
def test_as_many_parameters_as_the_papers(length: int, count: int) -> None:
    generator = PromptGenerator(length, 512, 512, generator=torch_generator(1))
    assert sum(parameter.numel() for parameter in generator.parameters()) == count


def test_the_generator_by_hand() -> None:
    """Every sum of it in numpy: two heads of width 2, feature width 6, three class names, two vectors."""
    generator = PromptGenerator(2, 4, 6, heads=2, generator=torch_generator(1)).double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(generator=torch_generator(parameter.numel()))
    names = torch.randn(3, 6, generator=torch_generator(2), dtype=torch.float64)
    value = {name: tensor.numpy() for name, tensor in generator.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * value[f"{name}.weight"] + value[f"{name}.bias"]

    found, bias = norm(names.numpy(), "norm_names"), value["attention.in_proj_bias"]
    query = norm(value["queries"], "norm_queries") @ value["attention.q_proj_weight"].T + bias[:4]
    key = found @ value["attention.k_proj_weight"].T + bias[4:8]
    content = found @ value["attention.v_proj_weight"].T + bias[8:]
    mixed = []
    for head in (slice(0, 2), slice(2, 4)):
        score = np.exp(query[:, head] @ key[:, head].T / np.sqrt(2))
        mixed.append(score / score.sum(1, keepdims=True) @ content[:, head])
    x = np.concatenate(mixed, 1) @ value["attention.out_proj.weight"].T + value["attention.out_proj.bias"]
    wide = norm(x, "norm") @ value["wide.weight"].T + value["wide.bias"]
    gated, gate = wide[:, :16], torch.from_numpy(wide[:, 16:])
    gelu = (gate * torch.distributions.Normal(0.0, 1.0).cdf(gate)).numpy()
    expected = x + (gated * gelu) @ value["narrow.weight"].T + value["narrow.bias"]
    np.testing.assert_allclose(generator(names).detach().numpy(), expected, rtol=1e-6)


def test_the_order_of_the_names_is_no_matter_but_which_they_are() -> None:
    generator = PromptGenerator(4, 16, 24, generator=torch_generator(1))
    names = torch.randn(5, 24, generator=torch_generator(2))
    with torch.no_grad():
        torch.testing.assert_close(generator(names), generator(names.flip(0)))
        assert (generator(names) - generator(names[:4])).abs().max() > 1e-4


def test_starts_derive_from_the_given_generator_alone() -> None:
    torch.manual_seed(1)
    one, before = PromptGenerator(2, 8, 8, generator=torch_generator(3)), torch.get_rng_state()
    other = PromptGenerator(2, 8, 8, generator=torch_generator(3))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def constant(module: nn.Module, vector: torch.Tensor) -> None:
    """Make the generator give this vector, four times, whatever the names are."""
    with torch.no_grad():
        for name in ("attention.out_proj.weight", "narrow.weight", "narrow.bias"):
            module.get_parameter(name).zero_()
        module.get_parameter("attention.out_proj.bias").copy_(vector)


def test_it_sees_the_bare_class_names(embedded_clip: FrozenCLIP) -> None:
    names = ["zero", "one"]
    found = FedTPG().constants(embedded_clip, names, "a photo of a {class}.")["names"]
    expected = embedded_clip.model.encode_text(embedded_clip.tokenize(names), normalize=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    queries = PromptGenerator(16, 64, 8, generator=torch_generator(1)).queries
    assert float(queries.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_a_constant_generator_is_a_prompt(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """Then the logits are those of the prompt (v, v, v, v), and v's gradient is the sum of its vectors' gradients."""
    method = FedTPG()
    module = build_module(embedded_clip, data, method)
    module.load(0, Loadout())
    vector = 0.02 * torch.randn(64, generator=torch_generator(1))
    assert isinstance(module.generator, PromptGenerator)
    constant(module.generator, vector)
    client = data.client(0)
    images, labels = client.train_features[:20], client.train_labels[:20]
    prompts = PromptLearner(embedded_clip, data.class_names, PromptConfig(length=4))
    prompt = vector.expand(4, -1).clone().requires_grad_()
    plain = embedded_clip.logit_scale * images @ prompts(prompt).T
    with torch.no_grad():
        torch.testing.assert_close(module(images), plain, rtol=0, atol=1e-4)
    loss = nn.functional.cross_entropy(plain, labels)
    (expected,) = torch.autograd.grad(loss, prompt)
    own = method.loss(module, images, labels)
    torch.testing.assert_close(own, loss)
    bias = module.generator.attention.out_proj.bias
    (found,) = torch.autograd.grad(own, bias)
    torch.testing.assert_close(found, expected.sum(dim=0), rtol=1e-4, atol=1e-6)


def test_a_clients_own_task_has_only_its_classes(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """Its names go into the generator, and the cross-entropy is over its classes, from plain indexing."""
    method = FedTPG(task="own")
    module = build_module(embedded_clip, data, method)
    counts = [len(data.client(i).train_labels.unique()) for i in range(5)]
    client_id = counts.index(min(counts))
    client = data.client(client_id)
    own = sorted(set(client.train_labels.tolist()))
    assert len(own) < 10
    module.load(client_id, Loadout(), data=client)
    names = template_features(embedded_clip, [data.class_names[i] for i in own], "{class}")
    prompts = PromptLearner(embedded_clip, [data.class_names[i] for i in own], PromptConfig(length=4))
    images, labels = client.train_features[:20], client.train_labels[:20]
    assert isinstance(module.generator, PromptGenerator)
    logits = embedded_clip.logit_scale * images @ prompts(module.generator(names)).T
    expected = nn.functional.cross_entropy(logits, torch.tensor([own.index(int(label)) for label in labels]))
    torch.testing.assert_close(method.loss(module, images, labels), expected)
    assert module(images).shape == (20, 10)  # prediction is among all classes
    module.load(client_id, Loadout())
    with pytest.raises(UserError, match=r"method\.task is 'own', but there is no client"):
        method.loss(module, images, labels)


def test_each_examples_gradient_is_known_for_privacy(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    """DP-SGD's gradients of single examples: their mean is the batch's."""
    module = build_module(embedded_clip, data, FedTPG())
    module.load(0, Loadout())
    images, labels = data.client(0).train_features[:3], data.client(0).train_labels[:3]
    found = per_example_gradients(module, images, labels)
    parameters = list(module.trained(module.declared).values())
    expected = torch.autograd.grad(module.method.loss(module, images, labels), parameters)
    for parameter, whole in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[parameter].mean(dim=0), whole, rtol=1e-3, atol=1e-6)


def test_the_mean_has_no_weights() -> None:
    server = server_of({}, {"generator.queries": torch.zeros(2)})
    updates = [Update(i, {"generator.queries": torch.full((2,), v)}, n) for i, v, n in ((0, 1.0, 30), (1, 5.0, 10))]
    FedTPG().aggregate(server, updates, RoundContext(1, (0, 1), 0))
    assert torch.equal(server.shared["generator.queries"], torch.full((2,), 3.0))


def test_all_of_it_is_sent_both_ways(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    federation, log = build_federation(embedded_clip, data, FedTPG(), CONFIG)
    federation.run()
    # queries 4 * 64, norms 2 * 64 + 2 * 128, attention at widths 64 and 128, feed-forward with its norm
    attention = 64 * 64 + 2 * 64 * 128 + 3 * 64 + 64 * 64 + 64
    size = 4 * 64 + 128 + 256 + attention + 128 + 64 * 512 + 512 + 256 * 64 + 64
    assert log.records[1].bytes == {"down": 3 * 4 * size, "up": 3 * 4 * size, "evaluate_down": 5 * 4 * size}
    before, after = log.records[0].quality, log.records[2].quality
    assert before is not None and after is not None
    assert after["weighted"] > before["weighted"]


@pytest.mark.parametrize(("settings", "said"), [({"length": 0}, "length"), ({"heads": 0}, "heads")])
def test_mistakes_are_told(settings: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=rf"method\.{said} is"):
        FedTPG(**settings)  # type: ignore[arg-type]


def test_what_does_not_fit_clip_or_the_prompt_is_told() -> None:
    with pytest.raises(UserError, match=r"method\.heads is 3, which does not divide CLIP's token width 64"):
        FedTPG(heads=3).parameters(ModelSpec(torch.zeros(4, 64), 128))
    with pytest.raises(UserError, match=r"prompt\.class_specific is true"):
        FedTPG().parameters(ModelSpec(torch.zeros(10, 4, 64), 128))
