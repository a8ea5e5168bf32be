"""FedMGP: groups of text and visual prompts, of which some are sent, drawn by their similarity to the global ones.

Bo et al., "FedMGP: Personalized Federated Learning with Multi-Group Text-Visual Prompts", NeurIPS 2025 (arXiv
2511.00480). Group j has text vectors, which replace the template's first words, and visual tokens behind the patches;
with L_j the logits of image and text features of group j, a client predicts with their mean and trains on

    mean_j cross-entropy(L_j) + lambda * diversity.

Shape letters: b images, C classes, G groups, s sent groups, n text vectors and p visual tokens of a group, w a tower's
width, d feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Literal

from fedmoe.errors import UserError
from fedmoe.methods.towers import TEMPLATE, TowerMethod, first_words, tower_of
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, select
from fedmoe.protocol.records import ClientState, Downlink, Loadout, RoundContext, Tensors, Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fedmoe.protocol.client import Client
    from fedmoe.server.state import ServerState

MODALITIES = ("text", "visual")


def similarity(groups: Tensor, shared: Tensor) -> Tensor:
    """For each of the groups [G, p, w], the largest cosine with one of the global groups [s, p, w], each taken as one
    vector: [G]."""
    from torch.nn.functional import normalize

    return (normalize(groups.flatten(1), dim=-1) @ normalize(shared.flatten(1), dim=-1).T).amax(dim=1)


def draw(groups: Tensor, shared: Tensor | None, count: int, temperature: float) -> Tensor:
    """Which groups are sent, [s], in the order of their ranks: one after the other, without replacement, from a softmax
    of their similarity over the temperature; from all alike while there are no global groups. Draws from torch's global
    generator."""
    import torch

    scores = groups.new_zeros(len(groups)) if shared is None else similarity(groups, shared) / temperature
    # With weights, multinomial without replacement draws in turn from the rest, renormalized.
    return torch.multinomial(scores.softmax(dim=0), count)


def overwritten(groups: Tensor, drawn: Tensor, shared: Tensor) -> Tensor:
    """The groups [G, p, w] in which the r-th drawn one is the r-th global one."""
    found = groups.clone()
    found[drawn] = shared.to(found)
    return found


def mean_cosine(features: Tensor) -> Tensor:
    """The mean cosine of two groups' features [G, n, d], l2-normalized, over pairs and over n."""
    import torch

    return torch.stack([(one * other).sum(-1).mean() for one, other in combinations(features, 2)]).mean()


