"""Golden cases of releases (tests/golden/README.md): reading one, and fedmoe's client in its state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import lightning as L
import torch
from conftest import GOLDEN
from safetensors.torch import load_file
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.client.trainer import light_trainer
from fedmoe.config import OptimConfig, PromptConfig, RuntimeConfig
from fedmoe.features.client_data import FeatureBatches
from fedmoe.methods import Method
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner


def read_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A case's settings and its tensors."""
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(GOLDEN / f"{name}.safetensors")


def difference(ours: Tensor, golden: Tensor) -> float:
    """Largest difference, relative to the golden tensor's largest entry."""
    assert ours.shape == golden.shape
    return float((ours.detach() - golden).abs().max() / golden.abs().max())


def case_client(clip: FrozenCLIP, settings: Mapping[str, Any], method: Method, length: int) -> ClientModule:
    """The method's client with the case's classes and optimizer; one rate for everything, as in these releases."""
    rate = settings.get("prompt_lr", settings.get("lr"))
    optim = OptimConfig(
        prompt_lr=rate, gating_lr=rate, momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )
    names = settings["class_names"]
    prompts = PromptLearner(clip, names, PromptConfig(length=length))
    constants = method.constants(clip, names, "a photo of a {class}.")
    return ClientModule(clip, prompts, method=method, optim=optim, constants=constants)


def fit(module: ClientModule, inputs: Tensor, labels: Tensor, epochs: int) -> None:
    """Full batches in the stored order, through a Trainer."""
    trainer: L.Trainer = light_trainer(RuntimeConfig(accelerator="cpu"), max_epochs=epochs)
    trainer.fit(module, FeatureBatches(inputs, labels.long(), len(labels)))


def gradients(module: ClientModule, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by the name of the tensor, of those that the loss depends on."""
    named = dict(module.trained(module.declared))
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}


def with_rows(clip: FrozenCLIP, golden: Mapping[str, Tensor]) -> FrozenCLIP:
    """The golden CLIP with the embeddings of the template's words, which its file lacks and the case brings along."""
    rows = golden["token_rows.ids"].long()
    found = deepcopy(clip)
    with torch.no_grad():
        found.text.token_embedding.weight[rows] = golden["token_rows.weight"]
    found._known = {*(clip._known or ()), *rows.tolist()}
    return found
