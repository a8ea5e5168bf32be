"""FedPHA: a global prompt of one length, local prompts of the clients' own lengths, and a projection between them.

Fang, Huang, Wan, Yang, Ye, "FedPHA: Federated Prompt Learning for Heterogeneous Client Adaptation", ICML 2025, as in
its public release. With the singular value decomposition of the global prompt G = U diag(s) V^T, columns of V by
falling s, the local prompt is projected on what G holds outside its strongest directions:

    L' = L V_2 V_2^T,    V_2 the columns of V from floor(l_G (1 - ratio)) on,

and with the text features T of the three prompts, the local objective is

    CE(L) + CE(G) + pull * mean (T_L - T_L')^2 + push * mean_c max(0, alpha - ||T_L,c - T_G,c||).

Shape letters: b images, C classes, l context tokens (l_G of the global prompt), w token width, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed, normal
from fedmoe.protocol.records import Downlink, RoundContext

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


def weak_projector(prompt: Tensor, ratio: float) -> Tensor:
    """V_2 V_2^T [..., w, w] of a prompt [..., l, w]: the projection on its rows' space without its floor(l (1 - ratio))
    strongest directions. The product is taken in floating point: ratio 0.8 leaves out 3 of 16, and 1 of 10.

    The decomposition is thin, as in the release: what is orthogonal to all rows of the prompt is projected away, too.
    Differentiable where the singular values are distinct.
    """
    import torch

    right = torch.linalg.svd(prompt, full_matrices=False).Vh[..., int(prompt.shape[-2] * (1 - ratio)) :, :]
    return right.mT @ right


def pull(local: Tensor, projected: Tensor) -> Tensor:
    """The mean squared difference of two text features [C, d] over classes and coordinates."""
    return (local - projected).square().mean()


def push(local: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """max(0, alpha - distance) of two text features [C, d], averaged over classes."""
    return (alpha - (local - shared).norm(dim=-1)).clamp(min=0).mean()


class FedPHA(Method):
    """The global prompt is averaged over the cohort (weighted by n_i), the local one stays and alone classifies.

    So the global prompt acts on predictions only through the local objective, in which no gradient is stopped: the pull
    also reaches G, through the decomposition. G is trained with ``optim.prompt_lr``, the local prompt with
    ``optim.gating_lr`` (the release uses one rate for both). Nothing is downloaded for an evaluation; a client that
    never took part predicts with the initial value of its local prompt. With pull = push = 0, G is PromptFL's, bit for
    bit, and the local prompts are trained alone.

    In the release with one length, all clients start from the same draw of the local prompt; here, each has its own, as
    in the release with several. The release ignores the participation and trains everybody in every round.

    Args:
        lengths: of the local prompts; client i has the (i modulo their number)-th, so [4, 5, ..., 32] spreads the
            lengths evenly, as the release's uniform draw for CIFAR does; null: ``prompt.length`` for all.
        ratio: of the global prompt's directions that the projection keeps, in (0, 1].
        alpha: distance of text features at which a class is no longer pushed.
        pull: weight of the pull of the local prompt's features to those of its projection.
        push: weight of the push between the local and the global prompt's features.
        std: standard deviation of the local prompt's initial value, which is always random.
        eot: own reads each feature at its prompt's EOT. longest reads it where the EOT would be behind the longest of
            all prompts, so on padding in the case of shorter ones; that is what the release with several lengths does.
    """

    label = "FedPHA"
    half_precision = False

    def __init__(
        self,
        lengths: Sequence[int] | None = None,
        ratio: float = 0.8,
        alpha: float = 1.0,
        pull: float = 1.0,
        push: float = 1.0,
        std: float = 0.02,
        eot: Literal["own", "longest"] = "own",
    ) -> None:
        if lengths is not None and (not lengths or min(lengths) < 1):
            raise UserError(f"method.lengths is {list(lengths)}; valid is a list of integers of at least 1, or null.")
        if not 0 < ratio <= 1:
            raise UserError(f"method.ratio is {ratio}; valid is a number in (0, 1].")
        for name, value in {"alpha": alpha, "pull": pull, "push": push, "std": std}.items():
            if value < 0:
                raise UserError(f"method.{name} is {value}; valid is a number of at least 0.")
        self.lengths = None if lengths is None else tuple(lengths)
        self.ratio = ratio
        self.alpha = alpha
        self.pull = pull
        self.push = push
        self.std = std
        self.eot = eot

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        *classes, length, width = model.prompt.shape
        # Of a local prompt, only the client's own number of vectors is used: all clients' tensors have one shape.
        local = normal((*classes, max(self.lengths or (length,)), width), self.std)
        return [
            Parameter("prompt", Scope.SHARED, fixed(model.prompt)),
            Parameter("local", Scope.PERSONAL, local, rate="gating_lr"),
        ]

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        return Downlink()

    def local(self, client: Client) -> Tensor:
        """The client's local prompt [l, w], of its own length."""
        local = client.prompts["local"]
        return local if self.lengths is None else local[..., : self.lengths[client.client_id % len(self.lengths)], :]

    def features(self, client: Client, prompt: Tensor) -> Tensor:
        """Text features [C, d] of a prompt of any length."""
        longest = max(*(self.lengths or ()), client.prompts["prompt"].shape[-2], 1)
        behind = longest - prompt.shape[-2] if self.eot == "longest" else 0
        return client.prompts.encode(prompt, behind)

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        return sum(self.terms(client, image_features, labels).values())  # type: ignore[return-value]

    def terms(self, client: Client, image_features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The parts of the local objective, with their weights; those with weight 0 are left out."""
        from torch.nn.functional import cross_entropy

        from fedmoe.models.functional import local_logits

        shared, own = client.prompts["prompt"], self.local(client)
        text = {name: self.features(client, prompt) for name, prompt in {"local": own, "global": shared}.items()}
        terms = {
            name: cross_entropy(local_logits(image_features, found, client.logit_scale), labels)
            for name, found in text.items()
        }
        if self.pull:
            projected = self.features(client, own @ weak_projector(shared, self.ratio))
            terms["pull"] = self.pull * pull(text["local"], projected)
        if self.push:
            terms["push"] = self.push * push(text["local"], text["global"], self.alpha)
        return terms

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        from fedmoe.models.functional import local_logits

        return local_logits(image_features, self.features(client, self.local(client)), client.logit_scale)
