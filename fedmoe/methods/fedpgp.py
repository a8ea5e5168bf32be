"""FedPGP: a global prompt with a low-rank personal part, and a contrastive term between the two.

Cui, Li, Wang, Shi, "Harmonizing Generalization and Personalization in Federated Prompt Learning", ICML 2024 (arXiv
2405.09771), as in its public release:

    P_i = sigma + U_i V_i,    loss = cross-entropy(P_i) + mu * contrastive(sigma, P_i).

Shape letters: b images, C classes, l context tokens, w token width, d feature width, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, fixed, normal

if TYPE_CHECKING:
    from torch import Tensor

    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client


def contrastive(shared: Tensor, template: Tensor, personal: Tensor, temperature: float) -> Tensor:
    """For each class, pulls the global text feature towards the template's and pushes it away from the personal one:
    cross-entropy of a two-way softmax over cosine / temperature, averaged over classes. Each [C, d] -> scalar."""
    import torch
    from torch.nn.functional import cosine_similarity

    cosines = [cosine_similarity(shared, other, dim=-1) for other in (template, personal)]
    return -(torch.stack(cosines, dim=-1) / temperature).log_softmax(dim=-1)[:, 0].mean()


class FedPGP(Method):
    """The global prompt sigma is averaged over the cohort (weighted by n_i); each client keeps its own U and V.

    All are trained together, sigma with ``optim.prompt_lr``, U and V with ``optim.gating_lr`` (the release uses one
    rate for all). The client predicts with the current global sigma plus its own U V; a client that never took part
    uses the initial values of its U and V.

    The release differs in two points that its equations leave open: all clients start from the same draw of U and V
    (here each has its own), and the template is its placeholder text, "X" l times before the class name (here a
    sentence).

    Args:
        rank: rank r of the personal part. The defaults of rank, mu and temperature are those of the release's CIFAR-10
            script.
        mu: weight of the contrastive term; 0 leaves it out, and with it the second text pass.
        temperature: divides the cosines of the contrastive term.
        std: standard deviation of the initial U and V, as in the release. At 0 both stay zero, and with mu = 0 the
            method is PromptFL.
        template: the positive example of the contrastive term, a sentence with {class} in it; null: the data set's own.
    """

    label = "FedPGP"

    def __init__(
        self, rank: int = 8, mu: float = 0.5, temperature: float = 0.5, std: float = 0.02, template: str | None = None
    ) -> None:
        if rank < 1:
            raise UserError(f"method.rank is {rank}; valid is an integer of at least 1.")
        for name, value in {"mu": mu, "std": std}.items():
            if value < 0:
                raise UserError(f"method.{name} is {value}; valid is a number of at least 0.")
        if temperature <= 0:
            raise UserError(f"method.temperature is {temperature}; valid is a number above 0.")
        if template is not None and "{class}" not in template:
            raise UserError(f"method.template is {template!r}; valid is a sentence with {{class}} in it.")
        self.rank = rank
        self.mu = mu
        self.temperature = temperature
        self.std = std
        self.template = template

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        from fedmoe.models.prompt import template_features

        return {"template": template_features(clip, class_names, self.template or template)}  # [C, d]

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        length, width = model.prompt.shape[-2:]  # with class-specific prompts, one U V for all classes
        return [
            Parameter("prompt", Scope.SHARED, fixed(model.prompt)),  # sigma
            Parameter("U", Scope.PERSONAL, normal((length, self.rank), self.std), rate="gating_lr"),
            Parameter("V", Scope.PERSONAL, normal((self.rank, width), self.std), rate="gating_lr"),
        ]

    def prompt(self, client: Client) -> Tensor:
        return client.prompts["prompt"] + client.prompts["U"] @ client.prompts["V"]

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        import torch
        from torch.nn.functional import cross_entropy

        from fedmoe.models.functional import local_logits

        if self.mu == 0:
            return super().loss(client, image_features, labels)
        prompts = torch.stack([client.prompts["prompt"], self.prompt(client)])
        shared, personal = client.text_features(prompts)  # [C, d] each
        fit = cross_entropy(local_logits(image_features, personal, client.logit_scale), labels)
        template = client.constants["template"].to(shared)
        return fit + self.mu * contrastive(shared, template, personal, self.temperature)
