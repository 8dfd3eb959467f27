"""What each dimension of salience must do by its definition, and what a figure says to it.

A row has a sign for each dimension in their order: + scores rise, - they fall, 0 they do not move, . nothing follows
from the definitions. A response is an AUC; what stays within .4 and .6 does not move.
"""

from __future__ import annotations

from typing import NamedTuple

LOW, HIGH = 0.4, 0.6


class Expected(NamedTuple):
    """Signs of surprise, novelty, arousal, reward and conflict, and why."""

    signs: str
    why: str


TEXTS = {
    "known domain": Expected(
        "+00-0", "other experts, in pairs that were read; the router knows the domain; the text before is of no help"
    ),
    "unseen domain": Expected("++0-0", "the same, in pairs that were not read"),
    "unknown language": Expected("+++-.", "and neither router nor head were trained on it"),
    "random tokens": Expected("+++-.", "no router and no head was trained on it"),
    "shuffled": Expected("000-0", "the same tokens choose the same experts, and none can be foretold"),
    "repetition": Expected("+-0+0", "few experts, in pairs that are not new, and what repeats can be foretold"),
    "interleaved": Expected("+00-0", "half of the experts are others, in read pairs; what follows is broken off"),
    "known domain, its own text": Expected("+0000", "other experts in pairs that were read, in a text that is whole"),
    "unseen domain, its own text": Expected("++000", "other experts in unread pairs, in a text that is whole"),
    "unseen against known domain": Expected("0+000", "both are unlike what was lately, one unlike all before"),
    "unseen against known domain, its own text": Expected("0+000", "likewise"),
}

INTERVENTIONS = {
    "picks are another text's, in name": Expected("+0000", "other experts in pairs that were read"),
    "picks are another text's": Expected("+0000", "likewise, and these experts run"),
    "partners exchanged, in name": Expected("0+000", "each expert as often as before, in other pairs"),
    "partners exchanged": Expected("0+000", "likewise, and these experts run"),
    "weights more even": Expected("00+00", "the same picks in the same order, less decided"),
    "weights less even": Expected("00-00", "more decided"),
    "next token foretold": Expected("000+0", "only the output differs"),
    "next token missed": Expected("000-0", "only the output differs"),
    "outputs driven apart": Expected("0000+", "outputs of the same picks point apart"),
    "first output turned round": Expected("0000+", "one output points the other way"),
    "outputs drawn together": Expected("0000-", "outputs of the same picks point one way"),
}


def verdict(sign: str, low: float, high: float) -> str:
    """Whether an interval agrees with a sign: "yes", "no" if all of it contradicts, "open" if it may be either.

    >>> verdict("+", 0.7, 0.8), verdict("0", 0.55, 0.65), verdict("-", 0.45, 0.5), verdict(".", 0.9, 1.0)
    ('yes', 'open', 'no', '')
    """
    first, last = {"+": (HIGH, 1.0), "0": (LOW, HIGH), "-": (0.0, LOW)}.get(sign, (0.0, 0.0))
    if sign not in "+0-":
        return ""
    if first <= low and high <= last:
        return "yes"
    return "no" if low > last or high < first else "open"
