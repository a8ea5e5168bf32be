"""The server's part in a secure aggregation: it hands on keys and seals, adds what is masked, and takes the masks out.

Each of the four steps has the orders for the clients that are still there, and a function that takes their answers. A
client whose answer is missing or wrong is out, and ``missing`` says why; the others' sum is found as long as a majority
of each client's neighbours stays.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from fedmoe.secure.fixed_point import add, mean, nothing, require_examples
from fedmoe.secure.keys import KEY, Stream, join, public_key
from fedmoe.secure.member import LEAST, pair_mask, threshold

Value = TypeVar("Value")
NEIGHBOURS = 32
"""Most clients that one exchanges keys with, on a ring in random order (Bell et al.), so that the cost of a large
cohort grows with its number and not with the square of it."""


class TooFew(ValueError):
    """The sum cannot be had any more."""


class Summation:
    """The weighted mean of a cohort's uploads, of which the server sees none.

    Args:
        weights: client -> its number of examples n_i.
        like: the shared parameters, by name.

    Raises:
        ValueError: there are too many examples.
    """

    def __init__(self, weights: Mapping[int, int], like: Mapping[str, Tensor]) -> None:
        require_examples(sum(weights.values()))
        self.weights, self.like = weights, dict(sorted(like.items()))
        self.missing: dict[int, str] = {}  # client -> why its upload is not in the sum
        self._keys: dict[int, bytes] = {}
        self._neighbours: dict[int, list[int]] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}  # sender -> receiver -> shares
        self._uploads: list[int] = []
        self._total: dict[str, Tensor] = {}
        self._shares: dict[int, dict[int, bytes]] = {}  # whose secret -> index of the share -> share

    def take_keys(self, answers: Mapping[int, bytes]) -> dict[int, dict[int, bytes]]:
        """Given the keys of clients, the keys of its neighbours for each.

        Raises:
            TooFew: fewer than three clients have sent keys.
        """
        self._keys = dict(sorted(self._valid(self.weights, answers, lambda keys: len(keys) == 2 * KEY).items()))
        ring = self._require(list(self._keys))
        random.SystemRandom().shuffle(ring)
        reach = min(NEIGHBOURS, len(ring)) // 2
        for place, client in enumerate(ring):
            steps = [step for step in range(-reach, reach + 1) if step]
            self._neighbours[client] = sorted({ring[(place + step) % len(ring)] for step in steps} - {client})
        return {client: {peer: self._keys[peer] for peer in self._neighbours[client]} for client in self._keys}

    def take_shares(self, answers: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
        """Given what clients have sealed for their neighbours, what has been sealed for each.

        Raises:
            TooFew: fewer than three clients are left.
        """
        for client, sealed in answers.items():
            if sealed.keys() != set(self._neighbours.get(client, ())):
                self.missing[client] = "it has sealed shares for others than its neighbours"
        self._sealed = self._valid(self._keys, {c: dict(s) for c, s in answers.items()}, lambda sealed: True)
        here = self._require(list(self._sealed))
        return {
            client: {peer: self._sealed[peer][client] for peer in self._neighbours[client] if peer in self._sealed}
            for client in here
        }

    def take_masked(self, answers: Mapping[int, Mapping[str, Tensor]]) -> dict[int, tuple[list[int], list[int]]]:
        """Given masked uploads, which of its neighbours have uploaded, for each client, and which have gone away.

        Raises:
            TooFew: fewer than three clients are left.
        """
        found = self._valid(self._sealed, answers, self._fits)
        self._uploads = self._require(sorted(found))
        self._total = nothing(self.like)
        for upload in found.values():
            add(self._total, upload)
        here = set(self._uploads)
        return {
            client: (
                [peer for peer in self._neighbours[client] if peer in here],
                [peer for peer in self._neighbours[client] if peer in self._sealed and peer not in here],
            )
            for client in self._uploads
        }

    def take_told(self, answers: Mapping[int, Mapping[int, bytes]]) -> dict[str, Tensor]:
        """Given the shares that clients tell, the mean of the uploads, weighted by n_i.

        Raises:
            TooFew: the masks cannot be taken out.
        """
        for teller, told in answers.items():
            for peer, share in told.items():
                if teller in self._uploads and teller in self._neighbours.get(peer, ()):
                    self._shares.setdefault(peer, {})[self._neighbours[peer].index(teller) + 1] = share
        try:
            for client in self._uploads:
                self._subtract(1, Stream(self._secret(client)))
            for client in self._sealed.keys() - set(self._uploads):
                private = self._secret(client)
                if public_key(private) != self._keys[client][KEY:]:
                    raise TooFew(f"the shares of client {client}'s key are wrong")
                for peer in set(self._neighbours[client]) & set(self._uploads):
                    self._subtract(1 if peer < client else -1, pair_mask(private, self._keys[peer][KEY:]))
            total = sum(self.weights[client] for client in self._uploads)
            return mean(self._total, total, self.like)
        except TooFew:
            raise
        except ValueError as error:
            raise TooFew(str(error)) from error

    @property
    def uploads(self) -> Sequence[int]:
        """The clients whose uploads are in the sum."""
        return self._uploads

    def _secret(self, client: int) -> bytes:
        shares, least = self._shares.get(client, {}), threshold(len(self._neighbours[client]))
        if len(shares) < least:
            raise TooFew(f"{len(shares)} clients have told a share of client {client}'s masks, and {least} must")
        return join(dict(list(shares.items())[:least]))

    def _subtract(self, sign: int, stream: Stream) -> None:
        for total in self._total.values():
            total -= sign * stream.like(total)

    def _fits(self, upload: Mapping[str, Tensor]) -> bool:
        return upload.keys() == self.like.keys() and all(
            value.dtype == torch.int64 and value.shape == self.like[name].shape for name, value in upload.items()
        )

    def _valid(
        self, asked: Mapping[int, object], answers: Mapping[int, Value], fits: Callable[[Value], bool]
    ) -> dict[int, Value]:
        """The answers of clients that were asked and are not out; the others are out from now on."""
        found = {}
        for client in asked:
            if client in self.missing:
                continue
            if client not in answers:
                self.missing[client] = "it did not answer in the secure aggregation"
            elif not fits(answers[client]):
                self.missing[client] = "its answer in the secure aggregation has other names, shapes or lengths"
            else:
                found[client] = answers[client]
        return found

    def _require(self, here: list[int]) -> list[int]:
        if len(here) < LEAST:
            raise TooFew(f"{len(here)} clients are left, and a sum hides an upload among at least {LEAST}")
        return here
