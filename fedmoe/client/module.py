"""The client's LightningModule: local loss, optimizer, and one ``load`` that replaces all of its mutable state.

One module serves every client of a run: a client is what ``load`` puts into it. The frozen CLIP is shared and is not
a registered submodule, so that Lightning neither moves nor saves it.

Shape letters: b images, C classes, l context tokens, w token width, d feature width, K non-local experts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor, nn

from fedmoe.client.text_cache import TextCache
from fedmoe.config import OptimConfig
from fedmoe.features.client_data import ClientData
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.records import Loadout
from fedmoe.seeds import derive


class Objective(Protocol):
    """The part of a method that runs on the client."""

    def build_personal(self, prompt_shape: torch.Size, feature_dim: int, seed: int) -> nn.Module | None:
        """Parameters that never leave the client (the gate), drawn from ``seed``; None where there are none."""

    def loss(self, client: ClientModule, image_features: Tensor, labels: Tensor) -> Tensor:
        """The local objective on a batch: features [b, d], labels [b] -> scalar."""


Batch = tuple[Tensor, Tensor]  # features [b, d], labels [b]


class Gradients(Protocol):
    """How a step's gradients are made; without one they are the loss's own."""

    def backward(self, client: ClientModule, loss: Tensor, batch: Batch) -> None:
        """Set ``grad`` of the trained parameters, which are empty before."""


class ClientModule(L.LightningModule):
    """A client: learnable prompt, personal modules (gate), fixed experts.

    Args:
        prompt: the prompt learner, which holds the frozen text tower.
        objective: the method's local part.
        optim: learning rates, momentum, weight decay and schedule.
        feature_dim: width d of CLIP's features.
        logit_scale: exp of CLIP's logit scale, 1 / tau.
        constants: fixed tensors that a method needs, by name (such as the template's text features [C, d]).
        text_cache_mib: upper bound of the cache of fixed prompts' text features, in MiB.
    """

    def __init__(
        self,
        prompt: PromptLearner,
        objective: Objective,
        optim: OptimConfig,
        *,
        feature_dim: int,
        logit_scale: float,
        constants: Mapping[str, Tensor] | None = None,
        text_cache_mib: int = 256,
    ) -> None:
        super().__init__()
        self.prompt = prompt
        self.objective = objective
        self.optim = optim
        self.feature_dim = feature_dim
        self.logit_scale = logit_scale
        self.constants = dict(constants or {})
        self.text_cache = TextCache(prompt, text_cache_mib)
        self.personal = objective.build_personal(prompt.context.shape, feature_dim, seed=0)
        self._forget()

    def _forget(self) -> None:
        """The state of a module that no client has used."""
        self.client_id = -1
        self.data: ClientData | None = None  # the client's own; it stays there
        self.experts: Tensor | None = None  # text features [K, C, d]
        self.reference: Tensor | None = None  # [l, w]
        self.extras: dict[str, Tensor] = {}
        self.text: Tensor | None = None  # in place of the prompt's text features
        self.gradients: Gradients | None = None
        self._batch: Batch | None = None  # of the step at hand
        self.losses: list[Tensor] = []
        self.progress = 0.0  # share of the federation's rounds that lies behind, for the learning rate
        self.zero_grad(set_to_none=True)

    def load(
        self, client_id: int, loadout: Loadout, seed: int, progress: float = 0.0, data: ClientData | None = None
    ) -> None:
        """Become the client ``client_id``: replaces ALL mutable state, so that nothing leaks between clients.

        Args:
            loadout: prompt, personal parameters, experts.
            seed: the run's seed; a client without personal parameters draws them from (seed, client_id), so that
                its gate is its own and does not depend on the order of clients.
            progress: share of the federation's rounds already done, in [0, 1).
            data: what the client owns, for methods that use it beside the batches.
        """
        self._forget()
        self.client_id = client_id
        self.data = data
        self.progress = progress
        with torch.no_grad():
            self.prompt.context.copy_(loadout.prompt)
        if self.personal is not None:
            personal = loadout.personal
            if personal is None:
                shape, own_seed = self.prompt.context.shape, derive(seed, "personal", client_id)
                fresh = self.objective.build_personal(shape, self.feature_dim, own_seed)
                assert fresh is not None  # the same method built one before
                personal = fresh.state_dict()
            self.personal.load_state_dict(dict(personal))
        device = self.prompt.context.device
        if loadout.experts is not None and len(loadout.experts):
            # Computed once, before training, without gradients (Algorithm 1, step 4).
            self.experts = torch.stack([self.text_cache(expert) for expert in loadout.experts])  # [K, C, d]
        self.reference = None if loadout.reference is None else loadout.reference.to(device)
        self.extras = {name: tensor.to(device) for name, tensor in loadout.extras.items()}

    def text_features(self) -> Tensor:
        """T_L [C, d]: with gradient while training; from the cache while evaluating, where the prompt is fixed."""
        if self.text is not None:
            return self.text
        return self.prompt() if torch.is_grad_enabled() else self.text_cache(self.prompt.context)

    def export_prompt(self) -> Tensor:
        """A copy of the prompt [l, w] on the CPU."""
        return self.prompt.context.detach().cpu().clone()

    def export_personal(self) -> dict[str, Tensor]:
        """A copy of the personal parameters on the CPU; empty where the method has none."""
        if self.personal is None:
            return {}
        return {name: tensor.detach().cpu().clone() for name, tensor in self.personal.state_dict().items()}

    def mean_loss(self) -> float:
        """Mean training loss over the steps of the last fit; NaN where a step's was, or where there was none."""
        return float(torch.stack(self.losses).mean()) if self.losses else math.nan

    # Lightning's hooks

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.objective.loss(self, *batch)
        self._batch = batch
        self.losses.append(loss.detach())  # not self.log: half a millisecond a step
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.gradients is None:
            super().backward(loss, *args, **kwargs)
        else:
            assert self._batch is not None
            self.gradients.backward(self, loss, self._batch)

    def configure_optimizers(self) -> Any:
        optim = self.optim
        scale = 1.0
        if optim.schedule == "cosine_federation":
            scale = 0.5 * (1 + math.cos(math.pi * self.progress))
        groups: list[dict[str, Any]] = [{"params": [self.prompt.context], "lr": scale * optim.prompt_lr}]
        if self.personal is not None:
            groups.append({"params": list(self.personal.parameters()), "lr": scale * optim.gating_lr})
        sgd = torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, weight_decay=optim.weight_decay)
        if optim.schedule != "cosine_local":
            return sgd
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
