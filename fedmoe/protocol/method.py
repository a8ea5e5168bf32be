"""The base of every method: what is learned, what goes down, what comes up, what predicts.

A new method is one file with a subclass of ``Method`` that overrides what differs from FedAvg of prompts (PromptFL).
Most methods are a declaration (``parameters``), a ``loss`` and ``logits``. A method has settings (its constructor's
arguments) and no state: what lasts between rounds lives in ``ServerState`` and ``ClientState``. Hooks of the server
never see a client's state, hooks of the client never the server's: all that passes between them is a ``Downlink`` and
an ``Update``.

Shape letters: b images, C classes, l context tokens, w token width, d feature width, K experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from fedmoe.config import FederationConfig, OptimConfig
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed, select
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext, Update
from fedmoe.server.aggregation import weighted_means
from fedmoe.server.sampling import sample_cohort

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.features.extraction import Encoder
    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


class Method:
    """Base of all methods. Override what differs from FedAvg of prompts."""

    label: ClassVar[str] = "method"  # the name in tables and plots
    fine_tune_epochs: int = 0  # passes over the client's training data before each of its evaluations; nothing is kept

    # Before the first round

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        """Raise ``UserError`` where the settings do not fit the federation or CLIP's feature width."""

    def schedule(self, federation: FederationConfig) -> FederationConfig:
        """The rounds, participation and epochs this method runs with, given those of the configuration."""
        return federation

    def encoder(self, clip: FrozenCLIP) -> Encoder:
        """The kind of image features that the method works with, instead of CLIP's pooled ones [b, d]."""
        from fedmoe.features.encoders import clip_encoder

        return clip_encoder(clip)

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        """Fixed tensors every client can compute from CLIP and the class names, available as ``client.constants``."""
        return {}

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        """What is learned, and who holds it. Here: one prompt [l, w], which all share."""
        return [Parameter("prompt", Scope.SHARED, fixed(model.prompt))]

    # On the server

    def cohort(self, server: ServerState, federation: FederationConfig, seed: int, round: int) -> tuple[int, ...]:
        """The clients that train in a round, in ascending order (Algorithm 1, step 1)."""
        return sample_cohort(federation.participants, federation.participation, seed, round)

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        """What a client of the cohort downloads in order to train: here all shared parameters."""
        return Downlink(server.shared)

    def admit(self, server: ServerState, update: Update) -> None:
        """Take one client's upload, also that of a late client that joins by itself: the pools' entries of the client
        are overwritten."""
        for name, entries in server.pool.items():
            if name in update.parameters:
                entries[update.client_id] = update.parameters[name]

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        """Take the cohort's uploads, which were admitted before: each shared parameter becomes the mean of those that
        came, weighted by n_i (eq. 6, 7). ``server.extras`` is for whatever else a method wants to last on the server:
        named tensors, which checkpoints keep."""
        weights = [update.num_examples for update in updates]
        server.shared.update(weighted_means([update.parameters for update in updates], weights))

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        """What a client downloads in order to be evaluated: the shared parameters, but for those of which it predicts
        with its own last values."""
        return Downlink({name: tensor for name, tensor in server.shared.items() if not server.holds(client_id, name)})

    # On the client

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        """What local training starts from: the server's values, and the client's own where it sent none."""
        return Loadout(
            {**state.parameters, **downlink.parameters},
            downlink.experts or state.experts,
            downlink.parameters,
            downlink.extras,
        )

    def inference(self, state: ClientState, downlink: Downlink) -> Loadout:
        """What a client predicts with, after the download of ``deploy``."""
        return self.start(state, downlink)

    def prompt(self, client: Client) -> Tensor:
        """The prompt [l, w] that the client classifies with, made of what it has learned."""
        return client.prompts["prompt"]

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        """The local objective on a batch: cross-entropy of the logits. Features [b, d], labels [b] -> scalar."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.logits(client, image_features), labels)

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        """Class logits [b, C] of image features [b, d]."""
        from fedmoe.models.functional import local_logits

        return local_logits(image_features, client.text_features(), client.logit_scale)

    def optimizer(self, groups: list[dict[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
        """The optimizer of a local fit. Each group holds ``params`` and their learning rate ``lr``."""
        import torch

        if optim.optimizer == "adam":
            return torch.optim.Adam(groups, weight_decay=optim.weight_decay)
        return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, weight_decay=optim.weight_decay)

    def metrics(self, client: Client) -> Mapping[str, float]:
        """A method's own numbers of a client that has just trained. Their mean over the cohort, weighted by n_i, goes
        to rounds.jsonl, rounds.csv and W&B as ``method/<name>``."""
        return {}

    def finish(
        self, client: Client, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[Update, ClientState]:
        """What a client uploads after training, and what it keeps. Both follow from the declaration."""
        trained = client.export()
        shared = [part.name for part in client.declared if part.scope is Scope.SHARED]
        kept = [part.name for part in client.declared if part.scope is Scope.PERSONAL or part.keep]
        holds_experts = any(part.scope is Scope.EXPERT and part.keep for part in client.declared)
        update = Update(client.client_id, select(trained, shared), num_examples, self.metrics(client))
        experts = downlink.experts if holds_experts else {}
        return update, ClientState(select(trained, kept), experts, state.rounds_seen + 1)

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        """Quantities of an evaluation, averaged over the images [b, d]. ``attention`` [K + 1] is the local expert's
        mean weight and then each other expert's; numbers (0-dimensional) go where ``metrics`` go."""
        return {}
