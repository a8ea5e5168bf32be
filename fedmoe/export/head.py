"""Classify CLIP's image features with an exported client; needs nothing but torch and safetensors.

    head = load_head("folder")
    logits = head(image_features)                  # [b, C], probabilities are logits.softmax(-1)
    head.class_names[int(logits[0].argmax())]
    head.expert_weights(image_features)            # [b, K + 1], the client's own prompt first

``image_features`` are the l2-normalized features [b, d] of the CLIP that client.json describes under ``clip``, of
images preprocessed as CLIP's are. A copy of this file lies in each exported folder.

Shape letters: b images, C classes, d feature width, g gating width, K non-local experts, h heads, e = g / h, M routed
experts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

FORMAT = 1


def load_head(folder: str | Path) -> Head:
    """The head in an exported folder.

    Raises:
        ValueError: the folder is of another format, or its two files do not belong together.
        OSError: a file is missing.
    """
    told = json.loads((Path(folder) / "client.json").read_text(encoding="utf-8"))
    if told.get("format") != FORMAT:
        raise ValueError(f"{folder} has the format {told.get('format')!r}; this reader knows format {FORMAT}")
    data = (Path(folder) / "client.safetensors").read_bytes()
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise ValueError(f"the checksum of {folder}/client.safetensors is not that in client.json")
    tensors = {name.removeprefix("head/"): t for name, t in load(data).items() if name.startswith("head/")}
    return Head(told["head"], tensors, told["class_names"])


class Head(nn.Module):
    """What a client adds to CLIP's image encoder.

    With most kinds, logits = logit_scale * (lmbda * I . T + mix(I)) + logit_bias, where mix depends on ``kind``:

    - linear: 0
    - attention, uniform, projection: pool(I) . T_MoE, with T_MoE [b, C, g] the gate's mixture of the pooled text
      features of all experts; without experts, 0
    - adapter: A(pool(I)) . pool(T), A(x) = scale * (W_2 relu(W_1 x + b_1) + b_2)

    Two kinds are made otherwise:

    - router: logits = logit_scale * sum_m r_m(I) I . T_m, r = softmax(W norm(W_o (W_v I + b_v) + b_o) + b)
    - neighbours: logits are log-probabilities of (1 - head_weight) * the mean over k of softmax(logit_scale * I . T_k)
      + head_weight * softmax(logit_scale * (lmbda * I . S + pool(I) . (W_o (W_v pool(S) + b_v) + b_o))), with the text
      features S of a template

    Args:
        settings: kind, logit_scale, lmbda, and logit_bias if CLIP has one; with a gate or adapter also gating_dim and
            pooling, and of attention heads and attention_scale; of neighbours head_weight.
        tensors: text [K + 1, C, d], the client's own first (of router: [M, C, d]), template [C, d] of neighbours, and
            the tensors of gate, adapter, router or head.
        class_names: C names.

    Raises:
        ValueError: the kind is none of these.
    """

    def __init__(self, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], class_names: list[str]) -> None:
        super().__init__()
        self.settings, self.class_names = dict(settings), list(class_names)
        self.text: Tensor
        self.template: Tensor
        self.adapter_scale: Tensor
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor.float())
        kinds = {
            "linear": self._nothing,
            "attention": self._attention,
            "uniform": self._attention,
            "projection": self._projection,
            "adapter": self._adapter,
            "router": self._routed,
            "neighbours": self._neighbours,
        }
        if settings["kind"] not in kinds:
            raise ValueError(f"the head is of the kind {settings['kind']!r}; this reader knows {', '.join(kinds)}")
        self._own = kinds[settings["kind"]]

    def forward(self, image_features: Tensor) -> Tensor:
        """Image features [b, d] -> logits [b, C]."""
        if self.settings["kind"] in ("router", "neighbours"):
            logits: Tensor = self._own(image_features)
        else:
            plain = self.settings["lmbda"] * image_features @ self.text[0].T
            logits = self.settings["logit_scale"] * (plain + self._own(image_features))
        return logits + self.settings["logit_bias"] if "logit_bias" in self.settings else logits

    def expert_weights(self, image_features: Tensor) -> Tensor:
        """Weights of the experts for each image, mean over classes and heads: [b, K + 1] or [b, M]; ones [b, 1] without
        a gate. They sum to one."""
        kind = self.settings["kind"]
        if kind == "router":
            return self._routes(image_features)
        if kind == "neighbours" and len(self.text) > 1:
            own, each = self.settings["head_weight"], (1 - self.settings["head_weight"]) / len(self.text)
            weights = torch.tensor([own + each, *[each] * (len(self.text) - 1)]).to(image_features)
            return torch.ones_like(image_features[:, :1]) * weights
        if kind == "projection":
            return self._projected(image_features)
        if kind in ("attention", "uniform"):
            return self._weights(image_features).mean(dim=(1, 2))
        return torch.ones_like(image_features[:, :1])

    def _pool(self, features: Tensor) -> Tensor:  # [..., d] -> [..., g]
        parts = features.unflatten(-1, (self.settings["gating_dim"], -1))
        return parts[..., 0] if self.settings["pooling"] == "stride" else parts.mean(dim=-1)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ getattr(self, f"{name}_weight").T + getattr(self, f"{name}_bias")

    def _nothing(self, image: Tensor) -> Tensor:
        return torch.zeros_like(image[:, :1])

    def _weights(self, image: Tensor) -> Tensor:  # [b, C, h, K + 1]
        text, heads = self._pool(self.text), self.settings["heads"]
        if self.settings["kind"] == "uniform":
            even = torch.full((1, text.shape[1], heads, text.shape[0]), 1 / text.shape[0])
            return even.to(image).expand(image.shape[0], -1, -1, -1)
        query = self._linear("gate_query", self._pool(image)).unflatten(-1, (heads, -1))  # [b, h, e]
        key = self._linear("gate_key", text).unflatten(-1, (heads, -1))  # [K + 1, C, h, e]
        match = torch.einsum("bhe,kche->bchk", query, key)
        return torch.softmax(self.settings["attention_scale"] * match, dim=-1)

    def _attention(self, image: Tensor) -> Tensor:
        heads = self.settings["heads"]
        value = self._linear("gate_value", self._pool(self.text)).unflatten(-1, (heads, -1))  # [K + 1, C, h, e]
        mixed = torch.einsum("bchk,kche->bche", self._weights(image), value).flatten(2)
        return torch.einsum("bg,bcg->bc", self._pool(image), self._linear("gate_output", mixed))

    def _projected(self, image: Tensor) -> Tensor:  # [b, K + 1]
        # W knows experts by their places; those that are missing are the last ones.
        return self._linear("gate_projection", self._pool(image))[:, : self.text.shape[0]].softmax(dim=-1)

    def _projection(self, image: Tensor) -> Tensor:
        match = torch.einsum("bg,kcg->bck", self._pool(image), self._pool(self.text))
        return torch.einsum("bck,bk->bc", match, self._projected(image))

    def _routes(self, image: Tensor) -> Tensor:  # [b, M]
        inner = self._linear("router_output", self._linear("router_value", image))
        scale, shift = (getattr(self, f"router_norm_{name}") for name in ("weight", "bias"))
        norm = nn.functional.layer_norm(inner, inner.shape[-1:], scale, shift)
        return self._linear("router_weights", norm).softmax(dim=-1)

    def _routed(self, image: Tensor) -> Tensor:
        match = torch.einsum("bd,mcd->bmc", image, self.text)
        return self.settings["logit_scale"] * (self._routes(image).unsqueeze(-1) * match).sum(dim=1)

    def _neighbours(self, image: Tensor) -> Tensor:
        scale, weight = self.settings["logit_scale"], self.settings["head_weight"]
        votes = scale * torch.einsum("bd,kcd->kbc", image, self.text)
        mixture = votes.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(self.text))
        if weight == 0:
            return mixture
        mixed = self._linear("head_output", self._linear("head_value", self._pool(self.template)))  # [C, g]
        similarity = self._pool(image) @ mixed.T + self.settings["lmbda"] * image @ self.template.T
        head = (scale * similarity).log_softmax(dim=-1)
        if weight == 1:
            return head
        return torch.stack([head + math.log(weight), mixture + math.log(1 - weight)]).logsumexp(dim=0)

    def _adapter(self, image: Tensor) -> Tensor:
        inner = self._linear("adapter_inner", self._pool(image)).relu()
        return (self.adapter_scale * self._linear("adapter_outer", inner)) @ self._pool(self.text[0]).T
