"""Surprise: routing is unlike what it was lately."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from observer.salience.windows import Raw, Window
from observer.stats.base import Array, ratio

RATE = 0.08
"""Weight of a window in the routing of late: the last 12 windows, 400 tokens, make up two thirds of it."""


@dataclass(slots=True)
class Surprise:
    """Mean over layers of JSD2(k || q) in bits, 0..1.

    k [layer, expert] is how the window's picks were spread over the experts and q its exponentially weighted mean over
    the windows before. A token's pick of rank r, the first by weight having 1, counts 1 / r, all of a layer together 1.
    With the weights themselves, as version 2 had it, a router that is merely more decided was surprising.
    JSD2(k || q) = sum over experts of (k log2(k / m) + q log2(q / m)) / 2 with m = (k + q) / 2 (Lin 1991). No term is
    negative; an expert's own figure is its term times the number of experts.

    >>> s = Surprise.zeros(1, 2)
    >>> def window(expert):
    ...     ids, one = np.full((2, 1, 1), expert), np.ones((2, 1))
    ...     return Window(np.arange(1), ids, one[..., None], one, one[:, 0])
    >>> s.learn(window(0))
    >>> [round(s.raw(window(expert)).value, 9) for expert in (0, 1)], s.raw(window(1)).own.round(9).tolist()
    ([0.0, 1.0], [[1.0, 1.0]])
    """

    seen: Array  # [layer, 1] windows
    routing: Array  # [layer, expert] q, before any window 0

    @classmethod
    def zeros(cls, layers: int, experts: int) -> Surprise:
        """Return one that has seen nothing."""
        return cls(np.zeros((layers, 1)), np.zeros((layers, experts)))

    def raw(self, window: Window) -> Raw:
        """Compare a window with the windows before; NaN if there are none."""
        k, q = routing(window, self.routing.shape[1]), self.routing[window.layers]
        known = self.seen[window.layers] > 0
        middle = (k + q) / 2
        terms = np.where(known, (_information(k, middle) + _information(q, middle)) / 2, 0.0)
        value = float(terms.sum(axis=1)[known[:, 0]].mean()) if known.any() else float("nan")
        return Raw(value, terms * terms.shape[1], np.broadcast_to(known, terms.shape).astype(np.float64))

    def learn(self, window: Window) -> None:
        """Let the window become part of what routing was lately."""
        rows = window.layers
        self.seen[rows] += 1
        rate = RATE / (1.0 - (1.0 - RATE) ** self.seen[rows])  # without bias from the first window on
        self.routing[rows] += rate * (routing(window, self.routing.shape[1]) - self.routing[rows])


def routing(window: Window, experts: int) -> Array:
    """How a window's picks were spread, [layers, expert], sums to 1 over the experts.

    >>> one = np.ones((1, 1))
    >>> routing(Window(np.arange(1), np.array([[[2, 0]]]), np.array([[[0.4, 0.6]]]), one, one[0]), 3).round(3).tolist()
    [[0.667, 0.0, 0.333]]
    """
    layers = window.ids.shape[1]
    rank = (-window.weights).argsort(axis=2, kind="stable").argsort(axis=2) + 1
    cell = (np.arange(layers)[:, None] * experts + window.ids).ravel()
    mass: Array = np.bincount(cell, (1.0 / rank).ravel(), layers * experts).astype(np.float64)
    mass = mass.reshape(layers, experts)
    return ratio(mass, mass.sum(axis=1, keepdims=True))


def _information(p: Array, m: Array) -> Array:
    return np.where(p > 0, p * np.log2(ratio(p, m), out=np.zeros(p.shape), where=p > 0), 0.0)
