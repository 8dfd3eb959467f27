"""How much the experts of a layer divide the contexts among themselves, against chance. The loads are of texts.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from observer.stats.base import Array, ratio
from observer.stats.texts import TextFigures

HALF = 0.5
"""A specialist does more than half of its work in one context."""

SURE_SD = 1.645
"""By so many standard deviations."""


class Specialization(NamedTuple):
    """Figures by expert, and by layer beside what chance gives."""

    share: Array  # [context, layer, expert] p(context | expert) if contexts were equally long; sums to 1 over contexts
    share_sd: Array  # [context, layer, expert] standard deviation of the share, from text to text
    bits: Array  # [layer] what a pick tells of its context, 0 .. log2(contexts)
    chance_bits: Array  # [layer] the same if contexts differed no more than texts of one context do
    specialists: Array  # [layer] experts with a share above 1/2 by 1.645 standard deviations
    generalists: Array  # [layer] experts whose shares all lie within half and twice an equal part, by as much


def specialization(contexts: Sequence[TextFigures]) -> Specialization:
    """Compare the loads p_ce of an expert in each of C contexts, with m_e = mean over c of p_ce.

    - share_ce = p_ce / sum over c of p_ce (OLMoE's domain specialization, contexts weighted alike).
    - share_sd by the delta method: sqrt(sum over d of v_de (1[d = c] - share_ce)^2) / sum over d of p_de, v the squared
      standard errors of the loads.
    - bits = Jensen-Shannon divergence (1 / C) sum_c sum_e p_ce log2(p_ce / m_e) (Lin 1991): 0 where contexts are used
      alike.
    - chance_bits = (C - 1) / C^2 sum_c sum_e v_ce / (2 m_e ln 2), its expected value to second order if all contexts
      had the same true loads. This is the baseline: a finite number of texts never gives 0 bits.

    Needs two texts or more of each context, for v.

    >>> def seen(*load): return TextFigures(np.array([[2.0]]), np.array([load]), np.array([[0.01, 0.01]]))
    >>> found = specialization([seen(1.0, 0.0), seen(0.0, 1.0)])
    >>> found.share[0].tolist(), found.bits.tolist(), found.chance_bits.round(4).tolist()
    ([[1.0, 0.0]], [1.0], [0.0144])
    >>> specialization([seen(0.5, 0.5), seen(0.5, 0.5)]).bits.tolist()
    [0.0]
    """
    load = np.stack([context.mean for context in contexts])
    variance = np.stack([context.variance for context in contexts])
    count = len(contexts)
    total = load.sum(axis=0)
    mean = total / count
    share = ratio(load, total)
    own = variance * (1 - 2 * share) + (variance.sum(axis=0) * share**2)
    share_sd = ratio(np.sqrt(np.maximum(own, 0.0)), total)
    relative = ratio(load, mean)
    log_relative = np.log2(relative, out=np.zeros(load.shape), where=relative > 0)
    bits = (load * log_relative).sum(axis=(0, 2)) / count
    chance = (count - 1) / count**2 * ratio(variance, mean).sum(axis=(0, 2)) / (2 * np.log(2))
    low, high = share - SURE_SD * share_sd, share + SURE_SD * share_sd
    return Specialization(
        share=share,
        share_sd=share_sd,
        bits=np.maximum(bits, 0.0),
        chance_bits=chance,
        specialists=(low > HALF).any(axis=0).sum(axis=1).astype(np.float64),
        generalists=((low > 0.5 / count) & (high < 2 / count)).all(axis=0).sum(axis=1).astype(np.float64),
    )
