"""Several clients train at the same time and share each pass through the text tower.

Each client has a module, an optimizer and a Lightning ``Trainer`` of its own, and trains exactly as it does alone:
Lightning is the loop of every single client, and no method knows of the others. Only where a client would run the text
tower, forward or backward, it waits until all others have come to such a place, or have finished; then the tower runs
once for all prompts that wait, and each client goes on with its own. Clients may have different numbers of steps.

Each client has a thread, of which only one runs at a time, always in the cohort's order, and takes torch's global
random generator along: the result depends on no timing. It equals that of clients trained one after the other up to
the order of sums in the matrix products, which have more rows. Memory for activations grows with the number of clients.

Shape letters: M prompts at once, C classes, l context tokens, w token width, d feature width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Pass = Callable[[Tensor], Tensor]


class _Stop(BaseException):
    """Ends the thread of a client whose training is given up."""


class _Joint:
    """A text pass of several clients' contexts [M, l, w], one after the other in the batch."""

    def __init__(self, run: Pass, contexts: Sequence[Tensor]) -> None:
        self._sizes = [len(own) for own in contexts]
        with torch.enable_grad():
            self._leaf = torch.cat(list(contexts)).requires_grad_()
            self._features = run(self._leaf)  # [M, C, d]
        self.shares = [_Share(self, i, own.detach()) for i, own in enumerate(self._features.split(self._sizes))]

    def pull(self, gradients: dict[int, Tensor]) -> dict[int, Tensor]:
        """The gradients of the contexts of those clients, given those of their features."""
        whole = torch.zeros_like(self._features)
        for place, gradient in gradients.items():
            whole.split(self._sizes)[place].copy_(gradient)
        later = len(gradients) < len(self._sizes)  # the others may come yet
        (pulled,) = torch.autograd.grad(self._features, self._leaf, whole, retain_graph=later)
        parts = pulled.split(self._sizes)
        return {place: parts[place] for place in gradients}


@dataclass(frozen=True, eq=False)
class _Share:
    """One client's part of a joint pass."""

    joint: _Joint
    place: int
    features: Tensor


@dataclass(frozen=True, eq=False)
class _Forward:
    run: Pass
    contexts: Tensor

    @property
    def kind(self) -> tuple[Any, ...]:
        return (id(self.run), self.contexts.shape[1:], self.contexts.dtype)


@dataclass(frozen=True, eq=False)
class _Backward:
    shares: Sequence[tuple[_Share, Tensor]]


class Place(Generic[T]):
    """A client among those that train together; ``PromptLearner.meeting`` of its module."""

    def __init__(self, task: Callable[[Place[T]], T], back: threading.Semaphore) -> None:
        self.request: _Forward | _Backward | None = None
        self.answer: Any = None
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False
        self._task, self._back, self._go = task, back, threading.Semaphore(0)
        self._stopped = False
        self._pending: list[tuple[Tensor, Tensor, _Share]] = []
        self._thread = threading.Thread(target=self._body, daemon=True)

    # In the client's thread

    def forward(self, run: Pass, contexts: Tensor) -> Tensor:
        """The pass of the contexts [M, l, w] with those of the others; ``backward`` continues the gradient."""
        share: _Share = self._ask(_Forward(run, contexts.detach()))
        features = share.features.requires_grad_()
        self._pending.append((contexts, features, share))
        return features

    def begin(self) -> None:
        """A new step: passes that nobody differentiated are forgotten."""
        self._pending = []

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()`` through all passes since ``begin``."""
        loss.backward(retain_graph=True)  # what leads to a prompt is needed again below
        found = [(own, share, x.grad) for own, x, share in self._pending if x.grad is not None]
        self._pending = []
        if found:
            slopes = self._ask(_Backward([(share, gradient) for _, share, gradient in found]))
            torch.autograd.backward([contexts for contexts, _, _ in found], slopes)

    def _ask(self, request: _Forward | _Backward) -> Any:
        self.request, drawn = request, torch.get_rng_state()
        self._back.release()
        self._wait()
        torch.set_rng_state(drawn)
        answer, self.answer, self.request = self.answer, None, None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _wait(self) -> None:
        self._go.acquire()
        if self._stopped:
            raise _Stop

    def _body(self) -> None:
        try:
            self._wait()
            self.result = self._task(self)
        except BaseException as error:
            self.error = error
        finally:
            self.done, self._pending = True, []
            self._back.release()

    # In the thread of whoever lets clients train

    def run(self) -> None:
        """Let the client work until it waits for the others, or is done."""
        if not self._thread.is_alive():
            self._thread.start()
        self._go.release()
        self._back.acquire()

    def stop(self) -> None:
        """Give the client up, wherever it waits."""
        self._stopped = True
        if self._thread.is_alive():
            self._go.release()
            self._thread.join()


def together(tasks: Sequence[Callable[[Place[T]], T]]) -> list[T]:
    """Run the training of several clients in lockstep; their results, in that order.

    Args:
        tasks: each trains one client, whose module's ``prompts.meeting`` is the ``Place`` that it is called with.

    Raises:
        BaseException: whatever the first task that raises anything raised; the others run to their ends before.
    """
    back = threading.Semaphore(0)
    places = [Place(task, back) for task in tasks]
    try:
        while working := [place for place in places if not place.done]:
            for place in working:
                place.run()
            _answer([place for place in working if not place.done])
    finally:
        for place in places:
            place.stop()
    for place in places:
        if place.error is not None:
            raise place.error
    return [place.result for place in places]  # type: ignore[misc]


def _answer(waiting: Sequence[Place[Any]]) -> None:
    """Run what clients wait for, each kind once; where that fails, each client's own, so that none harms another."""
    groups: dict[tuple[Any, ...], list[Place[Any]]] = {}
    for place in waiting:
        if isinstance(place.request, _Forward):
            groups.setdefault(place.request.kind, []).append(place)
    for group in groups.values():
        _pass_forward(group)
    _pass_backward([place for place in waiting if isinstance(place.request, _Backward)])


def _pass_forward(group: Sequence[Place[Any]]) -> None:
    asked = [place.request for place in group]
    try:
        joint = _Joint(asked[0].run, [one.contexts for one in asked])  # type: ignore[union-attr]
    except Exception as error:
        if len(group) == 1:
            group[0].answer = error
        else:
            for place in group:
                _pass_forward([place])
        return
    for place, share in zip(group, joint.shares, strict=True):
        place.answer = share


def _pass_backward(waiting: Sequence[Place[Any]]) -> None:
    parts: dict[_Joint, dict[int, Tensor]] = {}
    for place in waiting:
        assert isinstance(place.request, _Backward)
        for share, gradient in place.request.shares:
            parts.setdefault(share.joint, {})[share.place] = gradient
    pulled: dict[_Joint, dict[int, Tensor] | Exception] = {}
    for joint, gradients in parts.items():
        try:
            pulled[joint] = joint.pull(gradients)
        except Exception as error:
            pulled[joint] = error
    for place in waiting:
        assert isinstance(place.request, _Backward)
        slopes = []
        for share, _ in place.request.shares:
            found = pulled[share.joint]
            if isinstance(found, Exception):
                place.answer = found
                break
            slopes.append(found[share.place])
        else:
            place.answer = slopes
