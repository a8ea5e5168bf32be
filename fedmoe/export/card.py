"""The model card of an exported client: a README.md with the header that model hubs read."""

from __future__ import annotations

import re

import yaml

from fedmoe.errors import printable
from fedmoe.export.folder import ExportedClient

_TEXT = """\
# {label} on {data}, client {client}

What one client of a federation learned with {label}, after round {round}: everything that CLIP's image features are
classified with. CLIP itself is not included. Written by fedmoe {version}.

| | |
|---|---|
| classes | {classes} (their names: `client.json`) |
| CLIP | {clip}, features of width {width}, fingerprint `{fingerprint}` |
| rounds in which the client trained | {rounds_seen} |
| the gate weighs | {experts} |
| accuracy on the client's own test split | {accuracy} |

## Use

```python
from head import load_head  # the file in this folder; it needs torch and safetensors

head = load_head(".")
logits = head(image_features)  # l2-normalized features of CLIP above [b, {width}] -> [b, {classes}]
weights = head.expert_weights(image_features)
```
{onnx}
With the run it belongs to, `python -m fedmoe.cli import <this folder> --into <run> --client {client}` puts the client
back.

## Limits

The head fits the data of one client: on classes that this client hardly saw it can be worse than plain CLIP. The text
features of other clients' prompts, which its gate weighs, and the client's own prompt are in `client.safetensors`:
pass the folder on only where these may go. It holds no images. Licence: set `license` above; CLIP's weights and the
data have their own.
"""


def model_card(told: ExportedClient, accuracy: float | None, onnx: bool) -> str:
    """The card's text.

    Args:
        accuracy: in percent, of the client in the run's last evaluation; None where there is none.
        onnx: whether the folder has a head.onnx.
    """
    header = {
        "library_name": "fedmoe",
        "pipeline_tag": "image-classification",
        "license": "other",
        "tags": ["clip", "prompt-learning", "federated-learning", told.method.rpartition(".")[2].lower()],
    }
    classes = len(told.class_names)
    lines = "`head.onnx` is the same for ONNX runtimes: `image_features` in, `logits` and `expert_weights` out.\n"
    text = _TEXT.format(
        label=_words(told.label),
        data=_words(told.data),
        client=told.client,
        round=told.round,
        version=told.fedmoe,
        classes=classes,
        clip=_words(str(told.clip["name"])),
        width=told.clip["feature_dim"],
        fingerprint=told.clip["fingerprint"],
        rounds_seen=told.rounds_seen,
        experts=", ".join(told.experts) or "nothing: there is no gate over experts",
        accuracy="unknown" if accuracy is None else f"{accuracy:.2f} % in the run's last evaluation",
        onnx=f"\n{lines}" if onnx else "",
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n{text}"


def _words(text: str) -> str:
    """Text from outside, in which Markdown and HTML find no markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#!&])", r"\\\1", printable(text).replace("\n", " "))