def _spread(distance: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The mean of minus a distance, a function of the difference of two groups' features, over pairs and over n."""

    def found(features: Tensor) -> Tensor:
        import torch

        return torch.stack([-distance(one - other).mean() for one, other in combinations(features, 2)]).mean()

    return found


class FedMGP(TowerMethod):
    """Each client has G groups of prompts and shares s of them in each round.

    All start from common ones. In each round a client sends s of its groups, for text and images each, and the server
    averages over the cohort what was drawn as the r-th (weighted by n_i). The r-th group that a client drew is
    overwritten by the r-th global one; its other groups stay its own.

    Groups are drawn after local training, by their similarity to the global groups that the client trained with, and at
    random in the first round. All are trained with ``optim.prompt_lr``. Clients overwrite with the current global
    groups when they train or are evaluated; one that never took part has the initial groups and downloads nothing to
    predict. With one group and no diversity, the method is independent prompting (``FedVPT`` with text vectors). At
    CLIP's ViT-B/16 and the defaults, 12,800 parameters are trained and 5,120 sent.

    The release differs from the paper, which is followed here: its diversity term has the other sign and pulls groups
    together (``diversity``), its mean has no weights (``weights: equal``), and trained visual prompts are stored under
    a name from which they are never loaded again. It also keeps one momentum buffer for all clients, and a client that
    misses a round overwrites with the global groups of its own last round.

    Args:
        groups: G.
        sent: s, at most G.
        text_vectors: n, words of a group.
        vectors: p, visual tokens of a group.
        temperature: of the draw by similarity.
        lmbda: weight lambda of the diversity term.
        diversity: cosine is the mean cosine of two groups' features, averaged over text and images, which makes groups
            differ. l1, l2 and cos are the release's: the absolute value of the mean of minus the mean absolute
            difference, of minus the distance, or of 1 - cosine; they grow as groups differ, and so make them alike.
        prediction: mean is the mean of the groups' logits; largest takes for each image those of the group that has the
            largest; features takes the logits of the groups' mean features, which are not normalized again.
        weights: examples weights the mean by n_i, equal does not.
        template: the sentence around a class name, with {class} in its place; its first words are where a group's text
            vectors go, and what they start from, with N(0, 0.01^2) added.
        save_memory: keep no activations within the towers' blocks for the backward pass, which computes them again.
        tokens: number format in which the cached tokens are kept; float16 takes half the room.
    """

    label = "FedMGP"
    _diversities: ClassVar[Mapping[str, Callable[[Tensor], Tensor]]] = {
        "cosine": mean_cosine,
        "l1": _spread(lambda gap: gap.abs().mean(-1)),
        "l2": _spread(lambda gap: (gap.square().sum(-1) + 1e-8).sqrt()),
        "cos": lambda features: 1 - mean_cosine(features),
    }

    def __init__(
        self,
        groups: int = 5,
        sent: int = 2,
        text_vectors: int = 2,
        vectors: int = 2,
        temperature: float = 1.0,
        lmbda: float = 1.0,
        diversity: Literal["cosine", "l1", "l2", "cos"] = "cosine",
        prediction: Literal["mean", "largest", "features"] = "mean",
        weights: Literal["examples", "equal"] = "examples",
        template: str = TEMPLATE,
        save_memory: bool = False,
        tokens: Literal["float32", "float16"] = "float32",
    ) -> None:
        super().__init__(template, save_memory, tokens)
        for name, value in {"sent": sent, "text_vectors": text_vectors, "vectors": vectors}.items():
            if value < 1:
                raise UserError(f"method.{name} is {value}; valid is an integer of at least 1.")
        if groups < sent:
            raise UserError(f"method.groups is {groups}; valid is an integer of at least method.sent = {sent}.")
        if temperature <= 0:
            raise UserError(f"method.temperature is {temperature}; valid is a number above 0.")
        if lmbda < 0:
            raise UserError(f"method.lmbda is {lmbda}; valid is a number of at least 0.")
        self.groups = groups
        self.sent = sent
        self.text_vectors = text_vectors
        self.vectors = vectors
        self.temperature = temperature
        self.lmbda = lmbda
        self.diversity = diversity
        self.prediction = prediction
        self.weights = weights

    def parameters(self, model: ModelSpec) -> Sequence[Parameter]:
        clip, tower = tower_of(model)
        words = first_words(clip, self.template, self.text_vectors)

        def text(generator: torch.Generator) -> Tensor:
            import torch

            return words + 0.01 * torch.randn(self.groups, *words.shape, generator=generator)

        def visual(generator: torch.Generator) -> Tensor:
            import torch

            return 0.02 * torch.randn(self.groups, self.vectors, tower.width, generator=generator)

        def empty(*shape: int) -> Callable[[torch.Generator], Tensor]:
            def start(generator: torch.Generator) -> Tensor:
                import torch

                return torch.zeros(shape)

            return start

        return [
            Parameter("text", Scope.PERSONAL, text, common=True),
            Parameter("visual", Scope.PERSONAL, visual, common=True),
            # Which groups the client drew last, as numbers of their ranks: text first; not trained.
            Parameter("drawn", Scope.PERSONAL, empty(2, self.sent)),
            # What is sent; the client only takes it over.
            Parameter("global_text", Scope.SHARED, empty(self.sent, *words.shape)),
            Parameter("global_visual", Scope.SHARED, empty(self.sent, self.vectors, tower.width)),
        ]

    # On the server

    def configure(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        return super().configure(server, client_id, context) if server.clients else Downlink()

    def aggregate(self, server: ServerState, updates: Sequence[Update], context: RoundContext) -> None:
        from fedmoe.server.aggregation import weighted_means

        weights = [update.num_examples if self.weights == "examples" else 1 for update in updates]
        server.shared.update(weighted_means([update.parameters for update in updates], weights))

    def deploy(self, server: ServerState, client_id: int, context: RoundContext) -> Downlink:
        return super().deploy(server, client_id, context) if server.known(client_id).rounds_seen else Downlink()

    # On the client

    def start(self, state: ClientState, downlink: Downlink) -> Loadout:
        own = dict(state.parameters)
        if state.took_part and downlink.parameters:
            for drawn, name in zip(own["drawn"].long(), MODALITIES, strict=True):
                own[name] = overwritten(own[name], drawn, downlink.parameters[f"global_{name}"])
        return Loadout({**own, **downlink.parameters}, received=downlink.parameters, extras=downlink.extras)

    def finish(
        self, client: Client, state: ClientState, downlink: Downlink, num_examples: int
    ) -> tuple[Update, ClientState]:
        import torch

        trained = client.export()
        shared = downlink.parameters
        drawn = {
            name: draw(trained[name], shared.get(f"global_{name}"), self.sent, self.temperature) for name in MODALITIES
        }
        sent: Tensors = {f"global_{name}": trained[name][which] for name, which in drawn.items()}
        own = {**select(trained, MODALITIES), "drawn": torch.stack(list(drawn.values())).float()}
        update = Update(client.client_id, sent, num_examples, self.metrics(client))
        return update, ClientState(own, {}, state.rounds_seen + 1)

    def features(self, client: Client, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Text features [G, C, d] and image features [G, b, d] of all groups."""
        import torch

        from fedmoe.models.image_tower import ImageTower

        tower, encode = ImageTower(client.clip), client.prompts.sentences(self.template, self.text_vectors)
        text = [encode(words, save_memory=self.save_memory) for words in client.prompts["text"]]
        images = [
            tower.upper(tokens, append=visual, save_memory=self.save_memory) for visual in client.prompts["visual"]
        ]
        return torch.stack(text), torch.stack(images)

    def loss(self, client: Client, image_features: Tensor, labels: Tensor) -> Tensor:
        from torch.nn.functional import cross_entropy

        text, images = self.features(client, image_features)
        logits = client.logit_scale * images @ text.mT  # [G, b, C]
        fit = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)))
        if self.groups == 1 or not self.lmbda:
            return fit
        return fit + self.lmbda * self.diversity_term(text, images)

    def diversity_term(self, text: Tensor, images: Tensor) -> Tensor:
        """The term of text features [G, C, d] and image features [G, b, d]."""
        measure = self._diversities[self.diversity]
        found = (measure(text) + measure(images)) / 2
        return found if self.diversity == "cosine" else found.abs()

    def logits(self, client: Client, image_features: Tensor) -> Tensor:
        text, images = self.features(client, image_features)
        if self.prediction == "features":
            return client.logit_scale * images.mean(dim=0) @ text.mean(dim=0).T
        logits = client.logit_scale * images @ text.mT  # [G, b, C]
        if self.prediction == "mean":
            return logits.mean(dim=0)
        best = logits.amax(dim=2).argmax(dim=0)  # [b]
        return logits[best, range(len(best))]
