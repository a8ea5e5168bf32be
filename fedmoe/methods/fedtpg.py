"""FedTPG: a prompt generator, which makes the prompt from the class names, in place of a prompt.

Qiu, Li, Mummadi, Ganesh, Li, Peng, Lin, "Federated Text-driven Prompt Generation for Vision-Language Models", ICLR
2024.

Shape letters: b images, C classes, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from fedmoe.errors import UserError
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope
from fedmoe.protocol.records import RoundContext, Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fedmoe.models.clip import FrozenCLIP
    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState


class FedTPG(Method):
    """The generator is all that is learned. It is sent both ways and averaged without weights; nothing stays.

    The generator sees the text features of the bare class names, all together, and gives one prompt for all of them
    (``fedmoe.models.generator``). In the paper, each client's task is its own classes, which other clients do not have:
    ``task: own``. Then a client trains with the names of the classes of its training examples, and chooses among them.
    Where clients share the classes of one data set, all of them are the task. Prediction is among all classes of the
    data set, with all their names, or among the novel ones with theirs, as with every other method here.

    The generator is trained with ``optim.prompt_lr``; the release's values are SGD with 0.003, momentum 0.9, weight
    decay 1e-5 and a cosine over the rounds, one epoch a round. Its momentum runs on from one of a client's turns to the
    next; here, it starts empty. 4.2 million parameters at CLIP's width 512: 16.8 MB each way.

    Args:
        length: number l of context vectors, whatever ``prompt.length`` is.
        heads: of the attention; must divide the token width.
        task: whose class names a client trains with: all of the data set's, or those of its own training examples.
    """

    label = "FedTPG"
    half_precision = False

    def __init__(self, length: int = 4, heads: int = 4, task: Literal["all", "own"] = "all") -> None:
        for name, value in {"length": length, "heads": heads}.items():
            if value < 1:
                raise UserError(f"method.{name} is {value}; valid is an integer of at least 1.")
        self.length = length
        self.heads = heads
        self.task = task

    def constants(self, clip: FrozenCLIP, class_names: Sequence[str], template: str) -> Mapping[str, Tensor]:
        from fedmoe.models.prompt import template_features

        return {"names": template_features(clip, class_names, "{class}")}  # [C, d]

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        *classes, _, width = model.prompt.shape
        if classes:
            raise UserError("prompt.class_specific is true, but FedTPG has one prompt for all classes; valid is false.")
        if width % self.heads:
            raise UserError(
                f"method.heads is {self.heads}, which does not divide CLIP's token width {width}; valid is a divisor."
            )

        def generator(draw: torch.Generator) -> nn.Module:
            from fedmoe.models.generator import PromptGenerator

            return PromptGenerator(self.length, width, model.feature_dim, self.heads, draw)

        return [Parameter("generator", Scope.SHARED, generator)]

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        from fedmoe.server.aggregation import weighted_means

        server.shared.update(weighted_means([update.parameters for update in updates], [1] * len(updates)))

    def prompt(self, client: Client) -> Tensor:
        """No prompt of the usual length classifies; a fixed one, for what takes the loss's gradients by examples."""
        return client.prompts.start

    def text(self, client: Client, names: Tensor) -> Tensor:
        """Text features of all classes [C, d] with the prompt for these class names [n, d]."""
        return client.prompts.encode(client.generator(names))  # type: ignore[attr-defined]

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        if self.task == "all":
            return super().loss(client, image_features, labels)
        import torch
        from torch.nn.functional import cross_entropy

        from fedmoe.models.functional import local_logits

        if client.data is None:
            raise UserError("method.task is 'own', but there is no client whose classes are known; valid is all.")
        own = client.data.train_labels.unique().to(labels.device)  # [n], ascending
        names = client.constants["names"].to(image_features)
        text = self.text(client, names[own])[own]
        return cross_entropy(local_logits(image_features, text, client.logit_scale), torch.searchsorted(own, labels))

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        from fedmoe.models.functional import local_logits

        text = self.text(client, client.constants["names"].to(image_features))
        return local_logits(image_features, text, client.logit_scale)
