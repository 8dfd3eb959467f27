"""In which order texts come: once as they are, or again and again, each time shuffled. Reading them is corpus.py."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from observer.corpus import Text
from observer.db.writer import TextLabels


class Order:
    """The text with an ordinal: ordinals count what is observed, from 0.

    In a loop each round has all texts once, in an order of its seed and number: the same job has the same order, and
    whoever goes on at an ordinal needs to know nothing else.

    >>> texts = [Text(name, "c", name) for name in "abc"]
    >>> order = Order(texts, loop=True, seed=0)
    >>> sorted(order[n].id for n in range(3, 6)), order.planned
    (['a', 'b', 'c'], 0)
    """

    def __init__(self, texts: Sequence[Text], *, loop: bool = False, seed: int = 0) -> None:
        self._texts, self._loop, self._seed = texts, loop, seed
        self._round: tuple[int, list[int]] = (-1, [])

    @property
    def planned(self) -> int:
        """How many there are; 0 if there is no end."""
        return 0 if self._loop else len(self._texts)

    def __getitem__(self, ordinal: int) -> Text:
        if not self._loop:
            return self._texts[ordinal]
        number, place = divmod(ordinal, len(self._texts))
        known, shuffled = self._round  # one assignment below: the writer's thread asks, too
        if known != number:
            shuffled = np.random.default_rng([self._seed, number]).permutation(len(self._texts)).tolist()
            self._round = (number, shuffled)
        return self._texts[shuffled[place]]


class LabelsOf:
    """What the record says of the text with an ordinal."""

    def __init__(self, order: Order, *, keep_text: bool) -> None:
        self._order, self._keep_text = order, keep_text

    def __getitem__(self, ordinal: int) -> TextLabels:
        text = self._order[ordinal]
        return TextLabels(text.id, text.context, text.text if self._keep_text else "")


class Passages:
    """The words of some tokens of the text with an ordinal; for one thread, with a tokenizer of its own."""

    def __init__(self, order: Order, tokenizer: Any) -> None:
        self._order, self._tokenizer = order, copy.deepcopy(tokenizer)
        self._ids: tuple[int, list[int]] = (-1, [])

    def __call__(self, ordinal: int, position: int, tokens: int) -> str:
        """The words of so many tokens from a position on."""
        known, ids = self._ids
        if known != ordinal:
            ids = self._tokenizer(self._order[ordinal].text)["input_ids"]
            self._ids = (ordinal, ids)
        passage: str = self._tokenizer.decode(ids[position : position + tokens])
        return passage
