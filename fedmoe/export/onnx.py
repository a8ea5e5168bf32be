"""The head as an ONNX file; needs the extra ``onnx``.

Shape letters: b images, C classes, d feature width, K experts.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from fedmoe.errors import UserError
from fedmoe.export.head import Head


class _Outputs(nn.Module):
    """Logits [b, C] and experts' weights [b, K + 1] of image features [b, d]."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(image_features), self.head.expert_weights(image_features)


def require_onnx() -> None:
    """Refuse where the extra is not installed.

    Raises:
        UserError: onnx or onnxscript is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"onnx is true, which needs {' and '.join(missing)}; install it with pip install fedmoe[onnx].")


def write_onnx(head: Head, path: Path) -> None:
    """Write the head with the input ``image_features`` [b, d] and the outputs ``logits`` [b, C] and ``expert_weights``
    [b, K + 1], for any number b of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(
            _Outputs(head).eval(),
            (torch.zeros(2, head.text.shape[-1]),),
            str(path),
            input_names=["image_features"],
            output_names=["logits", "expert_weights"],
            dynamic_shapes={"image_features": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
