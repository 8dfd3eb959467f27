"""How evenly a layer's picks spread over its experts. The picks themselves are counted in usage.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from observer.stats.base import Array, ratio


class LayerLoad(NamedTuple):
    """All [layer]."""

    used: Array  # experts with at least one pick
    dead: Array  # experts without
    entropy: Array  # nats, 0 .. ln experts
    entropy_share: Array  # of ln experts, 0 .. 1


def layer_load(uses: Array) -> LayerLoad:
    """Summarise uses [layer, expert]: H = -sum p ln p with p = uses / sum of uses (Shannon 1948).

    >>> load = layer_load(np.array([[5.0, 5.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    >>> load.used.tolist(), load.dead.tolist(), load.entropy.round(3).tolist(), load.entropy_share.round(3).tolist()
    ([2.0, 4.0, 0.0], [2.0, 0.0, 4.0], [0.693, 1.386, 0.0], [0.5, 1.0, 0.0])
    """
    experts = uses.shape[1]
    share = ratio(uses, uses.sum(axis=1, keepdims=True))
    log_share = np.log(share, out=np.zeros(share.shape), where=share > 0)
    entropy = np.abs((share * log_share).sum(axis=1))
    used = (uses > 0).sum(axis=1).astype(np.float64)
    return LayerLoad(used, experts - used, entropy, entropy / np.log(experts) if experts > 1 else 0 * entropy)
