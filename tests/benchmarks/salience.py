"""What each dimension of salience responds to, on the embedded model: AUC of changed against unchanged windows.

    python -m tests.benchmarks.salience [--sequences 24]

An observer reads three of the four domains for a while, then sequences of 256 tokens of one of them. In the first table
the second half of the text is changed, or, for "its own text", the whole sequence is of another domain, in which
nothing changes midway. In the second the text stays and the model, or what is heard of it, is changed at one place
(interventions.py). What each dimension must do is in expectations.py; each cell tells whether it does.

Each sequence starts from the same state of the observer. AUC is the probability that a changed window scores higher
than the unchanged one at its place: 0.5 is no response, below 0.5 is a lower score. Intervals (90%) resample sequences.
The third table tells how alike two dimensions are where nothing changes: Spearman over unchanged windows.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata, spearmanr
from transformers import AutoTokenizer

import segmoe
from observer.observation import Observation, TextRef
from observer.salience import DIMENSIONS
from segmoe.embedded import CORPUS, MODEL, VALIDATION
from segmoe.events import Event, Routed
from tests.benchmarks.expectations import INTERVENTIONS, TEXTS, Expected, verdict
from tests.benchmarks.interventions import interventions

TOKENS, CHANGED = 256, 128  # of a sequence; from here on it is changed
WARM_SEQUENCES = 24  # of each known domain, before
DOMAINS = ("english", "spanish", "maths", "python")
NAMES = (*DIMENSIONS, "salience")


class Sequences(NamedTuple):
    """Token ids of a domain, cut into sequences of 256."""

    warm: list[list[int]]
    test: list[list[int]]
    cipher: list[list[int]]  # the test texts letter for letter in a language that nobody speaks


class Listener:
    """A model and an observation that listens to it; `scores` reads a sequence."""

    def __init__(self) -> None:
        manifest = segmoe.load(MODEL).segmoe.manifest
        sizes = {key: segment.nbytes for key, segment in manifest.experts.items()}
        self.observation = Observation(sizes, DOMAINS, window_tokens=10**9)
        self.model = segmoe.load(MODEL, sink=self, capture="contribution")
        self._texts = 0
        self._picks: list[np.ndarray] = []

    def emit(self, event: Event, /) -> None:
        if isinstance(event, Routed):
            self._picks.append(event.topk_ids)
        self.observation.take(event)

    @property
    def scorer(self) -> Any:
        return self.observation.details["model"].scorer

    def scores(self, ids: list[int]) -> np.ndarray:
        """Five scores and their mean of each 32-token window, [window, 6]."""
        self.observation.begin([TextRef(self._texts, DOMAINS[0])], evidence=True)
        self._texts += 1
        self._picks = []
        with torch.inference_mode():
            self.model(input_ids=torch.tensor([ids]), use_cache=False)
        (rows,) = self.observation.take_salience()
        return np.stack([getattr(rows, name) for name in NAMES], axis=1)

    def picks(self) -> np.ndarray:
        """The experts that the last sequence's tokens picked, [tokens, layers, k]."""
        return np.stack(self._picks, axis=1)


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
        "known domain, its own text": other,
        "unseen domain, its own text": of(unseen),
    }


