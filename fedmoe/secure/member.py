"""A client's part in a secure aggregation.

After Bonawitz et al. (CCS 2017, figure 4), with the neighbours of Bell et al. (CCS 2020). An upload is sent with two
kinds of masks: one for each neighbour, which cancels against the neighbour's, and one of its own. Shares of what both
derive from lie with the neighbours, who tell the server either the first kind's, of a client that went away, or the
second kind's, of one that has uploaded, and never both.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping

from torch import Tensor

from fedmoe.secure.fixed_point import encode_all
from fedmoe.secure.keys import KEY, Stream, agree, key_pair, seal, split, unseal

LEAST = 3  # clients in a sum: of two, each could take its own upload away


def threshold(neighbours: int) -> int:
    """How many neighbours' shares give a secret back: a majority, so that no server can learn both secrets of a client
    by telling different neighbours different things."""
    return neighbours // 2 + 1


def pair_mask(private: bytes, public: bytes) -> Stream:
    """What two neighbours add and take away."""
    return Stream(agree(private, public, "mask"))


class Member:
    """One client in one round.

    Args:
        client_id: its number.
        upload: what it would have sent.
        weight: its number of examples n_i.
        round: seals are good for this round alone.
    """

    def __init__(self, client_id: int, upload: Mapping[str, Tensor], weight: int, round: int) -> None:
        self.client_id, self.round = client_id, round
        self._upload = encode_all(upload, weight)
        self._seal_private, seal_public = key_pair()
        self._mask_private, mask_public = key_pair()
        self._own = secrets.token_bytes(KEY)
        self.keys = seal_public + mask_public
        self._peers: dict[int, bytes] = {}
        self._held: dict[int, bytes] = {}
        self._told = False

    def shares(self, peers: Mapping[int, bytes]) -> dict[int, bytes]:
        """A sealed share of both secrets for each neighbour, given the neighbours' keys.

        Raises:
            ValueError: that is not possible, or would not protect the upload.
        """
        if self._peers:
            raise ValueError("the neighbours of this round are settled")
        if len(peers) < LEAST - 1 or self.client_id in peers or len(set(peers.values()) | {self.keys}) <= len(peers):
            raise ValueError(f"{len(peers)} other clients do not hide an upload; valid are at least {LEAST - 1}")
        if any(len(keys) != 2 * KEY for keys in peers.values()):
            raise ValueError("a neighbour's keys have another length")
        self._peers = dict(sorted(peers.items()))
        least = threshold(len(peers))
        parts = zip(split(self._mask_private, least, len(peers)), split(self._own, least, len(peers)), strict=True)
        return {
            peer: seal(self._seal_key(peer), pair + own, self._about(self.client_id, peer))
            for peer, (pair, own) in zip(self._peers, parts, strict=True)
        }

    def masked(self, sealed: Mapping[int, bytes]) -> dict[str, Tensor]:
        """The upload with its masks, given what the neighbours have sealed for this client; neighbours that have sealed
        nothing are out.

        Raises:
            ValueError: too few are left, or a seal is broken.
        """
        if self._held or not self._peers:
            raise ValueError("the order of steps is another one")
        if not sealed.keys() <= self._peers.keys() or len(sealed) < threshold(len(self._peers)):
            raise ValueError(f"{len(sealed)} of {len(self._peers)} neighbours are left, which do not hide an upload")
        self._held = {
            peer: unseal(self._seal_key(peer), data, self._about(peer, self.client_id)) for peer, data in sealed.items()
        }
        streams = [(1, Stream(self._own))]
        for peer in sorted(sealed):
            sign = 1 if self.client_id < peer else -1
            streams.append((sign, pair_mask(self._mask_private, self._peers[peer][KEY:])))
        total = {name: value.clone() for name, value in self._upload.items()}
        for sign, stream in streams:
            for value in total.values():
                value += sign * stream.like(value)
        return total

    def unmask(self, uploaded: Collection[int], gone: Collection[int]) -> dict[int, bytes]:
        """For each neighbour the share that takes its masks out of the sum: of its own mask where it has uploaded, of
        its neighbours' masks where it has gone away.

        Raises:
            ValueError: the server asks for what would show a single upload.
        """
        asked = [*uploaded, *gone]
        if self._told or not self._held or len(set(asked)) < len(asked) or not set(asked) <= self._held.keys():
            raise ValueError("the server asks for shares that it must not have")
        if len(uploaded) < max(LEAST - 1, threshold(len(self._peers))):
            raise ValueError(f"only {len(uploaded)} neighbours have uploaded, which do not hide an upload")
        self._told = True
        told = {peer: self._held[peer][KEY:] for peer in uploaded}
        return told | {peer: self._held[peer][:KEY] for peer in gone}

    def _seal_key(self, peer: int) -> bytes:
        return agree(self._seal_private, self._peers[peer][:KEY], "seal")

    def _about(self, sender: int, receiver: int) -> str:
        return f"round {self.round}: {sender} to {receiver}"
