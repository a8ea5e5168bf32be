"""What the exported head of a restored client consists of.

Shape letters: C classes, d feature width, K experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedmoe.client.module import ClientModule
from fedmoe.errors import UserError
from fedmoe.export.head import Head
from fedmoe.methods import LocalAdapter, Method, PFedMoAP, ZeroShot
from fedmoe.models.gating import AttentionGate, Gate, LinearGate, UniformGate
from fedmoe.protocol.parameters import named_tensors


@dataclass(frozen=True)
class HeadParts:
    """The arguments of ``fedmoe.export.head.Head``, on the CPU."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    class_names: list[str]

    def build(self) -> Head:
        return Head(self.settings, self.tensors, self.class_names).eval()


@torch.no_grad()
def head_parts(module: ClientModule) -> HeadParts:
    """The head of the client that the module holds, checked against the module on random image features.

    Raises:
        UserError: the method's prediction has another form than those of ``Head``.
    """
    method = module.method
    build = _FORMS.get(type(method).logits)
    if build is None or type(method).encoder is not Method.encoder:
        raise _refused(method)
    settings, tensors = build(module)
    settings = {**settings, "logit_scale": module.logit_scale}
    if module.clip.logit_bias is not None:
        settings["logit_bias"] = module.clip.logit_bias
    own = {name: tensor.detach().float().cpu() for name, tensor in tensors.items()}
    parts = HeadParts(settings, own, list(module.prompts.class_names))
    probe = torch.nn.functional.normalize(torch.randn(16, module.clip.feature_dim, generator=_generator()), dim=-1)
    expected = module(probe.to(module.device)).float().cpu()
    # A method of one's own may inherit logits, and change what they are made of.
    if not torch.allclose(parts.build()(probe), expected, atol=_TOLERANCE[module.optim.precision] * module.logit_scale):
        raise _refused(method)
    return parts


_TOLERANCE = {"float32": 1e-5, "float16": 2e-2}  # of a similarity; the head computes in float32


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _refused(method: Method) -> UserError:
    return UserError(
        f"{type(method).__name__} cannot be exported: what it predicts with is more than text features, a gate over "
        "experts or an adapter; valid are ZeroShot, CoOp, PromptFL, PromptFLFT, FedProx, FedPer, FedAMP, FedPGP, "
        "PFedMoAP and LocalAdapter."
    )


Form = tuple[dict[str, Any], dict[str, Tensor]]


def _text_alone(text: Tensor) -> Form:
    return {"kind": "linear", "lmbda": 1.0}, {"text": text.unsqueeze(0)}


def _adapter(module: ClientModule) -> Form:
    adapter = getattr(module, "adapter")  # noqa: B009, declared by the method
    settings = {"kind": "adapter", "lmbda": 1.0, "gating_dim": adapter.gating_dim, "pooling": adapter.pooling}
    return settings, {"text": module.text_features().unsqueeze(0), **named_tensors("adapter", adapter)}


def _mixture(module: ClientModule) -> Form:
    method, gate = module.method, module.gate
    if module.expert_text is None:
        return _text_alone(module.text_features())
    assert isinstance(method, PFedMoAP)
    assert isinstance(gate, Gate)
    if type(gate) not in _GATES:
        raise _refused(method)
    settings = {
        "lmbda": method.lmbda,
        "gating_dim": gate.gating_dim,
        "pooling": gate.pooling,
        **_GATES[type(gate)](gate),
    }
    text = torch.cat([module.text_features().unsqueeze(0), module.expert_text])  # [K + 1, C, d]
    return settings, {"text": text, **named_tensors("gate", gate)}


def _heads(gate: Any) -> dict[str, Any]:
    return {"heads": gate.heads, "attention_scale": gate.scale}


_GATES: Mapping[type, Callable[[Any], dict[str, Any]]] = {
    AttentionGate: lambda gate: {"kind": "attention", **_heads(gate)},
    UniformGate: lambda gate: {"kind": "uniform", **_heads(gate)},
    LinearGate: lambda gate: {"kind": "projection"},
}
# By the function that predicts: a method that overrides it is refused, others are what they inherit from.
_FORMS: Mapping[Callable[..., Tensor], Callable[[ClientModule], Form]] = {
    Method.logits: lambda module: _text_alone(module.text_features()),
    ZeroShot.logits: lambda module: _text_alone(module.constants["template"]),
    LocalAdapter.logits: _adapter,
    PFedMoAP.logits: _mixture,
}
