"""A cache of the text features of fixed prompts.

An expert's text features change only when its prompt does, and a round changes only the prompts of its cohort.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict

import torch
from torch import Tensor

from fedmoe.models.prompt import PromptLearner

_REMEMBERED = 2**16  # evicted keys, of some 100 bytes each
log = logging.getLogger(__name__)


class TextCache:
    """Least-recently-used cache: prompt [l, w] -> text features [C, d], l2-normalized, without gradient.

    The key is a digest of the prompt's bytes, so nothing ever needs to be invalidated. Prompts are encoded one at a
    time, so that the bits of the features do not depend on which prompts are requested together: a resumed run, whose
    cache starts empty, equals one that was never interrupted.

    Args:
        prompts: encodes a prompt.
        limit_mib: size limit of the stored features, in MiB; at least one prompt's are kept. If the cache is too small
            for the prompts in use, they are encoded repeatedly; a warning is logged the first time this happens.
    """

    def __init__(self, prompts: PromptLearner, limit_mib: int) -> None:
        self._prompts = prompts
        self._limit_mib = limit_mib
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._dropped: OrderedDict[bytes, None] = OrderedDict()  # keys evicted last, until the warning
        self._warned = False

    def __call__(self, prompt: Tensor) -> Tensor:
        start = self._prompts.start
        on_cpu = prompt.detach().to("cpu", start.dtype).contiguous()
        key = hashlib.blake2b(on_cpu.numpy().tobytes(), digest_size=16).digest()
        if key in self._features:
            self._features.move_to_end(key)
        else:
            self._warn_if(key in self._dropped)
            with torch.no_grad():
                features = self._prompts(prompt.detach().to(start))
            self._features[key] = features
            room = max(1, self._limit_mib * 2**20 // max(1, features.nbytes))
            while len(self._features) > room:
                self._drop()
        return self._features[key].to(start.device)

    def _drop(self) -> None:
        """Evict the prompt unused for longest; remember it for the warning that it was needed again."""
        key, _ = self._features.popitem(last=False)
        if not self._warned:
            self._dropped[key] = None
        if len(self._dropped) > _REMEMBERED:
            self._dropped.popitem(last=False)

    def _warn_if(self, again: bool) -> None:
        if again and not self._warned:
            self._warned = True
            self._dropped.clear()
            log.warning(
                "runtime.text_cache_mib = %d holds the text features of only %d prompts at once, and prompts are being "
                "encoded again; a larger value saves that time.",
                *(self._limit_mib, len(self._features)),
            )
