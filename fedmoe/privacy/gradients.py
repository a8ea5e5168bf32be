"""Gradients of local training under differential privacy; ``privacy/mechanism.py`` states what they protect.

Shape letters: b images, C classes, d feature width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedmoe.client.module import Batch, ClientModule
from fedmoe.errors import UserError
from fedmoe.protocol.parameters import Scope


class ClippedShared:
    """The gradient of the shared parameters, clipped to an l2 norm; personal parameters keep theirs.

    Attributes:
        rates: the learning rate of the shared parameters in each step so far; the sensitivity of the result follows
            from them.
    """

    def __init__(self, clip: float) -> None:
        self.clip = clip
        self.rates: list[float] = []

    def backward(self, client: ClientModule, loss: Tensor, batch: Batch) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(client.trained(client.parts(Scope.SHARED)).values(), self.clip)
        self.rates.append(client.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]


class NoisySum:
    """DP-SGD (Abadi et al., CCS 2016, arXiv 1607.00133): the sum of clipped per-example gradients plus noise, over b.

    Clipping is joint over all trained parameters, and all get noise of the same standard deviation. A parameter for
    which no example has a gradient is left alone.

    Args:
        clip: l2 bound of an example's gradient.
        noise: standard deviation of the noise in each coordinate of the sum.
        generator: of the noise, on the CPU.
    """

    def __init__(self, clip: float, noise: float, generator: torch.Generator) -> None:
        self.clip, self.noise, self.generator = clip, noise, generator

    def backward(self, client: ClientModule, loss: Tensor, batch: Batch) -> None:
        gradients = per_example_gradients(client, *batch)
        count = len(batch[1])
        norms = torch.stack([g.reshape(count, -1).norm(dim=1) for g in gradients.values()]).norm(dim=0)  # [b]
        scale = (self.clip / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
        for parameter, found in gradients.items():
            total = torch.einsum("b,b...->...", scale, found)
            draw = torch.randn(total.shape, generator=self.generator).to(total)
            parameter.grad = (total + self.noise * draw) / count


def per_example_gradients(client: ClientModule, image_features: Tensor, labels: Tensor) -> dict[nn.Parameter, Tensor]:
    """The gradient [b, *shape] of each example's own loss, for every trained parameter that the loss depends on.

    The text features of the client's prompt are computed once. Each example's loss is differentiated with respect to
    them (and to the parameters on which it depends directly, as with a gate or a proximal term); the gradient of the
    text features [C, d] is then pulled back through the text tower to the prompt, by a vector-Jacobian product for each
    example.

    Args:
        image_features: [b, d], or of the kind that the method uses.
        labels: [b].

    Raises:
        ValueError: the numbers of images and labels differ.
    """
    parameters = [parameter for parameter in client.parameters() if parameter.requires_grad]
    text = client.text_features()  # [C, d]
    client.text = text.detach().requires_grad_()
    try:
        rows = [
            torch.autograd.grad(client.method.loss(client, image, label), [*parameters, client.text], allow_unused=True)
            for image, label in zip(image_features.split(1), labels.split(1), strict=True)
        ]
    finally:
        client.text = None
    found, by_text = _by_parameter(parameters, rows), _stack([row[-1] for row in rows])
    if by_text is not None:
        # One at a time: the batched backward pass of the tower is no faster on a CPU and needs b times the memory.
        pulled = [torch.autograd.grad(text, parameters, row, retain_graph=True, allow_unused=True) for row in by_text]
        for parameter, through in _by_parameter(parameters, pulled).items():
            found[parameter] = through + found[parameter] if parameter in found else through
    return found


def _by_parameter(
    parameters: Sequence[nn.Parameter], rows: Sequence[Sequence[Tensor | None]]
) -> dict[nn.Parameter, Tensor]:
    """The gradients of each parameter that has any; ``rows`` holds each example's, in the order of the parameters."""
    stacked = {parameter: _stack([row[place] for row in rows]) for place, parameter in enumerate(parameters)}
    return {parameter: gradients for parameter, gradients in stacked.items() if gradients is not None}


def _stack(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The gradients stacked, with zeros for an example that has none; None if no example has one."""
    known = next((gradient for gradient in gradients if gradient is not None), None)
    if known is None:
        return None
    return torch.stack([torch.zeros_like(known) if gradient is None else gradient for gradient in gradients])


class WithheldData:
    """Replaces a client's data during DP-SGD, when an example's loss must not depend on any other example."""

    def __getattr__(self, name: str) -> None:
        raise UserError(
            "privacy.mechanism is 'dpsgd', but the method's local training looks at all of a client's data at once, "
            "where one example's gradient depends on the others; valid is upload or none."
        )
