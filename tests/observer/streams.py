"""Synthetic evidence and event streams, seeded."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from observer.observation import TextRef
from observer.stats import Picks
from segmoe.events import Contribution, Event, ExpertKey, ExpertLoaded, Routed, StepDone

LAYERS, EXPERTS, TOP_K = (0, 2), 6, 2
CONTEXTS = ("english", "maths", "python")
EXPERT_BYTES = {ExpertKey("model", layer, expert): 100 + 50 * expert for layer in LAYERS for expert in range(EXPERTS)}


class Batch(NamedTuple):
    """What a job announces, and what the model then tells."""

    texts: list[TextRef]
    events: list[Event]


def picks(rng: np.random.Generator, tokens: int, *, layer: int = 0, experts: int = EXPERTS, k: int = TOP_K) -> Picks:
    """One text."""
    weights = rng.dirichlet(np.ones(k), size=tokens)
    return Picks(
        layer=layer,
        ids=np.array([rng.permutation(experts)[:k] for _ in range(tokens)], dtype=np.intp).reshape(tokens, k),
        weights=weights.reshape(tokens, k),
        c_norm=rng.gamma(2.0, 1.0, (tokens, k)),
        impact=rng.gamma(1.0, 0.01, (tokens, k)),
        window=np.arange(tokens, dtype=np.intp) // 32,
        text=np.zeros(tokens, dtype=np.intp),
        before=np.array([rng.permutation(experts)[:k] for _ in range(tokens)], dtype=np.intp).reshape(tokens, k),
    )


def joined(texts: Sequence[Picks]) -> Picks:
    """Several texts of one layer in one object."""
    windows, ended = [], 0
    for text in texts:
        windows.append(text.window + ended)
        ended += int(text.window[-1]) + 1 if len(text.window) else 0
    before = [text.before for text in texts if text.before is not None]
    return Picks(
        layer=texts[0].layer,
        ids=np.concatenate([text.ids for text in texts]),
        weights=np.concatenate([text.weights for text in texts]),
        c_norm=np.concatenate([text.c_norm for text in texts]),
        impact=np.concatenate([text.impact for text in texts]),
        window=np.concatenate(windows),
        text=np.concatenate([np.full(len(text.ids), number, np.intp) for number, text in enumerate(texts)]),
        before=np.concatenate(before) if len(before) == len(texts) else None,
    )


def routed(
    rng: np.random.Generator, step: int, layer: int, lengths: Sequence[int], *, gain: Sequence[float] | None = None
) -> Routed:
    """Picks of a padded batch; `gain` is how large each expert's output is. Padding holds what looks like evidence."""
    width, n = max(lengths), len(lengths)
    rows = n * width
    position = np.full((n, width), -1, np.int32)
    for text, length in enumerate(lengths):
        if text % 2:
            position[text, width - length :] = np.arange(length)  # padded on the left
        else:
            position[text, :length] = np.arange(length)
    ids = np.array([rng.permutation(EXPERTS)[:TOP_K] for _ in range(rows)], dtype=np.int16)
    weights = rng.dirichlet(np.ones(TOP_K), size=rows).astype(np.float32)
    size = np.ones(EXPERTS) if gain is None else np.asarray(gain)
    c_norm = (size[ids] * rng.uniform(0.5, 1.5, (rows, TOP_K))).astype(np.float32)
    h_norm = rng.uniform(8, 12, rows).astype(np.float32)
    cosine = rng.uniform(-0.5, 0.5, (rows, TOP_K))
    return Routed(
        step=step,
        component="model",
        layer=layer,
        phase="prefill",
        topk_ids=ids,
        topk_weights=weights,
        sequence=np.repeat(np.arange(n, dtype=np.int32), width),
        position=position.ravel(),
        contribution=Contribution(
            c_norm=c_norm,
            h_dot_c=(cosine * c_norm * h_norm[:, None]).astype(np.float32),
            h_norm=h_norm,
            sum_unit_norm=c_norm.sum(axis=1) / c_norm.max(axis=1),
        ),
    )


def batches(
    seed: int, count: int, *, texts: int = 4, longest: int = 90, gain: Sequence[float] | None = None
) -> list[Batch]:
    """Return a run: each batch one forward pass over texts whose contexts take turns."""
    rng = np.random.default_rng(seed)
    result = []
    for step in range(count):
        refs = [TextRef(step * texts + row, CONTEXTS[(step + row) % len(CONTEXTS)]) for row in range(texts)]
        lengths = rng.integers(5, longest, texts).tolist()
        events: list[Event] = [
            ExpertLoaded(step=step, key=ExpertKey("model", 0, 1), cause="demand", bytes=150, read_ns=5, waited_ns=5)
        ]
        layers = [routed(rng, step, layer, lengths, gain=gain) for layer in LAYERS]
        events += layers
        nll = rng.uniform(1, 5, len(layers[0].position)).astype(np.float32)
        nll[layers[0].position < 0] = np.nan
        events.append(
            StepDone(
                step=step,
                component="model",
                phase="prefill",
                tokens=sum(lengths),
                sequences=texts,
                sequence=layers[0].sequence,
                position=layers[0].position,
                nll=nll,
                entropy=nll,
                wall_ns=1000 + step,
                hits=3,
                misses=2,
                loads=2,
                evictions=1,
                bytes_read=300,
            )
        )
        result.append(Batch(refs, events))
    return result
