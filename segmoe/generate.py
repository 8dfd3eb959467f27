"""Let a segmented model write, streamed, and tell what that cost. Options and exit codes are cli.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TextStreamer

from segmoe.building import quiet_transformers
from segmoe.checkpoint import open_checkpoint
from segmoe.counters import Counters
from segmoe.errors import ConfigError
from segmoe.policies import DEFAULT_POLICY
from segmoe.prompts import read_tokenizer
from segmoe.runtime import Runtime, load
from segmoe.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a generation cost, whole or up to its interruption."""

    prompt_tokens: int
    new_tokens: int
    first_token_s: float  # from the call to the first new token
    rest_s: float  # from the first new token to the last
    spent: Counters
    experts_in_memory: int
    interrupted: bool

    @property
    def tokens_per_s(self) -> float:
        """Speed after the first token, or 0 if there was no second."""
        return (self.new_tokens - 1) / self.rest_s if self.new_tokens > 1 else 0.0

    @property
    def line(self) -> str:
        """The figures for people."""
        used = self.spent.hits + self.spent.misses
        hits = f"{self.spent.hits / used:.1%} of {used:,} expert uses were hits" if used else "no expert was used"
        prefetched, wasted = self.spent.prefetched, self.spent.wasted
        early = f"; {prefetched:,} misses were prefetched, {wasted:,} reads wasted" if prefetched + wasted else ""
        return (
            f"{'interrupted: ' if self.interrupted else ''}{self.prompt_tokens:,} prompt tokens, first token after "
            f"{self.first_token_s:.2f} s; {self.new_tokens:,} new tokens, {self.tokens_per_s:.1f} tokens/s; {hits}, "
            f"{format_bytes(self.spent.bytes_read)} read, {self.experts_in_memory:,} experts in memory{early}"
        )


def generate(
    path: str | Path,
    prompt: str,
    *,
    chat: bool = False,
    max_new_tokens: int = 128,
    experts: int | None = None,
    budget: str | int | None = None,
    policy: str = DEFAULT_POLICY,
    device: str = "cpu",
    threads: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    seed: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Stream the continuation of a prompt to stdout; Ctrl-C ends it with the figures so far.

    A quarter of the experts may be in memory if not told otherwise.
    `sampling` are the options of transformers' sampling (temperature, top_p, top_k); without them the likeliest token
    is taken. `report` is told what the user should know of the budget.
    """
    tokenizer = read_tokenizer(open_checkpoint(path).folder)
    if tokenizer is None:
        raise ConfigError(f"{path} has no tokenizer to read a prompt with; put its tokenizer.json beside the weights")
    inputs = _inputs(tokenizer, prompt, chat)
    model = load(path, experts=experts, budget=budget, policy=policy, device=device, threads=threads)
    runtime: Runtime = model.segmoe
    if experts is None and budget is None:  # nothing is in memory yet
        runtime.cache.capacity_experts = max(1, len(runtime.manifest.experts) // 4)
    if warning := too_small(runtime):
        report(warning)
    if seed is not None:
        torch.manual_seed(seed)
    options: dict[str, Any] = {"do_sample": False} if sampling is None else {"do_sample": True, **sampling}
    inputs = {name: tensor.to(runtime.device) for name, tensor in inputs.items()}
    streamer = _Streamer(tokenizer)
    interrupted = False
    with quiet_transformers():
        try:
            model.generate(**inputs, **options, max_new_tokens=max_new_tokens, streamer=streamer)
        except KeyboardInterrupt:
            interrupted = True
            streamer.end()
    figures = Figures(
        prompt_tokens=inputs["input_ids"].shape[1],
        new_tokens=streamer.new_tokens,
        first_token_s=streamer.first_s - streamer.began_s,
        rest_s=streamer.last_s - streamer.first_s,
        spent=runtime.cache.counters.copy(),
        experts_in_memory=len(runtime.cache),
        interrupted=interrupted,
    )
    runtime.close()
    return figures


def too_small(runtime: Runtime) -> str | None:
    """One sentence if the budget is below one token cycle, the experts that one token touches."""
    cache, manifest = runtime.cache, runtime.manifest
    cycle = manifest.token_cycle
    experts = sum(cycle.values())
    sizes = {key.component: segment.nbytes for key, segment in manifest.experts.items()}
    nbytes = sum(sizes[component] * count for component, count in cycle.items())
    few = cache.capacity_experts is not None and cache.capacity_experts < experts
    if not few and (cache.capacity_bytes is None or cache.capacity_bytes >= nbytes):
        return None
    return (
        f"the budget is below the {experts:,} experts ({format_bytes(nbytes)}) that one token touches: the text is the "
        f"same, but most experts are read from disk anew for every token"
    )


class _Streamer(TextStreamer):  # type: ignore[misc]
    """Prints text as it comes, and notes when and how many tokens came."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.new_tokens = 0
        self.began_s = self.first_s = self.last_s = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then each token."""
        is_prompt = self.next_tokens_are_prompt
        super().put(value)
        if not is_prompt:
            self.last_s = time.perf_counter()
            self.new_tokens += value.numel()
            if self.new_tokens == value.numel():
                self.first_s = self.last_s


def _inputs(tokenizer: Any, prompt: str, chat: bool) -> dict[str, torch.Tensor]:
    if chat and tokenizer.chat_template is None:
        raise ConfigError("the tokenizer has no chat template, so the model was not made for chat; leave out --chat")
    if chat:
        turns = [{"role": "user", "content": prompt}]
        batch = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        batch = tokenizer(prompt, return_tensors="pt")
    if batch["input_ids"].numel() == 0:
        raise ConfigError("the prompt has no tokens; give at least one word")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}
