"""Which definition foretells what removing an expert costs: versions of trust, plain statistics, and what was tried.

    python -m tests.benchmarks.definitions [--limit TEXTS]

Reads the embedded corpus once, takes each definition from the same picks, and ranks the experts by it; the cost is that
of `observer validate`, from its file where that exists (half an hour of one core otherwise).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from transformers import AutoTokenizer

import segmoe
from observer.ablation import Ablation, ablate, default_cache
from observer.corpus import read_corpus
from observer.grid import grids
from observer.stats.blocks import BlockFigures
from observer.stats.windows import WINDOW_TOKENS, WINDOW_USES, WindowFigures
from observer.trust import DEFAULTS, TrustSettings, trust
from segmoe.embedded import CORPUS, MODEL, VALIDATION
from segmoe.events import Event, Routed

VERSION_1 = TrustSettings(
    is_model_wide=False, convergence_weight=0.7, stability_weight=0.1, efficiency_weight=0.2, spread=1.2
)


class Read(NamedTuple):
    """Every token that the model read, in order."""

    text: np.ndarray  # [tokens]
    context: np.ndarray  # [texts]
    ids: np.ndarray  # [tokens, layers, k]
    weight: np.ndarray  # [tokens, layers, k]
    c_norm: np.ndarray  # [tokens, layers, k]
    impact: np.ndarray  # [tokens, layers, k]

    def sums(self, values: np.ndarray, group: np.ndarray, groups: int, experts: int) -> np.ndarray:
        """Sum over the picks of each group of tokens, [groups, layers, experts]; group -1 is left out."""
        kept, layers = group >= 0, self.ids.shape[1]
        cell = ((group[kept, None, None] * layers + np.arange(layers)[:, None]) * experts + self.ids[kept]).ravel()
        sums = np.bincount(cell, values[kept].ravel(), groups * layers * experts)
        return sums.reshape(groups, layers, experts)


def read(path: Any) -> Read:
    """Run the embedded model over texts."""
    texts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    events: list[Event] = []
    sink = type("Sink", (), {"emit": lambda self, event: events.append(event)})()
    model, tokenizer = segmoe.load(MODEL, sink=sink, capture="contribution"), AutoTokenizer.from_pretrained(MODEL)
    parts = []
    for number, text in enumerate(texts):
        events.clear()
        ids = tokenizer(text["text"], truncation=True, max_length=256, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
        layers: list[Any] = [event for event in events if isinstance(event, Routed)]
        parts.append(
            (
                np.full(ids.shape[1], number),
                np.stack([e.topk_ids for e in layers], 1).astype(np.intp),
                np.stack([e.topk_weights for e in layers], 1).astype(np.float64),
                np.stack([e.contribution.c_norm for e in layers], 1).astype(np.float64),
                np.stack([e.contribution.impact() for e in layers], 1),
            )
        )
    text_of, *arrays = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Read(text_of, np.array([text["context"] for text in texts]), *arrays)


def evidence(seen: Read, chosen: np.ndarray, values: np.ndarray, block_tokens: int, experts: int) -> BlockFigures:
    """Moments over full blocks of the chosen tokens."""
    blocks = int(chosen.sum()) // block_tokens
    group = np.full(len(chosen), -1)
    group[np.flatnonzero(chosen)[: blocks * block_tokens]] = np.repeat(np.arange(blocks), block_tokens)
    s = seen.sums(values, group, blocks, experts) / block_tokens
    return BlockFigures(np.full((s.shape[1], 1), float(blocks)), s.mean(0), ((s - s.mean(0)) ** 2).sum(0))


def definitions(seen: Read, chosen: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> [layer, expert], from the chosen tokens."""
    experts = sizes.shape[1]
    all_of = np.where(chosen, 0, -1)
    tokens = chosen.sum()

    def total(values: np.ndarray) -> np.ndarray:
        return seen.sums(values, all_of, 1, experts)[0]

    one = np.ones(seen.impact.shape)
    uses, impact = total(one), total(seen.impact)
    windows = np.where(chosen, np.arange(len(chosen)) // WINDOW_TOKENS, -1)
    count = int(windows.max()) + 1
    used = seen.sums(one, windows, count, experts)
    per_use = np.where(
        used >= WINDOW_USES, seen.sums(seen.impact, windows, count, experts) / np.maximum(used, 1), np.nan
    )
    known = np.isfinite(per_use).sum(0).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        filled = np.where(np.isfinite(per_use), per_use, 0.0)
        mean = filled.sum(0) / known
        cv = np.sqrt((np.where(np.isfinite(per_use), (per_use - mean) ** 2, 0)).sum(0) / known) / mean
    figures = WindowFigures(known, np.nan_to_num(cv))

    def scored(power: float, block: int, settings: TrustSettings) -> np.ndarray:
        blocks = evidence(seen, chosen, seen.impact**power, block, experts)
        return trust(blocks, figures, impact_sum=impact, uses=uses, expert_bytes=sizes, settings=settings).trust

    def weighted(stability: float, efficiency: float) -> TrustSettings:
        return TrustSettings(
            convergence_weight=1 - stability - efficiency, stability_weight=stability, efficiency_weight=efficiency
        )

    found = {
        "trust, version 2": scored(1.5, 256, DEFAULTS),
        "  with 0.05 stability, 0.1 efficiency": scored(1.5, 256, weighted(0.05, 0.1)),
        "  against its layer's median": scored(1.5, 256, TrustSettings(is_model_wide=False)),
        "  of impact instead of impact^1.5": scored(1.0, 256, DEFAULTS),
        "trust, version 1": scored(1.0, 128, VERSION_1),
    }
    found |= {
        f"impact^{power:g} per token": total(seen.impact**power) / tokens for power in (0.5, 1, 1.25, 1.5, 1.75, 2, 3)
    }
    return found | {
        "REAP": total(seen.c_norm) / np.maximum(uses, 1),
        "EAN": total(np.divide(seen.c_norm, seen.weight, out=0 * one, where=seen.weight > 0)),
        "|c|^2 per token": total(seen.c_norm**2) / tokens,
        "mean routing weight": total(seen.weight) / np.maximum(uses, 1),
        "activation frequency": uses / tokens,
    }


def rhos(values: dict[str, np.ndarray], cost: Ablation, texts: np.ndarray) -> tuple[float, float, list[float]]:
    """Spearman global, within layer, and per context, with the cost on the given texts."""
    labels, layers = np.array(cost.contexts), np.array([key.layer for key in cost.keys])

    def of(chosen: np.ndarray) -> np.ndarray:
        return cost.cost[:, chosen].sum(1) / cost.predicted[chosen].sum()

    overall, everything = of(texts), values["*"].ravel()
    within = [spearmanr(everything[layers == n], overall[layers == n])[0] for n in np.unique(layers)]
    each = [
        spearmanr(part.ravel(), of(texts & (labels == context)))[0]
        for context, part in values.items()
        if context != "*"
    ]
    return spearmanr(everything, overall)[0], float(np.mean(within)), each


@click.command()
@click.option("--limit", type=int, help="Only the first validation texts.")
def main(limit: int | None) -> None:
    """Print a line for each definition; the halves of the texts show what is luck."""
    cost = ablate(MODEL, read_corpus(VALIDATION, limit), cache=default_cache())
    manifest = segmoe.load(MODEL).segmoe.manifest
    sizes = grids({key: segment.nbytes for key, segment in manifest.experts.items()})["model"].bytes
    seen = read(CORPUS)
    contexts = sorted(set(cost.contexts))
    by_context = {
        "*": definitions(seen, np.ones(len(seen.text), bool), sizes),
        **{c: definitions(seen, seen.context[seen.text] == c, sizes) for c in contexts},
    }
    everything = np.ones(len(cost.contexts), bool)
    halves = np.zeros(len(cost.contexts), bool)
    for context in contexts:
        halves[np.flatnonzero(np.array(cost.contexts) == context)[::2]] = True
    table = Table("definition", "global", "halves", "within layer", "per context", *contexts)
    for name in by_context["*"]:
        values = {context: found[name] for context, found in by_context.items()}
        rho, within, each = rhos(values, cost, everything)
        parts = " ".join(f"{rhos(values, cost, half)[0]:.3f}" for half in (halves, ~halves))
        table.add_row(name, f"{rho:.3f}", parts, f"{within:.3f}", f"{np.mean(each):.3f}", *(f"{r:.3f}" for r in each))
    console = Console()
    console.width = max(console.width, 130)
    console.print(table, f"{len(cost.keys)} experts, each removed on {len(cost.contexts)} texts")


if __name__ == "__main__":
    main()
