"""What comes from a client is checked before the server uses it: names, shapes, dtypes, finite values, counts.

Shape letters: C classes, B bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedmoe.client.counts import BINS
from fedmoe.client.work import ATTENTION
from fedmoe.errors import printable
from fedmoe.protocol.records import About, Failed, Scored, Summand, Trained, Update
from fedmoe.protocol.wire import from_bytes

_MOST_METRICS = 100  # of a method's own
_MOST_TEXT = 20_000  # characters of a traceback
_OVERHEAD = 1 << 20  # bytes of a message besides its tensors


class Checks:
    """Reads answers.

    Args:
        shared: the initial values of the parameters that clients may upload.
        num_classes: C.
        most_weights: the largest length of the gate's weights that clients are asked for; 0 where they are not.
        withheld: whether parameters are uploaded in no other way than masked (``fedmoe.secure``).
    """

    def __init__(
        self, shared: Mapping[str, Tensor], num_classes: int, most_weights: int = 0, withheld: bool = False
    ) -> None:
        self.shared, self.num_classes, self.most_weights = shared, num_classes, most_weights
        self.withheld = withheld
        size = sum(tensor.numel() * (8 if withheld else tensor.element_size()) for tensor in shared.values())
        self.most_bytes = size + 8 * num_classes**2 + _OVERHEAD

    def trained(self, data: bytes, client_id: int, about: About) -> Trained:
        """An upload.

        Raises:
            ValueError: it is none that this client could make; the text says why.
        """
        found = from_bytes(Trained, self._sized(data))
        update = found.update
        if not isinstance(update, Update) or update.client_id != client_id:
            raise ValueError("it is another client's")
        if type(update.num_examples) is not int or update.num_examples != about.train_examples:
            raise ValueError(f"it counts {update.num_examples!r} examples, but the client said {about.train_examples}")
        for name, extra in _tensors(update.extras).items():
            if name != ATTENTION or not self.most_weights:
                raise ValueError("it holds extras, which nobody asked for")
            if extra.ndim != 1 or not 0 < len(extra) <= self.most_weights or extra.dtype != torch.float32:
                raise ValueError(f"its gate's weights are {extra.dtype} of shape {list(extra.shape)}")
            _finite(name, extra)
        if self.withheld and update.parameters:
            raise ValueError("it holds parameters, which are uploaded masked alone")
        for name, tensor in _tensors(update.parameters).items():
            like = self.shared.get(name)
            if like is None:
                raise ValueError(f"it holds {name[:80]!r}, which is not shared")
            if tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise ValueError(
                    f"its {name} is {tensor.dtype} of shape {list(tensor.shape)}, not {like.dtype} of shape "
                    f"{list(like.shape)}"
                )
            _finite(name, tensor)
        numbers = (found.loss, found.seconds, found.noise_std)
        if not all(map(_number, numbers)) or found.seconds < 0 or found.noise_std < 0:
            raise ValueError(f"its loss, seconds and noise are {numbers}")
        metrics = update.metrics
        if not isinstance(metrics, dict) or len(metrics) > _MOST_METRICS or not all(map(_number, metrics.values())):
            raise ValueError("its metrics are not finite numbers")
        clean = {printable(str(name))[:80]: float(value) for name, value in metrics.items()}
        return replace(found, update=replace(update, metrics=clean))

    def scored(self, data: bytes, client_id: int, about: About) -> Scored:
        """An evaluation; errors as above."""
        found = from_bytes(Scored, self._sized(data))
        if found.client_id != client_id:
            raise ValueError("it is another client's")
        if type(found.total) is not int or found.total != about.test_examples:
            raise ValueError(f"it counts {found.total!r} test examples, but the client said {about.test_examples}")
        sums = _tensors(found.sums)
        for name, tensor in sums.items():
            _finite(name, tensor)
            known = self._shapes().get(name)
            if known and (tensor.dtype, tuple(tensor.shape)) != known:
                raise ValueError(f"its {name} is {tensor.dtype} of shape {list(tensor.shape)}")
            if not known and (tensor.ndim > 1 or tensor.dtype != torch.float64 or tensor.numel() > 10_000):
                raise ValueError(f"its {name[:80]!r} is {tensor.dtype} of shape {list(tensor.shape)}")
        confusion = sums.get("confusion")
        if confusion is None or "calibration" not in sums or bool((confusion < 0).any()):
            raise ValueError("it holds no confusion or no calibration")
        if int(confusion.sum()) != found.total or int(confusion.trace()) != found.correct:
            raise ValueError("its confusion does not add up to what it counts")
        if (held := sums.get("validation")) is not None and not 0 <= int(held[0]) <= int(held[1]) > 0:
            raise ValueError("its validation counts are impossible")
        if (train := sums.get("train")) is not None and not 0 <= int(train[0]) <= int(train[1]) > 0:
            raise ValueError("its training counts are impossible")
        if not (found.failed is None or isinstance(found.failed, str)):
            raise ValueError("its failure is no text")
        return replace(found, failed=None if found.failed is None else printable(found.failed)[:500])

    def summand(self, data: bytes, client_id: int, about: About) -> Summand:
        """An answer in a secure aggregation, whose numbers nobody can check; errors as above."""
        found = from_bytes(Summand, self._sized(data))
        if found.client_id != client_id:
            raise ValueError("it is another client's")
        _tensors(found.masked)
        if not isinstance(found.values, dict):
            raise ValueError("it holds no named texts")
        for name, value in found.values.items():
            if name != "keys" and not name.isdecimal():
                raise ValueError(f"it names {printable(name)[:80]!r}, which is no client")
            bytes.fromhex(value if isinstance(value, str) else "?")
        return found

    def failed(self, data: bytes) -> Failed:
        """A failure; errors as above."""
        found = from_bytes(Failed, self._sized(data))
        texts = isinstance(found.reason, str) and isinstance(found.traceback, str)
        if not texts or not _number(found.seconds) or found.seconds < 0 or type(found.lost) is not bool:
            raise ValueError("it is not a failure")
        reason = " ".join(printable(found.reason).split())[:500]
        return Failed(reason, printable(found.traceback)[:_MOST_TEXT], float(found.seconds), lost=found.lost)

    def _shapes(self) -> dict[str, Any]:
        count = self.num_classes
        return {
            "confusion": (torch.int64, (count, count)),
            "calibration": (torch.float64, (BINS, 3)),
            "validation": (torch.int64, (2,)),
            "train": (torch.int64, (2,)),
            "others": (torch.int64, (2,)),
            "attack": (torch.int64, (2,)),
        }

    def _sized(self, data: bytes) -> bytes:
        if len(data) > self.most_bytes:
            raise ValueError(f"it has {len(data):,} bytes; at most {self.most_bytes:,} are expected")
        return data


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _tensors(value: Any) -> Mapping[str, Tensor]:
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ValueError("it holds no named tensors")
    return value


def _finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"its {name[:80]} is not finite")
