"""One forward pass as the model sees it: which row is which token, and what was predicted. No experts here."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import MethodType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from segmoe.counters import Counters
from segmoe.events import Phase, StepDone


class Tokens(NamedTuple):
    """Which token each row of a pass is."""

    phase: Phase
    sequence: NDArray[np.int32]  # [rows] row of the batch, -1 if it cannot be known
    position: NDArray[np.int32]  # [rows] in its sequence, -1 is padding


CHUNK_NUMBERS = 1 << 18
"""Logits taken at a time: 1 MiB in float32, which stays in a core's own cache."""

UNKNOWN = Tokens("prefill", np.empty(0, np.int32), np.empty(0, np.int32))

_FIRST, _NOT_KNOWN = np.broadcast_to(np.int32(0), 1), np.broadcast_to(np.float32(np.nan), 1)  # read-only, as all share


@dataclass(slots=True)
class Pass:
    """A forward pass under way."""

    component: str
    began_ns: int
    counters: Counters
    tokens: Tokens = UNKNOWN
    nll: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    picks: list[Any] = field(default_factory=list)  # of its layers, to be told when it is over
    tell: Callable[[], None] | None = None  # who tells them


def begin(component: str, counters: Counters) -> Pass:
    """Start the clock and remember the counters."""
    return Pass(component, time.perf_counter_ns(), counters.copy())


def arguments(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by their names."""
    if not args:
        return kwargs
    forward: Any = module.forward
    try:
        if isinstance(forward, MethodType):
            named = _signature(forward.__func__).bind(forward.__self__, *args, **kwargs)
        else:
            named = inspect.signature(forward).bind(*args, **kwargs)
        return dict(named.arguments) | kwargs
    except TypeError:
        return dict(kwargs)


@lru_cache(maxsize=64)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Of a class, so that no model is kept alive; to read one takes longer than all else that a pass is asked."""
    return inspect.signature(function)


def read_tokens(call: dict[str, Any]) -> Tokens:
    """Tell rows from the arguments of a decoder stack: ids or embeddings, attention mask, cache.

    Of one token without what arrays of one number do not need: between multiplications, which leave nothing of this
    code in the processor's caches, that took 25 microseconds for 73.
    """
    ids, embeddings = call.get("input_ids"), call.get("inputs_embeds")
    given = ids if ids is not None else embeddings
    if given is None or given.dim() < 2:
        return UNKNOWN
    batch, length = given.shape[:2]
    cache = call.get("past_key_values")
    past = int(cache.get_seq_length()) if cache is not None else 0
    mask = call.get("attention_mask")
    phase: Phase = "decode" if length == 1 and past > 0 else "prefill"
    seen = None
    if isinstance(mask, torch.Tensor) and mask.dim() == 2 and mask.shape[0] == batch and mask.shape[1] >= length:
        seen = mask.bool().cpu().numpy()
    if batch == length == 1:
        if seen is not None:
            past = int(np.count_nonzero(seen)) - 1 if seen[0, -1] else -1
        return Tokens(phase, _FIRST, np.array([past], np.int32))
    if seen is not None:
        position = (np.cumsum(seen, axis=1) - 1)[:, -length:]
        position = np.where(seen[:, -length:], position, -1)
    else:
        position = np.broadcast_to(np.arange(past, past + length), (batch, length))
    sequence = np.repeat(np.arange(batch, dtype=np.int32), length)
    return Tokens(phase, sequence, position.reshape(-1).astype(np.int32))


def tokens_of(current: Pass | None, component: str, rows: int) -> Tokens:
    """Which token each row of a layer in the pass under way is; all padding if that cannot be known."""
    if current is not None and current.component == component and len(current.tokens.position) == rows:
        return current.tokens
    nothing = np.full(rows, -1, np.int32)
    return Tokens("prefill", nothing, nothing)


def step_done(current: Pass, step: int, counters: Counters) -> StepDone:
    """Tell the picks of a pass that is over, and return its own event; `counters` are the cache's as they stand now."""
    if current.tell is not None:
        current.tell()
    spent = counters.since(current.counters)
    phase, sequence, position = current.tokens
    if len(position) == 1:
        tokens = sequences = int(position[0] >= 0)
    else:
        real = position >= 0
        tokens, sequences = int(real.sum()), int(np.count_nonzero(np.bincount(sequence[real])))
    nll, entropy = current.nll, current.entropy
    if nll is None or entropy is None:
        nll = entropy = _NOT_KNOWN if len(position) == 1 else np.full(len(position), np.nan, np.float32)
    return StepDone(
        step=step,
        component=current.component,
        phase=phase,
        tokens=tokens,
        sequences=sequences,
        sequence=sequence,
        position=position,
        nll=nll,
        entropy=entropy,
        wall_ns=time.perf_counter_ns() - current.began_ns,
        hits=spent.hits,
        misses=spent.misses,
        loads=spent.loads,
        evictions=spent.evictions,
        bytes_read=spent.bytes_read,
    )


def read_predictions(current: Pass, ids: Any, logits: Any) -> None:
    """NLL of each next token and entropy of its distribution, in nats, where the pass holds both.

    With x the logits and p = softmax(x): NLL = ln sum exp x - x[next], H = ln sum exp x - sum p x, so that one
    exponential is taken of each.
    """
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
    flat, targets = logits.detach().reshape(rows, -1), ids.reshape(-1)
    chunk = max(1, CHUNK_NUMBERS // flat.shape[1])
    for start in range(0, len(known), chunk):
        part = torch.from_numpy(known[start : start + chunk]).to(flat.device)
        x = flat.index_select(0, part).float()
        x -= x.amax(dim=-1, keepdim=True)
        p = x.exp()
        total = p.sum(dim=-1)
        log_total = total.log()
        following_x = x.gather(1, targets[part + 1, None])[:, 0]
        nll[known[start : start + chunk]] = (log_total - following_x).cpu().numpy()
        mean = p.mul_(x).sum(dim=-1) / total
        entropy[known[start : start + chunk]] = (log_total - mean).cpu().numpy()
    current.nll, current.entropy = nll, entropy
