"""PIPRA: membership from prompt vectors, without the model's outputs (Bian, Zhang, Yu, Li, Pan; AAAI 2026).

A projector maps the text features of a prompt for the image's label, and the image's features, to one space; a
contrastive loss pulls shadow prompts to their members, and a discriminator on both projections is trained with it. The
attack is on centralised prompt tuning. Widths, temperature, rates and epochs are those of a re-implementation, since
the paper has no code; its shadow prompts are trained by itself on half of the attacker's own images. Here they are
those of shadow federations, whose members and non-members are the same targets: more than the paper's attacker has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from fedmoe.audit.membership.base import Membership, Setting, Shadow
from fedmoe.audit.threats import Seen
from fedmoe.seeds import torch_generator

TEMPERATURE, RATE, DECAY, WIDTH = 0.1, 0.01, 1e-4, 64


class PIPRA(Membership):
    """The discriminator's logit for the target and the last prompt of its owner.

    Args:
        federations: number of shadow federations, the last ones, whose prompts it is trained on.
        epochs: passes over all their targets.
    """

    label = "PIPRA"
    learns = True

    def __init__(self, federations: int = 4, epochs: int = 100) -> None:
        self.federations, self.epochs = federations, epochs
        self._trained: tuple[list[int], _Head] | None = None

    def scores(self, seen: Seen, shadows: Sequence[Shadow], setting: Setting) -> Tensor | None:
        if seen.texts is None:
            return None
        used = [shadow for shadow in shadows[-self.federations :] if shadow.seen.texts is not None]
        if not used:
            return None
        kept = [id(shadow.seen) for shadow in used]
        if self._trained is None or self._trained[0] != kept:
            self._trained = (kept, self._train(used, setting))
        with torch.no_grad():
            logits = self._trained[1](prompts_of(seen, setting), setting.features)[0].double()
        return logits

    def _train(self, shadows: Sequence[Shadow], setting: Setting) -> _Head:
        texts = [prompts_of(shadow.seen, setting) for shadow in shadows]
        prompts, features = torch.cat(texts), setting.features.repeat(len(shadows), 1)
        inside = torch.cat([shadow.members for shadow in shadows])
        groups = torch.cat([setting.owner + i * (int(setting.owner.max()) + 1) for i in range(len(shadows))])
        usable = torch.isfinite(prompts).all(dim=1)
        prompts, features, inside, groups = (t[usable] for t in (prompts, features, inside, groups))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_generator(0, "PIPRA").initial_seed() % 2**63)
            head = _Head(features.shape[1])
        optimizer = torch.optim.Adam(head.parameters(), lr=RATE, weight_decay=DECAY)
        with torch.enable_grad():
            for _ in range(self.epochs):
                logits, similarity = head(prompts, features)
                loss = binary_cross_entropy_with_logits(logits, inside.float())
                loss = loss + contrast(similarity, inside, groups)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return head


def prompts_of(seen: Seen, setting: Setting) -> Tensor:
    """The text features of each target's label under the last prompt of its owner: [X, d]."""
    assert seen.texts is not None
    owner = setting.owner if len(seen.texts) > 1 else torch.zeros_like(setting.owner)
    return seen.texts[owner, setting.labels]


def contrast(similarity: Tensor, inside: Tensor, groups: Tensor) -> Tensor:
    """InfoNCE: for each member of a shadow prompt, against all non-members of the same prompt. Similarities [n], over
    temperature, members [n], prompts [n] -> scalar."""
    count = int(groups.max()) + 1
    weight = similarity.exp()
    against = torch.zeros(count).index_add(0, groups[~inside], weight[~inside])[groups[inside]]
    return -(weight[inside] / (weight[inside] + against)).log().mean()


class _Head(nn.Module):
    """Projector and discriminator."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = min(WIDTH, dim)
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.decide = nn.Sequential(nn.Linear(4 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, prompts: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Text features [n, d] and image features [n, d] -> logits [n], similarities over temperature [n]."""
        p, f = (normalize(self.project(t), dim=1) for t in (prompts, features))
        both = torch.cat([p, f, (p - f).abs(), p * f], dim=1)
        return self.decide(both).squeeze(1), (p * f).sum(dim=1) / TEMPERATURE
