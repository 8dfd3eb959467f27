"""Makes events of the picks of a pass, of all its layers at once when it is over. What they contributed is elsewhere.

A pass that decodes one token is short, and what is done for each of its layers costs as much as for all of them: it
is not the arithmetic but the number of calls. So nothing is converted or told while the layers run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from segmoe.contributions import measured
from segmoe.events import Capture, Contribution, Counted, Event, Routed
from segmoe.manifest import ExpertsModule
from segmoe.passes import Pass, Tokens


class Picks(NamedTuple):
    """What one experts module was asked for in a pass."""

    step: int
    place: ExpertsModule
    tokens: Tokens
    topk_ids: torch.Tensor  # [rows, k]
    topk_weights: torch.Tensor  # [rows, k]
    contributed: Contribution | torch.Tensor | None
    """What they did to the layer's output, or vectors [rows, k + 1, hidden] that are yet to be measured."""


def tell_later(current: Pass | None, picks: Picks, emit: Callable[[Event], None], capture: Capture) -> None:
    """Tell the picks when the pass under way is over, or at once if there is none."""

    def tell(kept: Sequence[Picks]) -> None:
        for event in events(kept, capture):
            emit(event)

    if current is None:
        tell([picks])
        return
    if not current.picks:
        current.tell = partial(tell, current.picks)
    current.picks.append(picks)


def events(picks: Sequence[Picks], capture: Capture) -> Iterator[Routed | Counted]:
    """The events of picks at a capture level, in their order."""
    for _, found in groupby(picks, _likeness):
        alike = list(found)
        ids = torch.stack([one.topk_ids for one in alike]).cpu().numpy()
        weights = torch.stack([one.topk_weights for one in alike]).float().cpu().numpy()
        if capture == "counts":
            yield from _counted(alike, ids, weights)
        else:
            ids = ids.astype(np.int16)
            contributed = _contributions(alike)
            for number, one in enumerate(alike):
                yield Routed(
                    step=one.step,
                    component=one.place.component,
                    layer=one.place.layer,
                    phase=one.tokens.phase,
                    topk_ids=ids[number],
                    topk_weights=weights[number],
                    sequence=one.tokens.sequence,
                    position=one.tokens.position,
                    contribution=contributed[number],
                )


def _likeness(one: Picks) -> tuple[object, ...]:
    """What layers have in common that can be converted together."""
    shape = one.contributed.shape if isinstance(one.contributed, torch.Tensor) else None
    ids, weights = one.topk_ids, one.topk_weights
    return ids.shape, ids.device, weights.dtype, id(one.tokens.position), one.place.num_experts, shape


def _contributions(alike: Sequence[Picks]) -> list[Contribution | None]:
    """Measure what is not yet measured."""
    waiting = [one.contributed for one in alike if isinstance(one.contributed, torch.Tensor)]
    if not waiting:
        return [one.contributed for one in alike if not isinstance(one.contributed, torch.Tensor)]
    together, rows = measured(torch.cat(waiting)), len(waiting[0])
    return [together[number * rows : (number + 1) * rows] for number in range(len(alike))]


def _counted(alike: Sequence[Picks], ids: NDArray[np.int64], weights: NDArray[np.float32]) -> Iterator[Counted]:
    """Count each sequence's picks of each expert in layers of the same tokens, without padding."""
    tokens, experts, layers = alike[0].tokens, alike[0].place.num_experts, len(alike)
    if len(tokens.position) == 1 and tokens.position[0] >= 0:  # decoding one text: no two picks are of one expert
        uses, sums = np.zeros((layers, 1, experts), np.int32), np.zeros((layers, 1, experts), np.float32)
        picked = np.arange(layers)[:, None], 0, ids[:, 0]
        uses[picked], sums[picked] = 1, weights[:, 0]
    else:
        uses, sums = _sums(tokens, experts, ids, weights)
    for number, one in enumerate(alike):
        yield Counted(
            step=one.step,
            component=one.place.component,
            layer=one.place.layer,
            phase=tokens.phase,
            uses=uses[number],
            weights=sums[number],
        )


def _sums(
    tokens: Tokens, experts: int, ids: NDArray[np.int64], weights: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Picks and sum of their weights, both [layers, sequences, experts]; ids and weights are [layers, rows, k]."""
    real = tokens.position >= 0
    layers, sequences = len(ids), int(tokens.sequence.max(initial=-1)) + 1
    shape, size = (layers, sequences, experts), layers * sequences * experts
    row = np.arange(layers)[:, None] * sequences + tokens.sequence[real]
    cell = (row[..., None] * experts + ids[:, real]).ravel()
    uses = np.bincount(cell, minlength=size).astype(np.int32).reshape(shape)
    return uses, np.bincount(cell, weights[:, real].ravel(), size).astype(np.float32).reshape(shape)
