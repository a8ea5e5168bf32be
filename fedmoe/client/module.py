"""The client: a LightningModule that holds the frozen CLIP, learnable prompts and a gate.

In a federation, one module becomes each client in turn: a client is what ``load`` puts into it. A run may have
thousands of clients, which share the same CLIP and have only small tensors of their own; a module for each would cost
time and memory and change no result. Outside a federation, it is a plain LightningModule that a ``Trainer`` fits and
tests on images.

Shape letters: b images, C classes, l context tokens, w token width, d feature width, K experts, M prompts at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Protocol, TypeVar, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.functional.classification import multiclass_accuracy

from fedmoe.client.lockstep import Place
from fedmoe.client.schedule import released_rate
from fedmoe.client.text_cache import TextCache
from fedmoe.config import OptimConfig, RuntimeConfig
from fedmoe.errors import UserError
from fedmoe.features.client_data import ClientData
from fedmoe.models.clip import FrozenCLIP
from fedmoe.models.prompt import PromptLearner
from fedmoe.protocol.method import Method
from fedmoe.protocol.parameters import ModelSpec, Parameter, Scope, named_tensors
from fedmoe.protocol.records import Loadout, Tensors
from fedmoe.seeds import torch_generator

Batch = tuple[Tensor, Tensor]  # images [b, 3, S, S] or features [b, d], and labels [b]
T = TypeVar("T", bound="Tensor | nn.Module")
MOMENTUM = "momentum."  # before a parameter's name: its momentum buffer, among the extras that cross


class Gradients(Protocol):
    """How the gradients of a step are computed; without one, the loss is differentiated as usual."""

    def backward(self, client: ClientModule, loss: Tensor, batch: Batch) -> None:
        """Set ``grad`` of the trained parameters, which is None before."""


class ClientModule(L.LightningModule):
    """A client of a method.

    Args:
        clip: the frozen CLIP. It is not a registered submodule, so that Lightning neither moves nor saves it.
        prompts: the prompt learner of the classes; the tensors that the method declares are put into it.
        gate: replaces the gate that the method declares.
        method: what is learned, the loss and the logits.
        optim: learning rates, momentum, weight decay and schedule.
        constants: fixed tensors that the method needs, by name (such as the template's text features [C, d]).
        seed: the run's seed, from which initial values derive.
        text_cache_mib: size limit of the cache of fixed prompts' text features, in MiB.

    Attributes:
        declared: the method's parameters.
    """

    def __init__(
        self,
        clip: FrozenCLIP,
        prompts: PromptLearner,
        gate: nn.Module | None = None,
        *,
        method: Method,
        optim: OptimConfig | None = None,
        constants: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        text_cache_mib: int = RuntimeConfig.text_cache_mib,
    ) -> None:
        super().__init__()
        self._clip = (clip,)  # a tuple hides it from nn.Module
        self.prompts = prompts
        self.gate: nn.Module | None = None
        self.method = method
        self.optim = optim or OptimConfig()
        self._half = self.optim.precision == "float16"
        if self._half and not method.half_precision:
            raise UserError(
                f"optim.precision is 'float16', in which {type(method).__name__} does not work; valid is float32."
            )
        self.constants: Mapping[str, Tensor] = {n: self._formatted(t) for n, t in (constants or {}).items()}
        self.run_seed = seed
        self.encoder = method.encoder(clip)
        self.logit_scale = clip.logit_scale
        self.text_cache = TextCache(prompts, text_cache_mib)
        spec = ModelSpec(prompts.start.detach().cpu().clone(), clip.feature_dim, clip)
        self.declared: tuple[Parameter, ...] = tuple(method.parameters(spec))
        starts = self._draw(Scope.SHARED, None) | self._draw(Scope.PERSONAL, 0)
        learned = {part.name: starts[part.name] for part in self.declared if part.scope is not Scope.EXPERT}
        if gate is not None:
            learned["gate"] = self._formatted(gate)
        prompts.hold({name: value for name, value in learned.items() if isinstance(value, Tensor)})
        for name, value in learned.items():
            if isinstance(value, nn.Module):
                if name != "gate" and hasattr(self, name):
                    raise ValueError(f"{name!r} cannot name a part of {type(method).__name__}: every client has that")
                setattr(self, name, value)
        shared = {name: tensor for part in self.parts(Scope.SHARED) for name, tensor in self._named(part).items()}
        self._shared_start = {name: tensor.detach().cpu().clone() for name, tensor in shared.items()}
        self._forget()

    @property
    def clip(self) -> FrozenCLIP:
        return self._clip[0]

    def twin(self) -> ClientModule:
        """Another module of the same method, for a client that trains at the same time. Both share what is fixed. The
        client that this one holds is forgotten."""
        self._forget()
        fixed = (*self.prompts.shared, self.method, self.text_cache, self.encoder, self.constants, self.declared)
        return deepcopy(self, {id(thing): thing for thing in fixed})

    def parts(self, *scopes: Scope) -> Iterator[Parameter]:
        """The declared parts that have one of these scopes."""
        return (part for part in self.declared if part.scope in scopes)

    def _formatted(self, value: T) -> T:
        """All that is learned and computed here, in float16 if ``optim.precision`` says so."""
        return cast("T", value.half()) if self._half else value

    def _draw(self, scope: Scope, client_id: int | None) -> dict[str, Tensor | nn.Module]:
        """The initial values of all parts of a scope: common ones, or those of a client."""
        drawn: dict[str, Tensor | nn.Module] = {}
        own = None if client_id is None else torch_generator(self.run_seed, "personal", client_id)
        for part in self.parts(scope):
            assert part.start is not None
            generator = torch_generator(self.run_seed, part.name) if own is None or part.common else own
            drawn[part.name] = self._formatted(part.start(generator))
        return drawn

    def _named(self, part: Parameter) -> dict[str, Tensor]:
        """The tensors of a part that this module holds, by the names under which they are sent and kept."""
        value = self.prompts.learned[part.name] if part.name in self.prompts.learned else getattr(self, part.name)
        return named_tensors(part.name, value)

    def tensors(self) -> dict[str, Tensor]:
        """All learned tensors that this module holds, by name; no copies."""
        learned = self.parts(Scope.SHARED, Scope.PERSONAL)
        return {name: tensor for part in learned for name, tensor in self._named(part).items()}

    def shared_start(self) -> dict[str, Tensor]:
        """The common initial values of all shared parameters, on the CPU: what a server starts with."""
        return dict(self._shared_start)

    def _forget(self) -> None:
        """Reset all state to that of a module that no client has used."""
        self.client_id = -1
        self.data: ClientData | None = None  # the client's own; never sent
        self.received: Tensors = {}
        self.experts: Tensors = {}  # by name, [K, ...]
        self.expert_text: Tensor | None = None  # [K, C, d]
        self.extras: Tensors = {}
        self.text: Tensor | None = None  # in place of the prompt's text features
        self.gradients: Gradients | None = None
        self.place: Place[Any] | None = None  # among clients that train together
        self.prompts.meeting = None
        self._batch: Batch | None = None  # of the current step
        self.losses: list[Tensor] = []
        self.progress = 0.0  # fraction of the federation's rounds already done, for the learning rate
        self.turn = 0  # number of the federation's local fits before this one, for the learning rate
        self._optimizer: torch.optim.Optimizer | None = None  # of the last fit
        self.zero_grad(set_to_none=True)

    def load(
        self, client_id: int, loadout: Loadout, progress: float = 0.0, data: ClientData | None = None, turn: int = 0
    ) -> None:
        """Become the client ``client_id``: replaces ALL mutable state, so that nothing leaks between clients.

        Args:
            loadout: parameters and experts. Missing parameters take their initial values, personal ones those of this
                client, which do not depend on the order of clients.
            progress: fraction of the federation's rounds already done, in [0, 1).
            data: the client's own data, for methods that use it apart from the batches.
            turn: number of the federation's local fits before this one.

        Raises:
            ValueError: a tensor does not belong to the method, or has the wrong shape.
        """
        self._forget()
        self.client_id = client_id
        self.data = data
        self.progress, self.turn = progress, turn
        held = self.tensors()
        values = {**self._shared_start, **loadout.parameters}
        if held.keys() - values.keys():
            drawn = self._draw(Scope.PERSONAL, client_id)
            values = {n: t for name, value in drawn.items() for n, t in named_tensors(name, value).items()} | values
        if values.keys() != held.keys():
            odd = ", ".join(sorted(values.keys() ^ held.keys()))
            raise ValueError(f"the parameters {odd} are not those of {type(self.method).__name__}")
        with torch.no_grad():
            for name, tensor in held.items():
                if values[name].shape != tensor.shape:
                    shapes = f"{list(values[name].shape)}, not {list(tensor.shape)}"
                    raise ValueError(f"the parameter {name} has shape {shapes}")
                tensor.copy_(values[name])
        self.received, self.experts, self.extras = (
            {name: tensor.to(self.device) for name, tensor in group.items()}
            for group in (loadout.received, loadout.experts, loadout.extras)
        )
        if "prompt" in self.experts:
            # Computed once, before training, without gradients (Algorithm 1, step 4).
            texts = [self.text_cache(prompt) for prompt in self.experts["prompt"]]
            none = torch.empty(0, len(self.prompts.class_names), self.clip.feature_dim, device=self.device)
            self.expert_text = self._formatted(torch.stack(texts) if texts else none)

    def meet(self, place: Place[Any]) -> None:
        """Share the text passes of the fit that follows with those of other clients."""
        self.place = self.prompts.meeting = place

    def text_features(self, prompts: Tensor | None = None) -> Tensor:
        """L2-normalized text features: [C, d] of a prompt [l, w], by default the one the client classifies with
        (``Method.prompt``); [M, C, d] of M prompts [M, l, w].

        With gradient during training; from the cache during evaluation, when prompts are fixed.
        """
        if prompts is None:
            if self.text is not None:
                return self.text
            prompts = self.method.prompt(self)
        if torch.is_grad_enabled():
            return self._formatted(self.prompts(prompts))
        if prompts.ndim == self.prompts.start.ndim:
            return self._formatted(self.text_cache(prompts))
        return self._formatted(torch.stack([self.text_cache(prompt) for prompt in prompts]))

    def trained(self, parts: Iterable[Parameter]) -> dict[str, nn.Parameter]:
        """The trainable parameters of these parts, by name, in the order of the parts."""
        found: dict[str, nn.Parameter] = {}
        for part in parts:
            if part.name in self.prompts.learned:
                found[part.name] = self.prompts.learned[part.name]
            else:
                inner = getattr(self, part.name).named_parameters()
                found |= {f"{part.name}.{name}": parameter for name, parameter in inner}
        return found

    def export(self) -> dict[str, Tensor]:
        """Copies of all parameters on the CPU, by name."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.tensors().items()}

    def mean_loss(self) -> float:
        """Mean training loss over the steps of the last fit; NaN if a step's loss was, or if there was no step."""
        return float(torch.stack(self.losses).float().mean()) if self.losses else math.nan

    def momentum(self) -> dict[str, Tensor]:
        """Copies of the momentum buffers that the last fit left, on the CPU, by ``MOMENTUM`` and the parameter's name.
        ``load`` takes them among the extras."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.trained(self.parts(Scope.SHARED, Scope.PERSONAL)).items():
            buffer = self._optimizer.state[parameter].get("momentum_buffer") if self._optimizer else None
            if buffer is not None:
                found[MOMENTUM + name] = buffer.detach().cpu().clone()
        return found

    def features(self, inputs: Tensor) -> Tensor:
        """Image features of preprocessed images [b, 3, S, S]; features pass through."""
        if inputs.ndim == 4:
            inputs = self.encoder.encode(inputs.to(self.encoder.device)).to(inputs.device)
        return self._formatted(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Class logits [b, C] of preprocessed images [b, 3, S, S], or of the features that the method works with.

        With SigLIP's bias, which training leaves out: it cancels in the loss's softmax.
        """
        logits = self.method.logits(self, self.features(inputs))
        return logits if self.clip.logit_bias is None else logits + self.clip.logit_bias

    # Lightning's hooks

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        batch = (self.features(batch[0]), batch[1])
        if self.place is not None:
            self.place.begin()
        loss = self.method.loss(self, *batch)
        self._batch = batch
        self.losses.append(loss.detach())  # not self.log: half a millisecond a step
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score("validation", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._score("test", batch)

    def _score(self, split: str, batch: Batch) -> None:
        logits, labels = self(batch[0]), batch[1]
        accuracy = multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro")
        values = {f"{split}/accuracy": accuracy, f"{split}/loss": cross_entropy(logits, labels)}
        self.log_dict(values, on_epoch=True, batch_size=len(labels))

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self.place is not None:
            self.place.backward(loss)
        elif self.gradients is None:
            super().backward(loss, *args, **kwargs)
        else:
            assert self._batch is not None
            self.gradients.backward(self, loss, self._batch)

    def configure_optimizers(self) -> Any:
        optim = self.optim
        scale = 1.0
        if optim.schedule == "cosine_federation":
            scale = 0.5 * (1 + math.cos(math.pi * self.progress))
        groups: list[dict[str, Any]] = []
        for rate in ("prompt_lr", "gating_lr"):
            tensors = self.trained(part for part in self.parts(Scope.SHARED, Scope.PERSONAL) if part.rate == rate)
            if tensors:
                groups.append({"params": list(tensors.values()), "lr": scale * getattr(optim, rate)})
        optimizer = self._optimizer = self.method.optimizer(groups, optim)
        for name, parameter in self.trained(self.parts(Scope.SHARED, Scope.PERSONAL)).items():
            if MOMENTUM + name in self.extras:  # copied, since the optimizer writes to its buffers
                buffer = self.extras[MOMENTUM + name].to(parameter, copy=True)
                optimizer.state[parameter]["momentum_buffer"] = buffer
        courses = {"cosine_local": ("step", self._cosine_local), "released": ("epoch", self._released)}
        if optim.schedule not in courses:
            return optimizer
        interval, course = courses[optim.schedule]
        factors = [course(group["lr"]) for group in groups]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    def _cosine_local(self, base: float) -> Callable[[int], float]:
        """The factor on a learning rate in each step of the fit."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        return lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))

    def _released(self, base: float) -> Callable[[int], float]:
        """The factor on the learning rate ``base`` in each epoch of the fit."""
        epochs = int(self.trainer.max_epochs or 1)
        return lambda epoch: released_rate(base, self.turn * epochs + epoch, epochs) / base if base else 0.0
