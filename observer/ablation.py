"""What removing an expert costs: next-token NLL without it minus NLL with it, text by text. What foretold it is
validate.py.

An expert's routing weight is set to zero, without re-routing. This runs the stock model; nothing of segmoe or of the
observer is in its way. One pass over the texts for each expert is much work, so it is kept in a file and goes on there.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from observer.corpus import Text
from observer.errors import ObserverError
from segmoe.building import quiet_transformers, read_config
from segmoe.checkpoint import open_checkpoint
from segmoe.events import ExpertKey
from segmoe.locating import build_manifest
from segmoe.modules import experts_modules

Array = NDArray[np.float64]

SAVE_S = 20.0
"""A kill loses at most so many seconds of work."""


class Ablation(NamedTuple):
    """What removing each expert costs on each text."""

    keys: list[ExpertKey]
    contexts: list[str]  # of each text
    cost: Array  # [experts, texts] sum over the text's tokens of NLL without the expert minus NLL with it, nats
    predicted: Array  # [texts] predicted tokens


def default_cache() -> Path:
    """Where finished work is kept: $XDG_CACHE_HOME/segmoe, or ~/.cache/segmoe."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segmoe"
    except RuntimeError:  # a container's user may have none
        raise ObserverError(
            "this user has no home folder to keep finished work in; give a folder with --cache"
        ) from None


def ablate(
    checkpoint: Path,
    texts: Sequence[Text],
    experts: Sequence[ExpertKey] | None = None,
    *,
    max_tokens: int = 256,
    batch: int = 8,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Ablation:
    """Remove each of the experts (all without a choice) in turn from the stock model, in fp32.

    With a `cache` folder, what is known there of this checkpoint and these texts is not done again, and what is done is
    added to it every 20 seconds.
    """
    kept = None if cache is None else _writable(cache) / f"ablation-{_digest(checkpoint, texts, max_tokens)}.npz"
    known = _read(kept)
    model, banks = stock(checkpoint)
    every = [ExpertKey(*place, expert) for place, module in banks.items() for expert in range(module.num_experts)]
    wanted = every if experts is None else list(experts)
    if unknown := sorted(set(wanted) - set(every)):
        raise ObserverError(f"{checkpoint} has no expert {tuple(unknown[0])}; choose among its own")
    ids, batches = _batches(checkpoint, texts, max_tokens, batch)
    missing = [key for key in wanted if key not in known]
    intact = _nll(model, batches, len(ids)) if missing else np.zeros(len(ids))
    saved_s = time.monotonic()
    for key in missing:
        handle = banks[key.component, key.layer].register_forward_pre_hook(_without([key.expert]))
        known[key] = _nll(model, batches, len(ids)) - intact
        handle.remove()
        progress(len(wanted) - len(missing) + missing.index(key) + 1, len(wanted))
        if kept is not None and (time.monotonic() - saved_s > SAVE_S or key == missing[-1]):
            _write(kept, known)
            saved_s = time.monotonic()
    predicted = np.array([max(len(text) - 1, 0) for text in ids], np.float64)
    return Ablation(wanted, [text.context for text in texts], np.stack([known[key] for key in wanted]), predicted)


def nll_keeping(
    checkpoint: Path,
    texts: Sequence[Text],
    kept: Sequence[Collection[ExpertKey]],
    *,
    max_tokens: int = 256,
    batch: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """Next-token NLL per token with no experts but these, for each choice of experts to keep."""
    model, banks = stock(checkpoint)
    ids, batches = _batches(checkpoint, texts, max_tokens, batch)
    predicted = sum(max(len(text) - 1, 0) for text in ids)
    found = []
    for number, chosen in enumerate(kept):
        handles = []
        for place, module in banks.items():
            gone = [expert for expert in range(module.num_experts) if ExpertKey(*place, expert) not in chosen]
            handles.append(module.register_forward_pre_hook(_without(gone)))
        found.append(float(_nll(model, batches, len(ids)).sum()) / predicted)
        for handle in handles:
            handle.remove()
        progress(number + 1, len(kept))
    return found


def stock(checkpoint: Path) -> tuple[Any, dict[tuple[str, int], Any]]:
    """The stock model in fp32 and its experts modules by component and layer."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, experts_implementation="eager"
        ).eval()
    banks = {(place.component, place.layer): model.get_submodule(place.path) for place in experts_modules(model)}
    return model, banks


def _batches(
    checkpoint: Path, texts: Sequence[Text], max_tokens: int, batch: int
) -> tuple[list[list[int]], list[_Batch]]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = [tokenizer(text.text)["input_ids"][:max_tokens] for text in texts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    return ids, [_pad(ids, order[start : start + batch]) for start in range(0, len(order), batch)]


def _digest(checkpoint: Path, texts: Sequence[Text], max_tokens: int) -> str:
    opened = open_checkpoint(checkpoint)
    model = build_manifest(opened, read_config(opened.folder)).digest
    return hashlib.sha256(json.dumps([model, [list(text) for text in texts], max_tokens]).encode()).hexdigest()[:16]


def _read(kept: Path | None) -> dict[ExpertKey, Array]:
    if kept is None or not kept.exists():
        return {}
    with np.load(kept, allow_pickle=False) as stored:
        keys = [
            ExpertKey(str(c), int(n), int(e)) for c, n, e in zip(*(stored[f] for f in ExpertKey._fields), strict=True)
        ]
        return dict(zip(keys, stored["cost"], strict=True))


def _writable(cache: Path) -> Path:
    """Make the folder; refuse one that would lose an hour's work."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError as error:
        problem = f"{cache}: finished work cannot be kept there ({error.strerror}); give another folder with --cache"
        raise ObserverError(problem) from None


def _write(kept: Path, known: dict[ExpertKey, Array]) -> None:
    columns: dict[str, Any] = dict(zip(ExpertKey._fields, map(np.array, zip(*known, strict=True)), strict=True))
    partial = kept.with_suffix(".partial.npz")
    np.savez(partial, cost=np.stack(list(known.values())), **columns)
    partial.replace(kept)


def _without(experts: Sequence[int]) -> Callable[..., Any]:
    gone = torch.tensor(experts, dtype=torch.long)

    def hook(module: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, ids, weights = arguments
        return hidden, ids, weights.masked_fill(torch.isin(ids, gone), 0.0)

    return hook


class _Batch(NamedTuple):
    texts: list[int]
    ids: torch.Tensor
    mask: torch.Tensor


def _pad(ids: list[list[int]], chosen: list[int]) -> _Batch:
    longest = max(len(ids[index]) for index in chosen)
    padded = torch.zeros(len(chosen), longest, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, index in enumerate(chosen):
        padded[row, : len(ids[index])] = torch.tensor(ids[index])
        mask[row, : len(ids[index])] = 1
    return _Batch(chosen, padded, mask)


def _nll(model: Any, batches: list[_Batch], texts: int) -> Array:
    """Sum of next-token NLL of each text."""
    found = np.zeros(texts)
    for batch in batches:
        with torch.inference_mode():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
        found[batch.texts] = (nll * batch.mask[:, 1:]).sum(1).double().numpy()
    return found
