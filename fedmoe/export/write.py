"""Writing a client of a run as a folder of its own."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from safetensors.torch import save

from fedmoe import __version__
from fedmoe.errors import UserError
from fedmoe.export import head
from fedmoe.export.card import model_card
from fedmoe.export.folder import TELLS, TENSORS, ExportedClient, about_clip, classes_hash
from fedmoe.export.onnx import require_onnx, write_onnx
from fedmoe.export.parts import HeadParts, head_parts
from fedmoe.io import write_bytes_atomic, write_json_atomic, write_text_atomic
from fedmoe.prediction.client import RestoredClient
from fedmoe.protocol.records import ClientState
from fedmoe.runs.records import read_clients


def require_free(folder: Path, onnx: bool = False) -> None:
    """Refuse a place where nothing can be exported to, before anything is computed.

    Raises:
        UserError: there is something already, or the extra ``onnx`` is asked for and not installed.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder} is there already; valid is a folder that does not exist, or is empty.")
    if onnx:
        require_onnx()


def export_client(client: RestoredClient, run: Path, folder: Path, onnx: bool = False) -> ExportedClient:
    """Write client.json, client.safetensors, head.py, README.md and, on request, head.onnx; all of them or nothing.

    Args:
        run: the run folder that the client comes from.
        folder: must not exist, or be empty.

    Raises:
        UserError: the folder is taken, or the method's prediction cannot be exported.
    """
    require_free(folder, onnx)
    parts, state, module = head_parts(client.module), client.state, client.module
    kept, known = state.clients.get(client.client_id, ClientState()), state.server.known(client.client_id)
    tensors = {f"head/{name}": tensor for name, tensor in parts.tensors.items()}
    tensors |= {f"state/parameters/{name}": tensor for name, tensor in kept.parameters.items()}
    tensors |= {f"state/experts/{name}": tensor for name, tensor in kept.experts.items()}
    for name, entries in state.server.pool.items():
        if client.client_id in entries:
            tensors[f"pool/{name}"] = entries[client.client_id]
    data = save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})
    told = ExportedClient(
        format=head.FORMAT,
        fedmoe=__version__,
        method=f"{type(module.method).__module__}.{type(module.method).__qualname__}",
        label=module.method.label,
        data=client.federation.name,
        client=client.client_id,
        round=client.round,
        rounds_seen=known.rounds_seen,
        version=known.version,
        gated=known.gated,
        expert_ids=list(known.expert_ids),
        experts=list(client.experts) or _routed(parts),
        head=dict(parts.settings),
        class_names=parts.class_names,
        classes_sha256=classes_hash(parts.class_names),
        clip=about_clip(module.clip),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        write_bytes_atomic(temporary / TENSORS, data)
        write_bytes_atomic(temporary / "head.py", Path(head.__file__).read_bytes())
        write_text_atomic(temporary / "README.md", model_card(told, _accuracy(run, client), onnx))
        if onnx:
            write_onnx(parts.build(), temporary / "head.onnx")
        write_json_atomic(temporary / TELLS, told.to_json())
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return told


def _routed(parts: HeadParts) -> list[str]:
    """Names of the experts that a router weighs, which are no client's; none without a router."""
    count = len(parts.tensors["text"]) if parts.settings["kind"] == "router" else 0
    return [f"expert {i + 1}" for i in range(count)]


def _accuracy(run: Path, client: RestoredClient) -> float | None:
    """Of the client in the evaluation after the checkpoint's round, percent."""
    if not (run / "clients.jsonl").is_file():
        return None
    score = read_clients(run, client.state.num_clients).get(client.round, {}).get(client.client_id)
    return score.accuracy if score else None