def responses(listener: Listener, count: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Condition, scores of the unchanged windows and of the changed ones, both [window, 6], of one sequence."""
    sequences = read_sequences(AutoTokenizer.from_pretrained(MODEL))
    rng = np.random.default_rng(0)
    first = listener.scorer.to_state()
    for number, base in enumerate(DOMAINS):
        known, unseen = DOMAINS[(number + 1) % 4], DOMAINS[(number + 2) % 4]
        listener.scorer.restore(first)
        read = [domain for domain in DOMAINS if domain not in (unseen, base)]
        for domain in (*read, base):
            for ids in sequences[domain].warm[:WARM_SEQUENCES]:
                listener.scores(ids)
        state = listener.scorer.to_state()
        for index in range(min(count, len(sequences[base].test))):
            ids = sequences[base].test[index]
            windows = slice(CHANGED // 32, None)
            listener.scorer.restore(state)
            unchanged = listener.scores(ids)[windows]
            for name, changed in conditions(sequences, ids, known, unseen, index, rng).items():
                listener.scorer.restore(state)
                yield name, unchanged, listener.scores(changed)[windows]
                if name == "known domain, its own text":
                    other = listener.picks()
            for name, intervention in interventions(listener.model, ids, other, CHANGED, rng).items():
                listener.scorer.restore(state)
                with intervention():
                    yield name, unchanged, listener.scores(ids)[windows]


def auc(unchanged: np.ndarray, changed: np.ndarray) -> float:
    """Probability that a changed value is larger; ties count half.

    >>> auc(np.array([1.0, 2.0]), np.array([2.0, 3.0]))  # 3 > 1, 3 > 2, 2 > 1, and 2 = 2
    0.875
    """
    ranks = rankdata(np.concatenate((changed, unchanged)))
    return float((ranks[: len(changed)].sum() - len(changed) * (len(changed) + 1) / 2) / len(changed) / len(unchanged))


def with_interval(pairs: list[tuple[np.ndarray, np.ndarray]], column: int, samples: int = 200) -> tuple[float, ...]:
    """AUC of a dimension over all sequences, and its 90% bootstrap interval."""
    rng = np.random.default_rng(1)

    def of(chosen: np.ndarray) -> float:
        return auc(*(np.concatenate([pairs[i][side][:, column] for i in chosen]) for side in (0, 1)))

    drawn = [of(rng.integers(0, len(pairs), len(pairs))) for _ in range(samples)]
    return (of(np.arange(len(pairs))), *np.percentile(drawn, (5, 95)))


Pairs = list[tuple[np.ndarray, np.ndarray]]


def table(title: str, found: dict[str, Pairs], expected: dict[str, Expected]) -> tuple[Table, Counter[str]]:
    """AUC by row and dimension with what was expected of it, and how many cells agree."""
    result, verdicts = Table(title, *NAMES), Counter[str]()
    for name, wanted in expected.items():
        cells = []
        for column, sign in enumerate(wanted.signs + " "):
            value, low, high = with_interval(found[name], column)
            says = verdict(sign, low, high)
            verdicts[says] += 1
            cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}] {sign} {says}".rstrip())
        result.add_row(name, *cells)
    return result, verdicts


@click.command()
@click.option("--sequences", default=24, show_default=True, help="Sequences of each domain.")
def main(sequences: int) -> None:
    """Print AUC by condition and dimension, and how far novelty tells unseen from merely different."""
    found: dict[str, Pairs] = {}
    for name, unchanged, changed in responses(Listener(), sequences):
        found.setdefault(name, []).append((unchanged, changed))
    for own in ("", ", its own text"):
        both = zip(found[f"known domain{own}"], found[f"unseen domain{own}"], strict=True)
        found[f"unseen against known domain{own}"] = [(known, unseen) for (_, known), (_, unseen) in both]
    console = Console()
    console.width = max(console.width, 190)
    for title, expected in (("the text", TEXTS), ("the same text", INTERVENTIONS)):
        rows, verdicts = table(title, found, expected)
        console.print(rows)
        console.print(f"as expected {verdicts['yes']}, not {verdicts['no']}, open {verdicts['open']} of its cells\n")
    unchanged = np.concatenate([before for before, _ in found["shuffled"]])
    alike = Table("unchanged", *DIMENSIONS)
    for name, row in zip(DIMENSIONS, spearmanr(unchanged[:, : len(DIMENSIONS)]).statistic, strict=True):
        alike.add_row(name, *(f"{rho:.2f}" for rho in row))
    console.print(alike)
    for name, wanted in (TEXTS | INTERVENTIONS).items():
        console.print(f"{name}: {wanted.signs} {wanted.why}")


if __name__ == "__main__":
    main()
