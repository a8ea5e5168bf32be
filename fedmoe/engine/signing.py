"""Signatures of orders, so that a client obeys its server and nobody else who can reach the SuperLink (Ed25519)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmoe.engine.line import Order
from fedmoe.errors import UserError
from fedmoe.io import read_regular


def signer(key: str, path: str) -> Callable[[Order], Order]:
    """Signs orders with the private key in a file; ``key`` names the setting.

    Raises:
        UserError: the file holds no such key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    private = _load(key, path, Ed25519PrivateKey, lambda data: load_pem_private_key(data, None))
    return lambda order: replace(order, signature=private.sign(_signed(order)))


def verifier(key: str, path: str) -> Callable[[Order], None]:
    """Raises ``ValueError`` for an order that the owner of the public key in a file has not signed. Errors as above."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    public = _load(key, path, Ed25519PublicKey, load_pem_public_key)

    def verify(order: Order) -> None:
        try:
            public.verify(order.signature, _signed(order))
        except InvalidSignature as error:
            raise ValueError("the order is not signed by this client's server") from error

    return verify


def _signed(order: Order) -> bytes:
    head = [part.encode() for part in ("fedmoe order", order.ask, order.run)]
    return b"".join(len(part).to_bytes(8, "little") + part for part in (*head, order.body))


def _load(key: str, path: str, kind: type, read: Callable[[bytes], Any]) -> Any:
    try:
        found = read(read_regular(Path(path).expanduser(), 10_000))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{key} is {path}, which cannot be used ({error}); valid is an Ed25519 key as PEM.") from error
    if not isinstance(found, kind):
        raise UserError(f"{key} is {path}, which holds another kind of key; valid is an Ed25519 key as PEM.")
    return found
