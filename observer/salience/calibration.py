"""What is much of a figure depends on what it was lately: a running mean and deviation. The figures are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from observer.stats.base import Array

RATE = 0.05
"""A window's weight; the last 20 windows, 640 tokens, make up two thirds of the mean."""


@dataclass(slots=True)
class Calibration:
    """Exponentially weighted mean mu and deviation s of D figures, from the first value on without bias.

    With a = 0.05, a_n = a / (1 - (1 - a)^n), d = x - mu: mu += a_n d; s^2 = (1 - a_n) (s^2 + a_n d^2), after West,
    "Updating mean and variance estimates" (1979). A figure that is not known (NaN) changes nothing.

    >>> c = Calibration.zeros(1)
    >>> c.learn(np.array([1.0])); c.learn(np.array([3.0]))
    >>> round(float(c.mean[0]), 3), round(float(c.variance[0]), 3)  # (0.95 x 1 + 1 x 3) / 1.95
    (2.026, 0.999)
    >>> round(float(c.deviations(c.mean + 2 * np.sqrt(c.variance))[0]), 9)
    2.0
    """

    seen: Array
    mean: Array
    variance: Array

    @classmethod
    def zeros(cls, figures: int) -> Calibration:
        """Return one that has seen nothing."""
        return cls(np.zeros(figures), np.zeros(figures), np.zeros(figures))

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
        rate = RATE / (1.0 - (1.0 - RATE) ** np.maximum(self.seen, 1))
        rate = np.where(known, np.where(self.seen == 1, 1.0, rate), 0.0)  # 1 exactly: the first value has no deviation
        delta = np.where(known, values - self.mean, 0.0)
        self.mean += rate * delta
        self.variance[...] = (1.0 - rate) * (self.variance + rate * delta**2)
