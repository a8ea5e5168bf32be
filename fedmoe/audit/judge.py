"""What anybody who has CLIP can compute of a prompt and a target.

Shape letters: X targets, C classes, l context tokens, w token width, d feature width, M places of an image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedmoe.client.module import ClientModule


def true_logit(logits: Tensor, labels: Tensor) -> Tensor:
    """LiRA's statistic, ln p_y - ln(1 - p_y), computed as the difference of log p_y and the log of the sum of the other
    classes' (Carlini et al., S&P 2022): [X, C] and [X] -> [X]."""
    logs = logits.double().log_softmax(dim=1)
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    return logs[own] - logs.masked_fill(own, -torch.inf).logsumexp(dim=1)


class Judge:
    """Statistics of the targets under prompts; asked again for the same prompt, it remembers.

    Args:
        module: a client, of which only CLIP and the class names are used.
        features: of the targets, [X, d]; of spatial ones [X, M, d], the mean over the places is used.
        labels: [X].
    """

    def __init__(self, module: ClientModule, features: Tensor, labels: Tensor) -> None:
        self.module, self.labels = module, labels
        self.features = features.mean(dim=1) if features.ndim == 3 else features
        self._known: dict[tuple[bytes, ...], Tensor] = {}

    def fits(self, prompt: Tensor | None) -> bool:
        """Whether the text encoder can read it as it is."""
        return prompt is not None and prompt.shape == self.module.prompts.start.shape

    @torch.no_grad()
    def text(self, prompt: Tensor) -> Tensor:
        """Text features [C, d]."""
        return self.module.text_cache(prompt).cpu().float()

    def logits(self, prompt: Tensor) -> Tensor:
        """[X, C]."""
        return float(self.module.logit_scale) * self.features @ self.text(prompt).T

    def confidence(self, prompt: Tensor) -> Tensor:
        """LiRA's statistic of each target: [X]."""
        key = (_bytes(prompt),)
        if key not in self._known:
            self._known[key] = true_logit(self.logits(prompt), self.labels).float()
        return self._known[key]

    def alignment(self, start: Tensor, prompt: Tensor) -> Tensor:
        """How much the update prompt - start lowers each target's loss at the start, to first order:
        <prompt - start, -grad loss(start)>, [X]. One pass gives it for all targets: the text features' derivative along
        the update."""
        key = (_bytes(start), _bytes(prompt))
        if key not in self._known:
            along = self._along(start, (prompt - start).float())
            chance = self.logits(start).softmax(dim=1)
            slope = torch.nn.functional.one_hot(self.labels, chance.shape[1]) - chance  # of -loss by the logits
            change = float(self.module.logit_scale) * self.features @ along.T
            self._known[key] = (slope * change).sum(dim=1)
        return self._known[key]

    def _along(self, start: Tensor, direction: Tensor) -> Tensor:
        """The derivative of the text features [C, d] at ``start`` along ``direction``, in forward mode."""
        device = self.module.prompts.start.device
        at, towards = (tensor.detach().to(device).float() for tensor in (start, direction))
        with sdpa_kernel(SDPBackend.MATH):  # the others have no derivative of this kind
            found = torch.func.jvp(self.module.prompts, (at,), (towards,))[1]
        return found.detach().cpu().float()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()
