"""Is the segmented model the stock model, bit for bit, and does it stay so while it is watched?

The reference is transformers' own class with its eager experts, loaded whole by transformers; for a checkpoint that
does not fit memory, layerwise.py compares layer by layer. Compared are the logits of a left-padded batch, and logits
and tokens of each step of greedy, sampled and beam generation, with no sink, with one that records everything and with
one that raises at every event; and, among these, the sequence of loads and evictions and the state of the random
generator. How far the library's default implementation lies from its own eager one is told beside the verdict.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from segmoe.building import quiet_transformers, read_config
from segmoe.checkpoint import open_checkpoint
from segmoe.errors import ConfigError
from segmoe.events import Capture, Event, EventSink, ExpertEvicted, ExpertLoaded
from segmoe.locating import build_manifest
from segmoe.modules import model_class
from segmoe.policies import DEFAULT_POLICY
from segmoe.prompts import read_tokenizer
from segmoe.runtime import load, usable_device
from segmoe.verdict import Check, StockDefault, Verdict, same_bits

PROMPTS = (
    "It is a truth universally acknowledged",
    "def main():",
    "En el principio crió Dios los cielos y la tierra, y la tierra estaba",
)
SEED = 20
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 50},
    "beam": {"do_sample": False, "num_beams": 3},
}
"""The ways of generating that are compared."""

Trace = dict[str, torch.Tensor]


def verify(
    path: str | Path,
    *,
    experts: int | None = None,
    budget: str | int | None = None,
    policy: str = DEFAULT_POLICY,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    prompts: Sequence[str] = PROMPTS,
    new_tokens: int = 12,
) -> Verdict:
    """Compare the segmented model with the stock model, which must fit memory; a quarter of the experts if not told."""
    if not prompts:
        raise ConfigError("there is nothing to compare without a prompt; give at least one")
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint.folder)
    manifest = build_manifest(checkpoint, config)
    manifest.require_complete()
    if experts is None and budget is None:
        experts = max(1, len(manifest.experts) // 4)
    place = usable_device(device)
    inputs = {name: tensor.to(place) for name, tensor in _inputs(checkpoint.folder, config, prompts).items()}
    with quiet_transformers():
        stock = model_class(config).from_pretrained(
            checkpoint.folder, dtype="auto", experts_implementation="eager", local_files_only=True
        )
    reference = _run(stock.eval().to(place), inputs, new_tokens)
    stock_default = _stock_default(stock, inputs, new_tokens, reference)
    del stock
    checks: list[Check] = []
    tapes: list[list[tuple[object, ...]]] = []
    sinks: list[tuple[str, EventSink | None, Capture]] = [
        ("unobserved", None, "off"),
        ("observed", _Recording(), "contribution"),
        ("observed by a sink that raises", _Raising(), "contribution"),
    ]
    for name, sink, capture in sinks:
        residency: dict[str, Any] = {"experts": experts, "budget": budget, "policy": policy}
        model = load(path, **residency, sink=sink, capture=capture, device=place, threads=threads)
        tapes.append(_tape(model.segmoe.cache))
        with _quiet():
            trace = _run(model, inputs, new_tokens)
        model.segmoe.close()
        checks += [_compare(f"{what}, {name}", reference[what], trace[what]) for what in reference]
    for (name, _, _), tape in zip(sinks[1:], tapes[1:], strict=True):
        detail = f"{len(tapes[0]):,} against {len(tape):,}"
        checks.append(Check(f"loads and evictions, {name} against unobserved", tape == tapes[0], detail))
    outputs = hashlib.sha256()
    for name, tensor in reference.items():
        if "logits" in name:
            outputs.update(tensor.float().numpy().tobytes())
    return Verdict(
        checkpoint_digest=checkpoint.digest,
        output_digest=outputs.hexdigest(),
        checks=tuple(checks),
        stock_default=stock_default,
    )


def _inputs(folder: Path, config: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """A left-padded batch; random token ids where the folder has no tokenizer."""
    vocabulary = config.get_text_config().vocab_size
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(1, vocabulary, (3, 16), generator=generator)
        mask = torch.ones_like(ids)
        for row, padding in enumerate((0, 5, 11)):
            mask[row, :padding] = 0
        return {"input_ids": ids, "attention_mask": mask}
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _run(model: Any, inputs: dict[str, torch.Tensor], new_tokens: int, modes: Sequence[str] = tuple(MODES)) -> Trace:
    common = {"max_new_tokens": new_tokens, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        trace = {"logits of a padded batch": model(**inputs).logits.clone()}
        for name in modes:
            torch.manual_seed(SEED)
            answer = model.generate(**inputs, **MODES[name], **common)
            trace[f"tokens of {name} generation"] = answer.sequences
            trace[f"logits of each {name} step"] = torch.stack(answer.logits)
            trace[f"random state after {name}"] = _random_state(model.device)
    return {name: tensor.cpu() for name, tensor in trace.items()}


def _random_state(device: torch.device) -> torch.Tensor:
    return torch.get_rng_state() if device.type == "cpu" else torch.cuda.get_rng_state(device)


def _stock_default(stock: Any, inputs: dict[str, torch.Tensor], new_tokens: int, eager: Trace) -> StockDefault | None:
    """Run stock once more as it runs when nobody chooses an implementation."""
    implementation: str = stock.get_correct_experts_implementation(None)
    if implementation == "eager":
        return None
    stock.set_experts_implementation(implementation)
    try:
        found = _run(stock, inputs, new_tokens, modes=("greedy",))
    except RuntimeError as error:  # its kernels want aligned shapes
        return StockDefault(implementation, None, None, str(error).split("\n")[0])
    logits, tokens = "logits of a padded batch", "tokens of greedy generation"
    largest = (found[logits].float() - eager[logits].float()).abs().max().item()
    return StockDefault(implementation, largest, not torch.equal(found[tokens], eager[tokens]))


def _compare(what: str, wanted: torch.Tensor, found: torch.Tensor) -> Check:
    shape = " x ".join(str(size) for size in wanted.shape)
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return Check(what, False, f"{shape} {wanted.dtype} against {tuple(found.shape)} {found.dtype}")
    if same_bits(wanted, found):
        return Check(what, True, shape)
    differing = (wanted != found) & ~(wanted.isnan() & found.isnan())
    largest = (wanted.float() - found.float()).abs().max().item()
    return Check(what, False, f"{shape}, {int(differing.sum()):,} values differ, by {largest:.3g} at most")


def _tape(cache: Any) -> list[tuple[object, ...]]:
    """Note each load and eviction on its way to the sink, whether there is a sink or not."""
    tape: list[tuple[object, ...]] = []
    emit = cache.emit

    def note(event: Event) -> None:
        if isinstance(event, ExpertLoaded):
            tape.append(("load", event.step, event.key))
        elif isinstance(event, ExpertEvicted):
            tape.append(("evict", event.step, event.key, event.reason, event.policy_score))
        emit(event)

    cache.emit = note
    return tape


class _Recording:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event, /) -> None:
        self.events.append(event)


class _Raising:
    def emit(self, event: Event, /) -> None:
        raise RuntimeError("this sink always fails")


class _quiet:  # noqa: N801 - reads as a phrase behind `with`
    """Keep the warning about the failing sink from a user who asked for it."""

    def __enter__(self) -> None:
        logging.getLogger("segmoe.events").setLevel(logging.CRITICAL)

    def __exit__(self, *error: object) -> None:
        logging.getLogger("segmoe.events").setLevel(logging.NOTSET)
