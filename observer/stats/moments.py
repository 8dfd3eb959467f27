"""Number, mean and squared deviations that add up without losing digits. What is counted is blocks.py, windows.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from observer.stats.base import Array, ratio


class Moments(NamedTuple):
    """n, mean m, and M2 = sum (x - m)^2 of some values, elementwise in arrays of one shape."""

    n: Array
    mean: Array
    m2: Array

    @classmethod
    def of(cls, values: Array, known: NDArray[np.bool_]) -> Moments:
        """Return the moments along axis 0 of the values that are known (values where not known are ignored).

        >>> m = Moments.of(np.array([[1.0], [3.0], [99.0]]), np.array([[True], [True], [False]]))
        >>> float(m.n[0]), float(m.mean[0]), float(m.m2[0])
        (2.0, 2.0, 2.0)
        """
        count = known.sum(axis=0).astype(np.float64)
        mean = ratio(np.where(known, values, 0.0).sum(axis=0), count)
        m2 = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
        return cls(count, mean, m2)

    def plus(self, other: Moments) -> Moments:
        """Return the moments of both sets of values together.

        M2 = M2a + M2b + (mb - ma)^2 na nb / n, after Chan, Golub, LeVeque, "Updating formulae and a pairwise
        algorithm for computing sample variances" (1979).

        >>> a, b = (Moments.of(np.array([[x], [y]]), np.ones((2, 1), bool)) for x, y in [(1.0, 2.0), (3.0, 6.0)])
        >>> [float(x[0]) for x in a.plus(b)]  # of 1, 2, 3, 6
        [4.0, 3.0, 14.0]
        """
        total = self.n + other.n
        delta = other.mean - self.mean
        share = ratio(other.n, total)
        return Moments(total, self.mean + delta * share, self.m2 + other.m2 + delta**2 * self.n * share)
