"""Run a Mixture-of-Experts checkpoint with its experts on disk and a bounded number of them in memory.

The names below load on first use, so that `import segmoe.events` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmoe.attaching import attach
    from segmoe.errors import CheckpointError, ConfigError, SegmoeError, Unsupported
    from segmoe.parity import verify
    from segmoe.runtime import load

__all__ = ["CheckpointError", "ConfigError", "SegmoeError", "Unsupported", "attach", "load", "verify"]

_HOMES = {"attach": "segmoe.attaching", "load": "segmoe.runtime", "verify": "segmoe.parity"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'segmoe' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES.get(name, "segmoe.errors")), name)
