"""Whether a score moves where its cause does, and only there. What the causes are is causes.py.

A response is an AUC: the probability that a changed window's value is above an unchanged one's of the same sequence,
mean over sequences; 0.5 is none, and what stays within .4 and .6 does not move. Windows are compared within a sequence
since causes, unlike scores, are not relative to what was usual lately: a domain's own level, say of NLL, would hide how
far they move. Pooled over all sequences, as a second view, it hides it.

A partial correlation of a score with a cause that is not its own, given its own, should be near 0: within .2, about
what an AUC of .6 is as a correlation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]

LOW, HIGH = 0.4, 0.6
NEAR = 0.2
SAMPLES = 200


class Interval(NamedTuple):
    """A figure and its 90% bootstrap interval over sequences."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"

    @property
    def signs(self) -> str:
        """What it may be: + up, 0 not moved, - down.

        >>> Interval(0.7, 0.65, 0.75).signs, Interval(0.5, 0.5, 0.5).signs, Interval(0.4, 0.35, 0.45).signs
        ('+', '0', '-0')
        """
        parts = (("-", self.low < LOW), ("0", self.low <= HIGH and self.high >= LOW), ("+", self.high > HIGH))
        return "".join(sign for sign, may in parts if may)


def drawn(sequences: int) -> Iterable[NDArray[np.int64]]:
    """First all sequences as they are, then samples with replacement."""
    rng = np.random.default_rng(1)
    return (np.arange(sequences), *(rng.integers(0, sequences, (SAMPLES, sequences))))


def response(unchanged: Array, changed: Array) -> Interval:
    """AUC within sequences, of values [sequence, window].

    >>> response(np.array([[1.0, 2.0]]), np.array([[2.0, 3.0]])).value  # 3 > 1, 3 > 2, 2 > 1, and 2 = 2
    0.875
    """
    one, other = unchanged[:, None, :], changed[:, :, None]
    each = ((other > one) + 0.5 * (other == one)).mean(axis=(1, 2))
    values = [float(each[chosen].mean()) for chosen in drawn(len(each))]
    return Interval(values[0], *np.percentile(values[1:], (5, 95)).tolist())


def pooled_response(unchanged: Array, changed: Array) -> Interval:
    """The same, but a changed window is compared with the unchanged ones of all sequences."""

    def auc(chosen: NDArray[np.int64]) -> float:
        n = changed[chosen].size
        ranks = rankdata(np.concatenate((changed[chosen].ravel(), unchanged[chosen].ravel())))
        return float((ranks[:n].sum() - n * (n + 1) / 2) / n**2)

    values = [auc(chosen) for chosen in drawn(len(changed))]
    return Interval(values[0], *np.percentile(values[1:], (5, 95)).tolist())


def verdict(wanted: str, found: str) -> str:
    """Of the signs that a cause and a score may have: whether they are one, none is, or it may be either.

    >>> verdict("+", "+"), verdict("0+", "+"), verdict("0", "+")
    ('agree', 'open', 'disagree')
    """
    if not set(wanted) & set(found):
        return "disagree"
    return "agree" if len(wanted) == len(found) == 1 else "open"


class Correlations(NamedTuple):
    """Of scores (rows) with causes (columns), each [5, 5] or with a first axis of 3: value, low, high."""

    spearman: Array
    partial: Array
    """Off the diagonal given the score's own cause; on it given the four others."""


def correlations(scores: Array, causes: Array) -> Correlations:
    """Spearman and partial Spearman with intervals, of values [sequence, window, 5]."""
    found = [_correlations(scores[chosen], causes[chosen]) for chosen in drawn(len(scores))]

    def with_interval(values: list[Array]) -> Array:
        return np.stack((values[0], *np.percentile(values[1:], (5, 95), axis=0)))

    return Correlations(with_interval([one.spearman for one in found]), with_interval([one.partial for one in found]))


def _correlations(scores: Array, causes: Array) -> Correlations:
    d = scores.shape[-1]
    values = np.concatenate((scores.reshape(-1, d), causes.reshape(-1, d)), axis=1)
    r = np.corrcoef(rankdata(values, axis=0), rowvar=False)
    partial = np.empty((d, d))
    for i in range(d):
        for j in range(d):
            given = [d + i] if i != j else [d + other for other in range(d) if other != i]
            partial[i, j] = partial_correlation(r, i, d + j, given)
    return Correlations(r[:d, d:], partial)


def partial_correlation(r: Array, one: int, other: int, given: list[int]) -> float:
    """Correlation of what the given ones leave of two; 0 where they leave nothing.

    >>> r = np.array([[1, 0.36, 0.6], [0.36, 1, 0.6], [0.6, 0.6, 1]])  # 0.36 = 0.6 x 0.6: all of it is the third's
    >>> round(abs(partial_correlation(r, 0, 1, [2])), 9)
    0.0
    """
    two = [one, other]
    shared = r[np.ix_(two, given)]
    left = r[np.ix_(two, two)] - shared @ np.linalg.pinv(r[np.ix_(given, given)], hermitian=True) @ shared.T
    return float(left[0, 1] / np.sqrt(left[0, 0] * left[1, 1])) if left.diagonal().min() > 1e-9 else 0.0
