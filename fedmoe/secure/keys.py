"""The cryptography of secure aggregation: agreed keys, sealed messages, shared secrets and streams of masks.

Keys are agreed by X25519 and derived by HKDF-SHA256, messages are sealed by AES-256-GCM, masks are ChaCha20's stream,
and secrets are split by Shamir's scheme over GF(2^128). Flower's own SecAgg+ derives its masks from a seed of 32 bits,
which a server could guess, and works on Flower's records; hence not that one, but the libraries below it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

KEY = 32  # bytes of a key, of a secret and of each half of a share
_BLOCK = 16  # bytes that Shamir's scheme splits at once
_NONCE = 12


def key_pair() -> tuple[bytes, bytes]:
    """A private key and its public key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def public_key(private: bytes) -> bytes:
    """The public key of a private one."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: str) -> bytes:
    """The key that two have in common, each from its own private key and the other's public one.

    Raises:
        ValueError: that is no public key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    common = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return HKDF(SHA256(), KEY, None, f"fedmoe secure aggregation: {purpose}".encode()).derive(common)


def seal(key: bytes, message: bytes, about: str) -> bytes:
    """A message that only the key opens; ``about`` says whose it is, and is not sent."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE)
    return nonce + AESGCM(key).encrypt(nonce, message, about.encode())


def unseal(key: bytes, sealed: bytes, about: str) -> bytes:
    """The inverse of ``seal``.

    Raises:
        ValueError: it was sealed with another key or about something else, or it was changed.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], about.encode())
    except InvalidTag as error:
        raise ValueError("a share was not sealed by the client that it is said to come from") from error


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares of a secret of 32 bytes, any ``threshold`` of which give it back, and fewer say nothing about it. The
    first has index 1."""
    from Crypto.Protocol.SecretSharing import Shamir

    halves = [Shamir.split(threshold, count, secret[i : i + _BLOCK]) for i in range(0, KEY, _BLOCK)]
    return [b"".join(part for _, part in parts) for parts in zip(*halves, strict=True)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret, given enough of its shares by their index.

    Raises:
        ValueError: a share has another length.
    """
    from Crypto.Protocol.SecretSharing import Shamir

    if any(len(share) != KEY for share in shares.values()):
        raise ValueError("a share has another length")
    halves = (
        Shamir.combine([(index, share[i : i + _BLOCK]) for index, share in shares.items()])
        for i in range(0, KEY, _BLOCK)
    )
    return b"".join(bytes(half) for half in halves)


class Stream:
    """Numbers that whoever has the key finds in the same order, and that to everybody else are uniform modulo 2^64."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        self._cipher: Any = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    def like(self, tensor: Tensor) -> Tensor:
        """The next numbers, int64, in the shape of a tensor."""
        data = self._cipher.update(bytes(8 * tensor.numel()))
        numbers = np.frombuffer(data, dtype="<i8").astype(np.int64)
        return torch.from_numpy(numbers).reshape(tensor.shape)
