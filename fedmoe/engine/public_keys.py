"""Which client the SuperNode with a public key stands before: the file ``engine.keys``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedmoe.errors import UserError
from fedmoe.io import read_regular


def read_keys(path: Path) -> dict[bytes, int]:
    """Public key -> client, of a JSON object of OpenSSH keys by client.

    Raises:
        UserError: the file cannot be used.
    """
    valid = 'valid is a JSON object such as {"0": "ecdsa-sha2-nistp384 AAAA...", "1": ...}'
    try:
        found = json.loads(read_regular(path.expanduser(), 50_000_000))
        keys = {canonical(key.encode()): int(client) for client, key in found.items()}
    except OSError as error:
        raise UserError(f"engine.keys is {path}, which cannot be read ({error.strerror}); {valid}.") from error
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"engine.keys is {path}, which does not hold keys ({error}); {valid}.") from error
    if len(keys) < len(found) or not all(number >= 0 for number in keys.values()):
        raise UserError(f"engine.keys is {path}, which binds a key twice or to no client; {valid}.")
    return keys


def canonical(key: bytes) -> bytes:
    """One form of a public key: PEM's content or OpenSSH's as DER."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_public_key,
        load_ssh_public_key,
    )

    loaded: Any = load_pem_public_key(key) if key.startswith(b"-----") else load_ssh_public_key(key)
    return bytes(loaded.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def as_pem(key: bytes) -> bytes:
    """PEM of a public key in the form of ``canonical``."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

    return load_der_public_key(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
