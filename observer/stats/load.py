"""How evenly a layer's picks spread over its experts. The picks themselves are counted in usage.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from observer.stats.base import Array, ratio


class LayerLoad(NamedTuple):
    """All [layer]; 0 where nothing was picked, but for `dead`."""

    used: Array  # experts with at least one pick
    dead: Array  # experts without
    entropy: Array  # nats, 0 .. ln experts
    entropy_share: Array  # of ln experts, 0 .. 1
    effective: Array  # exp(entropy), the number of equally used experts of that entropy; 1 .. experts
    gini: Array  # 0 (all alike) .. 1 - 1 / experts (one has all)
    balancedness: Array  # mean / largest, 1 / experts .. 1


def layer_load(uses: Array) -> LayerLoad:
    """Summarise uses [layer, expert] with p = uses / sum of uses, n experts, x = uses in ascending order.

    - entropy H = -sum p ln p (Shannon 1948); effective = exp(H), the Hill number of order 1 (Hill 1973).
    - Gini G = sum over i = 1..n of (2 i - n - 1) x_i / (n sum x) (Gini 1912).
    - balancedness = mean x / max x, as in sglang's expert distribution recorder: 1 where no expert makes others wait.

    >>> load = layer_load(np.array([[5.0, 5.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    >>> load.used.tolist(), load.dead.tolist(), load.entropy.round(3).tolist(), load.entropy_share.round(3).tolist()
    ([2.0, 4.0, 0.0], [2.0, 0.0, 4.0], [0.693, 1.386, 0.0], [0.5, 1.0, 0.0])
    >>> load.effective.round(3).tolist(), load.gini.tolist(), load.balancedness.tolist()
    ([2.0, 4.0, 0.0], [0.5, 0.0, 0.0], [0.5, 1.0, 0.0])
    """
    experts = uses.shape[1]
    total = uses.sum(axis=1)
    share = ratio(uses, total[:, None])
    log_share = np.log(share, out=np.zeros(share.shape), where=share > 0)
    entropy = np.abs((share * log_share).sum(axis=1))
    used = (uses > 0).sum(axis=1).astype(np.float64)
    rank = 2 * np.arange(1, experts + 1) - experts - 1
    return LayerLoad(
        used=used,
        dead=experts - used,
        entropy=entropy,
        entropy_share=entropy / np.log(experts) if experts > 1 else 0 * entropy,
        effective=np.where(total > 0, np.exp(entropy), 0.0),
        gini=(np.sort(share, axis=1) * rank).sum(axis=1) / experts,
        balancedness=ratio(uses.mean(axis=1), uses.max(axis=1)),
    )
