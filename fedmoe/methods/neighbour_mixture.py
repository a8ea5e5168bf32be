"""Neighbour mixture: pFedMoAP's experts without its gate, and without the global prompt. A method of our own.

Shape letters: b images, C classes, l context tokens, w token width, K experts, n <= K available ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.config import FederationConfig
from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext
from fedmoe.server.experts import ASSIGNMENTS

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


class NeighbourMixture(Method):
    """A client's neighbours are its starting point in training, and vote with it in prediction.

    Ours, not from a paper. As in pFedMoAP, a client downloads the K prompts of the pool that are nearest to its own.
    What it does with them differs in three points:

    - Local training starts from the mean of the client's own last prompt and its experts', in place of the global
      prompt. Clients that are alike draw together, so that the nearest prompts are more and more those of the same
      domain.
    - Local training sees the client's own prompt alone. So a prompt is a classifier of its own, which is of use to
      others, and no gate can forget what the client's few images do not show.
    - The prediction is a mixture of probabilities, p(c | I) = v softmax_c(I . T) + (1 - v) / n sum_k softmax_c(I . T_k)
      at CLIP's scale. An expert that knows a class is confident of it and outvotes others that do not, which a mean of
      text features cannot express.

    A client with an entry in the pool downloads its K experts and nothing else: one prompt less than with pFedMoAP.

    Args:
        num_experts: number K of experts; fewer are used while the pool has fewer. With 0, each client is alone.
        assignment: which prompts are the experts, as in PFedMoAP: nearest (in l2), and as controls random, farthest,
            same_domain (an oracle, which only a simulation has) or noise.
        start: what local training starts from: neighbours (the mean of the own prompt and the experts'), own (the
            client's own last prompt) or global (the mean of all prompts of the last cohort, downloaded in addition).
        own_weight: weight v of the own prompt in the mixture, in [0, 1]; null: 1 / (n + 1), as for each expert.
    """

    label = "Neighbour mixture"

    def __init__(
        self,
        num_experts: int = 9,
        assignment: Literal["nearest", "random", "farthest", "same_domain", "noise"] = "nearest",
        start: Literal["neighbours", "own", "global"] = "neighbours",
        own_weight: float | None = None,
    ) -> None:
        if num_experts < 0:
            raise UserError(f"method.num_experts is {num_experts}; valid is an integer of at least 0.")
        if own_weight is not None and not 0 <= own_weight <= 1:
            raise UserError(f"method.own_weight is {own_weight!r}; valid is null or a number in [0, 1].")
        self.num_experts = num_experts
        self.assignment = assignment
        self.start_from = start
        self.own_weight = own_weight

    def check(self, federation: FederationConfig, feature_dim: int) -> None:
        if self.num_experts >= federation.clients:
            raise UserError(
                f"method.num_experts is {self.num_experts}, but of federation.clients = {federation.clients} a client "
                f"has only {federation.clients - 1} others; valid is 0 to {federation.clients - 1}."
            )

    def check_clients(self, server: ServerState) -> None:
        if self.assignment == "same_domain" and not server.domains:
            raise UserError(
                "method.assignment is 'same_domain', but the data has no domains; valid is data with domains "
                "(DomainNet, OfficeCaltech10, DigitDomains, or ImageFolder with layout domains), or another assignment."
            )

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        prompt = Parameter("prompt", Scope.SHARED, fixed(model.prompt), keep=True, pool=True)
        return [prompt, Parameter("experts", Scope.EXPERT)]

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
        return Loadout({"prompt": everyone.mean(dim=0)}, downlink.experts)

    def inference(self, state: ClientState, downlink: Downlink) -> Loadout:
        return Loadout({**state.parameters, **downlink.parameters}, downlink.experts, downlink.parameters)

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        return cross_entropy(super().logits(client, image_features), labels)

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        """Log-probabilities [b, C] of the mixture."""
        import torch

        own = super().logits(client, image_features)
        if client.expert_text is None:
            return own
        experts = client.logit_scale * torch.einsum("bd,kcd->kbc", image_features, client.expert_text)
        weights = self._weights(len(experts)).to(own).log()  # [n + 1]
        logs = torch.cat([own.unsqueeze(0), experts]).log_softmax(dim=-1)  # [n + 1, b, C]
        return (logs + weights[:, None, None]).logsumexp(dim=0)

    def _weights(self, experts: int) -> Tensor:
        """The own prompt's weight in the mixture, then those of n experts [n + 1]."""
        import torch

        own = 1 / (experts + 1) if self.own_weight is None else self.own_weight
        return torch.tensor([own, *[(1 - own) / experts] * experts])

    def analyse(self, client: Client, image_features: Tensor) -> Mapping[str, Tensor]:
        if client.expert_text is None:
            return {}
        return {"attention": self._weights(len(client.expert_text))}
