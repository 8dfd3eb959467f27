"""What residency has cost, in numbers that only grow."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What residency has cost since the model was loaded."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    bytes_read: int = 0  # wasted ones included
    prefetched: int = 0  # of the loads: read before their layer asked
    wasted: int = 0  # read early and never asked for; no loads

    def since(self, earlier: Counters) -> Counters:
        """The difference to an earlier copy."""
        return Counters(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))

    def copy(self) -> Counters:
        """A snapshot."""
        return Counters(*(getattr(self, name) for name in self.__slots__))
