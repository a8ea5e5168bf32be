"""Neighbour mixture: pFedMoAP's experts without its gate, and without the global prompt. A method of our own.

Shape letters: b images, C classes, l context tokens, w token width, K experts, n <= K available ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext
from fedmoe.server.experts import ASSIGNMENTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.models.gating import Gate
    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


class NeighbourMixture(Method):
    """A client's neighbours are its starting point in training, and vote with it in prediction.

    Ours, not from a paper. As in pFedMoAP, a client downloads the K prompts of the pool that are nearest to its own.
    What it does with them is different:

    - Local training starts from the mean of the client's own last prompt and its experts', in place of the global
      prompt. Clients that are alike draw together, so that the nearest prompts are more and more those of the same
      domain.
    - The loss of a prompt sees that prompt alone. So a prompt is a classifier by itself, which is of use to others, and
      no gate can forget what the client's few images do not show.
    - A local head is trained next to it by a loss of its own: pFedMoAP's gate, with one expert, the text features of
      the data set's template. These never change, so that the head goes on where it was in every round, while prompts
      move. It knows the client's classes best, and never leaves the client.
    - The prediction is a mixture of probabilities, p = v p_head + (1 - v) / (n + 1) (p_own + sum_k p_k), each of them a
      softmax over classes at CLIP's scale. An expert that knows a class is confident of it and outvotes others that do
      not, which a mean of text features cannot express.

    A client with an entry in the pool downloads its K experts and nothing else: one prompt less than with pFedMoAP.

    Args:
        num_experts: number K of experts; fewer are used while the pool has fewer. With 0, each client is alone.
        assignment: which prompts are the experts, as in PFedMoAP: nearest (in l2), and as controls random, farthest,
            same_domain (an oracle, which only a simulation has) or noise.
        start_from: what training starts from: neighbours (the mean of the own prompt and the experts'), own (the
            client's own last prompt) or global (the mean of all prompts of the last cohort, downloaded in addition).
        head_weight: weight v of the local head in the mixture, in [0, 1]; with 0 there is no head.
        lmbda: weight lambda of the template's own logits in the head (eq. 10 of pFedMoAP).
        gating_dim: width that features are pooled to in the head; must divide CLIP's feature width.
    """

    label = "Neighbour mixture"

    def __init__(
        self,
        num_experts: int = 9,
        assignment: Literal["nearest", "random", "farthest", "same_domain", "noise"] = "nearest",
        start_from: Literal["neighbours", "own", "global"] = "neighbours",
        head_weight: float = 0.25,
        lmbda: float = 0.5,
        gating_dim: int = 128,
    ) -> None:
        if num_experts < 0:
            raise UserError(f"method.num_experts is {num_experts}; valid is an integer of at least 0.")
        if not 0 <= head_weight <= 1:
            raise UserError(f"method.head_weight is {head_weight!r}; valid is a number in [0, 1].")
        self.num_experts = num_experts
        self.assignment = assignment
        self.start_from = start_from
        self.head_weight = head_weight
        self.lmbda = lmbda
        self.gating_dim = gating_dim

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        if self.num_experts >= federation.clients:
            raise UserError(
                f"method.num_experts is {self.num_experts}, but of federation.clients = {federation.clients} a client "
                f"has only {federation.clients - 1} others; valid is 0 to {federation.clients - 1}."
            )
        if self.head_weight:
            self._head(feature_dim)  # refuses a width that does not divide CLIP's

    def _head(self, feature_dim: int, generator: torch.Generator | None = None) -> Gate:
        from fedmoe.models.gating import UniformGate

        return UniformGate(feature_dim, self.gating_dim, heads=1, generator=generator)  # one token: nothing to weigh

    def check_clients(self, server: ServerState) -> None:
        if self.assignment == "same_domain" and not server.domains:
            raise UserError(
                "method.assignment is 'same_domain', but the data has no domains; valid is data with domains "
                "(DomainNet, OfficeCaltech10, DigitDomains, or ImageFolder with layout domains), or another assignment."
            )

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        from fedmoe.models.prompt import template_features

        return {"template": template_features(clip, class_names, template)} if self.head_weight else {}  # [C, d]

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        prompt = Parameter("prompt", Scope.SHARED, fixed(model.prompt), keep=True, pool=True)
        experts = Parameter("experts", Scope.EXPERT)
        if not self.head_weight:
            return [prompt, experts]

        def head(generator: torch.Generator) -> Gate:
            return self._head(model.feature_dim, generator)

        return [prompt, Parameter("head", Scope.PERSONAL, head, rate="gating_lr"), experts]

    def _downlink(self, server: ServerState, client_id: int, with_global: bool, *seed: int | str) -> Downlink:
        if client_id not in server.pooled("prompt"):  # it has no prompt of its own yet, and nothing to be near to
            return Downlink(dict(server.shared))
        found = ASSIGNMENTS[self.assignment](server, client_id, self.num_experts, seed)
        experts = {"prompt": found.prompts} if len(found.prompts) else {}
        return Downlink(dict(server.shared) if with_global else {}, experts, expert_ids=found.ids)

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        with_global = self.start_from == "global"
        return self._downlink(server, client_id, with_global, context.seed, "train", context.round, client_id)

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        return self._downlink(server, client_id, False, context.seed, "evaluate", context.round, client_id)

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        import torch

        loadout = self.inference(state, downlink)
        if self.start_from != "neighbours" or not downlink.experts:
            return loadout
        everyone = torch.cat([loadout.parameters["prompt"].unsqueeze(0), downlink.experts["prompt"]])  # [n + 1, l, w]
        return replace(loadout, parameters={**loadout.parameters, "prompt": everyone.mean(dim=0)})

    def inference(self, state: ClientState, downlink: Downlink) -> Loadout:
        return Loadout({**state.parameters, **downlink.parameters}, downlink.experts, downlink.parameters)

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(super().logits(client, image_features), labels)
        if self.head_weight:  # in the same steps; the two share no parameter
            loss = loss + cross_entropy(self._head_logits(client, image_features), labels)
        return loss

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        """Log-probabilities [b, C] of the mixture."""
        import torch

        text = client.text_features()  # [C, d]
        experts = [] if client.expert_text is None else [client.expert_text]
        everyone = torch.cat([text.unsqueeze(0), *experts])  # [n + 1, C, d]
        votes = client.logit_scale * torch.einsum("bd,kcd->kbc", image_features, everyone)
        mixture = votes.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(votes))
        if not self.head_weight:
            return mixture
        head = self._head_logits(client, image_features).log_softmax(dim=-1)
        weights = torch.tensor([self.head_weight, 1 - self.head_weight]).to(head).log()
        return torch.stack([head + weights[0], mixture + weights[1]]).logsumexp(dim=0)

    def _head_logits(self, client: Client, image_features: Tensor) -> Tensor:
        from fedmoe.models.functional import combine

        text = client.constants["template"]  # [C, d]
        head: Gate = getattr(client, "head")  # noqa: B009, its type is known here alone
        similarity = head.similarity(image_features, text.unsqueeze(0))  # [b, C]
        return combine(similarity, image_features, text, client.logit_scale, self.lmbda)

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        import torch

        if client.expert_text is None:
            return {}
        each = (1 - self.head_weight) / (len(client.expert_text) + 1)
        return {"attention": torch.tensor([self.head_weight + each, *[each] * len(client.expert_text)])}
