"""Certificates, keys and secrets of a deployment: files in one folder, for the administrator to hand out."""

from __future__ import annotations

import datetime
import json
import os
import secrets
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from fedmoe.errors import UserError


def make_credentials(folder: Path, clients: int, hosts: list[str], days: int = 365) -> list[Path]:
    """Write what a federation of this many clients needs; an authority and keys that are there already are kept.

    ``server/``: ca.key (keep it offline), server.pem and server.key for the SuperLink, its secret, signing.key for
    orders, and keys.json, which binds clients to keys. ``site-<i>/``: ca.pem, server.pub (to check orders with), the
    SuperNode's key pair, and a secret for SuperNode and worker.

    Args:
        hosts: names and addresses that the SuperLink is reached by.
        days: that the SuperLink's certificate is valid; negative: since how long it has not been, for tests.

    Raises:
        UserError: nothing can be written there.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.x509.oid import NameOID

    if clients < 1 or not hosts:
        raise UserError("The federation has no clients or the SuperLink no host; valid is at least one of each.")
    plain = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    now = datetime.datetime.now(datetime.UTC)
    server = folder / "server"
    written: list[Path] = []

    def write(path: Path, data: bytes, private: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644), "wb") as file:
            file.write(data)
        written.append(path)

    def named(name: str) -> Any:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def signed(name: str, key: Any, issuer: str, signer: Any, until: Any, names: list[Any] | None) -> Any:
        start = min(now, until) - datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(
            named(issuer), named(name), key.public_key(), x509.random_serial_number(), start, until
        ).add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = builder.add_extension(authority, critical=False)
        if names is None:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(signer, hashes.SHA384()).public_bytes(pem)

    try:
        if (server / "ca.key").exists():
            ca: Any = serialization.load_pem_private_key((server / "ca.key").read_bytes(), None)
            authority = (server / "ca.pem").read_bytes()
        else:
            ca = ec.generate_private_key(ec.SECP384R1())
            authority = signed("fedmoe CA", ca, "fedmoe CA", ca, now + datetime.timedelta(days=3650), None)
            write(server / "ca.key", ca.private_bytes(pem, pkcs8, plain), private=True)
            write(server / "ca.pem", authority, private=False)
        own = ec.generate_private_key(ec.SECP384R1())
        names = [_name(host) for host in hosts]
        until = now + datetime.timedelta(days=days)
        write(server / "server.pem", signed(hosts[0], own, "fedmoe CA", ca, until, names), private=False)
        write(server / "server.key", own.private_bytes(pem, pkcs8, plain), private=True)
        if not (server / "secret").exists():
            write(server / "secret", secrets.token_hex(32).encode(), private=True)
        if not (server / "signing.key").exists():
            write(server / "signing.key", Ed25519PrivateKey.generate().private_bytes(pem, pkcs8, plain), private=True)
        signing = serialization.load_pem_private_key((server / "signing.key").read_bytes(), None).public_key()
        public = signing.public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        keys: dict[str, str] = {}
        for i in range(clients):
            site = folder / f"site-{i}"
            if not (site / "key").exists():
                key = ec.generate_private_key(ec.SECP384R1())
                write(site / "key", key.private_bytes(pem, serialization.PrivateFormat.OpenSSH, plain), private=True)
                ssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
                write(site / "key.pub", key.public_key().public_bytes(*ssh), private=False)
                write(site / "secret", secrets.token_hex(32).encode(), private=True)
            write(site / "ca.pem", authority, private=False)
            write(site / "server.pub", public, private=False)
            keys[str(i)] = (site / "key.pub").read_text().strip()
        write(server / "keys.json", (json.dumps(keys, indent=1) + "\n").encode(), private=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} cannot take the credentials ({error}); valid is a folder of this user's.") from error
    return written


def _name(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
