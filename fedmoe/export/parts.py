"""What the exported head of a restored client consists of.

Shape letters: C classes, d feature width, K experts, M routed experts.
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
from fedmoe.methods import (
    FedOTP,
    FedPHA,
    FedSEPT,
    FedTPG,
    LocalAdapter,
    Method,
    NeighbourMixture,
    PFedMoAP,
    PFedPrompt,
    PromptFolio,
    ZeroShot,
)
from fedmoe.methods.towers import TowerMethod
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


_WHY: Mapping[type[Method], str] = {
    TowerMethod: "it works within CLIP's image encoder, whereas an exported head takes what comes out of it",
    FedOTP: "it matches prompts with the places of an image, whereas an exported head takes one feature of the image",
    PFedPrompt: "it predicts with the features of the client's training images, which never leave the client",
}


def _refused(method: Method) -> UserError:
    reasons = (why for kind, why in _WHY.items() if isinstance(method, kind))
    why = next(reasons, "what it predicts with is none of the forms that an exported head has")
    return UserError(
        f"{type(method).__name__} cannot be exported: {why}; valid are ZeroShot, CoOp, PromptFL, PromptFLFT, FedProx, "
        "FedPer, FedAMP, FedPGP, PromptFolio, FedPHA, DPFPL, FedTPG, FedSEPT, PFedMoAP, NeighbourMixture and "
        "LocalAdapter."
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


def _folio(module: ClientModule) -> Form:
    method, text = module.method, module.text_features()  # [n, C, d]
    assert isinstance(method, PromptFolio)
    return _text_alone(text[0] if len(text) == 1 else (1 - method.theta) * text[0] + method.theta * text[1])


def _local_prompt(module: ClientModule) -> Form:
    assert isinstance(module.method, FedPHA)
    return _text_alone(module.method.features(module, module.method.local(module)))


def _generated(module: ClientModule) -> Form:
    assert isinstance(module.method, FedTPG)
    return _text_alone(module.method.text(module, module.constants["names"]))


def _routed(module: ClientModule) -> Form:
    text, router = module.text_features(), getattr(module, "router", None)  # [M, C, d]
    if router is None:
        return _text_alone(text[0])
    return {"kind": "router"}, {"text": text, **named_tensors("router", router)}


def _neighbours(module: ClientModule) -> Form:
    method = module.method
    assert isinstance(method, NeighbourMixture)
    experts = [] if module.expert_text is None else [module.expert_text]
    tensors = {"text": torch.cat([module.text_features().unsqueeze(0), *experts])}  # [K + 1, C, d]
    settings: dict[str, Any] = {"kind": "neighbours", "head_weight": method.head_weight, "lmbda": method.lmbda}
    if method.head_weight:
        head = getattr(module, "head")  # noqa: B009, declared by the method
        if type(head) is not UniformGate or head.heads != 1:
            raise _refused(method)
        settings |= {"gating_dim": head.gating_dim, "pooling": head.pooling}
        tensors |= {"template": module.constants["template"], **named_tensors("head", head)}
    return settings, tensors


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
    PromptFolio.logits: _folio,
    FedPHA.logits: _local_prompt,
    FedTPG.logits: _generated,
    FedSEPT.logits: _routed,
    NeighbourMixture.logits: _neighbours,
}
