"""Streaming estimators on [layer, expert] arrays: pure, mergeable, without clock, chance or I/O. Trust is trust.py."""

from observer.stats.base import Array, Estimator, Index, Picks
from observer.stats.blocks import Blocks
from observer.stats.coactivation import Coactivation
from observer.stats.load import LayerLoad, layer_load
from observer.stats.magnitude import Magnitude
from observer.stats.saturation import load_saturation, router_saturation
from observer.stats.specialization import Specialization, specialization
from observer.stats.texts import Texts
from observer.stats.transitions import Transitions
from observer.stats.usage import Usage
from observer.stats.windows import Windows

__all__ = [
    "Array",
    "Blocks",
    "Coactivation",
    "Estimator",
    "Index",
    "LayerLoad",
    "Magnitude",
    "Picks",
    "Specialization",
    "Texts",
    "Transitions",
    "Usage",
    "Windows",
    "layer_load",
    "load_saturation",
    "router_saturation",
    "specialization",
]
