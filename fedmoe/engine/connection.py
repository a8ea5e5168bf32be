"""Connections to Flower's Runtime API, as both ends of a deployment have: to a SuperLink, or to a SuperNode."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from fedmoe.errors import UserError, printable
from fedmoe.io import read_regular

SERVER, CLIENT = "flwr-serverapp", "flwr-clientapp"
"""Flower's types of tasks."""
_BEAT = 15.0  # seconds between two signs of life; Flower gives up after 60
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"


@contextmanager
def sentences(where: str, valid: str, certificate: str, secret: str) -> Iterator[None]:
    """Turn errors of a connection into one sentence.

    Raises:
        UserError: what cannot be reached, and why.
    """
    try:
        yield
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        if code in (401, 403):
            raise UserError(
                f"{where} refuses this process ({code}); valid is the {secret} that it was started with, and a run "
                "that still runs."
            ) from error
        raise UserError(f"{where} answers with the error {code}: {printable(error.response.text)[:200]}.") from error
    except (httpx.HTTPError, ssl.SSLError, OSError) as error:
        text = printable(" ".join(str(error).split()))
        if "CERTIFICATE" in text.upper() or isinstance(error, ssl.SSLError):
            raise UserError(
                f"The certificate of {where} cannot be trusted ({text}); valid is one that has not expired, for this "
                f"address, signed by the authority in {certificate}."
            ) from error
        raise UserError(f"{where} cannot be reached ({text or type(error).__name__}); valid is {valid}.") from error


def runtime_client(
    address: str, insecure: bool, certificate: bytes | None, secret: bytes | None, token: str = ""
) -> Any:
    """Flower's client of the Runtime API, that of a SuperLink or of a SuperNode; with a ``token``, for one task."""
    from flwr.supercore.interceptors import (
        RuntimeTokenHttpInterceptor,
        RuntimeVersionHttpInterceptor,
        SuperExecAuthHttpInterceptor,
    )
    from flwr.supercore.runtime import RuntimeHttpClient

    parts: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperExec" if not token else CLIENT)]
    if token:
        parts.append(RuntimeTokenHttpInterceptor(token))
    elif secret:
        parts.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[_ACQUIRE]))
    return RuntimeHttpClient.from_server_address(address, insecure, certificate, parts)


def beating(client: Any) -> Callable[[threading.Event], None]:
    """Signs of life for a task, until the event."""

    def beat(ended: threading.Event) -> None:
        from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

        while True:
            with suppress(httpx.HTTPError, RuntimeError):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            if ended.wait(_BEAT):
                return

    return beat


def read_secret(key: str, path: str) -> bytes:
    """The secret in a file.

    Raises:
        UserError: there is none.
    """
    try:
        found = read_regular(Path(path).expanduser(), 10_000)
    except OSError as error:
        raise UserError(f"{key} is {path}, which cannot be read ({error.strerror}); valid is a file.") from error
    if not found:
        raise UserError(f"{key} is {path}, which is empty; valid is a file with a secret.")
    return found


def read_certificate(path: str | None) -> bytes | None:
    """The authority's certificate in a file, if one is named.

    Raises:
        UserError: the file holds none.
    """
    if path is None:
        return None
    try:
        found = read_regular(Path(path).expanduser(), 1_000_000)
        ssl.create_default_context(cadata=found.decode("ascii"))
    except (OSError, ValueError, ssl.SSLError) as error:
        raise UserError(
            f"engine.certificate is {path}, which cannot be used ({error}); valid is a PEM file."
        ) from error
    return found
