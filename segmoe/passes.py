"""One forward pass as the model sees it: which row is which token, and what was predicted. No experts here."""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from segmoe.cache import Counters
from segmoe.events import Phase, StepDone


class Tokens(NamedTuple):
    """Which token each row of a pass is."""

    phase: Phase
    sequence: NDArray[np.int32]  # [rows] row of the batch, -1 if it cannot be known
    position: NDArray[np.int32]  # [rows] in its sequence, -1 is padding


UNKNOWN = Tokens("prefill", np.empty(0, np.int32), np.empty(0, np.int32))


@dataclass(slots=True)
class Pass:
    """A forward pass under way."""

    component: str
    began_ns: int
    counters: Counters
    tokens: Tokens = UNKNOWN
    nll: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None


def begin(component: str, counters: Counters) -> Pass:
    """Start the clock and remember the counters."""
    return Pass(component, time.perf_counter_ns(), counters.copy())


def arguments(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by their names."""
    try:
        return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments) | kwargs
    except TypeError:
        return dict(kwargs)


def read_tokens(call: dict[str, Any]) -> Tokens:
    """Tell rows from the arguments of a decoder stack: ids or embeddings, attention mask, cache."""
    ids, embeddings = call.get("input_ids"), call.get("inputs_embeds")
    given = ids if ids is not None else embeddings
    if given is None or given.dim() < 2:
        return UNKNOWN
    batch, length = given.shape[:2]
    cache = call.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    mask = call.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] >= length:
        seen = mask.bool().cpu().numpy()
        position = (np.cumsum(seen, axis=1) - 1)[:, -length:]
        position = np.where(seen[:, -length:], position, -1)
    else:
        position = np.broadcast_to(np.arange(past, past + length), (batch, length))
    sequence = np.repeat(np.arange(batch, dtype=np.int32), length)
    phase: Phase = "decode" if length == 1 and past > 0 else "prefill"
    return Tokens(phase, sequence, position.reshape(-1).astype(np.int32))


def tokens_of(current: Pass | None, component: str, rows: int) -> Tokens:
    """Which token each row of a layer in the pass under way is; all padding if that cannot be known."""
    if current is not None and current.component == component and len(current.tokens.position) == rows:
        return current.tokens
    nothing = np.full(rows, -1, np.int32)
    return Tokens("prefill", nothing, nothing)


def step_done(current: Pass, step: int, counters: Counters) -> StepDone:
    """The event of a pass that is over; `counters` are the cache's as they stand now."""
    spent = counters.since(current.counters)
    phase, sequence, position = current.tokens
    real = position >= 0
    unknown = np.full(len(position), np.nan, np.float32)
    return StepDone(
        step=step,
        component=current.component,
        phase=phase,
        tokens=int(real.sum()),
        sequences=len(np.unique(sequence[real])),
        sequence=sequence,
        position=position,
        nll=unknown if current.nll is None else current.nll,
        entropy=unknown if current.entropy is None else current.entropy,
        wall_ns=time.perf_counter_ns() - current.began_ns,
        hits=spent.hits,
        misses=spent.misses,
        loads=spent.loads,
        evictions=spent.evictions,
        bytes_read=spent.bytes_read,
    )


def read_predictions(current: Pass, ids: Any, logits: Any, chunk: int = 512) -> None:
    """NLL of each next token and entropy of its distribution, in nats, where the pass holds both."""
    rows = len(current.tokens.position)
    if not (isinstance(logits, torch.Tensor) and isinstance(ids, torch.Tensor)) or logits.dim() != 3:
        return
    if ids.numel() != rows or logits.shape[:2] != ids.shape or ids.shape[1] < 2:
        return
    nll, entropy = np.full((2, rows), np.nan, np.float32)
    position = current.tokens.position
    following = np.roll(position, -1)
    following[ids.shape[1] - 1 :: ids.shape[1]] = -1  # the last of each row has no next
    known = np.flatnonzero((position >= 0) & (following >= 0))
    flat, targets = logits.reshape(rows, -1), ids.reshape(-1)
    for start in range(0, len(known), chunk):
        part = known[start : start + chunk]
        log_p = torch.log_softmax(flat[part].float(), dim=-1)
        nll[part] = -log_p.gather(1, targets[part + 1, None])[:, 0].cpu().numpy()
        entropy[part] = -(log_p.exp() * log_p).sum(-1).cpu().numpy()
    current.nll, current.entropy = nll, entropy
