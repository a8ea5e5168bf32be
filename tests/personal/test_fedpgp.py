"""FedPGP: a global prompt and a personal part of low rank, as in its release and by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest import GOLDEN
from federation_helpers import results, work_of
from golden_helpers import difference
from safetensors.torch import load_file

from fedmoe.client.module import ClientModule
from fedmoe.config import OptimConfig, PromptConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import FederatedData
from fedmoe.methods import FedPGP, PromptFL
from fedmoe.methods.fedpgp import contrastive
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import Loadout
from personal.helpers import CLIENTS, VECTOR_BYTES, run


def test_fedpgp_is_the_release(golden_clips: dict[str, FrozenCLIP]) -> None:
    settings = json.loads((GOLDEN / "fedpgp_rn.json").read_text())
    golden = load_file(GOLDEN / "fedpgp_rn.safetensors")
    clip, names, length = golden_clips["rn"], settings["class_names"], settings["n_ctx"]
    sentence = "X " * length + "{class}."
    method = FedPGP(settings["rank"], settings["mu"], settings["temperature"], template=sentence)
    learner = PromptLearner(clip, names, PromptConfig(length=length))
    rate = settings["prompt_lr"]
    module = ClientModule(
        clip,
        learner,
        method=method,
        optim=OptimConfig(
            prompt_lr=rate, gating_lr=rate, momentum=settings["momentum"], weight_decay=settings["weight_decay"]
        ),
        constants=method.constants(clip, names, "a {class}"),
    )
    assert torch.equal(learner.token_ids, golden["token_ids"].long())
    images, labels = clip.encode_image(golden["images"]), golden["labels"].long()
    module.load(0, Loadout({"prompt": golden["sigma"], "U": golden["U"], "V": golden["V"]}))
    assert list(module.prompts.learned) == ["prompt", "U", "V"]

    with torch.no_grad():
        assert difference(module.text_features(module.prompts["prompt"]), golden["text_global"]) < 1e-5
        assert difference(module.text_features(), golden["text_personal"]) < 1e-5
        assert difference(learner(golden["sigma"] + golden["U"] @ golden["V"]), golden["text_personal"]) < 1e-5
        assert difference(module.constants["template"], golden["text_template"]) < 1e-5
        assert difference(method.logits(module, images), golden["logits"]) < 1e-5
    assert difference(method.logits(module, images), golden["logits"]) < 1e-5  # with gradient, without the cache

    parameters = {"sigma": learner["prompt"], "U": learner["U"], "V": learner["V"]}
    optimizer, losses = module.configure_optimizers(), []
    for step in range(settings["steps"]):
        loss = method.loss(module, images, labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert difference(loss.unsqueeze(0), golden["loss"]) < 1e-5
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                assert difference(parameter.grad, golden[f"grad.{name}"]) < 1e-5, name
        optimizer.step()
        losses.append(loss.detach())
    assert difference(torch.stack(losses), golden["after.losses"]) < 1e-5
    for name, parameter in parameters.items():
        assert difference(parameter, golden[f"after.{name}"]) < 1e-5, name
        assert difference(golden[name], golden[f"after.{name}"]) > 1e-3, name  # the steps were not too small to tell
    with torch.no_grad():
        assert difference(method.logits(module, images), golden["after.logits"]) < 1e-5


def test_fedpgps_contrastive_term_by_hand() -> None:
    """Two classes in the plane: cosines (1, 0) and (0.6, 0.8) with template and personal feature, over 0.5."""
    shared = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    template = torch.tensor([[2.0, 0.0], [0.6, 0.8]])
    personal = torch.tensor([[0.0, 1.0], [0.8, 0.6]])
    expected = (math.log(1 + math.exp(-2.0)) + math.log(1 + math.exp(0.4))) / 2
    assert contrastive(shared, template, personal, temperature=0.5).item() == pytest.approx(expected, rel=1e-6)


def test_fedpgp_without_personal_part_and_contrast_is_promptfl(embedded_clip: FrozenCLIP, data: FederatedData) -> None:
    promptfl, log = run(embedded_clip, data, PromptFL())
    fedpgp, log_fedpgp = run(embedded_clip, data, FedPGP(mu=0.0, std=0.0))
    assert torch.equal(promptfl.server.shared["prompt"], fedpgp.server.shared["prompt"])
    assert results(log) == results(log_fedpgp)
    kept = [client.parameters for client in fedpgp.state.clients.values()]
    assert len(kept) >= 3 and all(parameters.keys() == {"U", "V"} for parameters in kept)
    assert all(not tensor.any() for parameters in kept for tensor in parameters.values())


def test_fedpgp_sends_the_global_prompt_and_keeps_the_personal_part(
    embedded_clip: FrozenCLIP, data: FederatedData
) -> None:
    federation, log = run(embedded_clip, data, FedPGP(rank=3))
    sent = 3 * 16 * VECTOR_BYTES  # three of five clients
    evaluated = CLIENTS * 16 * VECTOR_BYTES  # all five download the global prompt to be evaluated
    assert all(r.bytes == {"down": sent, "up": sent, "evaluate_down": evaluated} for r in log.records[1:])
    trained = federation.state.clients
    assert len(trained) >= 3 and all(client.took_part for client in trained.values())
    client_id, other = sorted(trained)[:2]
    own = trained[client_id].parameters
    assert {name: tensor.shape for name, tensor in own.items()} == {"U": (16, 3), "V": (3, 64)}
    assert not torch.equal(own["U"], trained[other].parameters["U"])
    prompt = federation.server.shared["prompt"] + own["U"] @ own["V"]
    client = data.client(client_id)
    with torch.no_grad():
        logits = embedded_clip.logit_scale * client.test_features @ work_of(federation).module.prompts(prompt).T
    correct = int((logits.argmax(1) == client.test_labels).sum())
    assert log.evaluations[-1].clients[client_id].correct == correct


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"method\.rank is 0; valid is an integer of at least 1"),
        ({"mu": -0.5}, r"method\.mu is -0\.5; valid is a number of at least 0"),
        ({"std": -1.0}, r"method\.std is -1\.0; valid is a number of at least 0"),
        ({"temperature": 0.0}, r"method\.temperature is 0\.0; valid is a number above 0"),
        ({"template": "a photo"}, r"method\.template is 'a photo'; valid is a sentence with \{class\} in it"),
    ],
)
def test_fedpgp_refuses_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FedPGP(**settings)
