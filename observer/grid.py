"""Which experts a component has, as the rows and columns of all [layer, expert] arrays. No statistic lives here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from observer.errors import GridError
from observer.stats import Array
from segmoe.events import ExpertKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The experts of one component; only layers with experts have a row, so row and layer number can differ."""

    component: str
    layers: tuple[int, ...]  # ascending layer numbers, one a row
    experts: int  # in each layer
    bytes: Array  # [layer, expert]

    @property
    def rows(self) -> dict[int, int]:
        """Return the row of each layer number."""
        return {layer: row for row, layer in enumerate(self.layers)}


def grids(expert_bytes: Mapping[ExpertKey, int]) -> dict[str, Grid]:
    """Lay the experts out by component.

    >>> keys = [ExpertKey("model", layer, expert) for layer in (1, 3) for expert in (0, 1)]
    >>> grid = grids(dict.fromkeys(keys, 64))["model"]
    >>> grid.layers, grid.experts, grid.rows, grid.bytes.tolist()
    ((1, 3), 2, {1: 0, 3: 1}, [[64.0, 64.0], [64.0, 64.0]])
    """
    if not expert_bytes:
        raise GridError("the checkpoint names no routed experts; observe a Mixture-of-Experts checkpoint")
    result = {}
    for component in sorted({key.component for key in expert_bytes}):
        mine = {key: n for key, n in expert_bytes.items() if key.component == component}
        layers = tuple(sorted({key.layer for key in mine}))
        experts = max(key.expert for key in mine) + 1
        if len(mine) != len(layers) * experts or min(mine.values()) <= 0:
            raise GridError(
                f"{component} has {len(mine)} experts in {len(layers)} layers, numbered up to {experts - 1}; "
                "layers with different numbers of experts, or experts of 0 bytes, are not supported"
            )
        row = {layer: index for index, layer in enumerate(layers)}
        table = np.zeros((len(layers), experts))
        for key, n in mine.items():
            table[row[key.layer], key.expert] = n
        result[component] = Grid(component=component, layers=layers, experts=experts, bytes=table)
    return result
