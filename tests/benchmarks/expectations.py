"""What each dimension of salience must do where one thing is changed on purpose. Where a text is changed: causes.py.

A row has a sign for each dimension in their order: + scores rise, - they fall, 0 they do not move, ? is measured: as
the dimension's cause does when the stock experts run on the same picks.
"""

from __future__ import annotations

from typing import NamedTuple


class Expected(NamedTuple):
    """Signs of surprise, novelty, arousal, reward and conflict, and why."""

    signs: str
    why: str


INTERVENTIONS = {
    "picks are a read text's, in name": Expected("+0000", "other experts in pairs that were read"),
    "picks are a read text's": Expected("+000?", "likewise, and these experts run on tokens that are not theirs"),
    "partners exchanged, in name": Expected("0+000", "each expert as often as before, in other pairs"),
    "partners exchanged": Expected("0+00?", "likewise, and these experts run on tokens that are not theirs"),
    "weights more even": Expected("00+00", "the same picks in the same order, less decided"),
    "weights less even": Expected("00-00", "more decided"),
    "next token foretold": Expected("000+0", "only the output differs"),
    "next token missed": Expected("000-0", "only the output differs"),
    "outputs driven apart": Expected("0000+", "outputs of the same picks point apart"),
    "first output turned round": Expected("0000+", "one output points the other way"),
    "outputs drawn together": Expected("0000-", "outputs of the same picks point one way"),
}
