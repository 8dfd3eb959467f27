"""Is the segmented model the stock model, bit for bit, and does it stay so while it is watched?

The reference is transformers' own class with its eager experts, loaded by transformers. Compared are the logits of a
left-padded batch, and logits and tokens of each step of greedy and of sampled generation, with no sink, with one that
records everything and with one that raises at every event; and, among these, the sequence of loads and evictions and
the state of the random generator.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoTokenizer

from segmoe.checkpoint import open_checkpoint
from segmoe.errors import ConfigError
from segmoe.events import Capture, Event, EventSink, ExpertEvicted, ExpertLoaded
from segmoe.manifest import model_class
from segmoe.runtime import load, read_config

PROMPTS = (
    "It is a truth universally acknowledged",
    "def main():",
    "En el principio crió Dios los cielos y la tierra, y la tierra estaba",
)
SEED = 20

Trace = dict[str, torch.Tensor]


class Check(NamedTuple):
    """One comparison."""

    what: str
    equal: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The comparisons and what they were made on."""

    checkpoint_digest: str
    output_digest: str  # sha256 over the reference's logits
    checks: tuple[Check, ...]

    @property
    def equal(self) -> bool:
        """Whether all comparisons found no differing bit."""
        return all(check.equal for check in self.checks)

    @property
    def lines(self) -> list[str]:
        """A line for each comparison, then the verdict."""
        rows = [f"{'equal  ' if check.equal else 'DIFFERS'}  {check.what}: {check.detail}" for check in self.checks]
        verdict = "equal to stock transformers (eager experts), bit for bit" if self.equal else "NOT the stock model"
        ids = f"checkpoint {self.checkpoint_digest[:12]}, outputs {self.output_digest[:12]}"
        return [*rows, f"{verdict} ({ids})"]


def verify(
    path: str | Path,
    *,
    experts: int | None = None,
    budget: str | int | None = None,
    policy: str = "lru",
    prompts: Sequence[str] = PROMPTS,
    new_tokens: int = 12,
) -> Verdict:
    """Compare the segmented model with the stock model, which must fit memory; two slots per layer if not told."""
    if not prompts:
        raise ConfigError("there is nothing to compare without a prompt; give at least one")
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint.folder)
    inputs = _inputs(checkpoint.folder, config, prompts)
    stock = model_class(config).from_pretrained(
        checkpoint.folder, dtype="auto", experts_implementation="eager", local_files_only=True
    )
    reference = _run(stock.eval(), inputs, new_tokens)
    del stock
    checks: list[Check] = []
    tapes: list[list[tuple[object, ...]]] = []
    sinks: list[tuple[str, EventSink | None, Capture]] = [
        ("unobserved", None, "off"),
        ("observed", _Recording(), "contribution"),
        ("observed by a sink that raises", _Raising(), "contribution"),
    ]
    for name, sink, capture in sinks:
        model = load(path, experts=experts, budget=budget, policy=policy, sink=sink, capture=capture)
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
    return Verdict(checkpoint_digest=checkpoint.digest, output_digest=outputs.hexdigest(), checks=tuple(checks))


def _inputs(folder: Path, config: Any, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """A left-padded batch; random token ids where the folder has no tokenizer."""
    vocabulary = config.get_text_config().vocab_size
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        generator = torch.Generator().manual_seed(SEED)
        ids = torch.randint(1, vocabulary, (3, 16), generator=generator)
        mask = torch.ones_like(ids)
        for row, padding in enumerate((0, 5, 11)):
            mask[row, :padding] = 0
        return {"input_ids": ids, "attention_mask": mask}
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def _run(model: Any, inputs: dict[str, torch.Tensor], new_tokens: int) -> Trace:
    common = {"max_new_tokens": new_tokens, "output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        trace = {"logits of a padded batch": model(**inputs).logits.clone()}
        for name, options in (("greedy", {"do_sample": False}), ("sampled", {"do_sample": True, "top_k": 50})):
            torch.manual_seed(SEED)
            answer = model.generate(**inputs, **options, **common)
            trace[f"tokens of {name} generation"] = answer.sequences
            trace[f"logits of each {name} step"] = torch.stack(answer.logits)
            trace[f"random state after {name}"] = torch.get_rng_state()
    return trace


def _compare(what: str, wanted: torch.Tensor, found: torch.Tensor) -> Check:
    shape = " x ".join(str(size) for size in wanted.shape)
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return Check(what, False, f"{shape} {wanted.dtype} against {tuple(found.shape)} {found.dtype}")
    if torch.equal(wanted, found):
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
