"""The base class of methods: what is learned, what is sent down, what is sent up, what predicts.

A new method is one file with a subclass of ``Method`` that overrides what differs from FedAvg of prompts (PromptFL).
Most methods are a declaration (``parameters``), a ``loss`` and ``logits``. A method has settings (its constructor's
arguments) but no state: what lasts between rounds is kept in ``ServerState`` and ``ClientState``. Server hooks never
see a client's state, and client hooks never see the server's; only a ``Downlink`` and an ``Update`` pass between them.

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
    """Base class of all methods. Override what differs from FedAvg of prompts."""

    label: ClassVar[str] = "method"  # the name in tables and plots
    fine_tune_epochs: int = 0  # passes over the client's training data before each of its evaluations; nothing is kept
    half_precision: ClassVar[bool] = True  # whether optim.precision = float16 is possible
    # Whether an upload is admitted before the round's next client is configured; then one client trains at a time.
    admits_at_once: bool = False

    # Before the first round

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        """Check the settings against the federation and CLIP's feature width.

        Raises:
            UserError: they do not fit.
        """

    def check_clients(self, server: ServerState) -> None:
        """Check the settings against what the server knows of its clients before the first round.

        Raises:
            UserError: they do not fit.
        """

    def schedule(self, federation: FederationConfig) -> FederationConfig:
        """The rounds, participation and epochs that this method runs with, given those of the configuration."""
        return federation

    def encoder(self, clip: FrozenCLIP) -> Encoder:
        """What computes the image features that the method works with; here CLIP's pooled features [b, d]."""
        from fedmoe.features.encoders import clip_encoder

        return clip_encoder(clip)

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        """Fixed tensors that every client can compute from CLIP and the class names; found in ``client.constants``."""
        return {}

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        """What is learned, and who holds it; here one shared prompt [l, w]."""
        return [Parameter("prompt", Scope.SHARED, fixed(model.prompt))]

    # On the server

    def cohort(self, server: ServerState, federation: FederationConfig, seed: int, round: int) -> tuple[int, ...]:
        """The clients that train in a round, in ascending order (Algorithm 1, step 1)."""
        return sample_cohort(federation.participants, federation.participation, seed, round)

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        """What a client of the cohort downloads in order to train; here all shared parameters."""
        return Downlink(dict(server.shared))

    def admit(self, server: ServerState, update: Update) -> None:
        """Accept one client's upload, also that of a late client that joins by itself: it replaces the client's entries
        in the pools."""
        for name, entries in server.pool.items():
            if name in update.parameters:
                entries[update.client_id] = update.parameters[name]

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        """Aggregate the cohort's uploads, which have been admitted: each shared parameter becomes the mean of those
        received, weighted by n_i (eq. 6, 7). A method can keep further named tensors on the server in
        ``server.extras``; checkpoints include them."""
        weights = [update.num_examples for update in updates]
        server.shared.update(weighted_means([update.parameters for update in updates], weights))

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        """What a client downloads in order to be evaluated; here the shared parameters, except those for which it
        predicts with its own last values."""
        return Downlink({name: tensor for name, tensor in server.shared.items() if not server.holds(client_id, name)})

    # On the client

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        """What local training starts from: the values the server sent, and the client's own for all others."""
        return Loadout(
            {**state.parameters, **downlink.parameters},
            downlink.experts or state.experts,
            downlink.parameters,
            downlink.extras,
        )

    def inference(self, state: ClientState, downlink: Downlink) -> Loadout:
        """What a client predicts with, given the download from ``deploy``."""
        return self.start(state, downlink)

    def prompt(self, client: Client) -> Tensor:
        """The prompt [l, w] that the client classifies with, built from the learned tensors."""
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
        """The optimizer of a local fit. Each group has ``params`` and their learning rate ``lr``."""
        import torch

        if optim.optimizer == "adam":
            return torch.optim.Adam(groups, weight_decay=optim.weight_decay)
        return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, weight_decay=optim.weight_decay)

    def metrics(self, client: Client) -> Mapping[str, float]:
        """The method's own metrics of a client that has just trained. Their mean over the cohort, weighted by n_i, is
        recorded in rounds.jsonl, and in rounds.csv and W&B as ``method/<name>``."""
        return {}

    def finish(
        self, client: Client, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[Update, ClientState]:
        """What a client uploads after training, and what it keeps; here both follow from the declaration."""
        trained = client.export()
        shared = [part.name for part in client.declared if part.scope is Scope.SHARED]
        kept = [part.name for part in client.declared if part.scope is Scope.PERSONAL or part.keep]
        holds_experts = any(part.scope is Scope.EXPERT and part.keep for part in client.declared)
        update = Update(client.client_id, select(trained, shared), num_examples, self.metrics(client))
        experts = downlink.experts if holds_experts else {}
        return update, ClientState(select(trained, kept), experts, state.rounds_seen + 1)

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        """Quantities of an evaluation, averaged over the images [b, d]. ``attention`` [K + 1] holds the mean weight of
        the local expert, followed by those of the others; 0-dimensional tensors are recorded as ``metrics`` are.

        A gate over experts adds three that are not averaged, and tell whether it mixes: ``entropy`` [b], the normalized
        entropy of each image's weights, ``top_share`` [b], the largest of them, and ``without_experts`` [b, C], the
        logits of the same gate with the local expert in the place of each other one."""
        return {}
