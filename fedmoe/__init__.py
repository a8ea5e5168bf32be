"""fedmoe: federated prompt learning on vision-language models (pFedMoAP, ICLR 2025, and what it is compared with).

``fedmoe.run(method="PFedMoAP", data="Digits", config="fedmoe:embedded")`` trains, and ``fedmoe.load("runs/x")`` reads
a run folder; both return a ``fedmoe.Result``. Nothing heavy is imported before.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Result", "UserError", "__version__", "load", "run"]

_HOMES = {"Result": "fedmoe.api.result", "UserError": "fedmoe.errors", "load": "fedmoe.api", "run": "fedmoe.api"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
