"""The policies by name, and the number that each gives an expert when it is used: the lowest leaves first.

Each number changes only when its expert is used, and never falls while it stays in memory; ranking.py relies on both.
So an expert's rank is a statement about all of time, not about now: decay is growth of the later uses' weight.

| policy | rank of an expert at a use in pass s, token clock t |
|---|---|
| lru | s |
| lfu | number of passes that used it since it was loaded |
| use-rate | ln of the sum over its uses of 2^(t / half_life): the decayed rate at any later time, in another unit |
| trust | the same, each use weighted by the expert's trust |
| recency-trust | 0.4 s + 0.6 trust: lowest where 0.4 idle passes + 0.6 (1 - trust) is highest |
| random | when loaded: the rank of the last to leave + a draw from Exp(1), hence each resident is as likely to go |

Equal ranks: the one used longest ago leaves. `NAME-per-layer` keeps layers level: the layer with most experts in
memory, the coming one included, gives one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from segmoe.errors import ConfigError
from segmoe.events import ExpertKey

if TYPE_CHECKING:
    from segmoe.policies.base import Policy

LRU, LFU, USE_RATE, RECENCY_TRUST, RANDOM = range(5)

DEFAULT_POLICY = "use-rate-per-layer"
HALF_LIFE_TOKENS = 16.0
LEAST_TRUST = 0.01  # an expert of no trust is still used; without a floor no use of it would ever count
PER_LAYER = "-per-layer"


class Rule(NamedTuple):
    """How a policy ranks; plain numbers, so that compiled code can take it."""

    kind: int
    decay: float = 0.0  # per token, nats
    per_layer: bool = False
    uses_trust: bool = False
    seed: int = 1


POLICIES: dict[str, Rule] = {
    "lru": Rule(LRU),
    "lfu": Rule(LFU),
    "use-rate": Rule(USE_RATE, decay=math.log(2) / HALF_LIFE_TOKENS),
    "trust": Rule(USE_RATE, decay=math.log(2) / HALF_LIFE_TOKENS, uses_trust=True),
    "recency-trust": Rule(RECENCY_TRUST, uses_trust=True),
    "random": Rule(RANDOM),
}


def weight(rule: Rule, trust: float) -> float:
    """What trust adds to a rank: ln of the weight of a use, or the earlier rule's share.

    >>> weight(POLICIES["lru"], 0.5), round(weight(POLICIES["trust"], 0.5), 4), weight(POLICIES["recency-trust"], 0.5)
    (0.0, -0.6931, 0.3)
    """
    if not rule.uses_trust:
        return 0.0
    return 0.6 * trust if rule.kind == RECENCY_TRUST else math.log(max(trust, LEAST_TRUST))


def rank(rule: Rule, before: float, weight: float, step: int, tokens: int) -> float:
    """The rank of an expert that is used, from its rank before; -inf if it has none.

    >>> once = rank(POLICIES["use-rate"], -math.inf, 0.0, 0, 16)
    >>> round(math.exp(once), 4), round(math.exp(rank(POLICIES["use-rate"], once, 0.0, 1, 32)), 4)
    (2.0, 6.0)
    """
    if rule.kind == LRU:
        return float(step)
    if rule.kind == LFU:
        return before + 1.0 if before > 0.0 else 1.0
    if rule.kind == RECENCY_TRUST:
        return 0.4 * step + weight
    now = rule.decay * tokens + weight
    high, low = max(before, now), min(before, now)
    return high + math.log1p(math.exp(low - high))


def score(rule: Rule, rank: float, step: int, tokens: int, floor: float) -> float:
    """A rank as of now, in a unit that can be read: see the table; a use-rate is uses, each halved every half-life."""
    if rule.kind == USE_RATE:
        return math.exp(rank - rule.decay * tokens)
    if rule.kind == RECENCY_TRUST:
        return rank - 0.4 * step - 0.6
    return rank - floor if rule.kind == RANDOM else rank


def make_rule(name: str) -> Rule:
    """The rule of a policy's name."""
    base = name.removesuffix(PER_LAYER)
    if base not in POLICIES:
        names = ", ".join(sorted(POLICIES))
        raise ConfigError(f"there is no policy {name!r}; choose one of {names}, each also as NAME{PER_LAYER}")
    return POLICIES[base]._replace(per_layer=base != name)


def make_policy(name: str, trust: Mapping[ExpertKey, float] | None = None) -> Policy:
    """Build a policy by its name; those that use trust need a snapshot of it."""
    from segmoe.policies.ranked import Ranked

    rule = make_rule(name)
    if rule.uses_trust and not trust:
        raise ConfigError(
            f"policy {name!r} ranks by trust of an earlier run; give it with `observer run --trust-from RUN` or as "
            "load(..., trust={key: 0..1})"
        )
    return Ranked(rule, trust)
