"""Which experts are in memory, as arrays, for another process to go on with. Holding them is cache.py.

Only between forward passes. What a policy remembers comes from the policy itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmoe.errors import ConfigError
from segmoe.events import ExpertKey
from segmoe.runtime import Runtime

Arrays = dict[str, NDArray[Any]]


def residency_state(runtime: Runtime) -> Arrays:
    """Return the experts in memory in the cache's order, the policy's memory, and the number of the next pass."""
    cache = runtime.cache
    keys, steps = list(cache._resident), [slot.last_step for slot in cache._resident.values()]
    return {
        "next_step": np.array(runtime._next_step),
        "last_step": np.array(steps, dtype=np.int64),
        **pack_keys("resident", keys),
        **{f"policy/{name}": array for name, array in cache._policy.state().items()},
    }


def restore_residency(runtime: Runtime, state: Mapping[str, NDArray[Any]]) -> None:
    """Read the experts that were in memory, as loads of no pass that nobody is told of, and what the policy knew."""
    cache = runtime.cache
    if len(cache):
        raise ConfigError(f"{len(cache)} experts are in memory already; restore a model that was just loaded")
    runtime._next_step = int(state["next_step"])
    for key, step in zip(unpack_keys("resident", state), state["last_step"].tolist(), strict=True):
        cache.admit(key, step)
    start = "policy/"
    cache._policy.restore({name.removeprefix(start): a for name, a in state.items() if name.startswith(start)})


def pack_keys(name: str, keys: list[ExpertKey]) -> Arrays:
    """Return names of experts as arrays.

    >>> unpack_keys("x", pack_keys("x", [ExpertKey("model", 2, 3)]))
    [ExpertKey(component='model', layer=2, expert=3)]
    """
    numbers = np.array([(key.layer, key.expert) for key in keys], dtype=np.int64).reshape(len(keys), 2)
    return {f"{name}_component": np.array([key.component for key in keys], dtype=np.str_), f"{name}_expert": numbers}


def unpack_keys(name: str, state: Mapping[str, NDArray[Any]]) -> list[ExpertKey]:
    """Return the names again."""
    pairs = zip(state[f"{name}_component"].tolist(), state[f"{name}_expert"].tolist(), strict=True)
    return [ExpertKey(component, layer, expert) for component, (layer, expert) in pairs]
