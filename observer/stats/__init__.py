"""Streaming estimators on [layer, expert] arrays: pure, mergeable, without clock, chance or I/O. Trust is trust.py."""

from observer.stats.base import Array, Estimator, Picks
from observer.stats.blocks import Blocks
from observer.stats.load import LayerLoad, layer_load
from observer.stats.magnitude import Magnitude
from observer.stats.usage import Usage
from observer.stats.windows import Windows

ESTIMATORS: tuple[type[Estimator], ...] = (Usage, Magnitude, Blocks, Windows)

__all__ = [
    "ESTIMATORS",
    "Array",
    "Blocks",
    "Estimator",
    "LayerLoad",
    "Magnitude",
    "Picks",
    "Usage",
    "Windows",
    "layer_load",
]
