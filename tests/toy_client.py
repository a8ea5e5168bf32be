"""A client that can be worked out by hand, for tests of methods without CLIP.

Its text encoder is the identity: context vector i of a prompt [l, w] is the text feature of class i, so C = l and
d = w. A method sees it through the same protocol as the real client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, named_tensors
from fedmoe.protocol.records import Loadout, Update
from fedmoe.seeds import torch_generator
from fedmoe.server.state import Known, ServerState

if TYPE_CHECKING:
    from fedmoe.protocol.client import Client

SCALE = 3.0  # exp of the logit scale


class Prompts(dict[str, Tensor]):
    """Learned tensors by name."""

    @property
    def learned(self) -> Prompts:
        return self


class ToyClient:
    """A client that holds what the loadout says and otherwise the starts of a declaration."""

    def __init__(
        self, method: Method, spec: ModelSpec, loadout: Loadout, constants: Mapping[str, Tensor], data: Any
    ) -> None:
        self.method = method
        self.client_id = 4
        self.declared = tuple(method.parameters(spec))
        self.prompts, self.modules, self.gate = Prompts(), dict[str, nn.Module](), None
        for part in self.declared:
            if part.start is None:
                continue
            value: Any = part.start(torch_generator(1, part.name))
            if isinstance(value, nn.Module):
                self.modules[part.name] = value
                setattr(self, part.name, value)
            else:
                self.prompts[part.name] = loadout.parameters.get(part.name, value)
        self.logit_scale = SCALE
        self.constants, self.data = constants, data
        self.received, self.experts, self.extras = loadout.received, loadout.experts, loadout.extras
        self.expert_text = loadout.experts.get("prompt")

    def text_features(self, prompts: Tensor | None = None) -> Tensor:
        return self.method.prompt(cast("Client", self)) if prompts is None else prompts

    def export(self) -> dict[str, Tensor]:
        values: dict[str, Tensor | nn.Module] = {**self.prompts, **self.modules}
        named = [named_tensors(part.name, values[part.name]) for part in self.declared if part.name in values]
        return {name: tensor.detach().clone() for group in named for name, tensor in group.items()}


def toy_client(
    method: Method,
    prompt: Tensor,
    loadout: Loadout | None = None,
    constants: Mapping[str, Tensor] | None = None,
    data: Any = None,
) -> Client:
    """A client whose prompts start as ``prompt`` [C, d]."""
    spec = ModelSpec(prompt, prompt.shape[-1])
    return cast("Client", ToyClient(method, spec, loadout or Loadout(), constants or {}, data))


def at(position: float) -> Tensor:
    """A prompt [2, 2] at a place on a line: those of positions p and q are 2 |p - q| apart."""
    return torch.full((2, 2), position)


def server_of(
    pool: Mapping[int, float], shared: Mapping[str, Tensor] | None = None, clients: Mapping[int, Known] | None = None
) -> ServerState:
    """A server that has these clients' uploads; clients keep their own prompt."""
    own = {client: at(position) for client, position in pool.items()}
    return ServerState(dict(shared or {"prompt": at(9.0)}), {"prompt": own}, frozenset({"prompt"}), dict(clients or {}))


def same(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether the names and every bit agree."""
    return tensors.keys() == expected.keys() and all(torch.equal(tensors[name], expected[name]) for name in expected)


def uploads(values: Sequence[tuple[float, int]]) -> list[Update]:
    """Uploads of prompts at these positions, with these numbers of examples, of clients 0, 1, ..."""
    return [Update(client, {"prompt": at(value)}, examples) for client, (value, examples) in enumerate(values)]
