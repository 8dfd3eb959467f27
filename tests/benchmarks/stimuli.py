"""Texts of which the second half, or all, is changed. What is changed in the model instead is interventions.py."""

from __future__ import annotations

import codecs
import json
from typing import Any, NamedTuple

import numpy as np

from segmoe.embedded import CORPUS, VALIDATION

TOKENS, CHANGED = 256, 128  # of a sequence; from here on it is changed
DOMAINS = ("english", "spanish", "maths", "python")
OWN = ", its own text"


class Sequences(NamedTuple):
    """Token ids of a domain, cut into sequences of 256."""

    warm: list[list[int]]
    test: list[list[int]]
    cipher: list[list[int]]  # the test texts letter for letter in a language that nobody speaks


def read_sequences(tokenizer: Any) -> dict[str, Sequences]:
    """Corpus for reading before, validation texts for what is scored."""

    def cut(texts: list[str]) -> list[list[int]]:
        ids = [token for text in texts for token in tokenizer(text)["input_ids"]]
        return [ids[start : start + TOKENS] for start in range(0, len(ids) - TOKENS + 1, TOKENS)]

    corpus, validation = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in (CORPUS, VALIDATION)
    )
    result = {}
    for domain in DOMAINS:
        held_out = [text["text"] for text in validation if text["context"] == domain]
        result[domain] = Sequences(
            cut([text["text"] for text in corpus if text["context"] == domain]),
            cut(held_out),
            cut([codecs.encode(text, "rot13") for text in held_out]),
        )
    return result


def conditions(
    sequences: dict[str, Sequences], ids: list[int], known: str, unseen: str, index: int, rng: np.random.Generator
) -> dict[str, list[int]]:
    """Name -> the sequence as it is read instead."""
    start, half = ids[:CHANGED], ids[CHANGED:]

    def of(domain: str) -> list[int]:
        test = sequences[domain].test
        return test[index % len(test)]

    other, cipher = of(known), sequences["english"].cipher
    interleaved = [
        token for place in range(0, CHANGED, 16) for token in (*half[place : place + 8], *other[place : place + 8])
    ]
    return {
        "known domain": start + other[:CHANGED],
        "unseen domain": start + of(unseen)[:CHANGED],
        "unknown language": start + cipher[index % len(cipher)][:CHANGED],
        "random tokens": start + rng.integers(3, 4096, CHANGED).tolist(),
        "shuffled": start + rng.permutation(half).tolist(),
        "repetition": start + half[:8] * (CHANGED // 8),
        "interleaved": start + interleaved,
        "known domain" + OWN: other,
        "unseen domain" + OWN: of(unseen),
    }
