"""What is much of a figure depends on what it was before: a running mean and deviation. The figures are elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from observer.stats.base import Array

LATELY = 0.01
"""A window's weight in what a figure was lately: the last 100 windows, 3,200 tokens, make up two thirds of the mean.

A shorter memory takes a change for usual before it is over: with the last 20 windows, of two changes of domain the
greater was not scored higher, and scores went less with what they claim to measure."""

EVER = 0.0
"""In what it ever was: all windows weigh the same."""


@dataclass(slots=True)
class Calibration:
    """Exponentially weighted mean mu and deviation s of D figures, from the first value on without bias.

    With a figure's rate a, a_n = a / (1 - (1 - a)^n), or 1 / n if a is 0, d = x - mu: mu += a_n d;
    s^2 = (1 - a_n) (s^2 + a_n d^2), after West, "Updating mean and variance estimates" (1979). A figure that is not
    known (NaN) changes nothing.

    >>> c = Calibration.zeros([LATELY, EVER])
    >>> c.learn(np.array([1.0, 1.0])); c.learn(np.array([3.0, 3.0]))
    >>> c.mean.round(3).tolist(), c.variance.round(3).tolist()  # (0.99 x 1 + 1 x 3) / 1.99, (1 + 3) / 2
    ([2.005, 2.0], [1.0, 1.0])
    >>> c.deviations(c.mean + 2 * np.sqrt(c.variance)).round(9).tolist()
    [2.0, 2.0]
    """

    rates: Array
    seen: Array
    mean: Array
    variance: Array

    @classmethod
    def zeros(cls, rates: Sequence[float]) -> Calibration:
        """Return one that has seen nothing, with the rates of its figures."""
        return cls(np.array(rates), *np.zeros((3, len(rates))))

    def deviations(self, values: Array) -> Array:
        """(x - mu) / s along the first axis; 0 where nothing is known to compare with."""
        shape = (-1,) + (1,) * (values.ndim - 1)
        s = np.sqrt(self.variance)
        comparable = ((self.seen >= 2) & (s > 0)).reshape(shape) & np.isfinite(values)
        result = np.zeros(values.shape)
        np.divide(values - self.mean.reshape(shape), s.reshape(shape), out=result, where=comparable)
        return result

    def learn(self, values: Array) -> None:
        """Take the figures of one window, [figures]."""
        known = np.isfinite(values)
        self.seen += known
        rate = 1.0 / np.maximum(self.seen, 1)
        forgets = (self.rates > 0) & (self.seen > 1)  # 1 exactly at first: one value has no deviation
        np.divide(self.rates, 1.0 - (1.0 - self.rates) ** self.seen, out=rate, where=forgets)
        rate = np.where(known, rate, 0.0)
        delta = np.where(known, values - self.mean, 0.0)
        self.mean += rate * delta
        self.variance[...] = (1.0 - rate) * (self.variance + rate * delta**2)
